"""Evaluation: the table against a plain loop over single images, what rows share, and what is refused."""

import copy
import csv
import itertools
import shutil
import weakref
from collections import namedtuple

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.evaluation.compare import evaluate
from srnn_zoo.training import image_transform
from tests.datasets.test_readers import stream

from .conftest import FRUIT, pyramids

SINGLE = ("base CNN 32", "base CNN 64")
ENSEMBLES = ("probability ensemble", "logit ensemble")
Expected = namedtuple("Expected", "answer probability correct in_top5")  # of one image by one row


@torch.no_grad()
def plain_loop(models, folder):
    """Every row, image by image in float64, with the whole models; the base CNN's rows from its parts."""
    found, first = {}, next(iter(models))
    for name, model in models.items():
        exact = copy.deepcopy(model).double()
        names = model.pretrained_cfg["label_names"]
        for path, images in pyramids(model, folder).items():
            levels = [image.double() for image in images]
            logits = {name: exact(levels)}
            if name == first:
                single = [
                    exact.classifier(i)(exact.cell.pooled(exact.level_features(level, i)))
                    for i, level in enumerate(levels)
                ]
                logits |= dict(zip(SINGLE, single, strict=True))
                logits["logit ensemble"] = (single[0] + single[1]) / 2
                logits["probability ensemble"] = torch.stack(single).log_softmax(2).logsumexp(0)
            for row, values in logits.items():
                ranked = [names[index] for index in values[0].argsort(descending=True)]
                right = [answer == path.parent.name for answer in ranked[:5]]
                image = Expected(ranked[0], values.softmax(1).max().item(), right[0], any(right))
                found.setdefault(row, []).append(image)
    return found


def check(table, wanted):
    assert {row.name for row in table.rows} == wanted.keys()
    for row in table.rows:
        assert row.correct.tolist() == [image.correct for image in wanted[row.name]]
        assert row.in_top5.tolist() == [image.in_top5 for image in wanted[row.name]]
        assert row.top1_error == pytest.approx(100 * (1 - row.correct.double().mean().item()))
        assert row.top5_error == pytest.approx(100 * (1 - row.in_top5.double().mean().item()))


