"""Thresholds keep their budget, reach their target, come back with the model, and serve any other budget later."""

import dataclasses
import itertools
import json

import pytest
import torch

from srnn_zoo import SRNN, Anytime, budget_rule, calibrate, count_gmacs
from srnn_zoo.inference.exits import FixedLevel, ScoreRule
from srnn_zoo.inference.thresholds import measure, use_up

from .conftest import small_model, synthetic_answers

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # what is fine is calibrated without a word


def result(answers, rule):
    """Mean cost and accuracy of a rule."""
    [outcome] = measure(answers, rule, [rule.thresholds])
    return outcome.gmacs, outcome.accuracy


@pytest.mark.parametrize(
    ("budget", "rule"),
    [(1.0, "confidence"), (4.0, "confidence"), (4.0, "entropy"), (6.9, "margin")],
)
def test_a_budget_is_kept_and_used(budget, rule, net, answers):
    fast = calibrate(net, answers, budget_gmacs=budget, rule=rule)
    cost, accuracy = result(answers, fast.exit)
    assert cost <= budget + 1e-6
    stored = net.metadata["exit"]["held_out"]
    assert (stored["gmacs"], stored["top1"], stored["images"]) == pytest.approx((cost, accuracy, 2000), abs=1e-3)
    right = answers.right.double().mean(1) * 100
    affordable = max(right[level].item() for level in range(3) if answers.gmacs[level] <= budget)
    assert accuracy >= affordable - 1e-3  # no worse than the best fixed level
    if budget == 4.0:
        assert accuracy > affordable + 1
    spent = calibrate(net, answers, budget_gmacs=budget, rule=rule, spend=True).exit
    assert 0.93 * budget <= result(answers, spent)[0] <= budget + 1e-6
    others = dataclasses.replace(answers, targets=answers.targets.roll(1))
    assert use_up(others, spent, budget).thresholds == spent.thresholds  # whatever the targets are


def test_a_target_is_reached_at_the_least_cost(net, answers):
    full = 100 * answers.right[2].double().mean().item()
    cost, accuracy = result(answers, calibrate(net, answers, target_accuracy=full - 0.5).exit)
    assert accuracy >= full - 0.5 - 1e-6
    assert cost < 6
    assert result(answers, calibrate(net, answers, target_accuracy=full - 10).exit)[0] < cost


def test_what_was_calibrated_comes_back_with_the_model_and_serves_any_budget_without_data(net, answers, tmp_path):
    costs = torch.tensor(count_gmacs(net).levels, dtype=torch.float64).cumsum(0)
    own = dataclasses.replace(answers, gmacs=costs)
    fast = calibrate(net, own, target_accuracy=60.0)
    assert 10 < len(net.metadata["exit"]["curve"]) <= 64
    net.save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path).eval()
    assert loaded.metadata == json.loads(json.dumps(net.metadata))
    torch.save(fast, tmp_path / "fast.pt")
    whole = torch.load(tmp_path / "fast.pt", weights_only=False)
    assert vars(Anytime(loaded).exit) == vars(whole.exit) == vars(fast.exit)
    assert f"exit={fast.exit}" in repr(fast)
    images = torch.randn(4, 3, 64, 64)
    for ours, theirs in zip(Anytime(loaded)(images), fast(images), strict=True):
        assert torch.equal(ours, theirs)
    for share in (0.0, 0.35, 0.999):
        budget = torch.lerp(costs[0], costs[-1], share).item()
        rule = budget_rule(loaded, budget)
        assert isinstance(rule, ScoreRule)
        cost, accuracy = result(own, rule)
        assert cost <= budget * (1 + 1e-5)
        at_once = calibrate(net, own, budget_gmacs=budget).exit
        assert accuracy >= result(own, at_once)[1] - 1.5  # of 64 points, not of all
        assert Anytime(loaded, rule)(images)[1].shape == (4,)
    for budget in (costs[-1].item(), 1e3, float("inf")):  # pays for all levels, which are read
        assert budget_rule(loaded, budget).thresholds == (2.0, 2.0)
        assert calibrate(net, own, budget_gmacs=budget).exit.thresholds == (2.0, 2.0)
    net.reset_classifier(3)
    with pytest.raises(ValueError, match="never calibrated"):
        Anytime(net)


