"""Prediction over picture files: order, batches, answers level by level, and the names of the classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.datasets.images import Skipped
from srnn_zoo.inference.predict import Prediction, predict

CLASSES = 7


@pytest.fixture(scope="module")
def model() -> SRNN:
    """A small model of 7 classes; untrained, but with logits far enough apart to be told from each other."""
    torch.manual_seed(0)
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=CLASSES, img_size=96).eval()
    torch.nn.init.normal_(model.fc.weight, std=1.0)  # pyright: ignore
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six pictures of different shapes, one of them grey."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        blocks = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((100 + 30 * number, 160 - 20 * number), Image.Resampling.NEAREST)
        (image.convert("L") if number == 5 else image).save(path)
    return paths


def read(model: SRNN, paths: list[Path], **options: object) -> list[Prediction]:
    """The predictions on pictures that can all be read."""
    results = list(predict(model, paths, **options))  # pyright: ignore
    assert all(isinstance(result, Prediction) for result in results)
    return results  # pyright: ignore


def table(predictions: list[Prediction]) -> torch.Tensor:
    """Probabilities `(pictures, levels, classes)`, classes in the order of their names."""
    return torch.tensor([[[p for _, p in sorted(answer.top)] for answer in each.answers] for each in predictions])


def test_results_come_in_the_order_of_the_paths_with_unreadable_ones_in_their_places(
    model: SRNN, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:-30])
    (tmp_path / "empty.png").touch()
    bad = [tmp_path / "missing.png", tmp_path / "broken.png", tmp_path / "empty.png"]
    paths = [bad[0], pictures[3], pictures[0], bad[1], pictures[5], bad[2], pictures[1]]
    for batch_size in (1, 2, 20):
        results = list(predict(model, paths, batch_size=batch_size))
        assert [result.path for result in results] == [str(path) for path in paths]
        assert [isinstance(result, Skipped) for result in results] == [path in bad for path in paths]
        reasons = [result.reason for result in results if isinstance(result, Skipped)]
        assert [reason.split(": ")[0] for reason in reasons] == [str(path) for path in bad]
        assert [result.notes for result in results if isinstance(result, Prediction)] == [
            (),
            (),
            ("greyscale, converted to RGB",),
            (),
        ]


def test_answers_are_the_models_own_on_its_own_preprocessing(model: SRNN, pictures: list[Path]) -> None:
    transform = srnn_zoo.create_transform(model)
    for path, prediction in zip(pictures, read(model, pictures, topk=CLASSES), strict=True):
        levels = [level[None] for level in transform(Image.open(path).convert("RGB"))]
        with torch.inference_mode():
            steps = [step.logits.softmax(dim=1)[0] for step in model.steps(levels)]
        torch.testing.assert_close(table([prediction])[0], torch.stack(steps), atol=1e-5, rtol=0)
        assert [answer.size for answer in prediction.answers] == [(48, 48), (96, 96)]
        assert [(level.shape, level.dtype) for level in prediction.levels] == [
            ((3, 48, 48), torch.uint8),
            ((3, 96, 96), torch.uint8),
        ]


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_the_batch_size_changes_no_answer(model: SRNN, pictures: list[Path], batch_size: int) -> None:
    together = read(model, pictures, topk=CLASSES, batch_size=3)
    otherwise = read(model, pictures, topk=CLASSES, batch_size=batch_size)
    torch.testing.assert_close(table(otherwise), table(together), atol=1e-5, rtol=0)
    assert table(together).std(dim=0).max() > 0.01  # the pictures are told from each other


@pytest.mark.parametrize(("topk", "named"), [(1, 1), (5, 5), (7, 7), (1000, 7)])
def test_as_many_classes_are_named_as_asked_for_and_as_there_are(
    model: SRNN, pictures: list[Path], topk: int, named: int
) -> None:
    [prediction] = read(model, pictures[:1], topk=topk)
    for answer in prediction.answers:
        probabilities = [probability for _, probability in answer.top]
        assert len(answer.top) == len({name for name, _ in answer.top}) == named
        assert probabilities == sorted(probabilities, reverse=True)
        assert named < CLASSES or sum(probabilities) == pytest.approx(1)


def test_a_model_of_fewer_than_five_classes_names_all(pictures: list[Path]) -> None:
    three = srnn_zoo.create_model("srnn_test_resnet", num_classes=3, img_size=64).eval()
    [prediction] = read(three, pictures[:1])
    assert {name for name, _ in prediction.answers[-1].top} == {"class 0", "class 1", "class 2"}


@pytest.mark.parametrize("option", ["topk", "batch_size"])
def test_counts_below_one_are_refused(model: SRNN, pictures: list[Path], option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be 1 or more; got 0"):
        read(model, pictures, **{option: 0})


def test_a_variant_that_fuses_all_levels_answers_once(pictures: list[Path]) -> None:
    concat = srnn_zoo.create_model("srnn_test_resnet", variant="concat", num_classes=CLASSES, img_size=96).eval()
    for prediction in read(concat, pictures):
        assert [answer.size for answer in prediction.answers] == [(96, 96)]
        assert [level.shape[-1] for level in prediction.levels] == [48, 96]


def test_a_one_channel_model_reads_colour_pictures_as_grey(pictures: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = srnn_zoo.create_model("srnn_test_resnet", in_chans=1, num_classes=CLASSES, img_size=96).eval()
    Image.open(pictures[1]).convert("L").save(tmp_path / "grey.png")
    colour, grey = read(model, [pictures[1], tmp_path / "grey.png"], topk=CLASSES)
    assert [level.shape for level in colour.levels] == [(1, 48, 48), (1, 96, 96)]
    torch.testing.assert_close(table([colour]), table([grey]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sizes", [(64,), (48, 64, 96), (32, 48, 64, 96)])
def test_other_sizes_of_the_levels_can_be_asked_for(model: SRNN, pictures: list[Path], sizes: tuple[int, ...]) -> None:
    for prediction in read(model, pictures, sizes=sizes):
        assert [answer.size for answer in prediction.answers] == [(size, size) for size in sizes]


def test_sizes_that_the_backbone_cannot_read_are_an_error(pictures: list[Path]) -> None:
    model = srnn_zoo.create_model("srnn_test_vit", num_classes=CLASSES).eval()
    with pytest.raises(ValueError, match="cannot read a level of 50 x 50"):
        read(model, pictures, sizes=(50, 100))


def test_paths_are_read_one_batch_ahead(model: SRNN, pictures: list[Path]) -> None:
    asked: list[Path] = []

    def paths() -> Iterator[Path]:
        for path in pictures:
            asked.append(path)
            yield path

    results = predict(model, paths(), batch_size=2)
    assert not asked
    assert next(results).path == str(pictures[0])
    assert asked == pictures[:4]
    next(results)
    assert asked == pictures[:4]
    next(results)
    assert asked == pictures[:6]
    assert len(list(results)) == 3


def test_no_paths_give_no_results(model: SRNN) -> None:
    assert list(predict(model, [])) == []
