"""Stepwise inference: one level after the other, each built and read only when its step is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srnn_zoo.transforms.packed import PackedPyramid
from srnn_zoo.transforms.pyramid import build_levels, scale_ratios

from .cells import Cell
from .cost import level_gmacs

if TYPE_CHECKING:
    from .srnn import SRNN

__all__ = ["Levels", "Step", "check_every_exit", "scan", "steps"]


def scan(cell: Cell, features: Iterable[Tensor], state: Tensor | None = None) -> Iterator[Tensor]:
    """The loop over scale: the state `(B_s, S)` after every level, smallest first.

    Args:
        cell: what happens between two scales.
        features: C(x_s) of the levels, `(B_s, D)`. A later level may have fewer images: those that come first.
        state: what the first of these levels finds, by default h_0.
    """
    for level in features:
        state = cell.initial_state(level) if state is None else state[: level.shape[0]]
        state = cell(level, state)
        yield state


@dataclass(frozen=True, eq=False)
class Step:
    """What an SRNN knows after a level.

    Attributes:
        level: index of the level, 0 for the smallest.
        size: its `(H, W)` in pixels.
        logits: the answer at this level, `(B, num_classes)`; an image whose levels have ended keeps its last.
        state: what the cell carries on, `(B, S)`; of mixed heights `(B_s, S)`, for the images that have this level.
    """

    level: int
    size: tuple[int, int]
    logits: Tensor
    state: Tensor
    cost: Callable[[], float] = field(repr=False)

    @property
    def gmacs(self) -> float:
        """What the backbone has cost an image since the first step, in billions of multiply-accumulates.

        Counted when this is read, once for every model and size.
        """
        return self.cost()


class Levels:
    """The levels of a batch of one height, each built when it is read, and only for the images that read it.

    Args:
        model: that reads them.
        x: the largest level `(B, C, H, W)`, or the levels, smallest first.

    Raises:
        TypeError, ValueError: as the model does.
    """

    def __init__(self, model: SRNN, x: Tensor | Sequence[Tensor]) -> None:
        self.model = model
        if isinstance(x, Tensor):
            model.check_images(x)
            self.given = [x]
            self.sizes = model.level_sizes((x.shape[-2], x.shape[-1]))
            self.ratios = scale_ratios(model.scales)
        else:
            self.given = model.levels(x)
            self.sizes = [(level.shape[-2], level.shape[-1]) for level in self.given]
            self.ratios = []
        self.batch_size, self.device = len(self.given[0]), self.given[0].device

    def build(self, index: int, rows: Tensor | None = None) -> Tensor:
        """A level of the images in these rows, by default of all."""
        source = self.given[0 if self.ratios else index]
        if rows is not None and len(rows) < self.batch_size:
            source = source[rows]
        if not self.ratios:
            return source
        return build_levels(source, [self.ratios[index]], self.model.interpolation, self.model.size_multiple)[0]


def steps(model: SRNN, x: Any, state: Tensor | Step | None = None) -> Iterator[Step]:
    """`SRNN.steps`: the answers level by level, smallest first."""
    first, spent = (state.level + 1, state.cost) if isinstance(state, Step) else (0, None)
    if isinstance(state, Tensor) and (model.exits == "separate" or model.norm == "per_level"):
        raise ValueError("levels of this model have parts of their own: give the earlier step as state, not its tensor")
    if isinstance(x, PackedPyramid):
        if state is not None:
            raise ValueError("a packed pyramid starts anew: continue a state with images of one height")
        sizes, heights, restore = x.sizes, x.heights, x.packing.restore
        every_level = x.features(model)
    else:
        levels = Levels(model, x)
        sizes, heights, restore = levels.sizes, [len(levels.sizes)], torch.cat
        every_level = (model.level_features(levels.build(s), first + s) for s in range(len(sizes)))
    start = state.state if isinstance(state, Step) else state
    answers = torch.empty(0)
    for index, current in enumerate(scan(model.cell, _continuing(every_level, start), start)):
        if model.cell.anytime or index + 1 in heights:
            logits = model.state_logits(current, first + index)
            answers = torch.cat([logits, answers[len(logits) :].to(logits)])
            cost = _Cost(model, sizes[: index + 1], spent)
            yield Step(first + index, sizes[index], restore([answers]), restore([current]), cost)


def check_every_exit(model: SRNN) -> None:
    """Refuse a model that has no answer after some level."""
    if not model.cell.anytime:
        raise ValueError(f"variant {model.variant!r} answers after the last level only; it cannot stop early")
    if model.num_classes == 0:
        raise ValueError("the model has no classifier (num_classes=0), so that no level has an answer")


def _continuing(features: Iterable[Tensor], state: Tensor | None) -> Iterator[Tensor]:
    """The features, as long as they are of the images that the state is of."""
    for level in features:
        if state is not None and len(state) != len(level):
            raise ValueError(f"the state is of {len(state)} images; got a level of {len(level)}")
        yield level


class _Cost:
    """Counts the GMACs of levels when it is called, on top of those of the step that they go on from."""

    def __init__(
        self, model: SRNN, sizes: Sequence[tuple[int, int]], earlier: Callable[[], float] | None = None
    ) -> None:
        self.model = model
        self.sizes = sizes
        self.earlier = earlier

    def __call__(self) -> float:
        spent = self.earlier() if self.earlier is not None else 0.0
        return spent + sum(level_gmacs(self.model, size) for size in self.sizes)
