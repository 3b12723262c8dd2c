"""Anytime inference: after every level only the images that are still unsure go on to the next one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .exits import Confidence, Decision, Entropy, ExitRule, Margin, ScoreRule, exit_rule
from .flops import level_gmacs
from .model import SRNN
from .packing import PackedPyramid
from .stepwise import Levels

__all__ = ["SCORE_RULES", "Anytime", "AnytimeOutput", "stored_rule"]

SCORE_RULES: dict[str, type[ScoreRule]] = {rule.name: rule for rule in (Confidence, Margin, Entropy)}


class AnytimeOutput(NamedTuple):
    """Answers in the order of the images.

    Attributes:
        logits: `(B, K)`, each of the level at which its image stopped.
        levels: that level, `(B,)`, 0 for the smallest.
        gmacs: what the backbone cost each image, `(B,)`, in billions of multiply-accumulates.
    """

    logits: Tensor
    levels: Tensor
    gmacs: Tensor


class Anytime(nn.Module):
    """An SRNN that stops early: a level is read, and built, only for the images that are still unsure.

    Args:
        model: with a cell whose state after any level can be classified (all but `concat`).
        exit: when an image stops: a text such as `"confidence:0.9"` (`exit_rule`), a rule of `srnn_zoo.exits`, or any
            function of a `Decision`. By default the rule that `calibrate` stored with the model.

    Raises:
        ValueError: for a model that cannot stop early or has no classifier, an unknown rule, thresholds of the wrong
            number or out of range, and without `exit` for a model that was never calibrated.

    Examples:
        >>> fast = Anytime(model.eval(), exit="confidence:0.9")
        >>> logits, levels, gmacs = fast(images)
    """

    def __init__(self, model: SRNN, exit: str | ExitRule | None = None) -> None:
        super().__init__()
        if not model.cell.anytime:
            raise ValueError(f"variant {model.variant!r} answers after the last level only; it cannot stop early")
        if model.num_classes == 0:
            raise ValueError("the model has no classifier (num_classes=0), so that no level has an answer")
        self.model = model
        self.exit: ExitRule = stored_rule(model) if exit is None else exit_rule(exit) if isinstance(exit, str) else exit
        if isinstance(self.exit, ScoreRule):
            self.exit.check(len(model.scales))

    @torch.no_grad()
    def forward(self, x: Tensor | Sequence[Tensor]) -> AnytimeOutput:
        """Classify images; arguments as for the model: the largest level `(B, C, H, W)`, or the levels.

        Where the rule needs no look at the logits the host never waits for the device; else once a level.

        Raises:
            ValueError: for an empty batch, and as the model does.
        """
        if isinstance(x, PackedPyramid):
            raise TypeError("give images of one height at a time (pyramid.unpack()), or the levels of each")
        model = self.model
        levels = Levels(model, x)
        if levels.batch_size == 0:
            raise ValueError("a batch needs at least one image; got none")
        if isinstance(self.exit, ScoreRule):
            self.exit.check(len(levels.sizes))
        costs = [level_gmacs(model, size) for size in levels.sizes]  # counted once
        start = time.perf_counter()
        active = torch.arange(levels.batch_size, device=levels.device)
        exits = torch.zeros_like(active)
        state, result, answers = None, None, None
        spent = 0.0
        for index in range(len(levels.sizes)):
            features = model.level_features(levels.build(index, active), index)
            state = model.cell(features, model.cell.initial_state(features) if state is None else state)
            logits = model.forward_head(model.cell.feature_map(state), level=index)
            result = logits.clone() if result is None else result.index_copy(0, active, logits)
            exits[active] = index
            if index + 1 == len(levels.sizes):
                break
            answer = logits.argmax(dim=1, keepdim=True)
            answers = answer if answers is None else torch.cat([answers, answer], dim=1)
            spent += costs[index] * len(active)
            next_cost = costs[index + 1] * len(active)
            elapsed = partial(_seconds_since, start, levels.device)
            decision = Decision(index, logits, answers, spent, next_cost, elapsed)
            stop = self.exit(decision)
            if isinstance(stop, bool):
                if stop:
                    break
                continue
            unsure = ~(stop & logits.isfinite().all(dim=1))  # what is not a number is not sure either
            keep = unsure.nonzero().flatten()  # the one time in a level that the host waits for the device
            if len(keep) == 0:
                break
            if len(keep) < len(active):
                active, state, answers = active[keep], state[keep], answers[keep]
        cumulative = torch.tensor(costs, device=exits.device).cumsum(0)
        return AnytimeOutput(cast(Tensor, result), exits, cumulative[exits])

    def extra_repr(self) -> str:
        return f"exit={self.exit!r}"


def stored_rule(model: SRNN) -> ScoreRule:
    """The rule that `calibrate` stored in the model's metadata, which is saved with it.

    Raises:
        ValueError: if there is none.
    """
    stored: dict[str, Any] | None = model.metadata.get("exit")
    if not stored:
        raise ValueError('the model was never calibrated: give exit="confidence:0.9", or use srnn_zoo.calibrate')
    return SCORE_RULES[stored["rule"]](stored["thresholds"], stored["temperatures"])


def _seconds_since(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
