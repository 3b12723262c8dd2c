"""Levels: their sizes, and how they are made of one image on the image's own device."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Container, Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from .resizing import resize
from .views import WHOLE, Ratio, check_zooms, cut, level_size, view_size, zoom_fraction


class Levels:
    """The levels of a batch of images of one height, each built when it is read, and only for the images that read it.

    Args:
        given: the levels, smallest first; or with `sizes` the image alone, from which they are built.
        sizes: `(H_s, W_s)` of the levels to build.
        interpolation: how they are built.
        shown: which share of the image's height and width each level shows, by default all of it.
    """

    def __init__(
        self,
        given: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]] | None = None,
        interpolation: str = "bicubic",
        shown: Sequence[Ratio] | None = None,
    ) -> None:
        self.interpolation = interpolation
        self.sizes = [(x.shape[-2], x.shape[-1]) for x in given] if sizes is None else list(sizes)
        self.batch_size = len(given[0])
        self.shown = list(shown or [WHOLE] * self.height)
        self.centers: dict[int, Tensor] = {}
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
        images = self._sources[level]
        rows = [row for row in range(self.batch_size) if wanted is None or row in wanted]
        if len(rows) < self.batch_size:
            images = images[torch.tensor(rows, device=images.device, dtype=torch.long)]
        seen, size = cut(images, self.shown[level], self.center(level, rows)), self.sizes[level]
        yield rows, seen if seen.shape[-2:] == size else resize(seen, list(size), self.interpolation)

    def follows(self, level: int) -> bool:
        """Whether a level that shows a part of the image comes after this one, so that it may lie somewhere else."""
        return level + 1 < self.height and self.shown[level + 1] != WHOLE

    def center(self, level: int, rows: Sequence[int]) -> Tensor | None:
        """Around which points `(b, 2)` of these images a level lies; None for the middle."""
        centers = self.centers.get(level)
        if centers is None or len(rows) == self.batch_size:
            return centers
        return centers[torch.tensor(rows, device=centers.device, dtype=torch.long)]

    def look(self, level: int, rows: Sequence[int], centers: Tensor) -> None:
        """Say around which points `(b, 2)` of these images a level lies; before, it lies in the middle."""
        if len(rows) < self.batch_size:
            every = self.centers.get(level, centers.new_full((self.batch_size, 2), 0.5))
            centers = every.index_copy(0, torch.tensor(rows, device=centers.device), centers)
        self.centers[level] = centers

    def views(self, level: int, share: Ratio | None = None) -> Tensor:
        """What a level shows of each image: top, left, bottom and right `(B, 4)`, as shares of its height and width.

        Args:
            level: its index.
            share: how much it shows, where the levels themselves were given.
        """
        numerator, denominator = share or self.shown[level]
        centers = self.centers.get(level, torch.full((self.batch_size, 2), 0.5))
        half = numerator / denominator / 2
        return torch.cat([centers - half, centers + half], dim=1)

    def restore(self, parts: Sequence[Tensor]) -> Tensor:
        """Join parts `(b, …)`, which are in the order of the images."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def default_scales(zooms: Sequence[float] | None) -> tuple[float, ...]:
    """The scales of a model that was given none: half and whole size, and with zooms the same size for all."""
    return (0.5, 1.0) if zooms is None else (1.0,) * len(check_zooms(zooms))


