"""Pyramids: the levels of a batch of images, and how they are made on the images' own device."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Container, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .packed import LazyLevels, PackedPyramid
from .resizing import check_interpolation, resize


class Pyramid(Sequence[Tensor]):
    """The levels of a batch of images, smallest first; each `(B, C, H_s, W_s)` with one B and C for all.

    `Pyramid.pack` makes one of images of different heights and shapes.

    Args:
        levels: tensors, each larger than the one before.

    Raises:
        TypeError: if a level is not a tensor.
        ValueError: if there is no level, a level is not 4-D, the levels do not grow, or B, C, device or dtype differ.

    Examples:
        >>> pyramid = Pyramid.from_images(torch.rand(2, 3, 64, 96), scales=(0.5, 1.0))
        >>> pyramid
        Pyramid(height=2, sizes=[(32, 48), (64, 96)], batch_size=2)
    """

    def __init__(self, levels: Sequence[Tensor]) -> None:
        check_levels(levels)
        self.levels: tuple[Tensor, ...] = tuple(levels)

    @classmethod
    def from_images(
        cls, images: Tensor, scales: Sequence[float] = (0.5, 1.0), interpolation: str = "bicubic", multiple: int = 1
    ) -> Pyramid:
        """The pyramid of float images `(B, C, H, W)`, every level resized from the images themselves (`build_levels`).

        Raises:
            ValueError: for wrong scales, an unknown interpolation, and images that are too small or no float batch.
        """
        ratios = scale_ratios(scales)
        check_interpolation(interpolation)
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float (B, C, H, W); got {images.dtype}, shape {tuple(images.shape)}")
        level_sizes(images.shape[-2], images.shape[-1], ratios, multiple)
        return cls(build_levels(images, ratios, interpolation, multiple))

    @staticmethod
    def pack(images: Sequence[Sequence[Tensor]]) -> Pyramid | PackedPyramid:
        """The pyramid of images of any heights, each with its own levels; as `PackedSequence` is of sentences.

        Args:
            images: for every image its levels `(C, H_s, W_s)`, smallest first, or its `LazyLevels`.

        Returns:
            A `Pyramid` where all images have the same height and sizes, else a `PackedPyramid`, whose level s holds
            only the images that have it. A model gives its answers in the order of `images` for both.

        Raises:
            TypeError: if a level is not a tensor, or only some of the images have `LazyLevels`.
            ValueError: if there is no image, the levels of one are no pyramid, or C, device or dtype differ.

        Examples:
            >>> Pyramid.pack([[torch.rand(3, 32, 32)], [torch.rand(3, 32, 32), torch.rand(3, 64, 64)]])
            PackedPyramid(heights=[1, 2], sizes=[(32, 32), (64, 64)], batch_sizes=[2, 1])
        """
        if len(images) == 0:
            raise ValueError("a batch needs at least one image; got none")
        lazy = sum(isinstance(levels, LazyLevels) for levels in images)
        if 0 < lazy < len(images):
            raise TypeError(f"all images of a batch or none must have LazyLevels; got {lazy} of {len(images)}")
        if not lazy:
            check_images(images)
        if lazy or len({tuple(x.shape for x in levels) for levels in images}) > 1:
            return PackedPyramid(images)
        return Pyramid([torch.stack(level) for level in zip(*images, strict=True)])

    @property
    def height(self) -> int:
        """The number of levels."""
        return len(self.levels)

    @property
    def heights(self) -> list[int]:
        """The number of levels of every image."""
        return [self.height] * self.batch_size

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """`(H_s, W_s)` of every level, in pixels."""
        return [(x.shape[-2], x.shape[-1]) for x in self.levels]

    @property
    def batch_size(self) -> int:
        """The number of images."""
        return self.levels[0].shape[0]

    def to(self, *args: Any, **kwargs: Any) -> Pyramid:
        """The same pyramid on another device or in another dtype; arguments as for `Tensor.to`."""
        return Pyramid([x.to(*args, **kwargs) for x in self.levels])

    def pin_memory(self) -> Pyramid:
        """The same pyramid in pinned memory, as a `DataLoader` asks for."""
        return Pyramid([x.pin_memory() for x in self.levels])

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: Any) -> Any:
        return Pyramid(self.levels[index]) if isinstance(index, slice) else self.levels[index]

    def __repr__(self) -> str:
        return f"Pyramid(height={self.height}, sizes={self.sizes}, batch_size={self.batch_size})"


def _with_keys(pyramid: Pyramid) -> tuple[list[tuple[Any, Any]], None]:
    return [(pytree.SequenceKey(index), level) for index, level in enumerate(pyramid.levels)], None


def _from_leaves(leaves: Iterable[Any], context: Any = None) -> Pyramid:
    """A pyramid of what a graph has in place of levels: anything, unchecked."""
    pyramid = Pyramid.__new__(Pyramid)
    pyramid.levels = tuple(leaves)
    return pyramid


# torch.export, torch.compile and torch.func take a pyramid as they take a list
pytree.register_pytree_node(
    Pyramid,
    lambda pyramid: (list(pyramid.levels), None),
    _from_leaves,
    serialized_type_name="srnn_zoo.Pyramid",
    flatten_with_keys_fn=_with_keys,
)
torch.serialization.add_safe_globals([Pyramid])  # the inputs that torch.export.save keeps beside a program


class Levels:
    """The levels of a batch of images of one height, each built when it is read, and only for the images that read it.

    Args:
        given: the levels, smallest first; or with `sizes` the largest alone, from which they are built.
        sizes: `(H_s, W_s)` of the levels to build.
        interpolation: how they are built.
    """

    def __init__(
        self, given: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None, interpolation: str = "bicubic"
    ) -> None:
        self.interpolation = interpolation
        self.sizes = [(x.shape[-2], x.shape[-1]) for x in given] if sizes is None else list(sizes)
        self.batch_size = len(given[0])
        self._sources = list(given) if sizes is None else list(given) * len(self.sizes)

    @property
    def height(self) -> int:
        """The number of levels."""
        return len(self.sizes)

    @property
    def image_sizes(self) -> list[list[tuple[int, int]]]:
        """For every image the sizes of its levels."""
        return [self.sizes] * self.batch_size

    def groups(self, level: int, wanted: Container[int] | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Rows and images `(b, C, H, W)` of a level, by default of all images; as `PackedPyramid.groups`."""
        images, size = self._sources[level], self.sizes[level]
        rows = [row for row in range(self.batch_size) if wanted is None or row in wanted]
        if len(rows) < self.batch_size:
            images = images[torch.tensor(rows, device=images.device, dtype=torch.long)]
        yield rows, images if images.shape[-2:] == size else resize(images, list(size), self.interpolation)

    def restore(self, parts: Sequence[Tensor]) -> Tensor:
        """Join parts `(b, …)`, which are in the order of the images."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def check_images(images: Sequence[Sequence[Tensor]]) -> None:
    """Raise the error that says which rule of `Pyramid.pack` the levels of these images break."""
    for index, levels in enumerate(images):
        shapes = [tuple(x.shape) for x in levels if isinstance(x, Tensor)]
        if any(len(shape) != 3 for shape in shapes):
            raise ValueError(f"image {index}: a level must be (C, H, W); got {shapes}")
        try:
            check_levels([x[None] if isinstance(x, Tensor) else x for x in levels])
        except (TypeError, ValueError) as error:
            raise type(error)(f"image {index}: {error}") from None
    kinds = {(levels[0].shape[0], str(levels[0].device), levels[0].dtype) for levels in images}
    if len(kinds) > 1:
        raise ValueError(f"the images of a batch must share C, device and dtype; got {sorted(kinds, key=str)}")


def check_levels(levels: Sequence[Tensor]) -> None:
    """Raise the error that says which rule of `Pyramid` these levels break."""
    if len(levels) == 0:
        raise ValueError("a pyramid needs at least one level; got none")
    for x in levels:
        if not isinstance(x, Tensor):
            raise TypeError(f"the levels of a pyramid must be tensors; got {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(f"a level must be (B, C, H, W); got shape {tuple(x.shape)}")
    first = levels[0]
    for index in range(1, len(levels)):  # not pairwise: older torch.compile cannot read it
        x, (height, width) = levels[index], levels[index - 1].shape[-2:]
        if x.shape[-2] < height or x.shape[-1] < width or x.shape[-2:] == levels[index - 1].shape[-2:]:
            sizes = " then ".join(f"{x.shape[-2]} x {x.shape[-1]}" for x in levels)
            raise ValueError(f"levels must grow, smallest first; got {sizes}")
        if x.shape[:2] != first.shape[:2]:
            raise ValueError(f"levels must share B and C; got {[tuple(x.shape) for x in levels]}")
        if x.device != first.device or x.dtype != first.dtype:
            raise ValueError(f"levels must share device and dtype; got {[(str(x.device), x.dtype) for x in levels]}")


def scale_ratios(scales: Sequence[float]) -> list[tuple[int, int]]:
    """Scales as exact ratios `(numerator, denominator)`, so that level sizes follow from integer arithmetic alone.

    Raises:
        ValueError: if there is no scale, one is not positive, they do not grow, or the last is not 1.
    """
    try:
        values = tuple(float(s) for s in scales)
    except (TypeError, ValueError):
        raise ValueError(f"scales must be a sequence of numbers such as (0.5, 1.0); got {scales!r}") from None
    if not values:
        raise ValueError("scales must name at least one level, such as (0.5, 1.0); got none")
    if not all(s > 0 for s in values):
        raise ValueError(f"scales must be positive; got {values}")
    if any(a >= b for a, b in itertools.pairwise(values)):
        raise ValueError(f"scales must grow, smallest first; got {values}")
    if values[-1] != 1.0:
        raise ValueError(f"scales are relative to the image the model is given and must end with 1.0; got {values}")
    ratios = [Fraction(s).limit_denominator(1000) for s in values]
    if ratios[0] == 0 or any(a >= b for a, b in itertools.pairwise(ratios)):
        raise ValueError(f"scales below 1/1000, or closer than that to one another, make no levels; got {values}")
    return [(r.numerator, r.denominator) for r in ratios]


def level_size(length: int, numerator: int, denominator: int, multiple: int) -> int:
    """`length * numerator / denominator` rounded to a multiple; integers only, so that it can be traced."""
    step = denominator * multiple
    return (length * numerator + step // 2) // step * multiple


def level_sizes(height: int, width: int, ratios: list[tuple[int, int]], multiple: int = 1) -> list[tuple[int, int]]:
    """`(H_s, W_s)` of the levels of an image.

    Raises:
        ValueError: if the image is too small for them: a level would be empty, or no larger than the one before.
    """
    sizes = [(level_size(height, n, d, multiple), level_size(width, n, d, multiple)) for n, d in ratios]
    if min(sizes[0]) < 1 or any(sizes[s] == sizes[s - 1] for s in range(1, len(sizes))):
        scales = ", ".join(f"{n / d:g}" for n, d in ratios)
        raise ValueError(
            f"an image of {height} x {width} is too small for scales ({scales}) in steps of {multiple} pixels: "
            f"its levels would be {' and '.join(f'{h} x {w}' for h, w in sizes)}"
        )
    return sizes


def build_levels(
    images: Tensor, ratios: list[tuple[int, int]], interpolation: str = "bicubic", multiple: int = 1
) -> list[Tensor]:
    """The levels of images `(B, C, H, W)`, smallest first, each resized from the images and never from a level.

    A level whose size is the images' own is the images' tensor itself. Values are not clamped: as resizing is linear
    and its weights sum to one, it may come before or after normalisation.

    Args:
        images: float tensor on any device.
        ratios: from `scale_ratios`.
        interpolation: a name in `INTERPOLATIONS`.
        multiple: level sizes are rounded to it.
    """
    lengths = images.shape[-2], images.shape[-1]
    sizes = [[level_size(length, n, d, multiple) for length in lengths] for n, d in ratios]
    own = [n == d and multiple == 1 for n, d in ratios]
    return [images if is_own else resize(images, size, interpolation) for is_own, size in zip(own, sizes, strict=True)]


torch.fx.wrap("resize")  # its choice of dtype depends on the tensor, which a symbolic trace does not have


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as `(H, W)`, from that or from one number for both."""
    try:
        height, width = (operator.index(length) for length in (size if isinstance(size, Sequence) else (size, size)))
    except (TypeError, ValueError):
        raise ValueError(f"a size is a whole number or (height, width); got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"sizes must be positive; got {height} x {width}")
    return height, width
