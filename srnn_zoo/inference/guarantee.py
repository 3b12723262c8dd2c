"""Thresholds with a guarantee: what early exit loses stays below a bound, with a stated probability."""

from __future__ import annotations

import math

from .answers import CollectedAnswers
from .exits import ScoreRule
from .thresholds import Outcome, family, fit_rule, measure


def certify(answers: CollectedAnswers, rule: str, max_loss: float, probability: float) -> tuple[ScoreRule, Outcome]:
    """The cheapest thresholds that pass a test of how much they lose (Learn then Test; Angelopoulos et al., 2021).

    Every second image fits the rule and gives a family of thresholds; the others test it, the dearest thresholds first,
    and the test ends at the first that fail. It counts the images that all levels answer rightly and early exit
    wrongly: so few must be improbable (an exact binomial test) if their share were `max_loss`. Images that early exit
    gets right and all levels do not are left out, so the accuracy falls by less than that.

    Args:
        answers: of held-out images.
        rule: a name of `list_exits(scored=True)`.
        max_loss: the bound, in points of top-1 accuracy, above 0.
        probability: that the bound holds, over draws of the held-out images, above 0 and below 1.

    Returns:
        the fitted rule, and what the thresholds do on the images that tested them.

    Raises:
        ValueError: for a bound or a probability out of range, and if no thresholds pass; with too few images none can.
    """
    from scipy.stats import binomtest

    if not (0 < max_loss < 100 and 0 < probability < 1):
        raise ValueError(
            "a guarantee has a loss in points of accuracy, above 0 and below 100, and a probability between 0 and 1; "
            f"got {max_loss:g} and {probability:g}"
        )
    fitting, testing = answers.select(slice(0, None, 2)), answers.select(slice(1, None, 2))
    images = len(testing.targets)
    needed = math.ceil(math.log1p(-probability) / math.log1p(-max_loss / 100))
    if images < needed:
        raise ValueError(
            f"{images} images, half of those given, cannot promise a loss below {max_loss:g} points with probability "
            f"{probability:g}: give {2 * needed} or more, or allow a greater loss"
        )
    fitted = fit_rule(fitting, rule)
    passed: Outcome | None = None
    for outcome in measure(testing, fitted, family(fitting, fitted)):
        if binomtest(outcome.lost, images, max_loss / 100, alternative="less").pvalue > 1 - probability:
            break
        passed = outcome
    if passed is None:
        raise ValueError(
            f"no thresholds promise a loss below {max_loss:g} points with probability {probability:g} on these images: "
            "allow a greater loss, or give more images"
        )
    return fitted, passed
