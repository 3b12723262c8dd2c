"""Batch norm of a backbone that reads several levels: one set of statistics for all, one for each level, or frozen."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, get_args

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from srnn_zoo._errors import unknown_name

Norm = Literal["shared", "per_level", "frozen"]


class LevelNorm(nn.ModuleList):
    """The batch norms of one place in a backbone, one for each level, as in Resolution Switchable Networks.

    Source: Wang et al., "Resolution Switchable Networks for Runtime Efficient Image Recognition", 2020, section 3.1.

    Args:
        norm: the batch norm they all start from; the last of them is this one.
        count: how many levels have one of their own. Levels beyond share the last one's.

    Attributes:
        level: of the image read next, 0 for the smallest; `select_level` sets it.
    """

    def __init__(self, norm: nn.Module, count: int) -> None:
        super().__init__([*(copy.deepcopy(norm) for _ in range(count - 1)), norm])
        self.level = count - 1

    def forward(self, x: Tensor) -> Tensor:
        return self[min(self.level, len(self) - 1)](x)

    def extra_repr(self) -> str:
        return f"level={self.level}"


def convert_norms(backbone: nn.Module, norm: str, count: int) -> None:
    """Give a backbone another kind of batch norm, in place.

    Args:
        backbone: with one batch norm a place.
        norm: `"shared"` changes nothing; `"per_level"` makes `count` of each; `"frozen"` makes statistics and affine
            parameters constant (timm's `freeze_batch_norm_2d`).
        count: the number of levels.

    Raises:
        ValueError: for an unknown kind, a backbone without batch norm, and `"frozen"` where some are not of maps.
    """
    if norm not in get_args(Norm):
        raise ValueError(unknown_name("norm", norm, get_args(Norm)))
    if norm == "shared":
        return
    places = [name for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)]
    if not places:
        raise ValueError(f'norm={norm!r} is about batch norm, and this backbone has none: leave norm="shared"')
    if norm == "frozen":
        freeze_batch_norm_2d(backbone)
        if left := sum(isinstance(module, _BatchNorm) for module in backbone.modules()):
            raise ValueError(f'norm="frozen" is for batch norm of maps; {left} of its {len(places)} are not')
        return
    for name in places:
        backbone.set_submodule(name, LevelNorm(backbone.get_submodule(name), count))


def select_level(backbone: nn.Module, level: int | None) -> None:
    """Have the batch norms of a level read what comes next; None for the largest level's."""
    for module in _level_norms(backbone).values():
        module.level = len(module) - 1 if level is None else level


def level_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    """The parameters that a level has of its own, of all levels."""
    return [parameter for module in _level_norms(backbone).values() for parameter in module.parameters()]


def spread_state(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The state dict of a base CNN for a backbone that may have a batch norm for each level: every one gets a copy.

    Where the state has several of them already, they stay.
    """
    norms = _level_norms(backbone)
    spread: dict[str, Tensor] = {}
    for key, value in state.items():
        place, _, entry = key.rpartition(".")
        levels = range(len(norms[place])) if place in norms else None
        spread |= {key: value} if levels is None else {f"{place}.{level}.{entry}": value for level in levels}
    return spread


def state_of_level(backbone: nn.Module, level: int) -> dict[str, Tensor]:
    """A backbone's state dict with the base CNN's names, of several batch norms a place those of one level."""
    norms = _level_norms(backbone)
    state: dict[str, Tensor] = {}
    for key, value in backbone.state_dict().items():
        place, _, own = key.rpartition(".")[0].rpartition(".")
        if place not in norms:
            state[key] = value
        elif int(own) == min(level, len(norms[place]) - 1):
            state[f"{place}.{key.rpartition('.')[2]}"] = value
    return state


def _level_norms(backbone: nn.Module) -> dict[str, LevelNorm]:
    return {name: module for name, module in backbone.named_modules() if isinstance(module, LevelNorm)}
