"""What an SRNN costs: GMACs of every level and of the head, counted with torch's FlopCounterMode."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from .srnn import SRNN

__all__ = ["Cost", "count_gmacs", "level_gmacs"]


class Cost(NamedTuple):
    """Billions of multiply-accumulates for one image.

    Attributes:
        levels: of the backbone on each level, smallest first.
        head: of the cell over all levels and the classifier once.
    """

    levels: tuple[float, ...]
    head: float

    @property
    def total(self) -> float:
        """All levels and the head."""
        return sum(self.levels) + self.head


def level_gmacs(model: SRNN, size: tuple[int, int]) -> float:
    """GMACs of the backbone on one level of one image; counted once for every model and size.

    Args:
        model: any SRNN; it is not changed.
        size: `(H, W)` of the level.
    """
    known = _counted.setdefault(model, {})
    if size not in known:
        twin = copy.deepcopy(model.backbone).requires_grad_(False).to("meta").eval()
        images = torch.empty(1, model.in_chans, *size, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(images)
        known[size] = counter.get_total_flops() / 2e9
    return known[size]


_counted: WeakKeyDictionary[SRNN, dict[tuple[int, int], float]] = WeakKeyDictionary()


def count_gmacs(model: SRNN, img_size: tuple[int, int] | None = None) -> Cost:
    """Count the GMACs of one image, without computing anything.

    Args:
        model: any SRNN; it is not changed.
        img_size: `(H, W)` of the largest level, by default the model's own.
    """
    twin = copy.deepcopy(model).requires_grad_(False).to("meta").eval()
    gmacs: list[float] = []
    features: list[torch.Tensor] = []
    with torch.no_grad():  # in inference mode older counters see nothing
        for height, width in model.level_sizes(img_size):
            images = torch.empty(1, model.in_chans, height, width, device="meta")
            with FlopCounterMode(display=False) as counter:
                features.append(twin.level_features(images))
            gmacs.append(counter.get_total_flops() / 2e9)
        with FlopCounterMode(display=False) as counter:
            twin.forward_head(twin.fuse(features))
    return Cost(tuple(gmacs), counter.get_total_flops() / 2e9)
