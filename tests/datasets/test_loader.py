"""Batches of labelled images for a model: its own classes and levels, from any data set, and what was skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.datasets.loader import ImageLoader, load_batches
from srnn_zoo.datasets.readers import open_labelled

from .test_readers import stream

NAMES = ["apple", "banana", "cherry", "date"]


@pytest.fixture(scope="module")
def model() -> SRNN:
    """Four named classes."""
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=4, img_size=64).eval()
    model.pretrained_cfg["label_names"] = NAMES
    return model


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """Three cherries, one of them damaged, and a banana in a folder of its own; no apples."""
    for number, name in enumerate(("cherry/1.png", "cherry/2.png", "banana/ripe/1.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70), (90 * number, 50, 50)).save(tmp_path / name)
    (tmp_path / "cherry" / "broken.png").write_bytes(b"no image")
    return tmp_path


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (10, 0)])
def test_batches_hold_what_can_be_read_and_the_rest_is_reported(
    batch_size: int, workers: int, model: SRNN, fruit: Path
) -> None:
    loader = ImageLoader(fruit, model, batch_size=batch_size, workers=workers)
    assert len(loader) == -(-4 // batch_size)
    for _ in range(2):  # a second pass does not report twice
        batches = list(loader)
        assert [target for _, targets in batches for target in targets.tolist()] == [1, 2, 2]  # the model's classes
        [reason] = [skipped.reason for skipped in loader.skipped]
        assert reason == f"{fruit / 'cherry' / 'broken.png'}: not an image that Pillow can read"
        assert loader.seen == 4
    levels, _ = batches[0]
    assert [level.shape[1:] for level in levels] == [(3, 32, 32), (3, 64, 64)]
    expected = srnn_zoo.create_transform(model)(Image.open(fruit / "banana" / "ripe" / "1.png"))
    for level, wanted in zip(levels, expected, strict=True):
        assert torch.equal(level[0], wanted)


def test_an_image_is_read_once_for_several_transforms(model: SRNN, fruit: Path) -> None:
    transforms = [srnn_zoo.create_transform(model, sizes=sizes) for sizes in ([48, 96, 128], [32])]
    [batch] = load_batches(open_labelled(fruit), transforms, batch_size=4)  # pyright: ignore
    assert [[level.shape for level in levels] for levels in batch.levels] == [
        [(3, 3, size, size) for size in (48, 96, 128)],
        [(3, 3, 32, 32)],
    ]
    assert [Path(name).name for name in batch.names] == ["1.png", "1.png", "2.png"]
    assert batch.targets == [0, 1, 1]  # the data set's own


def test_splits_sizes_and_what_the_model_does_not_know(model: SRNN, fruit: Path) -> None:
    [(levels, _)] = ImageLoader(fruit.parent, model, split=fruit.name, sizes=[48, 96])
    assert [level.shape[-1] for level in levels] == [48, 96]
    (fruit / "cherry").rename(fruit / "chery")
    with pytest.raises(ValueError, match="unknown class 'chery'; did you mean 'cherry'"):
        ImageLoader(fruit, model)
    with pytest.raises(FileNotFoundError, match="no folder"):
        ImageLoader(fruit / "nowhere", model)


@pytest.mark.parametrize("workers", [0, 3])
def test_streams_and_lists_are_read_in_order(workers: int, model: SRNN) -> None:
    loader = ImageLoader(stream([2, 0, 1]), model, batch_size=2, workers=workers)
    assert [targets.tolist() for _, targets in loader] == [[2, 0], [1]]
    assert loader.seen == 3
    images: Any = [(Image.new("RGB", (40, 40)), 3), (Image.new("L", (40, 40)), 1)]
    [(levels, targets)] = ImageLoader(images, model)
    assert targets.tolist() == [3, 1]
    assert levels[0].shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"\[1\] has target 4; the model has classes 0 to 3"):
        list(ImageLoader(stream([3, 4]), model))
