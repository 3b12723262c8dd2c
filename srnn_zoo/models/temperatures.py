"""Temperatures: what the logits after a level are divided by where probabilities are made, so that all are as sure."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .cells import create_cell
from .recurrence import scan

MIN_IMAGES = 10  # fewer say nothing about temperatures and thresholds


def temperature(model: Any, level: int) -> float:
    """`SRNN.temperature`: as stored, as the paper's initialisation has it, or 1.

    Args:
        model: an SRNN.
        level: index of the level, 0 for the smallest.
    """
    if stored := model.metadata.get("temperatures"):
        return stored[min(level, len(stored) - 1)]
    return _initial(model.variant, model.cell.activation, model.cell.height, level) if model.zero_shot else 1.0


@functools.lru_cache
@torch.no_grad()
def _initial(variant: str, activation: Any, height: int, level: int) -> float:
    """How loud a cell at the paper's initialisation is after a level: its answer on levels that are all alike.

    It is exact: with U = I and gates that depend on nothing, a state is a sum of the levels' features with fixed
    weights, and their sum is what this one feature of 1 comes back as.
    """
    cell = create_cell(variant, 1, activation=activation, height=height)
    if not cell.anytime:
        return 1.0
    with torch.inference_mode(False):
        *_, state = scan(cell, [cell.as_read(torch.ones(1, 1))] * (level + 1))
        return cell.output(state).item()


def fit_temperatures(logits: Tensor, targets: Tensor) -> list[float]:
    """`fit_temperature` of every level of logits `(L, N, K)`; 1 from fewer than 10 images, which say nothing of it."""
    return [fit_temperature(of_level, targets) if len(targets) >= MIN_IMAGES else 1.0 for of_level in logits]


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The T for which softmax(logits / T) is best calibrated (Guo et al., 2017); 1 where no logits are finite.

    The negative log-likelihood is convex in 1 / T. Bisection finds where its slope is zero, from 10^-1.5 to 10^1.5.

    Args:
        logits: `(N, K)`.
        targets: `(N,)`.
    """
    finite = logits.isfinite().all(dim=1)
    logits, targets = logits[finite].double(), targets[finite]
    if len(targets) == 0:
        return 1.0
    of_targets = logits.gather(1, targets[:, None]).mean()
    low, high = -1.5, 1.5  # powers of ten
    for _ in range(24):
        middle = (low + high) / 2
        probabilities = (logits / 10**middle).softmax(dim=1)
        too_sure = (probabilities * logits).sum(dim=1).mean() > of_targets
        low, high = (middle, high) if too_sure else (low, middle)
    return 10 ** ((low + high) / 2)
