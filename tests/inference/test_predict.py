"""Prediction over images in any form: order, batches, reading ahead, answers level by level, and what is meant."""

import json
import math
import threading
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.datasets.classes import class_names
from srnn_zoo.datasets.images import Skipped, open_or_skip
from srnn_zoo.inference.exits import exit_rule
from srnn_zoo.inference.predict import Prediction, predict
from srnn_zoo.models.reading import NoMapError
from srnn_zoo.training import image_transform
from tests.cli.command import run

from .conftest import small_model


@pytest.fixture
def model():
    """Of two levels and ten classes."""
    return small_model(scales=(0.5, 1.0), std=1.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images of different shapes, one of them grey."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        blocks = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((100 + 30 * number, 160 - 20 * number), Image.Resampling.NEAREST)
        (image.convert("L") if number == 5 else image).save(path)
    return paths


def probabilities(answers):
    """Of all classes `(levels, classes)`, in the order of their names."""
    return torch.tensor([[p for _, p in sorted(answer.top)] for answer in answers])


def test_one_image_may_be_a_path_an_image_bytes_or_an_array(model, images):
    file, image = images[0], Image.open(images[0])
    (expected,) = predict(model, [file])
    for given in (str(file), file, image, file.read_bytes(), np.asarray(image), [image], (x for x in [file])):
        (said,) = predict(model, given)
        assert said.answers == expected.answers
        assert said.path in (str(file), "image 0")
    assert [x.path for x in predict(model, [image, str(file), b"no image"])] == ["image 0", str(file), "image 2"]
    for given, error, message in (
        ([3], TypeError, "image 0 must be a path, a PIL image, bytes or an array; got int"),
        ([image, np.zeros((3, 8, 8))], ValueError, r"image 1: an array must be uint8 \(H, W\) or .*; got float64 of"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"got uint8 of shape \(8, 8, 4\)"),
    ):
        with pytest.raises(error, match=message):
            list(predict(model, given))


def test_results_come_in_the_order_of_the_paths_with_unreadable_ones_in_their_places(model, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(images[0].read_bytes()[:-30])
    (tmp_path / "empty.png").touch()
    bad = [tmp_path / "missing.png", tmp_path / "broken.png", tmp_path / "empty.png"]
    paths = [bad[0], images[3], images[0], bad[1], images[5], bad[2], images[1]]
    for batch_size in (1, 2, 20):
        results = list(predict(model, paths, batch_size=batch_size))
        assert [result.path for result in results] == [str(path) for path in paths]
        skipped = [result for result in results if isinstance(result, Skipped)]
        assert [result.path for result in skipped] == [str(path) for path in bad]
        assert all(result.reason.startswith(f"{result.path}: ") for result in skipped)
        notes = [result.notes for result in results if isinstance(result, Prediction)]
        assert notes == [(), (), ("greyscale, converted to RGB",), ()]


def test_answers_are_the_models_own_on_its_own_preprocessing_whatever_the_batch_size(model, images):
    transform = srnn_zoo.create_transform(model)
    for batch_size in (1, 4, 100):
        for path, prediction in zip(images, predict(model, images, topk=10, batch_size=batch_size), strict=True):
            levels = [level[None] for level in transform(Image.open(path).convert("RGB"))]
            with torch.inference_mode():
                expected = torch.cat([step.logits.softmax(dim=1) for step in model.steps(levels)])
            torch.testing.assert_close(probabilities(prediction.answers), expected, atol=1e-5, rtol=0)
            assert [answer.size for answer in prediction.answers] == [(32, 32), (64, 64)]
            assert [level.shape for level in prediction.levels] == [(3, 32, 32), (3, 64, 64)]
            assert all(level.dtype == torch.uint8 for level in prediction.levels)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (2, 8), (2, 1)])