def test_a_model_that_was_never_calibrated_stops_at_the_largest_level_that_all_images_can_afford():
    net = small_model(img_size=160)
    costs = list(itertools.accumulate(count_gmacs(net).levels))
    between = (costs[1] + costs[2]) / 2
    for budget, level in ((costs[0], 0), (costs[1], 1), (between, 1), (costs[2], 2), (float("inf"), 2)):
        rule = budget_rule(net, budget)
        assert (type(rule), rule.level) == (FixedLevel, level)
        assert (Anytime(net, rule)(torch.randn(2, 3, 160, 160)).gmacs <= budget * (1 + 1e-5)).all()
    with pytest.raises(ValueError, match="the first level alone costs") as caught:
        budget_rule(net, 0.0)
    printed = float(str(caught.value).split()[5])
    assert budget_rule(net, printed)  # what is printed suffices
    assert printed == pytest.approx(costs[0], abs=1e-3)


def test_a_calibration_is_of_its_sizes_only(net, answers):
    calibrate(net, answers, budget_gmacs=2.0)
    of_16 = r"of 16 x 16 \+ 32 x 32 \+ 64 x 64; its thresholds say nothing about levels of 16 x 16"
    for sizes in ([16, 32, 96], [16, 32]):
        with pytest.raises(ValueError, match=f"calibrated for levels {of_16}"):
            budget_rule(net, 1.0, sizes=sizes)
    assert isinstance(budget_rule(net, 1.0, sizes=[16, 32, 64]), ScoreRule)
    calibrate(net, dataclasses.replace(answers, sizes=((32, 32), (64, 64), (96, 96))), budget_gmacs=2.0)
    with pytest.raises(ValueError, match=r"use those sizes, or calibrate for these"):
        budget_rule(net, 1.0)
    assert isinstance(budget_rule(net, 1.0, sizes=[32, 64, (96, 96)]), ScoreRule)


def test_missing_classes_and_few_images_are_warned_of(net, answers):
    some = answers.targets < 7
    fewer = dataclasses.replace(answers, logits=answers.logits[:, some], targets=answers.targets[some])
    with pytest.warns(UserWarning, match="3 of the model's 10 classes have no image in the calibration set") as caught:
        calibrate(net, fewer, budget_gmacs=2.0)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="100 images are few: their accuracy is known to ±10 points"):
        calibrate(net, synthetic_answers(images=100), budget_gmacs=2.0)


def test_what_is_not_finite_never_stops_and_is_warned_of(net, answers):
    answers.logits[0, :500] = float("nan")
    with pytest.warns(UserWarning, match="500 of 2000 images have logits that are not finite"):
        fast = calibrate(net, answers, budget_gmacs=2.0)
    assert 1.5 <= result(answers, fast.exit)[0] <= 2.0
    least = r"no thresholds keep 1\.2 GMACs: the least on these images is 1\.500"
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(ValueError, match=least):
        calibrate(net, answers, budget_gmacs=1.2)


def test_aims_out_of_reach_and_answers_that_say_nothing_about_the_model_are_refused(net, answers):
    few, aim = synthetic_answers(images=9), {"budget_gmacs": 2.0}
    damaged = dataclasses.replace(answers, logits=torch.full_like(answers.logits, float("inf")))
    for model, given, options, reason in (
        (net, answers, {}, "give one aim: budget_gmacs, target_accuracy or max_loss"),
        (net, answers, {**aim, "target_accuracy": 90.0}, "give one aim"),
        (net, answers, {"budget_gmacs": 0.5}, r"first level alone costs 1\.000 GMACs; a budget of 0\.5 is too small"),
        (net, answers, {"budget_gmacs": float("nan")}, "a budget of nan is too small"),
        (net, answers, {"target_accuracy": 99.9}, r"no thresholds reach 99\.9 %: the most on these images is "),
        (net, answers, {"target_accuracy": 100.1}, r"in per cent, above 1 and up to 100 \(75, not 0\.75\); got 100\.1"),
        (net, answers, {"target_accuracy": 0.75}, r"\(75, not 0\.75\)"),
        (net, answers, {"target_accuracy": 50.0, "spend": True}, "spend is about a budget: give budget_gmacs"),
        (net, answers, {**aim, "rule": "margins"}, "unknown rule 'margins'; did you mean 'margin'"),
        (net, few, aim, "thresholds from 9 images are chance: give 10 or more"),
        (net, damaged, aim, "not finite for any image: its weights are damaged"),
        (small_model(num_classes=9), answers, aim, "the answers have 3 levels and 10 classes"),
        (small_model(scales=(0.5, 1.0)), answers, aim, "the answers have 3 levels and 10 classes"),
    ):
        with pytest.raises(ValueError, match=reason):
            calibrate(model, given, **options)
    assert "exit" not in net.metadata