def scale_ratios(scales: Sequence[float], zooms: Sequence[float] | None = None) -> list[Ratio]:
    """The sizes of levels relative to the image's, as exact ratios, so that they follow from integer arithmetic alone.

    They are the scales themselves. With zooms, the image is as large as makes the level that shows it in most detail a
    part of it that needs no resizing.

    Raises:
        ValueError: if there is no scale, one is not positive, they do not grow, or the last is not 1. With zooms they
            need not grow, and the largest is 1.
    """
    try:
        values = tuple(float(s) for s in scales)
    except (TypeError, ValueError):
        raise ValueError(f"scales must be a sequence of numbers such as (0.5, 1.0); got {scales!r}") from None
    if not values:
        raise ValueError("scales must name at least one level, such as (0.5, 1.0); got none")
    if not all(s > 0 for s in values):
        raise ValueError(f"scales must be positive; got {values}")
    if zooms is not None:
        if max(values) != 1.0:
            raise ValueError(f"scales are relative to the largest level, and so the largest is 1.0; got {values}")
    elif any(a >= b for a, b in itertools.pairwise(values)):
        raise ValueError(f"scales must grow, smallest first; got {values}")
    elif values[-1] != 1.0:
        raise ValueError(f"scales are relative to the image the model is given and must end with 1.0; got {values}")
    ratios = [Fraction(s).limit_denominator(1000) for s in values]
    if min(ratios) == 0 or (zooms is None and any(a >= b for a, b in itertools.pairwise(ratios))):
        raise ValueError(f"scales below 1/1000, or closer than that to one another, make no levels; got {values}")
    if zooms is not None:
        finest = max(ratio * zoom_fraction(zoom) for ratio, zoom in zip(ratios, zooms, strict=True))
        ratios = [ratio / finest for ratio in ratios]
    return [(r.numerator, r.denominator) for r in ratios]


def level_sizes(
    height: int, width: int, ratios: list[Ratio], multiple: int = 1, shown: Sequence[Ratio] | None = None
) -> list[tuple[int, int]]:
    """`(H_s, W_s)` of the levels of an image.

    Args:
        height: of the image.
        width: of the image.
        ratios: from `scale_ratios`.
        multiple: sizes are rounded to it.
        shown: as for `Levels`; with it, the levels need not grow.

    Raises:
        ValueError: if the image is too small for them: a level would be empty, or no larger than the one before.
    """
    sizes = [(level_size(height, n, d, multiple), level_size(width, n, d, multiple)) for n, d in ratios]
    seen = [min(view_size(height, width, share)) for share in shown or ()]
    grows = shown is not None or all(sizes[s] != sizes[s - 1] for s in range(1, len(sizes)))
    if min(*map(min, sizes), *seen, 1) < 1 or not grows:
        scales = ", ".join(f"{n / d:g}" for n, d in ratios)
        raise ValueError(
            f"an image of {height} x {width} is too small for scales ({scales}) in steps of {multiple} pixels: "
            f"its levels would be {' and '.join(f'{h} x {w}' for h, w in sizes)}"
        )
    return sizes


def build_levels(
    images: Tensor,
    ratios: list[Ratio],
    interpolation: str = "bicubic",
    multiple: int = 1,
    shown: Sequence[Ratio] | None = None,
) -> list[Tensor]:
    """The levels of images `(B, C, H, W)`, smallest first, each resized from the images and never from a level.

    A level whose size is the images' own is the images' tensor itself. Values are not clamped: as resizing is linear
    and its weights sum to one, it may come before or after normalisation.

    Args:
        images: float tensor on any device.
        ratios: from `scale_ratios`.
        interpolation: a name in `INTERPOLATIONS`.
        multiple: level sizes are rounded to it.
        shown: as for `Levels`; what is shown lies in the middle.
    """
    return [
        build_level(images, ratio, interpolation, multiple, share)
        for ratio, share in zip(ratios, shown or [WHOLE] * len(ratios), strict=True)
    ]


def build_level(
    images: Tensor,
    ratio: Ratio,
    interpolation: str = "bicubic",
    multiple: int = 1,
    share: Ratio = WHOLE,
    centers: Tensor | None = None,
) -> Tensor:
    """One of them; with `centers` as for `views.cut`."""
    if ratio == share and multiple == 1:
        return cut(images, share, centers)
    height, width = (level_size(length, *ratio, multiple) for length in (images.shape[-2], images.shape[-1]))
    return resize(cut(images, share, centers), [height, width], interpolation)


torch.fx.wrap("resize")  # its choice of dtype depends on the tensor, which a symbolic trace does not have
torch.fx.wrap("cut")


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as `(H, W)`, from that or from one number for both."""
    try:
        height, width = (operator.index(length) for length in (size if isinstance(size, Sequence) else (size, size)))
    except (TypeError, ValueError):
        raise ValueError(f"a size is a whole number or (height, width); got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"sizes must be positive; got {height} x {width}")
    return height, width
