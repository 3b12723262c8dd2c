"""The search: what thresholds do is what a plain loop says, and with three levels and more it beats geometric rates."""

import itertools

import numpy as np
import pytest

from srnn_zoo.inference import thresholds
from srnn_zoo.inference.exits import Confidence, score_rule
from srnn_zoo.inference.thresholds import measure, search

from .conftest import synthetic_answers


def replay(answers, rule, temperatures, limits):
    """What thresholds do, by a plain loop over images and levels."""
    levels, images = answers.logits.shape[:2]
    cost, right, exits = 0.0, 0, [0] * levels
    for image in range(images):
        for level in range(levels):
            logits = answers.logits[level, image]
            score = score_rule(rule)(0.0).score((logits / temperatures[level]).softmax(0)[None]).item()
            if level + 1 == levels or (logits.isfinite().all() and score >= limits[level]):
                cost += answers.gmacs[level].item() / images
                right += bool(logits.isfinite().all() and logits.argmax() == answers.targets[image])
                exits[level] += 1
                break
    return [cost, 100 * right / images, *(count / images for count in exits)]


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_outcomes_are_those_of_a_plain_loop(levels, rule, monkeypatch):
    monkeypatch.setattr(thresholds, "_CELLS", 1000)  # several chunks
    answers = synthetic_answers(levels, images=150)
    answers.logits[0, :5] = float("nan")
    answers.logits[-1, 3:8, 2] = float("inf")
    temperatures = (2.0, 1.5, 1.0, 0.7)[:levels]
    limits = [row[: levels - 1] for row in ((0.0, 0.0, 0.0), (0.4, 0.9, 0.2), (0.2, 0.4, 0.9), (2.0, 2.0, 2.0))]
    outcomes = measure(answers, score_rule(rule)(2.0, temperatures), limits)
    for outcome, limit in zip(outcomes, limits, strict=True):
        assert outcome.thresholds == pytest.approx(limit)
        expected = pytest.approx(replay(answers, rule, temperatures, limit), abs=1e-5)
        assert [outcome.gmacs, outcome.accuracy, *outcome.stop_shares] == expected


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_what_is_found_rises_from_the_first_level_and_no_fixed_level_is_above_it(levels):
    answers = synthetic_answers(levels)
    found = search(answers, Confidence(2.0))
    assert found[0].gmacs == pytest.approx(answers.gmacs[0].item())
    for a, b in itertools.pairwise(found):
        assert a.gmacs < b.gmacs
        assert a.accuracy < b.accuracy
    right = answers.right.double().mean(1) * 100
    for level, cost in enumerate(answers.gmacs):
        assert max(o.accuracy for o in found if o.gmacs <= cost + 1e-9) >= right[level] - 1e-9


@pytest.mark.parametrize("levels", [3, 4])
def test_the_grid_finds_better_thresholds_than_geometric_rates_measured_on_other_images(levels, monkeypatch):
    held_out, test = synthetic_answers(levels, 1500), synthetic_answers(levels, 8000, seed=1)
    rule = Confidence(2.0)
    budgets, means = np.linspace(1.2, 0.6 * test.gmacs[-1].item(), 200), []
    for grid in (thresholds._GRID, 1):  # 1 leaves 2 quantiles a level: all or nothing
        monkeypatch.setattr(thresholds, "_GRID", grid)
        found = measure(test, rule, [o.thresholds for o in search(held_out, rule)])
        gmacs, accuracy = zip(*sorted((o.gmacs, o.accuracy) for o in found), strict=True)
        means.append(np.interp(budgets, gmacs, accuracy).mean())
    assert means[0] > means[1] + 0.1


def test_thresholds_lie_between_scores_so_that_rounding_changes_nothing():
    answers = synthetic_answers(2, images=100)
    scores = answers.logits[0].softmax(1).amax(1)
    for outcome in search(answers, Confidence(2.0)):
        assert (scores - outcome.thresholds[0]).abs().min() > 1e-7
