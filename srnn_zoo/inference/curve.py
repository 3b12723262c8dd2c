"""The curve of accuracy against cost, beside every level, single scale and ensemble, and as a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.views import level_names

from .answers import CollectedAnswers, collect
from .calibrate import check_calibrated, stored_curve
from .exits import ScoreRule, stored_rule
from .thresholds import fit_rule, measure, search

Loader = Iterable[tuple[Any, Tensor]]


@dataclass(frozen=True)
class Point:
    """One way to answer, on a data set.

    Attributes:
        name: of the rule, `level 0`, `single scale 224 x 224`, `logit ensemble`, ….
        kind: `"curve"` (early exit), `"level"` (all stop there), `"single scale"` (the base CNN on one level alone),
            `"ensemble"` (the base CNN on all levels, or several models), `"model"` (another model), or `"cascade"`
            (several models in turn).
        gmacs: mean cost of an image.
        accuracy: top-1, in per cent.
        stop_shares: the share of the images that stopped at each level, or model, in [0, 1]; empty where none can.
        thresholds: for every level but the last.
        optimistic: whether the thresholds were chosen on the same images on which they were measured.
    """

    name: str
    kind: Literal["curve", "level", "single scale", "ensemble", "model", "cascade"]
    gmacs: float
    accuracy: float
    stop_shares: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    optimistic: bool = False


def pareto(
    source: SRNN | CollectedAnswers,
    loader: Loader | None = None,
    *,
    thresholds_from: Loader | CollectedAnswers | SRNN | None = None,
    rule: str | None = None,
) -> list[Point]:
    """Accuracy against mean cost: early exit, every level by itself, the base CNN on single scales, and its ensembles.

    A curve promises too much if its thresholds were chosen on the images on which it is measured. So they should come
    from other images: those of `thresholds_from`, or those on which the model was calibrated. Without either they are
    chosen on the same images, and the points are marked as optimistic.

    Args:
        source: a model in eval mode; or what `collect` made, without a loader.
        loader: batches of images or levels, with their class indices `(B,)`, on which all is measured.
        thresholds_from: held-out images that choose temperatures and thresholds, as a loader or what `collect` made of
            it; or a calibrated model, for those stored with it. By default `source`, if it is a calibrated model.
        rule: one of `list_exits(scored=True)`; by default the calibration's, else confidence.

    Returns:
        the curve, cheapest first, then levels, single scales and ensembles. With thresholds from elsewhere accuracy
        need not rise along the curve.

    Raises:
        ValueError: for an unknown rule, another one than the calibration's, images as `collect` says, and levels of
            other sizes than those the thresholds come from.

    Examples:
        >>> points = pareto(model, test_loader, thresholds_from=val_loader)
        >>> write_pareto(points, "pareto.csv")
    """
    if isinstance(source, SRNN):
        if loader is None:
            raise ValueError("pareto(model, loader) needs images; pareto(answers) takes what `collect` made")
        if thresholds_from is None and "exit" in source.metadata:
            thresholds_from = source
        if thresholds_from is not None and not isinstance(thresholds_from, CollectedAnswers | SRNN):
            thresholds_from = collect(source, thresholds_from)
        answers = collect(source, loader)
    elif loader is not None:
        raise ValueError("pareto(answers) takes no loader: the answers are what is measured")
    else:
        answers = source
    if isinstance(thresholds_from, SRNN):
        fitted, thresholds = _stored(thresholds_from, answers, rule)
    elif thresholds_from is None or isinstance(thresholds_from, CollectedAnswers):
        held_out = thresholds_from or answers
        if (held_out.sizes, len(held_out.gmacs)) != (answers.sizes, len(answers.gmacs)):
            theirs = f"levels of other sizes ({held_out.sizes}) than those measured ({answers.sizes})"
            raise ValueError(f"the held-out images have {theirs}")
        fitted = fit_rule(held_out, rule or "confidence")
        thresholds = [outcome.thresholds for outcome in search(held_out, fitted)]
    else:
        raise ValueError("thresholds_from must be answers too where answers are measured: collect(model, loader)")
    optimistic = thresholds_from is None
    curve = [
        Point(fitted.name, "curve", o.gmacs, o.accuracy, o.stop_shares, o.thresholds, optimistic)
        for o in measure(answers, fitted, thresholds)
    ]
    return [*sorted(curve, key=lambda point: point.gmacs), *_levels(answers), *_base_cnn(answers)]


def write_pareto(points: Iterable[Point], path: str | Path) -> None:
    """Write points to a CSV file, one a row; the column `exits` holds their `stop_shares`.

    Raises:
        ValueError: for no points.
    """
    rows = [
        (p.name, p.kind, p.gmacs, p.accuracy, _numbers(p.stop_shares), _numbers(p.thresholds), p.optimistic)
        for p in points
    ]
    if not rows:
        raise ValueError("no points to write")
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "kind", "gmacs", "accuracy", "exits", "thresholds", "optimistic"), *rows])


def _stored(model: SRNN, answers: CollectedAnswers, rule: str | None) -> tuple[ScoreRule, list[tuple[float, ...]]]:
    """Rule and thresholds of a calibrated model."""
    check_calibrated(model, answers.sizes or model.level_sizes())
    stored = stored_rule(model)
    if rule not in (None, stored.name):
        raise ValueError(f"the model was calibrated with rule {stored.name!r}, not {rule!r}: give thresholds_from")
    stored.check(len(answers.gmacs))
    return stored, [outcome.thresholds for outcome in stored_curve(model)]


def _levels(answers: CollectedAnswers) -> list[Point]:
    """All images stop at one level."""
    costs = answers.gmacs.tolist()
    stops = torch.eye(len(costs)).tolist()
    return [
        Point(f"level {index}", "level", cost, top1(right), tuple(stops[index]))
        for index, (cost, right) in enumerate(zip(costs, answers.right, strict=True))
    ]


def _base_cnn(answers: CollectedAnswers) -> list[Point]:
    """What the base CNN does with one level, which costs that level alone, and with all."""
    points: list[Point] = []
    if answers.single_scales is not None:
        costs = answers.gmacs.diff(prepend=answers.gmacs.new_zeros(1)).tolist()
        names = level_names(answers.sizes, answers.zooms) if answers.sizes else map(str, range(len(costs)))
        points += [
            Point(f"single scale {name}", "single scale", cost, top1(classes == answers.targets))
            for name, cost, classes in zip(names, costs, answers.single_scales, strict=True)
        ]
    for name, classes in (("logit", answers.logit_ensemble), ("probability", answers.prob_ensemble)):
        if classes is not None:
            cost = answers.gmacs[-1].item()
            points.append(Point(f"{name} ensemble", "ensemble", cost, top1(classes == answers.targets)))
    return points


def top1(right: Tensor) -> float:
    """The share that is right, in per cent."""
    return 100 * right.double().mean().item()


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
