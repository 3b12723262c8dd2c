"""Budgets: exit thresholds from held-out images, saved with the model, and the rule for any budget."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from srnn_zoo.models.srnn import SRNN
from srnn_zoo.models.tasks import check_classifies
from srnn_zoo.models.temperatures import MIN_IMAGES
from srnn_zoo.transforms.levels import pair
from srnn_zoo.transforms.views import level_names

from .answers import CollectedAnswers, collect
from .early_exit import Anytime
from .exits import NEVER, FixedLevel, ScoreRule, score_rule, stored_rule
from .guarantee import certify
from .thresholds import Outcome, fit_rule, measure, search, use_up

FEW_IMAGES = 200  # with fewer, the accuracy is not known to 7 points
MAX_STORED = 64  # points of the curve that travel with the model
SLACK = 1e-6  # relative, for rounded sums


def calibrate(
    model: SRNN,
    loader: Iterable[tuple[Any, Tensor]] | CollectedAnswers,
    *,
    budget_gmacs: float | None = None,
    target_accuracy: float | None = None,
    max_loss: float | None = None,
    probability: float = 0.95,
    rule: str = "confidence",
    spend: bool = False,
) -> Anytime:
    """Find one exit threshold for every level on held-out images, never on the test split.

    Temperatures come first, one for every level (Guo et al., 2017), then thresholds (`thresholds.search`). The
    result is stored in `model.metadata`, so that it is saved with the model and comes back: these thresholds, and up to
    64 others, from which `budget_rule` takes those of any budget without data.

    A budget that pays for every level leaves nothing to decide: all levels are read.

    Args:
        model: in eval mode.
        loader: batches of images or levels, with their class indices `(B,)`; or what `collect` made of them. At least
            10 images; a warning is given below 200, and for classes without an image.
        budget_gmacs: the most that an image may cost on average; the most accurate thresholds are taken.
        target_accuracy: the least top-1 accuracy, in per cent; the cheapest thresholds are taken.
        max_loss: the most that may be lost against all levels, in points of top-1 accuracy; the cheapest thresholds are
            taken that keep it on new images of the same kind with this `probability` (`guarantee.certify`). Half of
            the images fit the rule, and half test it.
        probability: see `max_loss`.
        spend: take the thresholds that use the budget up, by MSDNet's rule, which looks at no target. That is steadier
            with few held-out images, where the most accurate of many thresholds is partly luck.
        rule: one of `list_exits(scored=True)`: `"confidence"`, `"margin"`, `"entropy"`, `"learned"`, or a registered
            one.

    Raises:
        ValueError: if not exactly one aim is given, the budget is below the first level's cost, the accuracy is out of
            reach or no percentage, the promise cannot be given, the rule is unknown, the model is not for classes, and
            for images as `collect` says.

    Examples:
        >>> fast = calibrate(model, val_loader, budget_gmacs=1.0)
        >>> model.save_pretrained("flowers")
        >>> fast = Anytime(SRNN.from_pretrained("flowers").eval())
    """
    if [budget_gmacs, target_accuracy, max_loss].count(None) != 2:
        raise ValueError("give one aim: budget_gmacs, target_accuracy or max_loss")
    if spend and budget_gmacs is None:
        raise ValueError("spend is about a budget: give budget_gmacs")
    if target_accuracy is not None and not 1 < target_accuracy <= 100:
        raise ValueError(f"target_accuracy is in per cent, above 1 and up to 100 (75, not 0.75); got {target_accuracy}")
    score_rule(rule)
    check_classifies(model, "calibration")
    answers = loader if isinstance(loader, CollectedAnswers) else collect(model, loader)
    _check_calibration_set(model, answers)
    certain = None if max_loss is None else certify(answers, rule, max_loss, probability)
    fitted = certain[0] if certain else fit_rule(answers, rule)
    curve = search(answers, fitted)
    budget = budget_gmacs or 0.0
    if certain:
        best = certain[1]
    elif target_accuracy is not None:
        best = next((outcome for outcome in curve if outcome.accuracy >= target_accuracy - 1e-9), None)
        if best is None:
            most = f"the most on these images is {curve[-1].accuracy:.2f} %"
            raise ValueError(f"no thresholds reach {target_accuracy:g} %: {most}")
    elif _pays(budget, answers.gmacs[-1].item()):
        [best] = measure(answers, fitted, [(NEVER,) * (len(answers.gmacs) - 1)])
    else:
        _check_budget(budget, answers.gmacs[0].item())
        best = use_up(answers, fitted, budget) if spend else _within(curve, budget)
    model.metadata["exit"] = {
        "rule": rule,
        "module": type(fitted).__module__,
        "thresholds": list(best.thresholds),
        "temperatures": list(fitted.temperatures or ()),
        **({"fitted": learnt} if (learnt := fitted.fitted()) else {}),
        "held_out": {
            "gmacs": best.gmacs,
            "top1": best.accuracy,
            "images": len(answers.targets) // (2 if certain else 1),
            **({"max_loss": max_loss, "probability": probability, "lost": best.lost} if certain else {}),
        },
        "sizes": [list(size) for size in answers.sizes or model.level_sizes()],
        **({} if model.zooms is None else {"zooms": list(model.zooms), "views": model.views}),
        "curve": [{"thresholds": list(o.thresholds), "gmacs": o.gmacs, "top1": o.accuracy} for o in _thinned(curve)],
    }
    return Anytime(model)


def budget_rule(
    model: SRNN, gmacs: float, sizes: Sequence[int | Sequence[int]] | None = None
) -> ScoreRule | FixedLevel:
    """The exit rule for a mean cost of an image, without data.

    Args:
        model: calibrated or not.
        gmacs: the most that an image may cost on average, in billions of multiply-accumulates of the backbone.
        sizes: of the levels that will be read, by default the model's own.

    Returns:
        For a model that `calibrate` has seen, a `ScoreRule`: the most accurate of the stored thresholds that kept the
        budget on the held-out images. For any other, a `FixedLevel`: the largest level that every image can afford. A
        budget that pays for every level reads all of them.

    Raises:
        ValueError: for a budget below the first level's cost, and levels of other sizes than the calibration's.

    Examples:
        >>> rule = budget_rule(model, 1.0)
        >>> logits, stopped_at, gmacs = Anytime(model, rule)(images)
    """
    wanted = [pair(size) for size in sizes] if sizes is not None else model.level_sizes()
    costs = list(itertools.accumulate(model.level_gmacs(size) for size in wanted))
    if "exit" not in model.metadata:
        _check_budget(gmacs, costs[0])
        return FixedLevel(max(level for level, cost in enumerate(costs) if _pays(gmacs, cost)))
    check_calibrated(model, wanted)  # first, as costs are of the levels too
    _check_budget(gmacs, costs[0])
    everything = (NEVER,) * (len(costs) - 1)
    thresholds = everything if _pays(gmacs, costs[-1]) else _within(stored_curve(model), gmacs).thresholds
    return stored_rule(model, thresholds)


def check_calibrated(model: SRNN, sizes: Sequence[int | Sequence[int]]) -> None:
    """ValueError for a model that was not calibrated for levels of these sizes."""
    stored = model.metadata.get("exit")
    if not stored:
        raise ValueError("the model was never calibrated: use srnn_zoo.calibrate, or `srnn-zoo calibrate`")
    theirs = _described(stored["sizes"], stored.get("zooms"), stored.get("views", "center"))
    ours = _described(sizes, model.zooms, model.views)
    if theirs != ours:
        raise ValueError(
            f"the model was calibrated for levels of {theirs}; its thresholds say nothing about levels of {ours}: "
            "use those sizes, or calibrate for these"
        )


def _described(sizes: Sequence[int | Sequence[int]], zooms: Sequence[float] | None, views: object) -> str:
    """Levels in words."""
    return " + ".join(level_names(map(pair, sizes), zooms)) + ("" if views == "center" else f" ({views})")


def stored_curve(model: SRNN) -> list[Outcome]:
    """What calibration stored, as measured on the held-out images, cheapest first."""
    points = model.metadata["exit"]["curve"]
    return [Outcome(tuple(point["thresholds"]), point["gmacs"], point["top1"], ()) for point in points]


def _within(curve: Sequence[Outcome], budget: float) -> Outcome:
    """The most accurate that keeps a budget."""
    kept = [outcome for outcome in curve if _pays(budget, outcome.gmacs)]
    if not kept:  # images that are never sure go on, whatever the threshold
        raise ValueError(f"no thresholds keep {budget} GMACs: the least on these images is {_up(curve[0].gmacs)}")
    return kept[-1]


def _thinned(curve: Sequence[Outcome]) -> list[Outcome]:
    """At most 64 points of a curve: the best for each of 64 budgets at equal distances."""
    low, high = curve[0].gmacs, curve[-1].gmacs
    budgets = [low + (high - low) * step / (MAX_STORED - 1) for step in range(MAX_STORED)]
    return sorted({_within(curve, budget) for budget in budgets}, key=lambda outcome: outcome.gmacs)


def _check_calibration_set(model: SRNN, answers: CollectedAnswers) -> None:
    """Refuse answers of another model, and those that say nothing; warn where they say little."""
    levels, images, classes = answers.logits.shape
    if (levels, classes) != (len(model.scales), model.num_classes):
        raise ValueError(
            f"the model has {len(model.scales)} levels and {model.num_classes} classes; the answers have {levels} "
            f"levels and {classes} classes"
        )
    if images < MIN_IMAGES:
        raise ValueError(f"thresholds from {images} images are chance: give {MIN_IMAGES} or more, better hundreds")
    finite = answers.logits.isfinite().all(dim=2)
    if not finite.any():
        raise ValueError("the model's logits are not finite for any image: its weights are damaged")
    if odd := int((~finite.all(dim=0)).sum()):
        _warn(f"{odd} of {images} images have logits that are not finite; they never stop there, and count as wrong")
    if images < FEW_IMAGES:
        _warn(
            f"{images} images are few: their accuracy is known to ±{98 / images**0.5:.0f} points, and thresholds of "
            f"{FEW_IMAGES} or more images would be surer"
        )
    if missing := model.num_classes - len(answers.targets.unique()):
        _warn(
            f"{missing} of the model's {model.num_classes} classes have no image in the calibration set; how early "
            "theirs should stop is not known, and accuracy and cost on them may differ from what is reported"
        )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)  # in the caller of calibrate


def _pays(budget: float, cost: float) -> bool:
    return budget >= cost * (1 - SLACK)


def _check_budget(budget: float, cheapest: float) -> None:
    if not _pays(budget, cheapest):
        raise ValueError(f"the first level alone costs {_up(cheapest)} GMACs; a budget of {budget} is too small")


def _up(gmacs: float) -> str:
    """Rounded up, so that a budget of what is printed suffices."""
    return f"{math.ceil(1000 * gmacs * (1 - SLACK)) / 1000:.3f}"
