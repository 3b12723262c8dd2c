"""Anytime inference: after every level only the images that are still unsure go on to the next one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from srnn_zoo.models.recurrence import check_every_exit, scan
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.levels import Levels
from srnn_zoo.transforms.packed import PackedPyramid

from .exits import Decision, ExitRule, ScoreRule, check_rule, exit_rule, stored_rule


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
            number or out of range, a rule that is not for the model's task, and without `exit` for a model that was
            never calibrated.
        TypeError: for what `torch.compile` returns, which computes all levels at once.

    Examples:
        >>> fast = Anytime(model.eval(), exit="confidence:0.9")
        >>> logits, stopped_at, gmacs = fast(images)
    """

    def __init__(self, model: SRNN, exit: str | ExitRule | None = None) -> None:
        super().__init__()
        if hasattr(model, "_orig_mod"):
            raise TypeError(
                "torch.compile(model) computes all levels at once: call model.compile(dynamic=True), which compiles in "
                "place what Anytime reads levels with, and give Anytime the model"
            )
        check_every_exit(model)
        self.model = model
        self.exit: ExitRule = stored_rule(model) if exit is None else exit_rule(exit) if isinstance(exit, str) else exit
        check_rule(self.exit, model.task)
        if isinstance(self.exit, ScoreRule):
            self.exit.check(len(model.scales))

    def forward(self, x: Tensor | Sequence[Tensor] | PackedPyramid) -> AnytimeOutput:
        """Classify images; arguments as for the model: the largest level `(B, C, H, W)`, the levels, or a `Pyramid`.

        Where the rule needs no look at the logits the host never waits for the device; else once a level. An image of a
        batch of mixed heights stops at its last level at the latest.

        Raises:
            ValueError: for an empty batch, a model in training mode, and as the model does.
            TypeError: for a rule that returns neither a bool nor a bool tensor `(N,)`.
        """
        return stop_early(self.model, self.exit, x)

    def extra_repr(self) -> str:
        return f"exit={self.exit!r}"


@torch.no_grad()
def stop_early(
    model: SRNN, rule: ExitRule, x: Tensor | Sequence[Tensor] | PackedPyramid | Levels, seen: list[Tensor] | None = None
) -> AnytimeOutput:
    """`Anytime(model, rule)(x)`, level by level with ever fewer images; which of them is known to the host.

    Args:
        model, rule, x: as for `Anytime`.
        seen: receives the logits after every level, of the images that read it.
    """
    if model.training:  # batch norm would make an image's answer depend on which others are still unsure
        raise ValueError("the model is in training mode; call model.eval() first")
    check_rule(rule, model.task)
    batch = model.lazy_levels(x)
    if batch.batch_size == 0:
        raise ValueError("a batch needs at least one image; got none")
    sizes = batch.image_sizes
    if isinstance(rule, ScoreRule):
        rule.check(max(map(len, sizes)), mixed=isinstance(batch, PackedPyramid))
    known = {size: model.level_gmacs(size) for size in set(itertools.chain(*sizes))}
    costs = [[known[size] for size in of_image] for of_image in sizes]
    device, start = next(model.parameters()).device, time.perf_counter()

    def elapsed() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    rows = list(range(batch.batch_size))  # the images that read the next level, packed: those with most levels first
    stopped_at = [0] * len(rows)
    result = answers = torch.empty(0)
    state, spent = None, 0.0
    for level in itertools.count():
        state = next(scan(model.cell, [model.read_level(batch, level, set(rows))], state))
        logits = model.state_logits(state, level)
        if seen is not None:
            seen.append(logits)
        at = torch.tensor(rows, device=logits.device)
        result = logits.clone() if level == 0 else result.index_copy(0, at, logits)
        answer = logits.argmax(dim=1, keepdim=True)
        answers = answer if level == 0 else torch.cat([answers, answer], dim=1)
        for row in rows:
            stopped_at[row] = level
            spent += costs[row][level]
        rows = [row for row in rows if len(costs[row]) > level + 1]
        if not rows:
            break
        logits, answers = logits[: len(rows)], answers[: len(rows)]
        next_cost = sum(costs[row][level + 1] for row in rows)
        decision = Decision(level, logits, answers, spent, next_cost, elapsed, model.temperature(level))
        stop = _checked(rule(decision), len(rows))
        if isinstance(stop, bool):
            if stop:
                break
            continue
        unsure = ~(stop & logits.isfinite().all(dim=1))  # what is not a number is not sure either
        going = [index for index, goes in enumerate(unsure.tolist()) if goes]  # the host waits for the device, once
        if not going:
            break
        if len(going) < len(rows):
            at = torch.tensor(going, device=state.device)
            rows, state, answers = [rows[index] for index in going], state[at], answers[at]
    gmacs = torch.tensor([sum(own[: last + 1]) for own, last in zip(costs, stopped_at, strict=True)])
    columns = (result, torch.tensor(stopped_at).to(result.device), gmacs.to(result.device))
    return AnytimeOutput(*(batch.restore([column]) for column in columns))


@torch.no_grad()
def stopping_levels(
    rule: ExitRule, logits: Tensor, gmacs: Sequence[float], temperatures: Sequence[float] | None = None
) -> Tensor:
    """Where a rule stops images whose answers after every level are known already, `(N,)`, 0 for the smallest level.

    Args:
        rule: an exit rule that does not look at the clock.
        logits: after every level, `(L, N, K)`.
        gmacs: what an image costs that is answered after each level, `(L,)`.
        temperatures: of the levels (`SRNN.temperature`), by default 1.

    Raises:
        ValueError: for a rule that looks at the clock, and thresholds of the wrong number.
        TypeError: for a rule that returns neither a bool nor a bool tensor.
    """
    height, count = logits.shape[:2]
    if isinstance(rule, ScoreRule):
        rule.check(height)
    stopped_at = torch.full((count,), height - 1)
    rows = torch.arange(count)  # of the images that go on
    for level in range(height - 1):
        if len(rows) == 0:
            break
        seen = logits[level, rows.to(logits.device)]
        answers = logits[: level + 1, rows.to(logits.device)].argmax(dim=2).T
        spent, following = (float(cost) * len(rows) for cost in (gmacs[level], gmacs[level + 1] - gmacs[level]))
        temperature = 1.0 if temperatures is None else temperatures[level]
        stop = _checked(rule(Decision(level, seen, answers, spent, following, _no_clock, temperature)), len(rows))
        stops = torch.full((len(rows),), stop) if isinstance(stop, bool) else stop & seen.isfinite().all(dim=1)
        stopped_at[rows[stops.cpu()]] = level
        rows = rows[~stops.cpu()]
    return stopped_at


def _no_clock() -> float:
    raise ValueError(
        "an exit rule that looks at the clock, such as a deadline, says nothing about answers known before"
    )


def _checked(stop: object, images: int) -> Tensor | bool:
    """What a rule answered, where it is an answer."""
    if isinstance(stop, bool) or (isinstance(stop, Tensor) and stop.dtype == torch.bool and stop.shape == (images,)):
        return stop
    found = f"{stop.dtype} {tuple(stop.shape)}" if isinstance(stop, Tensor) else type(stop).__name__
    raise TypeError(f"an exit rule returns one bool, or a bool tensor ({images},) for {images} images; got {found}")
