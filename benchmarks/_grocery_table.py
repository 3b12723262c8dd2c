"""From right and wrong answers of several seeds to a table: means, spreads, intervals and paired tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from _common import Row
from torch import Tensor

from srnn_zoo.evaluation import mcnemar, wilson

Right = Mapping[str, Sequence[Tensor]]


def summarise(right: Right, losses: Mapping[str, Sequence[float]]) -> list[Row]:
    """The top-1 accuracy of every method: mean and standard deviation over the seeds, and a 95 % interval (Wilson).

    Args:
        right: for every method and seed whether the answer is right, bool `(N,)`.
        losses: for every method and seed the cross-entropy.
    """
    return [
        {**_summary(name, of_seeds), "cross_entropy": f"{statistics.fmean(losses[name]):.3f}"}
        for name, of_seeds in right.items()
    ]


def compare(right: Right, methods: Sequence[str]) -> list[Row]:
    """How much better these methods are than every other.

    The difference on each image is averaged over the seeds; the interval is over the images (normal approximation).
    The p-values are McNemar's, seed by seed.
    """
    return [_difference(a, b, right[a], right[b]) for a in methods if a in right for b in right if b != a]


def _summary(name: str, of_seeds: Sequence[Tensor]) -> Row:
    accuracies = [100 * right.double().mean().item() for right in of_seeds]
    mean = statistics.fmean(accuracies)
    n = len(of_seeds[0])
    low, high = wilson(round(mean * n / 100), n)
    return {
        "method": name,
        "images": n,
        "seeds": len(of_seeds),
        "top1_percent": f"{mean:.2f}",
        "top1_std_of_seeds": f"{statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else "",
        "top1_low": f"{100 * low:.2f}",
        "top1_high": f"{100 * high:.2f}",
    }


def _difference(a: str, b: str, right_a: Sequence[Tensor], right_b: Sequence[Tensor]) -> Row:
    per_image = torch.stack([100 * (x.double() - y.double()) for x, y in zip(right_a, right_b, strict=True)])
    by_image = per_image.mean(dim=0)
    mean, half = by_image.mean().item(), 1.96 * by_image.std().item() / math.sqrt(by_image.numel())
    tests = [mcnemar(x, y) for x, y in zip(right_a, right_b, strict=True)]
    return {
        "method": a,
        "against": b,
        "difference": f"{mean:+.2f}",
        "low": f"{mean - half:+.2f}",
        "high": f"{mean + half:+.2f}",
        "difference_by_seed": " ".join(f"{x:+.2f}" for x in per_image.mean(dim=1).tolist()),
        "mcnemar_p_by_seed": " ".join(f"{test.p_value:.2g}" for test in tests),
    }
