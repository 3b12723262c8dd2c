"""Map cells: the recurrences of `cells` at every position of a level's map, pooled after the last level.

Features and states are maps that know where they lie (`places`): the state of the level before is brought to the
positions of this one, and U and the gates are 1 x 1 convolutions. So a zoom continues the part of the state that it
shows; where the level before showed nothing, the state is h_0 = 0. All start where the paper starts: U = I, gates half
open.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from .cells import Cell, HalfGRU, Vanilla, register_cell
from .light_cells import HalfGRUDiag, VanillaDiag
from .places import aligned, mean, placed, values, with_values


class MapCell(Cell):
    """Another cell at every position: `class GRUMap(MapCell, GRU)`. Features and states are `(B, D + 6, h, w)`."""

    reads: ClassVar[Literal["features", "maps"]] = "maps"

    def initial_state(self, features: Tensor) -> Tensor:
        return with_values(features, _like_map(super().initial_state(_points(values(features))), features))

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        after = super().forward(_points(values(features)), _points(aligned(state, features)))
        return with_values(features, _like_map(after, features))

    def output(self, state: Tensor) -> Tensor:
        return super().output(mean(state))

    def pooled(self, features: Tensor) -> Tensor:
        return features if features.dim() == 2 else mean(features)

    def as_read(self, features: Tensor) -> Tensor:
        return placed(features[:, :, None, None])


def _points(maps: Tensor) -> Tensor:
    """Every position as if it were an image: `(B, C, h, w)` to `(B * h * w, C)`."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _like_map(points: Tensor, maps: Tensor) -> Tensor:
    """Back from them, to as many positions as maps have."""
    return points.unflatten(0, (maps.shape[0], *maps.shape[2:])).permute(0, 3, 1, 2)


@register_cell("vanilla_map")
class VanillaMap(MapCell, Vanilla):
    """`vanilla` with a map as its state."""


@register_cell("half_gru_map")
class HalfGRUMap(MapCell, HalfGRU):
    """`half_gru` with a map as its state, and gates at every position."""


@register_cell("vanilla_map_diag")
class VanillaMapDiag(MapCell, VanillaDiag):
    """`vanilla_map` with a diagonal U: D parameters."""


@register_cell("half_gru_map_diag")
class HalfGRUMapDiag(MapCell, HalfGRUDiag):
    """`half_gru_map` with a diagonal U and diagonal gates: 3 D parameters."""
