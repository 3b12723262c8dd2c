"""Prediction over image files: order, batches, reading ahead, and answers level by level."""

import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.datasets.images import Skipped, open_or_skip
from srnn_zoo.inference.predict import Prediction, predict

CLASSES = 7


@pytest.fixture(scope="module")
def model():
    """A small model of 7 classes; untrained, but with logits far enough apart to tell images from each other."""
    torch.manual_seed(0)
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=CLASSES, img_size=64).eval()
    torch.nn.init.normal_(model.fc.weight, std=1.0)  # pyright: ignore
    return model


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


def read(model, paths, **options):
    """The predictions on images that can all be read."""
    results = list(predict(model, paths, **options))
    assert all(isinstance(result, Prediction) for result in results)
    return cast(list[Prediction], results)


def table(predictions):
    """Probabilities `(images, levels, classes)`, classes in the order of their names."""
    return torch.tensor([[[p for _, p in sorted(answer.top)] for answer in each.answers] for each in predictions])


def test_results_come_in_the_order_of_the_paths_with_unreadable_ones_in_their_places(model, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(images[0].read_bytes()[:-30])
    (tmp_path / "empty.png").touch()
    bad = [tmp_path / "missing.png", tmp_path / "broken.png", tmp_path / "empty.png"]
    paths = [bad[0], images[3], images[0], bad[1], images[5], bad[2], images[1]]
    for batch_size in (1, 2, 20):
        results = list(predict(model, paths, batch_size=batch_size))
        assert [result.path for result in results] == [str(path) for path in paths]
        reasons = {result.path: result.reason for result in results if isinstance(result, Skipped)}
        assert list(reasons) == [str(path) for path in bad]
        assert all(reason.startswith(f"{path}: ") for path, reason in reasons.items())
        notes = [result.notes for result in results if isinstance(result, Prediction)]
        assert notes == [(), (), ("greyscale, converted to RGB",), ()]


def test_answers_are_the_models_own_on_its_own_preprocessing(model, images):
    transform = srnn_zoo.create_transform(model)
    for path, prediction in zip(images, read(model, images, topk=CLASSES), strict=True):
        levels = [level[None] for level in transform(Image.open(path).convert("RGB"))]
        with torch.inference_mode():
            steps = [step.logits.softmax(dim=1)[0] for step in model.steps(levels)]
        torch.testing.assert_close(table([prediction])[0], torch.stack(steps), atol=1e-5, rtol=0)
        assert [answer.size for answer in prediction.answers] == [(32, 32), (64, 64)]
        assert [level.shape for level in prediction.levels] == [(3, 32, 32), (3, 64, 64)]
        assert all(level.dtype == torch.uint8 for level in prediction.levels)


def test_the_batch_size_changes_no_answer(model, images):
    together = table(read(model, images, topk=CLASSES, batch_size=3))
    for batch_size in (1, 4, 6, 100):
        others = table(read(model, images, topk=CLASSES, batch_size=batch_size))
        torch.testing.assert_close(others, together, atol=1e-5, rtol=0)
    assert together.std(dim=0).max() > 0.01  # images are told from each other


def test_as_many_classes_are_named_as_asked_for_and_as_there_are(model, images):
    for topk, named in ((1, 1), (5, 5), (7, 7), (1000, 7)):
        [prediction] = read(model, images[:1], topk=topk)
        for answer in prediction.answers:
            names, probabilities = zip(*answer.top, strict=True)
            assert len(names) == len(set(names)) == named
            assert list(probabilities) == sorted(probabilities, reverse=True)
            assert named < CLASSES or sum(probabilities) == pytest.approx(1)


def test_counts_below_one_are_refused(model):
    for option in ("topk", "batch_size"):
        with pytest.raises(ValueError, match=f"{option} must be 1 or more; got 0"):
            read(model, [], **{option: 0})


def test_a_variant_that_fuses_all_levels_answers_once(images):
    concat = srnn_zoo.create_model("srnn_test_resnet", variant="concat", num_classes=CLASSES, img_size=64).eval()
    for prediction in read(concat, images):
        assert [answer.size for answer in prediction.answers] == [(64, 64)]
        assert [level.shape[-1] for level in prediction.levels] == [32, 64]


def test_a_one_channel_model_reads_colour_images_as_grey(images, tmp_path):
    torch.manual_seed(0)
    model = srnn_zoo.create_model("srnn_test_resnet", in_chans=1, num_classes=CLASSES, img_size=64).eval()
    Image.open(images[1]).convert("L").save(tmp_path / "grey.png")
    colour, grey = read(model, [images[1], tmp_path / "grey.png"], topk=CLASSES)
    assert [level.shape for level in colour.levels] == [(1, 32, 32), (1, 64, 64)]
    torch.testing.assert_close(table([colour]), table([grey]), atol=1e-6, rtol=0)


def test_other_sizes_of_the_levels_can_be_asked_for(model, images):
    for sizes in ((64,), (32, 48, 64, 96)):
        for prediction in read(model, images, sizes=sizes):
            assert [answer.size for answer in prediction.answers] == [(size, size) for size in sizes]
    transformer = srnn_zoo.create_model("srnn_test_vit", num_classes=CLASSES).eval()
    with pytest.raises(ValueError, match="cannot read a level of 50 x 50"):
        read(transformer, images, sizes=(50, 100))


def test_an_image_that_stops_early_has_the_answers_of_the_levels_it_read(model, images):
    whole = read(model, images, topk=CLASSES)
    costs = [srnn_zoo.count_gmacs(model).levels[0], sum(srnn_zoo.count_gmacs(model).levels)]
    every_other = [True, False, True, False, True, False]
    for rule, stops in (
        (lambda decision: True, [0] * 6),
        (lambda decision: False, [1] * 6),
        (lambda decision: torch.tensor(every_other), [0, 1, 0, 1, 0, 1]),
    ):
        early = read(model, images, topk=CLASSES, exit=rule)
        assert [prediction.stopped_at for prediction in early] == stops
        assert [prediction.gmacs for prediction in early] == pytest.approx([costs[stop] for stop in stops])
        for prediction, full in zip(early, whole, strict=True):
            answers = full.answers[: cast(int, prediction.stopped_at) + 1]
            expected = full._replace(answers=answers)
            torch.testing.assert_close(table([prediction]), table([expected]), atol=1e-5, rtol=0)
            assert [level.shape for level in prediction.levels] == [level.shape for level in full.levels]


def test_paths_are_taken_one_batch_ahead(model, images):
    asked = []

    def paths():
        for path in images:
            asked.append(path)
            yield path

    results = predict(model, paths(), batch_size=2)
    assert not asked
    assert next(results).path == str(images[0])
    assert asked == images[:4]
    next(results)
    assert asked == images[:4]
    next(results)
    assert asked == images[:6]
    assert len(list(results)) == 3
    assert list(predict(model, [])) == []


def test_the_next_batch_is_read_while_the_network_works_and_no_further(model, images, monkeypatch):
    next_batch_is_open = threading.Event()
    opened = []
    seen_by_network = []
    steps = model.steps

    def note_and_open(path):
        opened.append(Path(path).name)
        if {"2.png", "3.png"} <= set(opened):
            next_batch_is_open.set()
        return open_or_skip(path)

    def network(levels):  # works for as long as the next batch is not read
        seen_by_network.append(next_batch_is_open.wait(20))
        return steps(levels)

    monkeypatch.setattr("srnn_zoo.inference.predict.open_or_skip", note_and_open)
    monkeypatch.setattr(model, "steps", network)
    results = predict(model, images, batch_size=2)
    next(results)
    assert seen_by_network == [True]
    assert sorted(opened) == ["0.png", "1.png", "2.png", "3.png"]  # and the third batch only after this one
    assert [result.path for result in results] == [str(path) for path in images[1:]]


def test_no_thread_is_left_where_the_caller_stops_or_the_network_fails(model, images, monkeypatch):
    before = set(threading.enumerate())
    results = predict(model, images, batch_size=2)
    next(results)
    assert set(threading.enumerate()) - before  # they are there
    cast(Any, results).close()
    assert set(threading.enumerate()) == before
    monkeypatch.setattr(model, "steps", lambda levels: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        list(predict(model, images, batch_size=2))
    assert set(threading.enumerate()) == before
    assert caught.tb is not None  # and with it the frames that were at work
