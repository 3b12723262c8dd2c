"""Maps that know where they lie: values at each position of a level, and which part of the image the level shows.

A map is one tensor `(B, C + 6, h, w)`. The last six channels are the same at all positions of an image: the top, left,
bottom and right of the part it shows, as shares of the image's height and width, and how many rows and columns belong
to it. The rest of a larger tensor is padding, as in a batch of maps of several sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from srnn_zoo.transforms.views import WHOLE, Ratio

_PLACE = 6
_NEAR = 1e-3  # of a position: rounding may not put one that lies on an edge outside


def placed(values: Tensor, share: Ratio = WHOLE, centers: Tensor | None = None) -> Tensor:
    """A map from its values.

    Args:
        values: `(B, C, h, w)`.
        share: how much of the image's height and width it shows.
        centers: around which points (y, x) of the image it lies, `(B, 2)` from 0 to 1; by default the middle.
    """
    ones = torch.ones_like(values[:, :1])
    half = share[0] / share[1] / 2
    around = 0.5 * ones.expand(-1, 2, -1, -1) if centers is None else ones * centers.to(values)[:, :, None, None]
    rows, columns = (ones.sum(dim=axis, keepdim=True).expand_as(ones) for axis in (2, 3))
    return torch.cat([values, around - half, around + half, rows, columns], dim=1)


def values(maps: Tensor) -> Tensor:
    """What a map has at each position, `(B, C, h, w)`."""
    return maps[:, :-_PLACE]


def with_values(maps: Tensor, new: Tensor) -> Tensor:
    """Other values at the same place."""
    return torch.cat([new, maps[:, -_PLACE:]], dim=1)


def mean(maps: Tensor) -> Tensor:
    """The mean over the positions of each image, `(B, C)`."""
    place = _place(maps)
    own = [_indices(maps, axis) < place[:, 4 + axis, None] for axis in (0, 1)]
    total = (values(maps) * (own[0][:, None, :, None] & own[1][:, None, None, :])).sum(dim=(2, 3))
    return total / (place[:, 4:5] * place[:, 5:6]).to(total.dtype)


def aligned(maps: Tensor, like: Tensor) -> Tensor:
    """The values of maps at the positions of others, `(B, C, h, w)`, found by the places of both.

    Between positions they are bilinear, and up to its edges a map goes on as at its outermost positions; that is
    `F.interpolate(..., align_corners=False)` where both show the same. Where a map shows nothing they are zero.
    """
    own, other = _place(maps), _place(like)
    grid: list[Tensor] = []
    shown: list[Tensor] = []
    for axis in (0, 1):
        (start, end, rows), (other_start, other_end, other_rows) = (
            place[:, axis::2, None].unbind(dim=1) for place in (own, other)
        )
        where = other_start + (_indices(like, axis) + 0.5) / other_rows * (other_end - other_start)  # in the image
        at = (where - start) / (end - start) * rows  # in the map, from 0 to its number of rows
        shown.append((at > -_NEAR) & (at < rows + _NEAR))
        at = torch.minimum(at.clamp(min=0.5), rows - 0.5)
        grid.append(at / maps.shape[2 + axis] * 2 - 1)
    y, x = grid[0][:, :, None], grid[1][:, None, :]
    points = torch.stack([x.expand(-1, y.shape[1], -1), y.expand(-1, -1, x.shape[2])], dim=-1)
    found = F.grid_sample(values(maps).to(points.dtype), points, padding_mode="border", align_corners=False)
    return (found * (shown[0][:, None, :, None] & shown[1][:, None, None, :])).to(maps.dtype)


def same_size(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps of several sizes, padded to one."""
    height, width = (max(x.shape[axis] for x in maps) for axis in (2, 3))
    if all(x.shape[2:] == (height, width) for x in maps):
        return list(maps)
    return [F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in maps]


def _place(maps: Tensor) -> Tensor:
    """The last six channels, `(B, 6)`, in float32 or more."""
    place = maps[:, -_PLACE:, 0, 0]
    return place.to(torch.promote_types(place.dtype, torch.float32))


def _indices(maps: Tensor, axis: int) -> Tensor:
    return torch.arange(maps.shape[2 + axis], device=maps.device)[None]
