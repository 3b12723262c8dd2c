"""Images in any form, read in batches while the network works, by threads of this process or by other processes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from srnn_zoo.datasets.images import OpenedImage, Skipped, open_or_skip
from srnn_zoo.datasets.inputs import Item
from srnn_zoo.transforms.reading import Notes, Read, as_tensor

Image: TypeAlias = str | os.PathLike[str] | PIL.Image.Image | bytes | np.ndarray | Item
"""What `predict` takes as an image."""


class ReadImage(NamedTuple):
    """The name of an image that was read, and what had to be done to read it."""

    name: str
    notes: Notes


class ReadBatch(NamedTuple):
    """The images of a batch in order, and the levels `(B, C, H_s, W_s)` of the B of them that can be read."""

    images: list[ReadImage | Skipped]
    levels: list[Tensor]


class ReadLevels:
    """Reads one image as levels.

    Args:
        read: the first step of a transform, which gets the image before it is decoded.
        to_levels: the next steps.
    """

    def __init__(self, read: Read, to_levels: Sequence[Callable[[Any], Any]]) -> None:
        self.read, self.to_levels = read, to_levels

    def __call__(self, item: tuple[str, Any]) -> tuple[ReadImage, list[Tensor]] | Skipped:
        """The levels of an image that has a name: a path, an open file, a PIL image or an `Item`."""
        name, image = item
        if isinstance(image, PIL.Image.Image):
            opened = OpenedImage(*self.read(image))
        elif isinstance(image, Item):
            opened = image.read(self.read)
        else:
            opened = open_or_skip(image, name, self.read)
        if isinstance(opened, Skipped):
            return opened
        levels: Any = opened.image
        for step in self.to_levels:
            levels = step(levels)
        return ReadImage(name, opened.notes), list(map(as_tensor, levels))


def read_ahead(
    images: Image | Iterable[Image], read: ReadLevels, batch_size: int, workers: int = 0
) -> Generator[ReadBatch]:
    """Batches in order; the next ones are read while the caller works on this one.

    Args:
        images: one or several.
        read: what is made of each.
        batch_size: images in a batch, those that cannot be read included.
        workers: processes that read; with 0 threads of this one read a single batch ahead.

    Raises:
        ChildProcessError: if one of these processes is killed.
    """
    if workers == 0:
        return _by_threads(_named(images), read, batch_size)
    return _by_processes(list(_named(images)), read, batch_size, workers)


def _named(images: Image | Iterable[Image]) -> Iterator[tuple[str, Any]]:
    """Every image with its name, as a path, an open file, a PIL image or an `Item`."""
    one = isinstance(images, str | os.PathLike | PIL.Image.Image | bytes | np.ndarray | Item)
    for index, image in enumerate([images] if one else cast("Iterable[Image]", images)):
        if isinstance(image, Item):
            yield image.name, image
            continue
        name: str = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"
        if isinstance(image, bytes):
            yield name, io.BytesIO(image)
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2:
                raise ValueError(
                    f"{name}: an array must be uint8 (H, W) or (H, W, 3); got {image.dtype} of shape {image.shape}"
                )
            yield name, PIL.Image.fromarray(image)
        elif isinstance(image, str | os.PathLike | PIL.Image.Image):
            yield name, image
        else:
            raise TypeError(f"{name} must be a path, a PIL image, bytes or an array; got {type(image).__name__}")


def _by_threads(images: Iterator[tuple[str, Any]], read: ReadLevels, batch_size: int) -> Generator[ReadBatch]:
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        ahead = [pool.submit(read, item) for item in islice(images, batch_size)]
        while ahead:
            batch = _collate([reading.result() for reading in ahead])
            ahead = [pool.submit(read, item) for item in islice(images, batch_size)]
            yield batch
    finally:  # also where the caller stops early, or the network fails
        pool.shutdown(cancel_futures=True)


def _by_processes(
    images: Sequence[tuple[str, Any]], read: ReadLevels, batch_size: int, workers: int
) -> Generator[ReadBatch]:
    try:
        yield from DataLoader(_Reads(images, read), batch_size, num_workers=workers, collate_fn=_collate)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # torch's own words of a process that is gone
            raise
        raise ChildProcessError(
            "a process that reads images was killed, often for want of memory: fewer workers, or smaller batches, "
            "may fit"
        ) from error


class _Reads(Dataset[Any]):
    """Images that are read by their index."""

    def __init__(self, images: Sequence[tuple[str, Any]], read: ReadLevels) -> None:
        self.images, self.read = images, read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.read(self.images[index])


def _collate(items: Sequence[tuple[ReadImage, list[Tensor]] | Skipped]) -> ReadBatch:
    read = [levels for item in items if not isinstance(item, Skipped) for levels in item[1:]]
    images = [item if isinstance(item, Skipped) else item[0] for item in items]
    return ReadBatch(images, [torch.stack(level) for level in zip(*read, strict=True)])
