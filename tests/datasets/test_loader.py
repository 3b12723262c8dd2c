"""Batches of labelled images for a model: its own classes and levels, from any data set, and what was skipped."""

import threading

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.datasets.loader import ImageLoader, read_ahead

from .test_readers import stream


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (10, 0)])
def test_batches_hold_what_can_be_read_and_the_rest_is_reported(batch_size, workers, named, folder):
    loader = ImageLoader(folder, named, split="val", batch_size=batch_size, workers=workers)
    assert len(loader) == -(-5 // batch_size)
    for _ in range(2):  # a second pass does not report twice
        batches = list(loader)
        assert [target for _, targets in batches for target in targets.tolist()] == [2, 2, 0, 0]  # the model's classes
        [reason] = [skipped.reason for skipped in loader.skipped]
        assert reason == f"{folder / 'val' / 'pear' / 'broken.jpg'}: not an image that Pillow can read"
        assert loader.seen == 5
    expected = srnn_zoo.create_transform(named)(Image.open(folder / "val" / "pear" / "0.png"))
    for level, wanted, size in zip(batches[0][0], expected, (32, 64), strict=True):
        assert level.shape[1:] == (3, size, size)
        assert torch.equal(level[0], wanted)


@pytest.mark.parametrize("workers", [0, 3])
def test_streams_and_lists_are_read_in_order(workers, named):
    loader = ImageLoader(stream([2, 0, 1]), named, batch_size=2, workers=workers)
    assert [targets.tolist() for _, targets in loader] == [[2, 0], [1]]
    assert loader.seen == 3
    images = [(Image.new("RGB", (40, 40)), 3), (Image.new("L", (40, 40)), 1)]
    [(levels, targets)] = ImageLoader(images, named, sizes=[48, 96])
    assert targets.tolist() == [3, 1]
    assert [level.shape for level in levels] == [(2, 3, 48, 48), (2, 3, 96, 96)]


def test_the_next_batch_is_read_while_one_is_worked_on_after_the_first_ones():
    """The first two are read when they are asked for. An error comes at its place."""
    began = [threading.Event() for _ in range(5)]

    def batches():
        for number, event in enumerate(began[:4]):
            event.set()
            yield number
        began[4].set()
        raise OSError("the disk is gone")

    ahead = read_ahead(batches(), start=2)
    for number in range(4):
        assert next(ahead) == number
        assert began[number + 1].wait(timeout=30 if number >= 2 else 0) == (number >= 2)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