def test_variants_have_the_figures_of_a_plain_loop_in_float64(make, fruit, tmp_path):
    variants = "vanilla half_gru half_gru_map lstm mean_prob concat".split()
    models = {variant: make(variant) for variant in variants}
    wanted = plain_loop(models, fruit)
    found = evaluate(models, fruit, batch_size=7, output=tmp_path)
    check(found, wanted)
    assert [row.name for row in found.rows] == [*SINGLE, *ENSEMBLES, *models]
    assert len({row.correct.sum().item() for row in found.rows}) > 3  # the rows are told apart
    lines = list(csv.DictReader((tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    paths = sorted(fruit.glob("*/*.png"))
    assert [(line["path"], line["target"]) for line in lines] == [(str(path), path.parent.name) for path in paths]
    for name, images in wanted.items():
        assert [line[f"{name}: class"] for line in lines] == [image.answer for image in images]
        assert [line[f"{name}: correct"] for line in lines] == [str(int(image.correct)) for image in images]
        probabilities = [float(line[f"{name}: probability"]) for line in lines]
        assert probabilities == pytest.approx([image.probability for image in images], abs=1e-3)


@torch.no_grad()
def test_mirror_images_and_models_together_have_the_figures_of_a_plain_loop_in_float64(make, fruit):
    models = {"a": make("vanilla"), "b": make("half_gru"), "c": make("gru", seed=1), "large": make(seed=2, img_size=96)}
    found = evaluate(models, fruit, batch_size=7, ensemble=True, flip=True)
    together = "ensemble of a, b, c, large"
    flipped = ("base CNN 64, flipped too", "probability ensemble, flipped too")
    assert [row.name for row in found.rows] == [*SINGLE, *ENSEMBLES, *flipped, *models, together]
    exact = {name: copy.deepcopy(model).double() for name, model in models.items()}
    read = {name: pyramids(model, fruit) for name, model in models.items()}
    base = exact["a"]
    for at, path in enumerate(read["a"]):
        levels = [level.double() for level in read["a"][path]]
        both = [(base.level_logits(base.level_features(x, i), i)) for i, x in enumerate(levels)]
        both += [(base.level_logits(base.level_features(x.flip(-1), i), i)) for i, x in enumerate(levels)]
        probabilities = {
            flipped[0]: torch.stack([both[1], both[3]]).softmax(2).mean(0),
            flipped[1]: torch.stack(both).softmax(2).mean(0),
            together: torch.stack(
                [model([level.double() for level in read[name][path]]).softmax(1) for name, model in exact.items()]
            ).mean(0),
        }
        for name, mean in probabilities.items():
            assert found.row(name).correct[at] == (FRUIT[mean.argmax().item()] == path.parent.name)
    costs = {row.name: row.gmacs for row in found.rows}
    assert costs[flipped[1]] == pytest.approx(2 * costs["probability ensemble"], rel=1e-3)
    assert costs[together] == pytest.approx(costs["a"] + costs["c"] + costs["large"], rel=0.02)  # a and b share a pass
    assert found.row(together).sizes == ((32, 32), (64, 64)) * 2 + ((48, 48), (96, 96))
    assert found.reference in ENSEMBLES


def test_an_ensemble_needs_models_of_the_same_classes(make, fruit):
    with pytest.raises(ValueError, match="an ensemble needs two models or more"):
        evaluate(make(), fruit, ensemble=True)
    with pytest.raises(ValueError, match="b has other classes than a, or another order of them: no ensemble"):
        evaluate({"a": make(), "b": make(names=FRUIT[::-1])}, fruit, ensemble=True)


@torch.no_grad()
def test_models_that_look_at_parts_have_rows_of_their_own(make, fruit):
    """Those whose views follow read whole images, and share no features."""
    plain = make("vanilla", scales=(1.0, 1.0), zooms=(1.0, 1.6), img_size=80)
    state = plain.state_dict()
    models = {"middle": plain}
    for name in ("attention", "other attention"):
        models[name] = srnn_zoo.create_model(
            "srnn_test_resnet",
            variant="vanilla",
            zooms=(1.0, 1.6),
            views="attention",
            img_size=80,
            num_classes=len(FRUIT),
        ).eval()
        models[name].load_state_dict(state)
        models[name].pretrained_cfg["label_names"] = FRUIT
    models["other attention"].fc.weight.mul_(-1)
    found = evaluate(models, fruit, batch_size=7)
    assert [row.name for row in found.rows] == ["base CNN 50", "base CNN 50 zoom 1.6", *ENSEMBLES, *models]
    for row, model in zip(found.rows[-3:], models.values(), strict=True):
        transform = image_transform(model)
        images = torch.stack([transform(Image.open(path)) for path in sorted(fruit.glob("*/*.png"))])
        names = [FRUIT[index] for index in model(images).argmax(1).tolist()]
        right = [name == path.parent.name for name, path in zip(names, sorted(fruit.glob("*/*.png")), strict=True)]
        assert sum(a != b for a, b in zip(row.correct.tolist(), right, strict=True)) <= (row.name == "middle")
    assert found.rows[-1].correct.tolist() != found.rows[-2].correct.tolist()


def test_another_model_with_its_classes_in_another_order_can_give_the_base_rows(make, fruit):
    base, other = make("vanilla", names=FRUIT[::-1]), make("half_gru", seed=2)
    found = evaluate(other, fruit, base=base)
    expected_of_other = plain_loop({"half_gru": other}, fruit)["half_gru"]
    check(found, plain_loop({"half_gru": base}, fruit) | {"half_gru": expected_of_other})
    assert "the model given as base" in found.caption


def test_backbones_are_run_once_for_all_rows_that_share_them(make, fruit):
    models = {
        "a": make("vanilla"),
        "b": make("half_gru"),  # the same backbone, as another object
        "c": make("half_gru", seed=1),  # another one
        "d": make("half_gru", img_size=96),  # the first one, on other levels
    }
    read = []
    for name, model in models.items():

        def note(_, images, features, name=name):
            if not features.is_meta:  # those only count the cost
                read.append((name, images[0].shape[-1]))

        model.backbone.register_forward_hook(note)
    evaluate(models, fruit, batch_size=25)
    assert read == [("a", 32), ("a", 64), ("c", 32), ("c", 64), ("d", 48), ("d", 96)]


def test_neither_batches_nor_workers_change_an_answer_of_levels_with_classifiers_and_norms_of_their_own(make, fruit):
    model = make(seed=1, exits="separate", norm="per_level")
    wanted = plain_loop({"half_gru": model}, fruit)
    for batch_size, workers in ((1, 0), (100, 0), (1, 2), (4, 2)):
        check(evaluate(model, fruit, batch_size=batch_size, workers=workers), wanted)


def test_cost_and_speed_are_of_a_rows_own_levels_and_head_without_the_first_batch_or_the_reading(
    model, fruit, monkeypatch
):
    cost = srnn_zoo.count_gmacs(model)
    single = [level + model.num_features * len(FRUIT) / 1e9 for level in cost.levels]
    now, calls, level_features, fuse = [0.0], itertools.count(), model.level_features, model.fuse
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def slow_level(level, index=None):
        now[0] += (100 if next(calls) < 2 else 1) * len(level) * (1 + 3 * bool(index))  # 1 and 4 seconds an image
        return level_features(level, index)

    def slow_fuse(features):
        now[0] += 5 * len(features[0])
        return fuse(features)

    monkeypatch.setattr(model, "level_features", slow_level)
    monkeypatch.setattr(model, "fuse", slow_fuse)
    rows = evaluate(model, fruit, batch_size=10).rows
    assert [row.images_per_second for row in rows] == pytest.approx([1, 1 / 4, 1 / 5, 1 / 5, 1 / 10])
    assert [row.gmacs for row in rows] == pytest.approx([*single, sum(single), sum(single), cost.total], rel=1e-9)


def test_speed_is_measured_on_the_first_batches_while_nothing_is_read_ahead(model, fruit, monkeypatch):
    """By a clock on which the first three batches take 1 second an image, and the others 100; one is a warm-up."""
    now, calls, level_features = [0.0], itertools.count(), model.level_features
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for module in ("answering", "methods"):
        monkeypatch.setattr(f"srnn_zoo.evaluation.{module}.MEASURED_BATCHES", 3)

    def slow_level(level, index=None):
        now[0] += (1 if next(calls) < 6 else 100) * len(level)
        return level_features(level, index)

    monkeypatch.setattr(model, "level_features", slow_level)
    found = evaluate(model, fruit, batch_size=5)
    assert [row.images_per_second for row in found.rows[:2]] == pytest.approx([1, 1])
    assert found.rows[0].images == 25


def test_with_three_classes_and_one_image(make, tmp_path):
    (tmp_path / "fig").mkdir()
    Image.new("RGB", (40, 40), "green").save(tmp_path / "fig" / "1.png")
    found = evaluate(make(names=FRUIT[:3]), tmp_path)
    for row in found.rows:
        assert (row.images, row.top5_error, row.top5_interval[0]) == (1, 0, 0)
        low, high = row.top1_interval
        assert high - low == pytest.approx(79.35, abs=0.01)  # all that one image says
    assert all(found.compare(row.name, found.reference).p_value == 1 for row in found.rows)


def test_a_model_in_half_precision_is_evaluated_in_it(model, fruit):
    found = evaluate({"whole": model, "half": copy.deepcopy(model).bfloat16()}, fruit)
    assert (found.row("half").correct == found.row("whole").correct).double().mean() > 0.8


def test_logits_that_are_not_finite_are_wrong_and_counted_and_large_ones_are_finite(model, fruit, tmp_path):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.fc.weight.mul_(1e5)  # pyright: ignore
        assert evaluate(model, fruit).row("probability ensemble").not_finite == 0
        model.fc.bias[FRUIT.index("kiwi")] = torch.nan  # pyright: ignore
    found = evaluate(model, fruit, output=tmp_path)
    for row in found.rows:
        assert (row.top1_error, row.top5_error, row.not_finite) == (100, 100, 25)
        assert f"`{row.name}` had logits that were not finite on 25 images, which count as wrong" in found.caption
    assert ",nan,0" in (tmp_path / "predictions.csv").read_text()


def test_the_reference_is_the_better_ensemble_or_the_only_scale_or_a_row_that_is_named(make, model, fruit):
    for seed in range(3):
        found = evaluate(make(seed=seed), fruit)
        probability, logit = (found.row(name) for name in ENSEMBLES)
        assert found.reference == (probability if probability.top1_error < logit.top1_error else logit).name
    found = evaluate(make("vanilla", scales=(1.0,)), fruit)
    assert found.reference == "base CNN 64"
    assert [row.name for row in found.rows] == ["base CNN 64", "vanilla"]  # and no ensembles
    found = evaluate(model, fruit, reference="base CNN 32")
    assert found.reference == "base CNN 32"
    assert "against `base CNN 32`" in found.caption


def test_broken_images_are_named_and_in_no_figure_and_without_another_there_is_no_table(model, fruit, tmp_path):
    data = shutil.copytree(fruit, tmp_path / "data")
    broken = [data / "kiwi" / "0a.png", data / "lime" / "0.png"]
    broken[0].write_bytes(b"no image")
    broken[1].write_bytes(b"")
    for batch_size in (1, 2, 50):
        found = evaluate(model, data, batch_size=batch_size)
        assert [item.path for item in found.skipped] == [str(path) for path in broken]
        assert found.skipped[0].reason == f"{broken[0]}: not an image that Pillow can read"
        assert found.rows[0].images == 24
    for path in data.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of 26 images can be read; the first: .*0\.png: not an image"):
        evaluate(model, data, output=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv.partial"]


def test_wrong_arguments_are_named(model, fruit):
    training, headless = copy.deepcopy(model).train(), copy.deepcopy(model)
    headless.reset_classifier(0)
    for arguments, reason in (
        ({"models": []}, "needs at least one model; got none"),
        ({"models": ["srnn_resnet18"]}, r"a model must be an SRNN \(srnn_zoo.create_model\); got str"),
        ({"models": {"a": "srnn_resnet18"}}, "a must be an SRNN"),
        ({"models": [model, training]}, "two models are of variant 'half_gru': give a dict"),
        ({"models": {"logit ensemble": model}}, "two rows would be called 'logit ensemble'"),
        ({"models": training}, r"half_gru: the model is in training mode; call model.eval\(\)"),
        ({"models": {"base": training}, "base": model}, "base: the model is in training mode"),
        ({"base": headless}, "base: the model has no classifier"),
        ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
        ({"workers": -1}, "num_workers option should be non-negative"),
        ({"reference": "logits ensemble"}, "unknown row 'logits ensemble'; did you mean 'logit ensemble'"),
        ({"split": "test"}, "unknown split 'test'; choose one of kiwi, lime"),
        ({"data": stream([3, 7])}, r"\[1\] has target 7; the model has classes 0 to 6"),
        ({"data": stream([3, -1])}, r"\[1\] has target -1; the model has classes 0 to 6"),
        ({"data": stream([3, 7]), "output": __file__}, "it is a file"),  # before the work
        ({"data": stream([3, 7]), "output": f"{__file__}/below"}, "cannot make the folder"),
    ):
        with pytest.raises((ValueError, TypeError), match=reason):
            evaluate(**{"models": model, "data": fruit, **arguments})
    assert evaluate(model, stream([3, 6])).rows[0].images == 2


def test_memory_holds_answers_and_no_features(make, fruit):
    model = make()
    alive, seen = [], weakref.WeakSet()

    def note(_, images, features):
        seen.update((images[0], features))
        alive.append(len(seen))

    model.backbone.register_forward_hook(note)
    assert evaluate(model, fruit, batch_size=1).rows[0].images == 25
    assert len(alive) >= 2 * 25
    assert max(alive) <= 2 * 2 * 2  # images and features of two levels, of one batch and at most the one before
