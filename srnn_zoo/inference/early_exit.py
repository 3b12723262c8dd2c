"""Anytime inference: after every level only the images that are still unsure go on to the next one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from srnn_zoo.models.cost import level_gmacs
from srnn_zoo.models.recurrence import Levels, check_every_exit, scan
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.packed import PackedPyramid, in_order

from .exits import Decision, ExitRule, ScoreRule, exit_rule, stored_rule

__all__ = ["Anytime", "AnytimeOutput"]


class AnytimeOutput(NamedTuple):
    """Answers in the order of the images.

    Attributes:
        logits: `(B, K)`, each of the level at which its image stopped.
        stopped_at: that level, `(B,)`, 0 for the smallest.
        gmacs: what the backbone cost each image, `(B,)`, in billions of multiply-accumulates.
    """

    logits: Tensor
    stopped_at: Tensor
    gmacs: Tensor


class Anytime(nn.Module):
    """An SRNN that stops early: a level is read, and built, only for the images that are still unsure.

    Args:
        model: with a cell whose state after any level can be classified (all but `concat`).
        exit: when an image stops: a text such as `"confidence:0.9"` (`exit_rule`), a rule of `inference.exits`, or any
            function of a `Decision`. By default the rule that `calibrate` stored with the model.

    Raises:
        ValueError: for a model that cannot stop early or has no classifier, an unknown rule, thresholds of the wrong
            number or out of range, and without `exit` for a model that was never calibrated.

    Examples:
        >>> fast = Anytime(model.eval(), exit="confidence:0.9")
        >>> logits, stopped_at, gmacs = fast(images)
    """

    def __init__(self, model: SRNN, exit: str | ExitRule | None = None) -> None:
        super().__init__()
        check_every_exit(model)
        self.model = model
        self.exit: ExitRule = stored_rule(model) if exit is None else exit_rule(exit) if isinstance(exit, str) else exit
        if isinstance(self.exit, ScoreRule):
            self.exit.check(len(model.scales))

    @torch.no_grad()
    def forward(self, x: Tensor | Sequence[Tensor] | PackedPyramid) -> AnytimeOutput:
        """Classify images; arguments as for the model: the largest level `(B, C, H, W)`, the levels, or a `Pyramid`.

        Where the rule needs no look at the logits the host never waits for the device; else once a level. An image of a
        batch of mixed heights stops at its last level at the latest.

        Raises:
            ValueError: for an empty batch, a model in training mode, and as the model does.
            TypeError: for a rule that returns neither a bool nor a bool tensor `(N,)`.
        """
        if self.model.training:  # batch norm would make an image's answer depend on which others are still unsure
            raise ValueError("the model is in training mode; call model.eval() first")
        batch = _MixedBatch(self.model, x) if isinstance(x, PackedPyramid) else _Batch(self.model, x)
        if isinstance(self.exit, ScoreRule):
            self.exit.check(max(batch.heights), mixed=isinstance(x, PackedPyramid))
        return _run(self.model, self.exit, batch)

    def extra_repr(self) -> str:
        return f"exit={self.exit!r}"


class _Batch:
    """Images of one height.

    Attributes:
        heights: the number of levels of every image.
        costs: what every level costs every image, GMACs.
    """

    def __init__(self, model: SRNN, x: Tensor | Sequence[Tensor]) -> None:
        self.model = model
        self.levels = Levels(model, x)
        self.device = self.levels.device
        if self.levels.batch_size == 0:
            raise ValueError("a batch needs at least one image; got none")
        self.heights = [len(self.levels.sizes)] * self.levels.batch_size
        self.costs = [[level_gmacs(model, size) for size in self.levels.sizes]] * self.levels.batch_size

    def features(self, level: int, rows: list[int]) -> Tensor:
        """C(x_s) of the images in these rows, `(len(rows), D)`."""
        at = torch.tensor(rows, device=self.device) if len(rows) < len(self.heights) else None
        return self.model.level_features(self.levels.build(level, at), level)


class _MixedBatch:
    """Images of mixed heights and shapes; otherwise as `_Batch`."""

    def __init__(self, model: SRNN, x: PackedPyramid) -> None:
        self.model = model
        self.packed = x
        self.device = next(model.parameters()).device
        self.heights = x.heights
        self._places = sorted(range(x.batch_size), key=x.packing.order.__getitem__)  # of every image
        sizes = [x.packing.sizes[place] for place in self._places]
        self.costs = [[level_gmacs(model, size) for size in levels] for levels in sizes]

    def features(self, level: int, rows: list[int]) -> Tensor:
        places = {self._places[row]: row for row in rows}
        return in_order([self.packed.level_features(self.model, level, places)], [places[p] for p in sorted(places)])


def _run(model: SRNN, rule: ExitRule, batch: _Batch | _MixedBatch) -> AnytimeOutput:
    """Level by level, smallest first, with ever fewer images; which of them is known to the host."""
    elapsed = partial(_seconds_since, time.perf_counter(), batch.device)
    rows = list(range(len(batch.heights)))  # the images that read the next level
    stopped_at = [0] * len(rows)
    state, result, answers = None, None, None
    spent = 0.0
    for level in range(max(batch.heights)):
        features = batch.features(level, rows)
        state = next(scan(model.cell, [features], state))
        logits = model.state_logits(state, level)
        at = torch.tensor(rows, device=logits.device)
        result = logits.clone() if result is None else result.index_copy(0, at, logits)
        for row in rows:
            stopped_at[row] = level
        answer = logits.argmax(dim=1, keepdim=True)
        answers = answer if answers is None else torch.cat([answers, answer], dim=1)
        spent += sum(batch.costs[row][level] for row in rows)
        going = [index for index, row in enumerate(rows) if batch.heights[row] > level + 1]
        rows, state, logits, answers = _only(going, rows, state, logits, answers)
        if not rows:
            break
        next_cost = sum(batch.costs[row][level + 1] for row in rows)
        stop = _checked(rule(Decision(level, logits, answers, spent, next_cost, elapsed)), len(rows))
        if isinstance(stop, bool):
            if stop:
                break
            continue
        unsure = ~(stop & logits.isfinite().all(dim=1))  # what is not a number is not sure either
        going = [index for index, goes in enumerate(unsure.tolist()) if goes]  # the host waits for the device, once
        rows, state, _, answers = _only(going, rows, state, logits, answers)
        if not rows:
            break
    result, levels = cast(Tensor, result), torch.tensor(stopped_at)
    padded = [[*own, *[0.0] * (max(batch.heights) - len(own))] for own in batch.costs]
    gmacs = torch.tensor(padded).cumsum(1)[torch.arange(len(levels)), levels]
    return AnytimeOutput(result, levels.to(result.device), gmacs.to(result.device))


def _checked(stop: Any, images: int) -> Tensor | bool:
    """What a rule answered, where it is an answer."""
    if isinstance(stop, bool) or (isinstance(stop, Tensor) and stop.dtype == torch.bool and stop.shape == (images,)):
        return stop
    found = f"{stop.dtype} {tuple(stop.shape)}" if isinstance(stop, Tensor) else type(stop).__name__
    raise TypeError(f"an exit rule returns one bool, or a bool tensor ({images},) for {images} images; got {found}")


def _only(
    indices: list[int], rows: list[int], state: Tensor, logits: Tensor, answers: Tensor
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """What is known of these images alone."""
    if len(indices) == len(rows):
        return rows, state, logits, answers
    at = torch.tensor(indices, device=state.device, dtype=torch.long)
    return [rows[index] for index in indices], state[at], logits[at], answers[at]


def _seconds_since(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
