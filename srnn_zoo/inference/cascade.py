"""Trained models beside one another: each alone, together, and in turn, where the next is asked if one is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srnn_zoo.models.cells import log_mean_probability

from .answers import CollectedAnswers
from .curve import Point, top1
from .thresholds import fit_rule, measure, search


def cascade(answers: Sequence[CollectedAnswers], all_together: bool = False) -> CollectedAnswers:
    """Models that are asked in turn, as the levels of one: `pareto` and exit rules take it as any other.

    Args:
        answers: of each model on the same images, in the order in which they are asked. What counts is the answer after
            its last level, at the cost of all its levels.
        all_together: whether all models that are asked answer together, by the mean of their probabilities; else the
            last one answers alone.

    Returns:
        answers with a level for each model, whose costs add up.

    Raises:
        ValueError: for no answers, and for answers on other images or with other numbers of classes.
    """
    if not answers:
        raise ValueError("a cascade needs at least one model")
    first = answers[0]
    for each in answers[1:]:
        if not torch.equal(each.targets, first.targets):
            raise ValueError("the models of a cascade must answer on the same images")
        if each.logits.shape[2] != first.logits.shape[2]:
            theirs = f"{first.logits.shape[2]} and {each.logits.shape[2]}"
            raise ValueError(f"the models of a cascade must have the same classes; got {theirs} of them")
    logits = torch.stack([each.logits[-1] for each in answers])
    gmacs = torch.stack([each.gmacs[-1] for each in answers]).cumsum(0)
    return CollectedAnswers(all_answer(logits) if all_together else logits, first.targets, gmacs)


def rivals(
    answers: Mapping[str, CollectedAnswers],
    held_out: Mapping[str, CollectedAnswers] | None = None,
    rule: str = "confidence",
) -> list[Point]:
    """What trained models do on a data set without a cell between them, as points beside those of `pareto`.

    Args:
        answers: of each model on the same images, by its name, in the order in which a cascade asks them.
        held_out: the same models, by the same names, on images that choose temperatures and thresholds. Without them
            the same images choose, and the points of cascades are marked as optimistic.
        rule: one of `list_exits(scored=True)`.

    Returns:
        each model by itself; of two or more also their ensemble (the mean of their probabilities), and the curves of
        both cascades, cheapest first.

    Raises:
        ValueError: as `cascade`, for an unknown rule, and for held-out answers of other models.

    Examples:
        >>> answers = {name: collect(model, loader) for name, model in (("small", small), ("large", large))}
        >>> points = pareto(srnn, loader) + rivals(answers)
    """
    if held_out is not None and held_out.keys() != answers.keys():
        theirs = f"{', '.join(held_out)} rather than {', '.join(answers)}"
        raise ValueError(f"the held-out answers must be of the same models; got {theirs}")
    points = [Point(name, "model", each.gmacs[-1].item(), top1(each.right[-1])) for name, each in answers.items()]
    if len(answers) < 2:
        return points
    together = last_answer(cascade(list(answers.values()), all_together=True))
    name = f"ensemble of {', '.join(answers)}"
    points.append(Point(name, "ensemble", together.gmacs[-1].item(), top1(together.right[-1])))
    for all_together, words in ((False, "last answers"), (True, "all answer")):
        chosen_on = cascade([(held_out or answers)[name] for name in answers], all_together)
        fitted = fit_rule(chosen_on, rule)
        thresholds = [outcome.thresholds for outcome in search(chosen_on, fitted)]
        name = f"cascade {', '.join(answers)}: {words}"
        curve = [
            Point(name, "cascade", o.gmacs, o.accuracy, o.stop_shares, o.thresholds, held_out is None)
            for o in measure(cascade(list(answers.values()), all_together), fitted, thresholds)
        ]
        points += sorted(curve, key=lambda point: point.gmacs)
    return points


def all_answer(logits: Tensor) -> Tensor:
    """The mean of the probabilities so far, after each of the models that are asked in turn, `(L, N, K)`."""
    return torch.stack([log_mean_probability(logits[: level + 1], dim=0) for level in range(len(logits))])


def last_answer(answers: CollectedAnswers) -> CollectedAnswers:
    """What the last level says alone, at the cost of all."""
    return CollectedAnswers(answers.logits[-1:], answers.targets, answers.gmacs[-1:])
