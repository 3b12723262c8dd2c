"""The loop over scale, and what is known after every turn of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from srnn_zoo.transforms.levels import Levels
from srnn_zoo.transforms.packed import PackedPyramid

from .cells import Cell


def scan(cell: Cell, features: Iterable[Tensor], state: Tensor | None = None) -> Iterator[Tensor]:
    """The loop over scale: the state `(B_s, S)` after every level, smallest first.

    Args:
        cell: what happens between two scales.
        features: C(x_s) of the levels, `(B_s, D)`. A later level may have fewer images: those that come first.
        state: what the first of these levels finds, by default h_0.
    """
    for level in features:
        before = cell.initial_state(level) if state is None else state[: level.shape[0]]
        state = cell(level, before)
        yield cast(Tensor, state)


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

        Counted when this is read, once for every backbone and size.
        """
        return self.cost()


def steps(model: Any, levels: Levels | PackedPyramid, state: Tensor | Step | None = None) -> Iterator[Step]:
    """`SRNN.steps`: the answers level by level, smallest first."""
    first, earlier = (state.level + 1, state.cost) if isinstance(state, Step) else (0, float)
    if isinstance(state, Tensor) and (model.exits == "separate" or model.norm == "per_level"):
        raise ValueError("levels of this model have parts of their own: give the earlier step as state, not its tensor")
    if isinstance(levels, PackedPyramid) and state is not None:
        raise ValueError("a packed pyramid starts anew: continue a state with images of one height")
    start = state.state if isinstance(state, Step) else state
    if start is not None and len(start) != levels.batch_size:
        raise ValueError(f"the state is of {len(start)} images; got a level of {levels.batch_size}")
    heights = {len(sizes) for sizes in levels.image_sizes}
    features = (model.read_level(levels, s, index=first + s) for s in range(levels.height))
    answers = torch.empty(0)
    for s, current in enumerate(scan(model.cell, features, start)):
        if model.cell.anytime or s + 1 in heights:
            logits = model.state_logits(current, first + s)
            answers = torch.cat([logits, answers[len(logits) :].to(logits)])
            cost = partial(_spent_gmacs, model, levels.sizes[: s + 1], earlier)
            yield Step(first + s, levels.sizes[s], levels.restore([answers]), levels.restore([current]), cost)


def check_every_exit(model: Any) -> None:
    """Refuse a model that has no answer after some level."""
    if not model.cell.anytime:
        raise ValueError(f"variant {model.variant!r} answers after the last level only; it cannot stop early")
    check_answers(model)


def check_answers(model: Any) -> None:
    """Refuse a model without a classifier."""
    if model.num_classes == 0:
        raise ValueError("the model has no classifier (num_classes=0), so that no level has an answer")


def _spent_gmacs(model: Any, sizes: Sequence[tuple[int, int]], earlier: Callable[[], float]) -> float:
    return earlier() + sum(model.level_gmacs(size) for size in sizes)
