"""Packing: batches of images of mixed heights, and levels that are built only when they are read."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]


class LazyLevels(Sequence[Any]):
    """The levels of one image, smallest first, each built anew whenever it is asked for and kept nowhere.

    `ScalePyramid.variable(..., levels_in_sequence=True)` returns it. It pickles where its image and functions do.

    Args:
        image: what the levels are made from.
        sizes: `(H_s, W_s)` of the levels in pixels.
        build: makes a level of a size from the image.
        then: functions that a built level goes through, in order.

    Examples:
        >>> levels = ScalePyramid.variable(32, max_height=2, levels_in_sequence=True)(torch.rand(3, 64, 64))
        >>> levels
        LazyLevels(sizes=[(32, 32), (64, 64)])
        >>> levels[1].shape
        torch.Size([3, 64, 64])
    """

    def __init__(
        self, image: Any, sizes: Sequence[Size], build: Callable[[Any, Size], Any], then: Sequence[Callable] = ()
    ) -> None:
        self.image = image
        self.sizes = list(sizes)
        self.build = build
        self.then = tuple(then)

    def map(self, function: Callable[[Any], Any]) -> LazyLevels:
        """The same levels, each put through a function once it is built."""
        return LazyLevels(self.image, self.sizes, self.build, (*self.then, function))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyLevels(self.image, self.sizes[index], self.build, self.then)
        level = self.build(self.image, self.sizes[index])
        for function in self.then:
            level = function(level)
        return level

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sizes={self.sizes})"


class PackedPyramid:
    """The levels of a batch of images of mixed heights or shapes: level s holds only the B_s images that have it.

    `Pyramid.pack` and `pyramid_collate` make it. The images are *packed* inside, the greatest height first, so that
    level s holds the first B_s; a model gives its answers in the order they had. `pyramid[s]` is `(B_s, C, H_s, W_s)`,
    packed, or a list of such tensors, one for each shape, where level s has several.

    Args:
        images: for every image its levels `(C, H_s, W_s)`, smallest first, or its `LazyLevels`.
        zooms: of the levels of the image that has most of them, as for a `Pyramid`.

    Attributes:
        heights: the number of levels of every image, in the batch's own order.
        order: for every packed place, the image that has it.
        image_sizes: `(H_s, W_s)` of the levels of every image, packed.

    Raises:
        ValueError: if an image has no level.
    """

    def __init__(self, images: Sequence[Sequence[Tensor]], zooms: tuple[float, ...] | None = None) -> None:
        self.zooms = zooms
        sizes = [
            levels.sizes if isinstance(levels, LazyLevels) else [(x.shape[-2], x.shape[-1]) for x in levels]
            for levels in images
        ]
        for index, levels in enumerate(sizes):
            if len(levels) == 0:
                raise ValueError(f"image {index}: a pyramid needs at least one level; got none")
        self.heights = [len(levels) for levels in sizes]
        self.order = sorted(range(len(sizes)), key=lambda image: (-len(sizes[image]), *sizes[image]))
        self.image_sizes = [sizes[image] for image in self.order]
        packed = [images[image] for image in self.order]
        self._source: list[Any] = packed  # or for every level its groups `(b, C, H, W)`, one for each shape
        if not isinstance(images[0], LazyLevels):
            self._source = [
                [torch.stack([packed[place][level] for place in places]) for places in self.places(level)]
                for level in range(self.height)
            ]

    @property
    def levels_in_sequence(self) -> bool:
        """Whether a level is built when it is read: a chunk at a time, none with more pixels than the largest level."""
        return isinstance(self._source[0], LazyLevels)

    @property
    def height(self) -> int:
        """The greatest number of levels."""
        return len(self.image_sizes[0])

    @property
    def batch_size(self) -> int:
        """The number of images."""
        return len(self.order)

    @property
    def batch_sizes(self) -> list[int]:
        """B_s: how many images have level s."""
        return [sum(height > level for height in self.heights) for level in range(self.height)]

    @property
    def sizes(self) -> list[Size]:
        """`(H_s, W_s)` of every level in pixels; of a level in several shapes, the size that holds them all."""
        levels = [[sizes[s] for sizes in self.image_sizes if len(sizes) > s] for s in range(self.height)]
        return [(max(h for h, _ in sizes), max(w for _, w in sizes)) for sizes in levels]

    def groups(self, level: int, wanted: Container[int] | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Packed places and images `(b, C, H, W)` of a level: those of one shape together, or as many as are built.

        Args:
            level: its index.
            wanted: packed places of the images asked for, by default all; no others are built or copied.
        """
        if self.levels_in_sequence:
            for places in self.chunks(level, wanted):
                yield places, _stack([self._source[place][level] for place in places])
            return
        for places, images in zip(self.places(level), self._source[level], strict=True):
            rows = [row for row, place in enumerate(places) if wanted is None or place in wanted]
            if rows:
                yield [places[row] for row in rows], images if len(rows) == len(places) else images[rows]

    def places(self, level: int, wanted: Container[int] | None = None) -> list[list[int]]:
        """The packed places of the images that have a level, or of those wanted, those of one size together."""
        places: dict[Size, list[int]] = {}
        for place in range(self.batch_sizes[level]):
            if wanted is None or place in wanted:
                places.setdefault(self.image_sizes[place][level], []).append(place)
        return list(places.values())

    def chunks(self, level: int, wanted: Container[int] | None = None) -> list[list[int]]:
        """The places, cut so that no chunk has more pixels than the largest level of any one image."""
        largest = max(height * width for sizes in self.image_sizes for height, width in sizes)
        chunks: list[list[int]] = []
        for places in self.places(level, wanted):
            height, width = self.image_sizes[places[0]][level]
            step = largest // (height * width)
            chunks += [places[start : start + step] for start in range(0, len(places), step)]
        return chunks

    def restore(self, parts: Sequence[Tensor]) -> Tensor:
        """Join packed parts `(b, …)`; the images, all or those of one level, come out in the batch's own order."""
        return in_order(parts, self.order[: sum(len(part) for part in parts)])

    def unpack(self) -> list[Sequence[Tensor]]:
        """The levels of every image, in the batch's own order: what `Pyramid.pack` was given."""
        packed: list[Any] = self._source if self.levels_in_sequence else [[] for _ in self.order]
        for level in range(0 if self.levels_in_sequence else self.height):
            for places, images in self.groups(level):
                for place, image in zip(places, images, strict=True):
                    packed[place].append(image)
        return [packed[place] for place in sorted(range(len(packed)), key=self.order.__getitem__)]

    def to(self, *args: Any, **kwargs: Any) -> PackedPyramid:
        """The same pyramid on another device or in another dtype; arguments as for `Tensor.to`."""
        return self._map(functools.partial(_to, args=args, kwargs=kwargs))

    def pin_memory(self) -> PackedPyramid:
        """The same pyramid in pinned memory, as a `DataLoader` asks for; levels yet to be built stay as they are."""
        return self if self.levels_in_sequence else self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> PackedPyramid:
        other = copy.copy(self)
        other._source = [x.map(function) if isinstance(x, LazyLevels) else [*map(function, x)] for x in self._source]
        return other

    def __len__(self) -> int:
        return self.height

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return PackedPyramid([levels[index] for levels in self.unpack()], self.zooms and self.zooms[index])
        shapes: dict[Any, list[Tensor]] = {}
        for _, images in self.groups(range(self.height)[index]):
            shapes.setdefault(images.shape[1:], []).append(images)
        level = [images[0] if len(images) == 1 else torch.cat(images) for images in shapes.values()]
        return level[0] if len(level) == 1 else level

    def __iter__(self) -> Iterator[Any]:
        return (self[level] for level in range(self.height))

    def __repr__(self) -> str:
        return f"PackedPyramid(heights={self.heights}, sizes={self.sizes}, batch_sizes={self.batch_sizes})"


def in_order(parts: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Join tensors along their first axis and sort the rows by the places they belong to."""
    joined = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    rows = sorted(range(len(places)), key=places.__getitem__)
    if rows == list(range(len(rows))):
        return joined
    return joined[torch.tensor(rows, device=joined.device)]


def _stack(levels: Sequence[Any]) -> Tensor:
    """Levels built just now, `(b, C, H, W)`; of one there is no copy."""
    for x in levels:
        if not isinstance(x, Tensor) or x.dim() != 3:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"a level must be a tensor (C, H, W) once it is built; got {found}")
    shapes = sorted({tuple(x.shape) for x in levels})
    if len(shapes) > 1:
        raise ValueError(f"the images of a batch must share C; got levels of shapes {shapes}")
    return levels[0][None] if len(levels) == 1 else torch.stack(list(levels))


def _to(x: Tensor, args: Any, kwargs: Any) -> Tensor:
    return x.to(*args, **kwargs)
