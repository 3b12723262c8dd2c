"""The curve: chosen on one set and measured on another, beside levels, single scales and ensembles, and as CSV."""

import csv
import dataclasses

import pytest
import torch

from srnn_zoo import calibrate, collect, pareto, write_pareto

from .conftest import synthetic_answers


def of_kind(points, kind):
    return [point for point in points if point.kind == kind]


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return list(zip(images.split(50), torch.randint(10, (count,), generator=generator).split(50), strict=True))


def test_a_curve_of_the_same_images_is_marked_and_the_levels_follow(answers):
    points = pareto(answers)
    curve, levels = of_kind(points, "curve"), of_kind(points, "level")
    assert all(point.optimistic and point.name == "confidence" for point in curve)
    assert [(p.name, p.optimistic) for p in levels] == [("level 0", False), ("level 1", False), ("level 2", False)]
    assert [p.gmacs for p in levels] == answers.gmacs.tolist()
    assert all(sum(p.stop_shares) == pytest.approx(1) for p in points)
    assert points == curve + levels  # of the base CNN these answers say nothing


def test_thresholds_from_held_out_images_are_measured_on_others_and_promise_less():
    test = synthetic_answers(images=3000, seed=99)
    too_much = []
    for seed in range(6):
        held_out = synthetic_answers(images=100, seed=seed)
        honest = of_kind(pareto(test, thresholds_from=held_out), "curve")
        chosen = of_kind(pareto(held_out), "curve")
        measured = {p.thresholds: p.accuracy for p in honest}
        assert measured.keys() == {p.thresholds for p in chosen}
        assert not any(p.optimistic for p in honest)
        assert sorted(p.gmacs for p in honest) == [p.gmacs for p in honest]
        too_much += [p.accuracy - measured[p.thresholds] for p in chosen]
    assert sum(too_much) / len(too_much) > 0.5  # points of accuracy


def test_a_model_gives_single_scales_at_their_own_cost_and_ensembles_at_that_of_all_levels(net, tmp_path):
    points, answers = pareto(net, batches(100)), collect(net, batches(100), progress=False)
    a, b, c = answers.gmacs.tolist()
    costs = {"single scale 16 x 16": a, "single scale 32 x 32": b - a, "single scale 64 x 64": c - b}
    costs |= {"logit ensemble": c, "probability ensemble": c}
    alone = of_kind(points, "single scale") + of_kind(points, "ensemble")
    assert [(p.name, p.gmacs) for p in alone] == [*costs.items()]
    classes = torch.stack([*answers.single_scales, answers.logit_ensemble, answers.prob_ensemble])
    right = (classes == answers.targets).double().mean(1) * 100
    assert [p.accuracy for p in alone] == pytest.approx(right.tolist())
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
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.csv"]


def test_a_calibrated_model_is_measured_at_its_stored_thresholds(net):
    held_out, test = (collect(net, batches(200, seed), progress=False) for seed in (0, 1))
    calibrate(net, held_out, target_accuracy=2.0, rule="margin")
    points = of_kind(pareto(net, batches(200, seed=1)), "curve")
    assert {(p.name, p.optimistic) for p in points} == {("margin", False)}
    assert {p.thresholds for p in points} == {tuple(p["thresholds"]) for p in net.metadata["exit"]["curve"]}
    assert of_kind(pareto(test, thresholds_from=net), "curve") == points
    others = pareto(net, batches(50), thresholds_from=batches(50, seed=2), rule="entropy")
    assert (others[0].name, others[0].optimistic) == ("entropy", False)
    with pytest.raises(ValueError, match="calibrated with rule 'margin', not 'entropy': give thresholds_from"):
        pareto(net, batches(50), rule="entropy")
    with pytest.raises(ValueError, match="its thresholds say nothing about levels of 48 x 48"):
        pareto(dataclasses.replace(test, sizes=((48, 48), (96, 96), (192, 192))), thresholds_from=net)


def test_what_makes_no_curve_is_refused(net, answers):
    with_sizes = dataclasses.replace(answers, sizes=((8, 8), (16, 16), (32, 32)))
    for arguments, options, reason in [
        ((net,), {}, "needs images"),
        ((answers,), {"rule": "margins"}, "did you mean 'margin'"),
        ((answers,), {"thresholds_from": batches(50)}, "must be answers too"),
        ((answers,), {"thresholds_from": synthetic_answers(levels=2)}, "levels of other sizes"),
        ((with_sizes,), {"thresholds_from": answers}, "levels of other sizes"),
        ((answers,), {"thresholds_from": net}, "never calibrated"),
        ((answers, batches(50)), {}, "takes no loader"),
        ((synthetic_answers(levels=1),), {}, "a model of one level cannot stop earlier"),
        ((net, []), {}, "the loader gave no image"),
    ]:
        with pytest.raises(ValueError, match=reason):
            pareto(*arguments, **options)