def test_the_network_is_made_ready_where_there_is_more_than_one_image(model, images, count, batch_size, monkeypatch):
    used, steps = [], srnn_zoo.SRNN.steps
    monkeypatch.setattr(srnn_zoo.SRNN, "steps", lambda ready, levels: used.append(ready) or steps(ready, levels))
    assert len(list(predict(model, images[:count], batch_size=batch_size))) == count
    assert (used[-1] is not model) == (count > 1)


def test_other_sizes_of_the_levels_can_be_asked_for_and_what_makes_no_sense_is_refused(model, images):
    for sizes in ((64,), (32, 48, 64, 96)):
        for prediction in predict(model, images, sizes=sizes):
            assert [answer.size for answer in prediction.answers] == [(size, size) for size in sizes]
    for option in ("topk", "batch_size"):
        with pytest.raises(ValueError, match=f"{option} must be 1 or more; got 0"):
            list(predict(model, images, **{option: 0}))


def test_a_variant_that_fuses_all_levels_answers_once_and_one_channel_is_grey(images, tmp_path):
    for prediction in predict(small_model(variant="concat", scales=(0.5, 1.0)), images):
        assert [answer.size for answer in prediction.answers] == [(64, 64)]
        assert [level.shape[-1] for level in prediction.levels] == [32, 64]
    Image.open(images[1]).convert("L").save(tmp_path / "grey.png")
    of_grey = small_model(in_chans=1, scales=(0.5, 1.0))
    colour, grey = predict(of_grey, [images[1], tmp_path / "grey.png"], topk=10)
    assert [level.shape for level in colour.levels] == [(1, 32, 32), (1, 64, 64)]
    torch.testing.assert_close(probabilities(colour.answers), probabilities(grey.answers), atol=1e-6, rtol=0)


def test_an_image_that_stops_early_has_the_answers_of_the_levels_it_read(model, images):
    whole = list(predict(model, images, topk=10))
    costs = torch.tensor(srnn_zoo.count_gmacs(model).levels).cumsum(0).tolist()
    for says, stops in ((True, [0] * 6), (False, [1] * 6), (torch.tensor([True, False] * 3), [0, 1] * 3)):
        found = predict(model, images, topk=10, exit=lambda decision, says=says: says)
        for early, full, stop in zip(found, whole, stops, strict=True):
            assert (early.stopped_at, early.gmacs) == (stop, pytest.approx(costs[stop]))
            expected = probabilities(full.answers[: stop + 1])
            torch.testing.assert_close(probabilities(early.answers), expected, atol=1e-5, rtol=0)
            assert len(early.levels) == 2


def test_the_next_batch_is_read_while_the_network_works_and_no_further(model, images, monkeypatch):
    next_batch_is_open = threading.Event()
    asked, opened, seen_by_network = [], [], []
    steps = model.steps

    def note_and_open(path, name, read):
        opened.append(Path(path).name)
        if {"2.png", "3.png"} <= set(opened):
            next_batch_is_open.set()
        return open_or_skip(path, name, read)

    def network(levels):  # works for as long as the next batch is not read
        seen_by_network.append(next_batch_is_open.wait(20))
        return steps(levels)

    monkeypatch.setattr("srnn_zoo.inference.read_ahead.open_or_skip", note_and_open)
    monkeypatch.setattr(model, "steps", network)
    results = predict(model, (asked.append(path) or path for path in images), batch_size=2)
    assert not asked
    next(results)
    assert seen_by_network == [True]
    assert sorted(opened) == ["0.png", "1.png", "2.png", "3.png"]  # and the third batch only after this one
    assert asked == images[:4]
    next(results)
    assert asked == images[:4]
    assert [result.path for result in results] == [str(path) for path in images[2:]]
    assert list(predict(model, [])) == []


