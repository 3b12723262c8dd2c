"""What an SRNN costs: GMACs of every level and of the head, counted with torch's FlopCounterMode."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .sizes import read

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Size = tuple[int, int]

_counted: WeakKeyDictionary[nn.Module, dict[tuple[int, Size], float]] = WeakKeyDictionary()


class Cost(NamedTuple):
    """Billions of multiply-accumulates for one image.

    Attributes:
        levels: of the backbone on each level, smallest first.
        head: of the cell over all levels and the classifier once; of a cell that reads maps, at every position.
    """

    levels: tuple[float, ...]
    head: float

    @property
    def total(self) -> float:
        """All levels and the head."""
        return sum(self.levels) + self.head


def count_gmacs(model: Any, img_size: Size | None = None) -> Cost:
    """Count the GMACs of one image, without computing anything.

    Args:
        model: any SRNN; it is not changed.
        img_size: `(H, W)` of the largest level, by default the model's own.
    """
    sizes = model.level_sizes(img_size)
    twin = _without_values(model)
    dtype = next(twin.parameters()).dtype
    levels = tuple(model.level_gmacs(size) for size in sizes)
    maps = model.cell.reads == "maps"  # what the backbone's head costs at positions is part of the head too
    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # in inference mode older counters see nothing
        if maps:
            images = [torch.empty(1, model.in_chans, *size, dtype=dtype, device="meta") for size in sizes]
            features = [twin.level_features(level, index) for index, level in enumerate(images)]
        else:
            features = [torch.empty(1, model.num_features, dtype=dtype, device="meta") for _ in sizes]
        twin.forward_head(twin.fuse(features))
    return Cost(levels, counter.get_total_flops() / 2e9 - maps * sum(levels))


def backbone_gmacs(backbone: nn.Module, size: Size, in_chans: int = 3, tile: Size | None = None) -> float:
    """GMACs of a backbone on one image of `(H, W)`; counted once for every size, and anew once layers are dropped.

    Args:
        backbone: any module that reads images `(B, C, H, W)`; it is not changed.
        size: `(H, W)` of the image.
        in_chans: its channels.
        tile: as for `sizes.read`.
    """
    known, key = _counted.setdefault(backbone, {}), (sum(p.numel() for p in backbone.parameters()), size)
    if key not in known:
        twin = _without_values(backbone)
        dtype = next(twin.parameters()).dtype
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            read(twin, torch.empty(1, in_chans, *size, dtype=dtype, device="meta"), tile)
        known[key] = counter.get_total_flops() / 2e9
    return known[key]


def _without_values(module: ModuleT) -> ModuleT:
    """A twin in evaluation mode, on the meta device; no parameter or buffer is copied for it."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(x): torch.empty_like(x, device="meta") for x in tensors}).eval()
