"""A learned exit: how likely it is that going on will mend an answer, from what the answer looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srnn_zoo.models.temperatures import fit_temperatures

from .exits import NEVER, ScoreRule, register_exit

_LOWEST = 1e-6  # probabilities below it look alike
_RIDGE = (1e-2,) * 4 + (1e-4,)  # of the weights and the bias, for the mean loss of an image


@register_exit("learned", example=0.95)
class Learned(ScoreRule):
    """1 - the probability that an answer is wrong and the last level's will be right.

    A logistic regression of each level, on the logarithms of the three largest probabilities and the entropy. It looks
    for what confidence cannot tell: answers that are unsure, and will stay so. `calibrate(rule="learned")` fits it to
    held-out images, and it is stored with the model.

    Args:
        threshold, temperatures: as for `ScoreRule`.
        weights: five numbers for each level but the last: those of the four features, and the bias.

    Raises:
        ValueError: without weights, and as `ScoreRule` does.
    """

    def __init__(
        self,
        threshold: float | Sequence[float],
        temperatures: Sequence[float] | None = None,
        weights: Sequence[Sequence[float]] = (),
    ) -> None:
        super().__init__(threshold, temperatures)
        if not weights:
            raise ValueError('exit rule learned has to be fitted: use calibrate(model, images, rule="learned")')
        self.weights = tuple(tuple(map(float, of_level)) for of_level in weights)

    def score_after(self, level: int, probabilities: Tensor) -> Tensor:
        """As `score`, by the weights of a level; after the last, where nothing is left to mend, 1."""
        if level >= len(self.weights):
            return probabilities.new_ones(len(probabilities))
        *weights, bias = self.weights[level]
        return torch.sigmoid(-(_features(probabilities) @ probabilities.new_tensor(weights) + bias))

    @classmethod
    def fit(cls, logits: Tensor, targets: Tensor) -> Learned:
        """See `ScoreRule.fit`."""
        temperatures = fit_temperatures(logits, targets)
        right = (logits.argmax(dim=2) == targets) & logits.isfinite().all(dim=2)
        weights = [
            _logistic_regression(_features((of_level.float() / temperature).softmax(dim=1)), ~now & right[-1])
            for of_level, temperature, now in zip(logits[:-1], temperatures, right, strict=False)
        ]
        return cls(NEVER, temperatures, weights)

    def fitted(self) -> dict[str, Any]:
        """The weights."""
        return {"weights": [list(of_level) for of_level in self.weights]}


def _features(probabilities: Tensor) -> Tensor:
    """What an answer looks like, `(N, 4)`, from probabilities `(N, K)`."""
    largest = F.pad(probabilities, (0, 3)).topk(3, dim=1).values.clamp(min=_LOWEST).log()
    entropy = torch.special.entr(probabilities).sum(dim=1, keepdim=True)
    return torch.cat([largest, entropy / math.log(max(probabilities.shape[1], 2))], dim=1)


def _logistic_regression(features: Tensor, labels: Tensor) -> list[float]:
    """The weights of the features and the bias, by Newton's method with a small ridge, on standardised features."""
    known = features.isfinite().all(dim=1)
    x, y = features[known].double(), labels[known].double()
    mean, spread = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-3)
    x = torch.cat([(x - mean) / spread, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    found = torch.zeros(x.shape[1], dtype=x.dtype)
    ridge = torch.diag(x.new_tensor(_RIDGE))
    for _ in range(30):
        probability = torch.sigmoid(x @ found)
        slope = x.T @ (probability - y) / len(x) + ridge @ found
        curvature = (x * (probability * (1 - probability))[:, None]).T @ x / len(x) + ridge
        found = found - torch.linalg.solve(curvature, slope)
    weights = found[:-1] / spread
    return [*weights.tolist(), (found[-1] - weights @ mean).item()]
