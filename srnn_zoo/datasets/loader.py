"""Batches of labelled images: their levels, their classes, and what could not be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from srnn_zoo.transforms.presets import create_transform
from srnn_zoo.transforms.reading import Notes, first_step, read_by_each

from .images import Skipped
from .readers import Images, Labelled, LabelledImages, LabelledStream, open_labelled, target_indices

T = TypeVar("T")
Transforms = Sequence[Callable[[Any], Sequence[Tensor]]]


class Batch(NamedTuple):
    """The images of a batch that can be read, and what could not be read.

    Attributes:
        names: of the images.
        targets: indices of their classes in the data set's own order.
        levels: for every transform its levels `(B, C, H_s, W_s)`, smallest first.
        skipped: what could not be read.
    """

    names: list[str]
    targets: list[int]
    levels: list[list[Tensor]]
    skipped: list[Skipped]

    def targets_of(self, indices: Sequence[int]) -> Tensor:
        """The targets as a model's classes `(B,)`, by `target_indices`; ValueError for one that it does not have."""
        for name, target in zip(self.names, self.targets, strict=True):
            if not 0 <= target < len(indices):
                raise ValueError(f"{name} has target {target}; the model has classes 0 to {len(indices) - 1}")
        return torch.tensor([indices[target] for target in self.targets])


def load_batches(
    images: Images, transforms: Transforms, batch_size: int, workers: int = 0, own: Sequence[range] | None = None
) -> DataLoader[Any]:
    """A loader of `Batch`es in the data set's order.

    Args:
        images: to read.
        transforms: of an RGB image to levels of the same sizes for all images; each image is read once for all of them.
        batch_size: images in a batch, those that cannot be read included.
        workers: processes that read images, 0 for this one; of a stream one at most, as several would mix its order.
        own: some of the batches (`batches_of`), by default all; not of a stream.
    """
    if isinstance(images, LabelledStream):
        stream = _ViewStream(images, transforms)
        return DataLoader(stream, batch_size, num_workers=min(workers, 1), collate_fn=_collate)
    batches: Any = batches_of(images, batch_size) if own is None else own
    return DataLoader(_Views(images, transforms), batch_sampler=batches, num_workers=workers, collate_fn=_collate)


def batches_of(images: Images, batch_size: int) -> list[range]:
    """The indices of the images of every batch; ValueError for a stream, which processes cannot share."""
    if isinstance(images, LabelledStream):
        raise ValueError(f"{images.source} is a stream, which processes cannot share: start one")
    return [range(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]


def read_ahead(batches: Iterable[T], start: int = 0) -> Iterator[T]:
    """Batches in order; a thread reads the next one while the caller works on this one.

    Args:
        batches: to read.
        start: how many are first read one by one, while the caller waits, so that nothing disturbs what is measured.
    """
    source = iter(batches)
    yield from islice(source, start)
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(lambda: list(islice(source, 1)))
        while batch := ahead.result():
            ahead = pool.submit(lambda: list(islice(source, 1)))
            yield from batch


class ImageLoader:
    """Batches `(levels, targets)` of a data set for one model, without the images that cannot be read.

    A thread reads the next batch while the caller works on this one.

    Levels are `(B, C, H_s, W_s)`, smallest first; targets `(B,)` are the model's classes, found by its own names of
    them (`target_indices`), whatever classes the data set has.

    Args:
        data, split, data_dir: as for `open_labelled`, whose errors it raises, and those of `target_indices`.
        model: whose classes and transform (`create_transform`) are used.
        sizes: sizes of the levels, smallest first, instead of the model's own.
        exact: as for `create_transform`.
        batch_size, workers: as for `load_batches`.

    Attributes:
        skipped: what could not be read in the last pass.
        seen: how many images the last pass met, the skipped ones included.

    Examples:
        >>> batches = ImageLoader("flowers/val", model)
        >>> for levels, targets in batches:
        ...     right += (model(levels).argmax(dim=1) == targets).sum()
        >>> batches.skipped
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Dataset[Any],
        model: Any,
        *,
        split: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        sizes: Sequence[int] | None = None,
        exact: bool = False,
        batch_size: int = 32,
        workers: int = 0,
    ) -> None:
        self._images = open_labelled(data, split=split, data_dir=data_dir)
        self.skipped: list[Skipped] = []
        self.seen = 0
        self._indices = target_indices(model, self._images)
        transforms = [create_transform(model, sizes=sizes, exact=exact)]
        self._batch_size = batch_size
        self._load = partial(load_batches, self._images, transforms, batch_size, workers)

    def __len__(self) -> int:
        return len(self._load())

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        self.skipped.clear()
        self.seen = 0
        for images, targets, skipped in self.read():
            self.count(len(targets), skipped)
            if len(targets):
                yield images, targets

    @property
    def batches(self) -> list[range]:
        """The indices of the images of every batch; ValueError for a stream."""
        return batches_of(self._images, self._batch_size)

    def read(self, own: Sequence[range] | None = None) -> Iterator[tuple[list[Tensor], Tensor, list[Skipped]]]:
        """Some of the `batches`, by default all: levels and targets of what can be read, and what cannot."""
        for batch in read_ahead(self._load(own)):
            levels = batch.levels[0] if batch.names else []
            yield levels, batch.targets_of(self._indices), batch.skipped

    def count(self, read: int, skipped: Sequence[Skipped]) -> None:
        """Add to `seen` and `skipped` what a batch has, of which so many can be read."""
        self.seen += read + len(skipped)
        self.skipped += skipped


class _Reading:
    """Labelled images as the levels of every transform, with name and target."""

    def __init__(self, transforms: Transforms) -> None:
        self.steps = [first_step(transform) for transform in transforms]

    def read(self, image: Any) -> tuple[Any, Notes]:
        """What every transform reads of an image that is not decoded yet."""
        return read_by_each([read for read, _ in self.steps])(image)

    def view(self, item: Labelled) -> Any:
        """The rest of every transform."""
        if isinstance(item.image, Skipped):
            return item.image
        parts = zip(self.steps, item.image, strict=True)
        return item.name, item.target, [to_levels(part) for (_, to_levels), part in parts]


class _Views(Dataset[Any]):
    """Images that can be read in any order, as such views."""

    def __init__(self, images: LabelledImages, transforms: Transforms) -> None:
        self.images, self.reading = images, _Reading(transforms)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.reading.view(self.images.read(index, self.reading.read))


class _ViewStream(IterableDataset[Any]):
    """The same of a stream."""

    def __init__(self, images: LabelledStream, transforms: Transforms) -> None:
        self.images, self.reading = images, _Reading(transforms)

    def __iter__(self) -> Iterator[Any]:
        return map(self.reading.view, self.images.read(self.reading.read))


def _collate(items: list[Any]) -> Batch:
    skipped = [item for item in items if isinstance(item, Skipped)]
    read = [item for item in items if not isinstance(item, Skipped)]
    names, targets, views = zip(*read, strict=True) if read else ((), (), ())
    return Batch(list(names), list(targets), [_stack(view) for view in zip(*views, strict=True)], skipped)


def _stack(view: Sequence[Any]) -> Any:
    """The levels of all images, or the images themselves where the model makes the levels."""
    if isinstance(view[0], Tensor):
        return torch.stack(list(view))
    return [torch.stack(level) for level in zip(*view, strict=True)]
