"""The search for exit thresholds: temperatures, candidates, what each costs and answers rightly, and the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .answers import CollectedAnswers
from .exits import ScoreRule

__all__ = ["NEVER", "Outcome", "fit_temperature", "measure", "search", "use_up"]

NEVER = 2.0  # a threshold above every score
_RATES = 241  # of MSDNet's search
_GRID = 2048  # combinations of quantiles at most
_CELLS = 2**24  # candidates times images held at a time


class Outcome(NamedTuple):
    """What thresholds do on a data set.

    Attributes:
        thresholds: for every level but the last.
        gmacs: mean cost of an image.
        accuracy: top-1, in per cent.
        stop_shares: the part of the images that stopped at each level, in [0, 1].
    """

    thresholds: tuple[float, ...]
    gmacs: float
    accuracy: float
    stop_shares: tuple[float, ...]


def search(answers: CollectedAnswers, rule: ScoreRule) -> list[Outcome]:
    """The thresholds that no others tried beat in cost and accuracy, cheapest first; accuracy grows along them.

    With two levels one threshold is to be found, and 241 are tried. With more, every rate of MSDNet's search (Huang et
    al., 2018: the part of the images that a level lets go shrinks or grows geometrically) is one way through a space of
    several; a grid of quantiles covers the rest of it.
    """
    scores = _scores(answers, rule)
    outcomes = _outcomes(_candidates(scores), scores, answers)
    best: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda o: (o.gmacs, -o.accuracy)):
        if not best or outcome.accuracy > best[-1].accuracy:
            best.append(outcome)
    return best


def use_up(answers: CollectedAnswers, rule: ScoreRule, budget: float) -> Outcome:
    """The thresholds of MSDNet's search that use a budget up as far as they can; no target is looked at.

    Args:
        answers: of held-out images.
        rule: whose score and temperatures count, not its thresholds.
        budget: mean GMACs of an image.

    Raises:
        ValueError: if none keep it.
    """
    scores = _scores(answers, rule)
    first = (0.0,) * (len(answers.gmacs) - 1)
    candidates = torch.tensor([first, *_geometric(scores)], dtype=scores.dtype).view(-1, len(first))
    kept = [o for o in _outcomes(candidates, scores, answers) if o.gmacs <= budget * (1 + 1e-6)]
    if not kept:
        raise ValueError(f"no thresholds keep a budget of {budget} GMACs on these images")
    return max(kept, key=lambda outcome: outcome.gmacs)


def measure(answers: CollectedAnswers, rule: ScoreRule, thresholds: Sequence[Sequence[float]]) -> list[Outcome]:
    """What each of several thresholds `(M, L - 1)` does on a data set.

    Args:
        answers: of the data set.
        rule: whose score and temperatures count, not its thresholds.
        thresholds: that are tried.
    """
    levels = len(answers.gmacs)
    candidates = torch.tensor(thresholds, dtype=torch.float32).view(-1, levels - 1)
    return _outcomes(candidates, _scores(answers, rule), answers)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The T for which softmax(logits / T) is best calibrated (Guo et al., 2017); 1 where no logits are finite.

    The negative log-likelihood is convex in 1 / T, and its slope is halved in on between T = 10^-1.5 and 10^1.5.

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


def _scores(answers: CollectedAnswers, rule: ScoreRule) -> Tensor:
    """How sure every image is after every level, `(L, N)`; where logits are not finite, less than any threshold."""
    temperatures = rule.temperatures or (1.0,) * len(answers.logits)
    levels = [
        rule.score((logits / temperature).softmax(dim=1)).where(logits.isfinite().all(dim=1), -1.0)
        for logits, temperature in zip(answers.logits.float(), temperatures, strict=True)
    ]
    return torch.stack(levels)


def _candidates(scores: Tensor) -> Tensor:
    """Thresholds worth trying, `(M, L - 1)`."""
    levels = len(scores)
    found = [(NEVER,) * level + (0.0,) * (levels - 1 - level) for level in range(levels)]  # all stop at one level
    geometric = torch.tensor([*found, *_geometric(scores)], dtype=scores.dtype).view(-1, levels - 1)
    if levels < 3:
        return geometric.unique(dim=0)
    steps = max(int(_GRID ** (1 / (levels - 1))), 2)
    ranked = scores[:-1].sort(dim=1).values
    positions = torch.linspace(0, scores.shape[1], steps).long()
    grid = torch.cartesian_prod(*(torch.stack([_between(row, int(at)) for at in positions]) for row in ranked))
    return torch.cat([geometric, grid]).unique(dim=0)


def _geometric(scores: Tensor) -> list[tuple[float, ...]]:
    """MSDNet's candidates: for every rate, the parts of the images that stop at each level go by its powers."""
    found: list[tuple[float, ...]] = []
    for rate in torch.logspace(-3, 3, _RATES).tolist():
        parts = torch.tensor([rate**level for level in range(len(scores))], dtype=torch.float64)
        found.append(_thresholds(scores, parts / parts.sum()))
    return found


def _thresholds(scores: Tensor, parts: Tensor) -> tuple[float, ...]:
    """Thresholds at which these parts of the images stop at each level."""
    left = torch.ones(scores.shape[1], dtype=torch.bool)
    found: list[float] = []
    for level in range(len(parts) - 1):
        ranked = scores[level][left].sort().values
        count = min(round(parts[level].item() * scores.shape[1]), len(ranked))
        found.append(_between(ranked, len(ranked) - count).item())
        left &= scores[level] < found[-1]
    return tuple(found)


def _between(ranked: Tensor, index: int) -> Tensor:
    """A threshold that the scores from this index on reach: half way to the one before, which bears rounding."""
    if index == len(ranked):
        return ranked.new_tensor(NEVER)
    if index == 0:
        return ranked.new_tensor(0.0)
    return ((ranked[index - 1] + ranked[index]) / 2).clamp(min=0)


def _outcomes(thresholds: Tensor, scores: Tensor, answers: CollectedAnswers) -> list[Outcome]:
    """What thresholds `(M, L - 1)` do, so many at a time as memory bears."""
    right, gmacs = answers.right, answers.gmacs.double()
    levels, images = scores.shape
    outcomes: list[Outcome] = []
    for chunk in thresholds.split(max(_CELLS // images, 1)):
        left = torch.ones(len(chunk), images, dtype=torch.bool)
        exits, rights = [], torch.zeros(len(chunk), dtype=torch.long)
        for level in range(levels):
            stop = left & (scores[level] >= chunk[:, level, None]) if level + 1 < levels else left
            exits.append(stop.sum(dim=1))
            rights += (stop & right[level]).sum(dim=1)
            left = left & ~stop
        parts = torch.stack(exits, dim=1).double() / images
        accuracy = rights.double() * 100 / images
        rows = zip(chunk.tolist(), (parts @ gmacs).tolist(), accuracy.tolist(), parts.tolist(), strict=True)
        outcomes += [Outcome(tuple(t), cost, top1, tuple(p)) for t, cost, top1, p in rows]
    return outcomes
