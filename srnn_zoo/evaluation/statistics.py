"""Statistics of right and wrong answers: an interval for one method, a paired test for two on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["McNemar", "mcnemar", "wilson"]

_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two methods on the same images.

    Attributes:
        only_a: images that only the first method gets right.
        only_b: images that only the second gets right.
        p_value: two-sided: how likely so lopsided a split, or a more lopsided one, would be by chance, in [0, 1].
    """

    only_a: int
    only_b: int
    p_value: float


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927), as `(low, high)` in [0, 1].

    Args:
        correct: successes, 0 to `n`.
        n: trials, 1 or more.

    Raises:
        ValueError: for other numbers.

    Examples:
        >>> [round(bound, 3) for bound in wilson(266, 300)]
        [0.846, 0.918]
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"an interval needs 0 to n successes of n = 1 or more; got {correct} of {n}")
    p, z2 = correct / n, _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if correct == 0 else middle - half  # exactly, not but for rounding
    high = 1.0 if correct == n else middle + half
    return low, high


def mcnemar(a_correct: Sequence[bool] | Tensor, b_correct: Sequence[bool] | Tensor) -> McNemar:
    """McNemar's test (1947): whether two methods differ, from the images that only one of them gets right.

    The exact binomial test, for few such images as for many; nothing is corrected for making several comparisons.

    Args:
        a_correct: for every image, whether the first method gets it right, `(N,)`.
        b_correct: the same of the second method, on the same images in the same order.

    Raises:
        ValueError: if the two are not of the same images.

    Examples:
        >>> mcnemar([True] * 9 + [False], [False] * 8 + [True, True])
        McNemar(only_a=8, only_b=1, p_value=0.0390625)
    """
    a, b = (torch.as_tensor(x, dtype=torch.bool).flatten().cpu() for x in (a_correct, b_correct))
    if len(a) != len(b):
        raise ValueError(f"a paired test needs both methods' answers on the same images; got {len(a)} and {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, _two_sided(min(only_a, only_b), only_a + only_b))


def _two_sided(fewer: int, n: int) -> float:
    """P(X ≤ fewer or X ≥ n - fewer) of X ~ Binomial(n, ½)."""
    if 2 * fewer == n:
        return 1.0
    if n < 1000:
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    constant = math.lgamma(n + 1) - n * math.log(2)  # the numbers above are too long for many images
    terms = (math.exp(constant - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(terms))
