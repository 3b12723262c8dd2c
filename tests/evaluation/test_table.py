"""The table of an evaluation: its statistics against published values, how it reads, and the files it leaves."""

import csv
import itertools
import math
from fractions import Fraction
from unittest.mock import Mock

import pytest
import torch

from srnn_zoo.evaluation import Row, Table, evaluate, mcnemar, wilson
from tests.conftest import files


def test_wilsons_interval_has_its_published_values_and_impossible_counts_are_errors():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    few = ((0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718))
    for correct, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), *few):
        assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)
        assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)
    for counts in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="0 to n successes"):
            wilson(*counts)


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 2), (0, 1), (499, 500), (300, 900)])
def test_mcnemar_is_the_exact_sum_over_all_splits_as_uneven(only_a, only_b):
    a = torch.tensor([True] * only_a + [False] * only_b + [True] * 5 + [False] * 3)
    b = [False] * only_a + [True] * only_b + [True] * 5 + [False] * 3
    n = only_a + only_b
    exact = Fraction(2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)), 2**n)
    for found, counts in ((mcnemar(a, b), (only_a, only_b)), (mcnemar(b, a), (only_b, only_a))):
        assert (found.only_a, found.only_b) == counts
        assert found.p_value == pytest.approx(float(exact), rel=1e-9)
    assert mcnemar(a, a).p_value == mcnemar([True, False], [False, True]).p_value == 1.0
    with pytest.raises(ValueError, match=f"got {len(a)} and 2"):
        mcnemar(a, [False] * 2)


def table(**answers):
    """A table of rows from their answers, 1 for a right one; the first is the reference."""
    right = {name: torch.tensor([answer == "1" for answer in said]) for name, said in answers.items()}
    rows = [Row(name, ((48, 48), (96, 96)), r, torch.ones_like(r), 1.5, 200.0) for name, r in right.items()]
    return Table(tuple(rows), rows[0].name, "A caption.")


def test_markdown_shows_errors_intervals_and_tests_aligned():
    lines = table(a="1110", **{"b | c\n": "0001"}).to_markdown().splitlines()
    title, rule, first, second, empty, caption = lines
    assert "p against a (only this : only that right)" in title
    assert set(rule) == set("| -:")
    cells = [cell.strip() for cell in first.strip("|").split(" | ")]
    assert cells == ["a", "25.00 (4.56–69.94)", "0.00 (0.00–48.99)", "reference", "1.500", "200.0"]
    assert second.startswith("| b \\| c ")
    assert "0.6250 (1 : 3)" in second
    assert (empty, caption) == ("", "A caption.")
    assert len({len(line) for line in lines[:4]}) == 1
    assert "< 0.0001 (0 : 30)" in table(a="1" * 30, b="0" * 30).to_markdown()  # small p-values are bounds


def test_csv_has_every_figure_and_rows_are_compared_on_the_same_images():
    two = table(a="1110", **{"b, c": "0001"})
    first, second = csv.DictReader(two.to_csv().splitlines())
    assert (first["reference"], first["p_value"]) == ("", "")
    assert [second.pop(key) for key in ("method", "levels", "reference")] == ["b, c", "48x48 96x96", "a"]
    top1 = {"top1_error": 75, "top1_error_low": 30.0642, "top1_error_high": 95.4413}
    top5 = {"top5_error": 0, "top5_error_low": 0, "top5_error_high": 48.9891}
    test = {"only_this_right": 1, "only_reference_right": 3, "p_value": 0.625}
    wanted = {"images": 4, "correct": 1, **top1, **top5, **test, "gmacs": 1.5, "images_per_second": 200}
    assert {key: float(value) for key, value in second.items()} == pytest.approx(wanted, abs=1e-4)
    test = two.compare("a", "b, c")
    assert (test.only_a, test.only_b, test.p_value) == (3, 1, 0.625)
    with pytest.raises(ValueError, match="unknown row 'c'; choose one of a, b"):
        two.compare("a", "c")


def test_three_files_are_written_and_an_interruption_or_a_full_disk_leaves_none_that_disagree(
    model, fruit, tmp_path, monkeypatch
):
    output = tmp_path / "new" / "folder"
    found = evaluate(model, fruit, output=output)
    before, calls = files(output), itertools.count(1)
    assert before.keys() == {"table.csv", "table.md", "predictions.csv"}
    assert (before["table.csv"], before["table.md"]) == (found.to_csv().encode(), found.to_markdown().encode())

    def interrupt(*_):
        if next(calls) > 6:  # in the fourth batch
            raise KeyboardInterrupt

    hook = model.backbone.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, fruit, batch_size=4, output=output)
    hook.remove()
    after = files(output)
    texts = (after.pop("predictions.csv.partial"), before["predictions.csv"])
    done, complete = ([line.split(b",")[:2] for line in text.splitlines()] for text in texts)
    assert done == complete[: 1 + 3 * 4]
    assert after == before
    evaluate(model, fruit, batch_size=4, output=output)
    assert files(output).keys() == before.keys()
    monkeypatch.setattr(Table, "save", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        evaluate(model, fruit, output=output)
    assert files(output).keys() == {"predictions.csv"}  # no table stands beside other predictions