def test_no_thread_is_left_where_the_caller_stops_or_the_network_fails(model, images, monkeypatch):
    before = set(threading.enumerate())
    results = predict(model, images, batch_size=2)
    next(results)
    assert set(threading.enumerate()) - before  # they are there
    results.close()
    assert set(threading.enumerate()) == before
    monkeypatch.setattr(model, "steps", lambda levels: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        list(predict(model, images, batch_size=2))
    assert set(threading.enumerate()) == before
    assert caught.tb is not None  # and with it the frames that were at work


def test_mistakes_of_the_first_day_are_one_clear_sentence(model):
    create = partial(srnn_zoo.create_model, "srnn_resnet18")
    for call, error, message in (
        (lambda: create("half_gru"), TypeError, "pretrained must .* is variant='half_gru'"),
        (lambda: create(num_classes="5"), ValueError, "num_classes must be a whole .* got '5'"),
        (lambda: model(Image.new("L", (64, 64))), TypeError, r"a Pyramid; got Image \(srnn_zoo.create_transform"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_plot_holds_the_first_of_many_images_and_probabilities_that_are_no_numbers_are_null_in_json(model, tmp_path):
    model.get_parameter("fc.bias").data.fill_(math.nan)
    model.save_pretrained(tmp_path / "net")
    for number in range(14):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    said = run("predict", tmp_path, "--model", tmp_path / "net", "--json", "--plot", tmp_path / "out.jpg")
    answers = [json.loads(line, parse_constant=pytest.fail) for line in said.out.splitlines()]
    top = [entry for answer in answers for level in answer["levels"] for entry in level["top"]]
    assert [entry["probability"] for entry in top] == [None] * 10 * 14
    assert said.err.endswith("out.jpg: the first 12 of 14 images\n")
    assert (tmp_path / "out.jpg").stat().st_size > 10_000


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("views", ["center", "attention"])
def test_a_prediction_says_where_levels_looked_and_what_they_saw(views, early, images):
    model = small_model(scales=None, std=1.0, zooms=(1.0, 1.6), views=views, img_size=80)
    found = list(predict(model, images, topk=10, maps=True))
    if early:
        sure = sorted(item.answers[0].top[0][1] for item in found)
        rule = exit_rule(f"confidence:{(sure[2] + sure[3]) / 2}")
        found = list(predict(model, images, topk=10, exit=rule, maps=True))
        assert sorted(item.stopped_at for item in found) == [0, 0, 0, 1, 1, 1]
    for item in found:
        read = len(item.answers)
        assert all(level.shape == (3, 50, 50) for level in item.levels)
        assert item.views[0] == (0, 0, 1, 1)
        assert all(bottom - top == pytest.approx(1 / 1.6) for top, _, bottom, _ in item.views[1:])
        assert len(item.maps) == read
        assert all(heat.shape == item.maps[0].shape for heat in item.maps)
        if views == "attention":
            assert len(item.levels) == len(item.views) == read
        else:
            assert item.views[1] == pytest.approx((0.1875, 0.1875, 0.8125, 0.8125))
    if views == "attention" and not early:  # and the model answers so on the whole image
        whole = torch.stack([image_transform(model)(Image.open(path)) for path in images])
        *_, last = model.steps(whole)
        said = torch.stack([probabilities(item.answers)[-1] for item in found])
        torch.testing.assert_close(said, (last.logits / model.temperature(1)).softmax(1), atol=2e-2, rtol=0)
        assert len({item.views[1] for item in found}) > 1


def test_maps_are_of_the_level_that_was_answered_and_left_out_where_there_are_none(images, monkeypatch):
    model = small_model(variant="concat", scales=None, std=1.0, zooms=(1.0, 1.6), img_size=80)
    transform = srnn_zoo.create_transform(model)
    for item in predict(model, images[:3], maps=True):
        level = transform(Image.open(item.path).convert("RGB"))[1][None]
        best = torch.tensor([list(class_names(model)).index(item.answers[0].top[0][0])])
        assert (item.first_answer, item.level_names) == (1, ["50 x 50", "50 x 50 zoom 1.6"])
        (heat,) = item.maps
        torch.testing.assert_close(heat, model.activation_map(level, best, 1)[0].detach(), rtol=1e-3, atol=1e-2)
    monkeypatch.setattr(type(model), "position_features", Mock(side_effect=NoMapError("no map")))
    assert all(item.maps == () and item.answers for item in predict(model, images, maps=True))
