"""What the benchmarks share: timing in turn, and what a ratio with its interval says."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.usefixtures("common")
def test_every_short_benchmark_is_a_program_that_measures_by_the_shared_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(BENCHMARKS), run_name="__main__")
    names = capsys.readouterr().err.rpartition("there are ")[2].strip().split(", ")
    assert {"head_cost", "reading", "training", "startup", "growth"} <= set(names)
    for name in names:
        assert "parser(__doc__, " in (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "_common", raising=False)
    import _common

    return _common


def test_ways_run_in_turn_and_the_order_is_turned_round_every_round(common):
    ran: list[str] = []
    clock = iter(range(100))  # a tick between the two readings of every way
    ways = {"one": lambda: ran.append("one"), "two": lambda: [ran.append("two"), next(clock)]}
    turns = common.alternate(ways, 6, warm_up=1, clock=lambda: next(clock))
    assert ran == ["one", "two", "two", "one"] * 3 + ["one", "two"]
    assert turns.seconds == {"one": [1] * 6, "two": [2] * 6}
    assert turns.median("two") == 2
    assert turns.ratio("two", over="one") == (2, 2, 2)


@pytest.mark.parametrize(
    ("ratio", "target", "answer"),
    [
        ((2.0, 1.5, 2.5), 1.0, "above 1"),
        ((2.0, 1.5, 2.5), 3.0, "below 3"),
        ((1.1, 0.9, 1.3), 1.0, "noise hides the answer"),
        ((1.2, 1.1, 1.3), 1.1, "noise hides the answer"),
    ],
)
def test_a_ratio_says_on_which_side_of_the_target_it_lies(common, ratio, target, answer):
    assert common.Ratio(*ratio).columns(target)["answer"] == answer


@pytest.mark.parametrize(("count", "low", "high"), [(6, 0, 5), (9, 1, 7), (20, 5, 14), (100, 39, 60)])
def test_the_interval_of_a_median_is_that_of_the_tables(common, count, low, high):
    """Ranks as in tables of the sign test: the least coverage of at least 95 %."""
    assert common.median_interval(list(range(count))[::-1]) == (low, high)
    with pytest.raises(ValueError, match="at least 6 rounds"):
        common.median_interval([1.0] * 5)
