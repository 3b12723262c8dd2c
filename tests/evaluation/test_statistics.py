"""Wilson's interval and McNemar's test, against published values, other formulas and plain sums."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srnn_zoo.evaluation.table import mcnemar, wilson


def pairs(only_a: int, only_b: int, both: int = 0, neither: int = 0) -> tuple[list[bool], list[bool]]:
    """Answers of two methods with so many images of each kind."""
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return a, b


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilsons_interval_has_its_published_values(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 60_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_bounds_are_where_the_score_test_just_rejects(case: tuple[int, int]) -> None:
    correct, n = case
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        z = (correct / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert abs(z) == pytest.approx(1.959964, rel=1e-4)
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_an_interval_of_impossible_counts_is_an_error(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 to n successes"):
        wilson(correct, n)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_is_the_exact_sum_over_all_splits_as_lopsided(
    only_a: int, only_b: int, both: int, neither: int
) -> None:
    n = only_a + only_b
    lopsided = [k for k in range(n + 1) if abs(2 * k - n) >= abs(only_a - only_b)]
    exact = Fraction(sum(math.comb(n, k) for k in lopsided), 2**n)
    found = mcnemar(*pairs(only_a, only_b, both, neither))
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("only_a", "only_b"), [(499, 500), (470, 530), (520, 480), (300, 900), (2400, 2600)])
def test_for_many_images_the_sum_is_as_exact(only_a: int, only_b: int) -> None:
    n, fewer = only_a + only_b, min(only_a, only_b)
    exact = float(Fraction(2 * sum(math.comb(n, k) for k in range(fewer + 1)), 2**n))
    assert mcnemar(*pairs(only_a, only_b)).p_value == pytest.approx(exact, rel=1e-9)


def test_for_very_many_images_it_agrees_with_chi_squared() -> None:
    only_a, only_b = 5_200, 4_900
    statistic = (abs(only_a - only_b) - 1) ** 2 / (only_a + only_b)  # one degree of freedom, continuity corrected
    chi_squared = math.erfc(math.sqrt(statistic / 2))
    assert mcnemar(*pairs(only_a, only_b, 30_000)).p_value == pytest.approx(chi_squared, rel=0.01)


def test_mcnemar_is_symmetric_and_takes_tensors() -> None:
    a, b = pairs(9, 2, 5, 5)
    forward, back = mcnemar(torch.tensor(a), torch.tensor(b)), mcnemar(b, a)
    assert (forward.only_a, forward.only_b, forward.p_value) == (back.only_b, back.only_a, back.p_value)
    assert forward.p_value == pytest.approx(134 / 2048)  # 2 (1 + 11 + 55) / 2^11
    assert mcnemar(*pairs(3, 3)).p_value == mcnemar([], []).p_value == 1.0


def test_a_paired_test_of_other_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 3 and 2"):
        mcnemar([True] * 3, [False] * 2)
