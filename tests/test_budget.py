"""Thresholds keep their budget, reach their target, come back with the model; and the curve is what no other beats."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from srnn_zoo import SRNN, create_model
from srnn_zoo.anytime import Anytime
from srnn_zoo.budget import Answers, calibrate, collect, pareto, write_pareto
from srnn_zoo.budget import _temperature as temperature

GMACS = torch.tensor([1.0, 3.0, 7.0])


@pytest.fixture
def answers() -> Answers:
    """Three levels, each more often right than the one before, and surer where it is right."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(10, (2000,), generator=generator)
    noise = torch.randn(3, 2000, 10, generator=generator)
    signal = torch.nn.functional.one_hot(targets, 10) * torch.tensor([1.5, 2.2, 3.0]).view(3, 1, 1)
    return Answers(3 * (noise + signal), targets, GMACS)


def model() -> SRNN:
    return create_model("srnn_test_resnet", scales=(0.25, 0.5, 1.0), num_classes=10).eval()


def replay(answers: Answers, rule: Any) -> tuple[float, float]:
    """Mean cost and accuracy of a rule, by a plain loop over images and levels."""
    cost = right = 0.0
    for index, target in enumerate(answers.targets.tolist()):
        for level in range(3):
            logits = answers.logits[level, index][None] / rule.temperatures[level]
            if level == 2 or rule.score(logits.softmax(1)).item() >= rule.threshold(level):
                cost += GMACS[level].item()
                right += logits.argmax().item() == target
                break
    return cost / len(answers.targets), 100 * right / len(answers.targets)


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("budget", [1.0, 2.0, 4.0, 7.0, 100.0])
def test_a_budget_is_kept_and_used(budget: float, rule: str, answers: Answers) -> None:
    net = model()
    fast = calibrate(net, answers, budget_gmacs=budget, rule=rule)
    cost, accuracy = replay(answers, fast.exit)
    assert cost <= budget + 1e-6
    stored = net.metadata["exit"]["held_out"]
    assert (stored["gmacs"], stored["top1"]) == pytest.approx((cost, accuracy), abs=1e-3)
    right = (answers.logits.argmax(2) == answers.targets).float().mean(1) * 100
    affordable = max(right[level].item() for level in range(3) if GMACS[level] <= budget)
    assert accuracy >= affordable - 1e-3  # no worse than the best fixed level
    if budget == 4.0:
        assert accuracy > affordable + 1


def test_a_target_is_reached_at_the_least_cost(answers: Answers) -> None:
    full = 100 * (answers.logits[2].argmax(1) == answers.targets).float().mean().item()
    fast = calibrate(model(), answers, target_accuracy=full - 0.5)
    cost, accuracy = replay(answers, fast.exit)
    assert accuracy >= full - 0.5 - 1e-6
    assert cost < 5
    cheaper = calibrate(model(), answers, target_accuracy=full - 10)
    assert replay(answers, cheaper.exit)[0] < cost


def test_what_was_calibrated_is_saved_with_the_model_and_comes_back(answers: Answers, tmp_path: Path) -> None:
    net = model()
    fast = calibrate(net, answers, budget_gmacs=3.0)
    net.save_pretrained(tmp_path)
    again = Anytime(SRNN.from_pretrained(tmp_path).eval())
    assert vars(again.exit) == vars(fast.exit)
    images = torch.randn(4, 3, 128, 128)
    for ours, theirs in zip(again(images), fast(images), strict=True):
        assert torch.equal(ours, theirs)
    net.reset_classifier(3)
    with pytest.raises(ValueError, match="never calibrated"):
        Anytime(net)


def test_the_curve_rises_and_no_fixed_level_is_above_it(answers: Answers, tmp_path: Path) -> None:
    points = pareto(answers)
    curve, fixed = points[:-3], points[-3:]
    for a, b in itertools.pairwise(curve):
        assert a.gmacs < b.gmacs
        assert a.accuracy < b.accuracy
    assert [p.gmacs for p in fixed] == GMACS.tolist()
    for level in fixed:
        assert max(p.accuracy for p in curve if p.gmacs <= level.gmacs + 1e-9) >= level.accuracy - 1e-3
    assert all(sum(p.exits) == pytest.approx(1) for p in points)
    write_pareto(points, tmp_path / "pareto.csv")
    rows = list(csv.DictReader((tmp_path / "pareto.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == [p.accuracy for p in points]


def test_temperatures_undo_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator) * 2
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.3, 1.0, 4.0):
        assert temperature(factor * logits, targets) == pytest.approx(factor, rel=0.1)
    assert temperature(torch.full((3, 5), float("nan")), targets[:3]) == 1.0


def test_answers_are_those_of_the_steps_and_the_loader_of_images_or_levels_is_the_same() -> None:
    net = model()
    images, targets = torch.randn(5, 3, 64, 64), torch.arange(5)
    found = collect(net, DataLoader(TensorDataset(images, targets), batch_size=2), progress=False)
    with torch.no_grad():
        steps = list(net.steps(images))
        assert torch.allclose(found.logits, torch.stack([step.logits for step in steps]), atol=1e-5)
        levels: list[Tensor] = net.levels(images)
        again = collect(net, [(levels, targets)], progress=False)
    assert torch.allclose(again.logits, found.logits, atol=1e-5)
    assert torch.equal(found.targets, targets)
    assert torch.equal(found.gmacs, again.gmacs)
    assert (found.gmacs.diff() > 0).all()


def test_what_cannot_be_calibrated_is_refused(answers: Answers) -> None:
    for options, message in [
        ({}, "give either budget_gmacs or target_accuracy"),
        ({"budget_gmacs": 1.0, "target_accuracy": 90.0}, "give either"),
        ({"budget_gmacs": 0.5}, r"the first level alone costs 1\.000 GMACs; a budget of 0\.5 is too small"),
        ({"budget_gmacs": float("nan")}, "is too small"),
        ({"target_accuracy": 99.9}, r"no thresholds reach 99\.9 %: the most on these images is "),
        ({"budget_gmacs": 3.0, "rule": "margins"}, "unknown rule 'margins'; did you mean 'margin'"),
    ]:
        with pytest.raises(ValueError, match=message):
            calibrate(model(), answers, **options)
    with pytest.raises(ValueError, match="the loader gave no image"):
        collect(model(), [], progress=False)
    with pytest.raises(ValueError, match="cannot stop early"):
        collect(create_model("srnn_test_resnet", variant="concat", num_classes=3), [], progress=False)
    batches = [(torch.randn(1, 3, size, size), torch.zeros(1)) for size in (64, 96)]
    with pytest.raises(ValueError, match="levels of the same sizes"):
        collect(model(), batches, progress=False)
