"""The curve: chosen on one set and measured on another, beside levels, single scales and ensembles, and as CSV."""

import csv
import dataclasses
import itertools

import pytest
import torch

from srnn_zoo import calibrate, collect, create_model, pareto, write_pareto

from .synthetic_answers import synthetic_answers

SIZES = ((8, 8), (16, 16), (32, 32))


def of_kind(points, kind):
    return [point for point in points if point.kind == kind]


@pytest.fixture(scope="module")
def made_once():
    torch.manual_seed(0)
    net = create_model("srnn_test_resnet", num_classes=10, img_size=64).eval()
    torch.nn.init.normal_(net.fc.weight, std=1.0)  # pyright: ignore -- answers that differ
    return net


@pytest.fixture
def net(made_once):
    """A model of two levels that was never calibrated."""
    made_once.metadata.pop("exit", None)
    return made_once


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return list(zip(images.split(50), torch.randint(10, (count,), generator=generator).split(50), strict=True))


def test_the_curve_of_the_same_images_rises_is_marked_and_no_level_is_above_it():
    answers = synthetic_answers()
    points = pareto(answers)
    curve = of_kind(points, "curve")
    for a, b in itertools.pairwise(curve):
        assert a.gmacs < b.gmacs
        assert a.accuracy < b.accuracy
    assert all(point.optimistic and point.name == "confidence" for point in curve)
    levels = of_kind(points, "level")
    assert [p.gmacs for p in levels] == answers.gmacs.tolist()
    assert [p.name for p in levels] == ["level 0", "level 1", "level 2"]
    for level in levels:
        assert not level.optimistic
        assert max(p.accuracy for p in curve if p.gmacs <= level.gmacs + 1e-9) >= level.accuracy - 1e-3
    assert all(sum(p.stop_shares) == pytest.approx(1) for p in points)
    assert points == curve + levels  # of the base CNN these answers say nothing


def test_thresholds_from_held_out_images_are_measured_on_others_and_promise_less():
    test = synthetic_answers(images=3000, seed=99)
    too_much = []
    for seed in range(6):
        held_out = synthetic_answers(images=100, seed=seed)
        honest = of_kind(pareto(test, thresholds_from=held_out), "curve")
        chosen = of_kind(pareto(held_out), "curve")
        assert {p.thresholds for p in honest} == {p.thresholds for p in chosen}
        assert not any(p.optimistic for p in honest)
        assert sorted(p.gmacs for p in honest) == [p.gmacs for p in honest]
        measured = {p.thresholds: p.accuracy for p in honest}
        too_much += [p.accuracy - measured[p.thresholds] for p in chosen]
    assert sum(too_much) / len(too_much) > 0.5  # points of accuracy


def test_a_model_gives_single_scales_at_their_own_cost_and_ensembles_at_that_of_all_levels(net, tmp_path):
    points = pareto(net, batches(100))
    answers = collect(net, batches(100), progress=False)
    costs = answers.gmacs.tolist()
    small, large = of_kind(points, "single scale")
    assert (small.name, large.name) == ("single scale 32 x 32", "single scale 64 x 64")
    assert (small.gmacs, large.gmacs) == pytest.approx((costs[0], costs[1] - costs[0]))
    assert answers.single_scales is not None
    right = (answers.single_scales == answers.targets).float().mean(1) * 100
    assert (small.accuracy, large.accuracy) == pytest.approx(right.tolist())
    ensembles = of_kind(points, "ensemble")
    assert [(p.name, p.gmacs) for p in ensembles] == [("logit ensemble", costs[1]), ("probability ensemble", costs[1])]
    assert ensembles[0].accuracy == of_kind(points, "level")[1].accuracy  # an untrained half-GRU of two levels

    write_pareto(points, tmp_path / "pareto.csv")
    rows = list(csv.DictReader((tmp_path / "pareto.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["name", "kind", "gmacs", "accuracy", "exits", "thresholds", "optimistic"]
    for row, point in zip(rows, points, strict=True):
        assert (row["name"], row["kind"], row["optimistic"]) == (point.name, point.kind, str(point.optimistic))
        assert (float(row["accuracy"]), float(row["gmacs"])) == (point.accuracy, point.gmacs)
        for column, values in (("exits", point.stop_shares), ("thresholds", point.thresholds)):
            assert [float(value) for value in row[column].split()] == pytest.approx(values, rel=1e-5)
    with pytest.raises(ValueError, match="no points"):
        write_pareto([], tmp_path / "empty.csv")
    assert not (tmp_path / "empty.csv").exists()


def test_a_calibrated_model_is_measured_at_its_stored_thresholds(net):
    held_out, test = (collect(net, batches(200, seed), progress=False) for seed in (0, 1))
    calibrate(net, held_out, target_accuracy=2.0, rule="margin")
    points = of_kind(pareto(net, batches(200, seed=1)), "curve")
    assert {p.name for p in points} == {"margin"}
    assert not any(p.optimistic for p in points)
    assert {p.thresholds for p in points} == {tuple(p["thresholds"]) for p in net.metadata["exit"]["curve"]}
    assert of_kind(pareto(test, thresholds_from=net), "curve") == points
    with pytest.raises(ValueError, match="calibrated with rule 'margin', not 'entropy': give thresholds_from"):
        pareto(net, batches(50), rule="entropy")
    others = pareto(net, batches(50), thresholds_from=batches(50, seed=2), rule="entropy")
    assert not any(p.optimistic for p in others)
    assert others[0].name == "entropy"
    with pytest.raises(ValueError, match="its thresholds say nothing about levels of 48 x 48"):
        pareto(dataclasses.replace(test, sizes=((48, 48), (96, 96))), thresholds_from=net)


def test_what_makes_no_curve_is_refused(net):
    answers = synthetic_answers()
    for arguments, options, reason in [
        ((net,), {}, "needs images"),
        ((answers,), {"rule": "margins"}, "did you mean 'margin'"),
        ((answers,), {"thresholds_from": batches(50)}, "must be answers too"),
        ((answers,), {"thresholds_from": synthetic_answers(levels=2)}, "levels of other sizes"),
        ((dataclasses.replace(answers, sizes=SIZES),), {"thresholds_from": answers}, "levels of other sizes"),
        ((answers,), {"thresholds_from": net}, "never calibrated"),
        ((answers, batches(50)), {}, "takes no loader"),
        ((synthetic_answers(levels=1),), {}, "a model of one level cannot stop"),
        ((net, []), {}, "the loader gave no image"),
    ]:
        with pytest.raises(ValueError, match=reason):
            pareto(*arguments, **options)
