"""Pyramids: the levels of a batch of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .levels import build_levels, default_scales, level_sizes, scale_ratios
from .packed import LazyLevels, PackedPyramid
from .resizing import check_interpolation
from .views import check_zooms, shares


class Pyramid(Sequence[Tensor]):
    """The levels of a batch of images, smallest first; each `(B, C, H_s, W_s)` with one B and C for all.

    `Pyramid.pack` makes one of images of different heights and shapes.

    Args:
        levels: tensors, each larger than the one before.
        zooms: for levels that show parts of the image: of each, by how much. They may then have any sizes.

    Raises:
        TypeError: if a level is not a tensor.
        ValueError: if there is no level, a level is not 4-D, the levels do not grow, B, C, device or dtype differ, or
            there is not one zoom of 1 or more for each level.

    Examples:
        >>> pyramid = Pyramid.from_images(torch.rand(2, 3, 64, 96), scales=(0.5, 1.0))
        >>> pyramid
        Pyramid(height=2, sizes=[(32, 48), (64, 96)], batch_size=2)
    """

    def __init__(self, levels: Sequence[Tensor], zooms: Sequence[float] | None = None) -> None:
        check_levels(levels, grow=zooms is None)
        self.levels: tuple[Tensor, ...] = tuple(levels)
        self.zooms = None if zooms is None else check_zooms(zooms, len(levels))

    @classmethod
    def from_images(
        cls,
        images: Tensor,
        scales: Sequence[float] | None = None,
        interpolation: str = "bicubic",
        multiple: int = 1,
        zooms: Sequence[float] | None = None,
    ) -> Pyramid:
        """The pyramid of float images `(B, C, H, W)`, every level resized from the images themselves (`build_levels`).

        Args:
            images: the images; with `zooms` at the resolution of the level that shows most detail.
            scales: sizes of the levels relative to the largest, by default `(0.5, 1.0)`, with `zooms` all 1.0.
            interpolation: a name in `INTERPOLATIONS`.
            multiple: level sizes are rounded to it.
            zooms: of each level: it shows `1 / zoom` of the image's height and width, in the middle.

        Raises:
            ValueError: for wrong scales or zooms, an unknown interpolation, and images that are too small or no float
                batch.
        """
        scales = default_scales(zooms) if scales is None else scales
        zooms = None if zooms is None else check_zooms(zooms, len(scales))
        ratios, shown = scale_ratios(scales, zooms), shares(zooms)
        check_interpolation(interpolation)
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float (B, C, H, W); got {images.dtype}, shape {tuple(images.shape)}")
        level_sizes(images.shape[-2], images.shape[-1], ratios, multiple, shown)
        return cls(build_levels(images, ratios, interpolation, multiple, shown), zooms)

    @staticmethod
    def pack(images: Sequence[Sequence[Tensor]], zooms: Sequence[float] | None = None) -> Pyramid | PackedPyramid:
        """The pyramid of images of any heights, each with its own levels; as `PackedSequence` is of sentences.

        Args:
            images: for every image its levels `(C, H_s, W_s)`, smallest first, or its `LazyLevels`.
            zooms: of the levels of the image that has most of them, as for a `Pyramid`.

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
            check_images(images, grow=zooms is None)
        if zooms is not None:
            zooms = check_zooms(zooms, max(map(len, images)))
        if lazy or len({tuple(x.shape for x in levels) for levels in images}) > 1:
            return PackedPyramid(images, zooms)
        return Pyramid([torch.stack(level) for level in zip(*images, strict=True)], zooms)

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
        return Pyramid([x.to(*args, **kwargs) for x in self.levels], self.zooms)

    def pin_memory(self) -> Pyramid:
        """The same pyramid in pinned memory, as a `DataLoader` asks for."""
        return Pyramid([x.pin_memory() for x in self.levels], self.zooms)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Pyramid(self.levels[index], self.zooms and self.zooms[index])
        return self.levels[index]

    def __repr__(self) -> str:
        zooms = "" if self.zooms is None else f", zooms={self.zooms}"
        return f"Pyramid(height={self.height}, sizes={self.sizes}, batch_size={self.batch_size}{zooms})"


def _with_keys(pyramid: Pyramid) -> tuple[list[tuple[Any, Any]], Any]:
    return [(pytree.SequenceKey(index), level) for index, level in enumerate(pyramid.levels)], pyramid.zooms


def _from_leaves(leaves: Iterable[Any], context: Any = None) -> Pyramid:
    """A pyramid of what a graph has in place of levels: anything, unchecked."""
    pyramid = Pyramid.__new__(Pyramid)
    pyramid.levels, pyramid.zooms = tuple(leaves), context if context is None else tuple(context)
    return pyramid


# torch.export, torch.compile and torch.func take a pyramid as they take a list
pytree.register_pytree_node(
    Pyramid,
    lambda pyramid: (list(pyramid.levels), pyramid.zooms),
    _from_leaves,
    serialized_type_name="srnn_zoo.Pyramid",
    flatten_with_keys_fn=_with_keys,
)
torch.serialization.add_safe_globals([Pyramid])  # the inputs that torch.export.save keeps beside a program


def check_images(images: Sequence[Sequence[Tensor]], grow: bool = True) -> None:
    """Raise the error that says which rule of `Pyramid.pack` the levels of these images break."""
    for index, levels in enumerate(images):
        shapes = [tuple(x.shape) for x in levels if isinstance(x, Tensor)]
        if any(len(shape) != 3 for shape in shapes):
            raise ValueError(f"image {index}: a level must be (C, H, W); got {shapes}")
        try:
            check_levels([x[None] if isinstance(x, Tensor) else x for x in levels], grow)
        except (TypeError, ValueError) as error:
            raise type(error)(f"image {index}: {error}") from None
    kinds = {(levels[0].shape[0], str(levels[0].device), levels[0].dtype) for levels in images}
    if len(kinds) > 1:
        raise ValueError(f"the images of a batch must share C, device and dtype; got {sorted(kinds, key=str)}")


def check_levels(levels: Sequence[Tensor], grow: bool = True) -> None:
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
        if grow and (x.shape[-2] < height or x.shape[-1] < width or x.shape[-2:] == levels[index - 1].shape[-2:]):
            sizes = " then ".join(f"{x.shape[-2]} x {x.shape[-1]}" for x in levels)
            raise ValueError(f"levels must grow, smallest first; got {sizes}")
        if x.shape[:2] != first.shape[:2]:
            raise ValueError(f"levels must share B and C; got {[tuple(x.shape) for x in levels]}")
        if x.device != first.device or x.dtype != first.dtype:
            raise ValueError(f"levels must share device and dtype; got {[(str(x.device), x.dtype) for x in levels]}")
