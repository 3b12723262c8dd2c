"""The search for exit thresholds: temperatures, candidates, what each costs and answers rightly, and the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .answers import CollectedAnswers
from .exits import NEVER, ScoreRule, score_rule

_RATES = 241  # of MSDNet's search
_GRID = 2048  # combinations of quantiles at most
_CELLS = 2**24  # candidates times images held at a time


class Outcome(NamedTuple):
    """What thresholds do on a data set.

    Attributes:
        thresholds: for every level but the last.
        gmacs: mean cost of an image.
        accuracy: top-1, in per cent.
        stop_shares: the share of the images that stopped at each level, in [0, 1].
        lost: how many images are wrong where they stopped and right after all levels.
    """

    thresholds: tuple[float, ...]
    gmacs: float
    accuracy: float
    stop_shares: tuple[float, ...]
    lost: int = 0


def fit_rule(answers: CollectedAnswers, rule: str) -> ScoreRule:
    """A rule by name, with the temperatures that suit held-out answers; its threshold stops nothing."""
    if len(answers.gmacs) == 1:
        raise ValueError("a model of one level cannot stop earlier")
    return score_rule(rule).fit(answers.logits, answers.targets)


def search(answers: CollectedAnswers, rule: ScoreRule) -> list[Outcome]:
    """The best thresholds, cheapest first: of those tried, none is both cheaper and as accurate.

    With two levels there is one threshold to find, and 241 are tried. With more, every rate of MSDNet's search (Huang
    et al., 2018: the share of the images that stop shrinks or grows geometrically from level to level) is tried, and a
    grid of quantiles as well.
    """
    scores = _scores(answers, rule)
    outcomes = _outcomes(_candidates(scores), scores, answers)
    best: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda o: (o.gmacs, -o.accuracy)):
        if not best or outcome.accuracy > best[-1].accuracy:
            best.append(outcome)
    return best


def use_up(answers: CollectedAnswers, rule: ScoreRule, budget: float) -> Outcome:
    """The thresholds of MSDNet's search that use up most of a budget, mean GMACs of an image; targets play no part.

    Raises:
        ValueError: if none keep it.
    """
    scores = _scores(answers, rule)
    geometric = _geometric(scores)
    candidates = torch.cat([torch.zeros_like(geometric[:1]), geometric])  # with 0 all stop at the first level
    kept = [o for o in _outcomes(candidates, scores, answers) if o.gmacs <= budget * (1 + 1e-6)]
    if not kept:
        raise ValueError(f"no thresholds keep a budget of {budget} GMACs on these images")
    return max(kept, key=lambda outcome: outcome.gmacs)


def family(answers: CollectedAnswers, rule: ScoreRule) -> list[tuple[float, ...]]:
    """The thresholds of MSDNet's search, those that cost most first; targets play no part."""
    scores = _scores(answers, rule)
    outcomes = _outcomes(_geometric(scores), scores, answers)
    return [outcome.thresholds for outcome in sorted(outcomes, key=lambda outcome: -outcome.gmacs)]


def measure(answers: CollectedAnswers, rule: ScoreRule, thresholds: Sequence[Sequence[float]]) -> list[Outcome]:
    """What each of several thresholds `(M, L - 1)` does on a data set; of the rule score and temperatures are used."""
    candidates = torch.tensor(thresholds, dtype=torch.float32).view(-1, len(answers.gmacs) - 1)
    return _outcomes(candidates, _scores(answers, rule), answers)


def stops(answers: CollectedAnswers, rule: ScoreRule, thresholds: Sequence[float]) -> Tensor:
    """The level at which each image stops, `(N,)`; of the rule score and temperatures are used."""
    reached = _scores(answers, rule)[:-1] >= torch.tensor(thresholds)[:, None]
    last = torch.ones_like(reached[:1])
    return torch.cat([reached, last]).int().argmax(dim=0)  # the first


def _scores(answers: CollectedAnswers, rule: ScoreRule) -> Tensor:
    """How sure every image is after every level, `(L, N)`; where logits are not finite, less than any threshold."""
    temperatures = rule.temperatures or (1.0,) * len(answers.logits)
    levels = [
        rule.score_after(level, (logits / temperature).softmax(dim=1)).where(logits.isfinite().all(dim=1), -1.0)
        for level, (logits, temperature) in enumerate(zip(answers.logits.float(), temperatures, strict=True))
    ]
    return torch.stack(levels)


def _candidates(scores: Tensor) -> Tensor:
    """Thresholds worth trying, `(M, L - 1)`."""
    levels, images = scores.shape
    fixed = [(NEVER,) * level + (0.0,) * (levels - 1 - level) for level in range(levels)]  # all stop at one level
    tried = [torch.tensor(fixed, dtype=scores.dtype), _geometric(scores)]
    if levels > 2:
        quantiles = torch.linspace(0, images, max(int(_GRID ** (1 / (levels - 1))), 2)).long()
        ranked = scores[:-1].sort(dim=1).values
        tried.append(torch.cartesian_prod(*(_between(row)[quantiles] for row in ranked)))
    return torch.cat(tried).unique(dim=0)


def _geometric(scores: Tensor) -> Tensor:
    """MSDNet's candidates `(M, L - 1)`: for every rate, the shares of images that stop at each level are its powers."""
    levels, images = scores.shape
    found: list[list[float]] = []
    for rate in torch.logspace(-3, 3, _RATES).tolist():
        shares = torch.tensor([rate**level for level in range(levels)], dtype=torch.float64)
        left = torch.ones(images, dtype=torch.bool)
        thresholds: list[float] = []
        for level, share in enumerate((shares / shares.sum())[:-1].tolist()):
            ranked = scores[level][left].sort().values
            thresholds.append(_between(ranked)[-1 - min(round(share * images), len(ranked))].item())
            left &= scores[level] < thresholds[-1]
        found.append(thresholds)
    return torch.tensor(found, dtype=scores.dtype)


def _between(ranked: Tensor) -> Tensor:
    """A threshold for every number of scores that reach it, all first; between two scores rounding is harmless."""
    halfway = ((ranked[:-1] + ranked[1:]) / 2).clamp(min=0)
    return torch.cat([ranked.new_tensor([0.0]), halfway, ranked.new_tensor([NEVER])])


def _outcomes(thresholds: Tensor, scores: Tensor, answers: CollectedAnswers) -> list[Outcome]:
    """What thresholds `(M, L - 1)` do, as many at a time as fit in memory."""
    right, gmacs = answers.right, answers.gmacs.double()
    levels, images = scores.shape
    outcomes: list[Outcome] = []
    for chunk in thresholds.split(max(_CELLS // images, 1)):
        left = torch.ones(len(chunk), images, dtype=torch.bool)
        stopped, rights, lost = [], torch.zeros(len(chunk), dtype=torch.long), torch.zeros(len(chunk), dtype=torch.long)
        for level in range(levels):
            stop = left & (scores[level] >= chunk[:, level, None]) if level + 1 < levels else left
            stopped.append(stop.sum(dim=1))
            rights += (stop & right[level]).sum(dim=1)
            lost += (stop & right[-1] & ~right[level]).sum(dim=1)
            left = left & ~stop
        shares = torch.stack(stopped, dim=1).double() / images
        accuracy = rights.double() * 100 / images
        columns = (chunk, shares @ gmacs, accuracy, shares, lost)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        outcomes += [Outcome(tuple(t), cost, top1, tuple(share), gone) for t, cost, top1, share, gone in rows]
    return outcomes
