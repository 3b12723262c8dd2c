"""Views: the part of an image that a level shows, and how it is cut out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from .resizing import is_captured

Ratio = tuple[int, int]
"""Numerator and denominator."""

WHOLE: Ratio = (1, 1)


def check_zooms(zooms: Sequence[float], height: int | None = None) -> tuple[float, ...]:
    """The zooms of so many levels, or of any number: each shows `1 / zoom` of the image's height and width.

    Raises:
        ValueError: if there is not one for each level, or one is less than 1, the whole image.
    """
    try:
        values = tuple(float(zoom) for zoom in zooms)
    except (TypeError, ValueError):
        raise ValueError(f"zooms must be a sequence of numbers such as (1.0, 1.6); got {zooms!r}") from None
    if len(values) != (height or len(values)) or not values:
        raise ValueError(f"there must be one zoom for each of {height or 1} levels; got {len(values)}: {values}")
    if not all(1 <= zoom < math.inf for zoom in values):
        raise ValueError(f"a zoom is 1, which shows the whole image, or more; got {values}")
    return values


def level_names(sizes: Iterable[Sequence[int]], zooms: Iterable[float] | None = None) -> list[str]:
    """What levels are called: `"224 x 224 zoom 1.6"`."""
    names = [f"{height} x {width}" for height, width in sizes]
    zoomed = zip(names, zooms or [1.0] * len(names), strict=True)
    return [name + (f" zoom {zoom:.3g}" if zoom > 1.0001 else "") for name, zoom in zoomed]


def zoom_fraction(zoom: float) -> Fraction:
    """A zoom as an exact ratio, so that a view's size follows from integer arithmetic alone."""
    return Fraction(zoom).limit_denominator(1000)


def shares(zooms: Sequence[float] | None) -> list[Ratio] | None:
    """How much of the image's height and width each level shows, exactly; None where there are no zooms."""
    exact = None if zooms is None else map(zoom_fraction, zooms)
    return exact and [(zoom.denominator, zoom.numerator) for zoom in exact]


def level_size(length: int, numerator: int, denominator: int, multiple: int = 1) -> int:
    """`length * numerator / denominator` rounded to a multiple; integers only, so that it can be traced."""
    step = denominator * multiple
    return (length * numerator + step // 2) // step * multiple


def view_size(height: int, width: int, share: Ratio) -> tuple[int, int]:
    """`(h, w)` of what is shown of an image, in its own pixels."""
    return level_size(height, *share), level_size(width, *share)


def nearest(centers: Tensor, share: Ratio) -> Tensor:
    """The centres `(B, 2)`, moved as little as it takes for the view to lie within the image."""
    half = share[0] / share[1] / 2
    return centers.clamp(half, 1 - half)


def cut(images: Tensor, share: Ratio, centers: Tensor | None = None) -> Tensor:
    """What a level shows of images `(…, C, H, W)`, without resizing: whole pixels.

    Args:
        images: any tensors; with `centers` exactly `(B, C, H, W)`.
        share: of the height and width.
        centers: `(B, 2)`, y and x of the centre of each view as shares of the height and width; by default the middle.
    """
    if share == WHOLE:
        return images
    height, width = images.shape[-2:]
    h, w = view_size(height, width, share)
    if centers is None:
        top, left = (height - h) // 2, (width - w) // 2
        return images[..., top : top + h, left : left + w]
    rows = _positions(centers[:, 0], height, h)
    columns = _positions(centers[:, 1], width, w)
    every = torch.arange(images.shape[0], device=images.device)[:, None, None]
    return images[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _positions(centers: Tensor, length: int, size: int) -> Tensor:
    """The pixels `(B, size)` of a line of each image that its view shows."""
    first = ((2 * length * centers.float() - size) / 2).floor().long().clamp(min=0)  # no division of sizes: OpenVINO
    first = torch.minimum(first, torch.full_like(first, length - size))
    return first[:, None] + torch.arange(size, device=centers.device)


def check_centers(centers: object, images: int, share: Ratio, level: int) -> Tensor:
    """What a function of the user's says of where the views lie, if it can be done.

    Raises:
        TypeError: for something else than a floating-point tensor.
        ValueError: for another shape than `(images, 2)`, values that are not finite, and a view that leaves its image.
    """
    where = f"the views of level {level}"
    if not isinstance(centers, Tensor) or not centers.is_floating_point():
        raise TypeError(f"{where} must be a float tensor of centres ({images}, 2); got {_kind(centers)}")
    if centers.shape != (images, 2):
        raise ValueError(f"{where} must be centres (y, x) of {images} images, ({images}, 2); got {_kind(centers)}")
    if is_captured(centers):
        return centers
    half = share[0] / share[1] / 2
    outside = ~((centers >= half - 1e-4) & (centers <= 1 - half + 1e-4)).all(dim=1)  # also what is not a number
    if outside.any():
        first = int(outside.nonzero()[0, 0])
        y, x = centers[first].tolist()
        raise ValueError(
            f"{where}: that of image {first} around ({y:g}, {x:g}) leaves the image; both must be "
            f"{half:g} to {1 - half:g}"
        )
    return centers


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
