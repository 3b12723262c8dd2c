"""The table of an evaluation: its statistics against published values, how it reads, and the files it leaves."""

import csv
import io
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srnn_zoo.evaluation import Row, Table, evaluate, mcnemar, wilson


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
def test_wilsons_interval_has_its_published_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 60_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_bounds_are_where_the_score_test_just_rejects(case):
    correct, n = case
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        z = (correct / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert abs(z) == pytest.approx(1.959964, rel=1e-4)
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_an_interval_of_impossible_counts_is_an_error(correct, n):
    with pytest.raises(ValueError, match="0 to n successes"):
        wilson(correct, n)


def pairs(only_a, only_b, both=0, neither=0):
    """Answers of two methods with so many images of each kind."""
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return a, b


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_is_the_exact_sum_over_all_splits_as_uneven(only_a, only_b, both, neither):
    n = only_a + only_b
    uneven = [k for k in range(n + 1) if abs(2 * k - n) >= abs(only_a - only_b)]
    exact = Fraction(sum(math.comb(n, k) for k in uneven), 2**n)
    found = mcnemar(*pairs(only_a, only_b, both, neither))
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("only_a", "only_b"), [(499, 500), (470, 530), (520, 480), (300, 900), (5200, 4900)])
def test_for_many_images_the_sum_is_as_exact(only_a, only_b):
    n, terms = only_a + only_b, [1]
    for k in range(min(only_a, only_b)):
        terms.append(terms[-1] * (n - k) // (k + 1))
    exact = float(Fraction(2 * sum(terms), 2**n))
    assert mcnemar(*pairs(only_a, only_b, 30_000)).p_value == pytest.approx(exact, rel=1e-9)


def test_mcnemar_is_symmetric_and_takes_tensors():
    a, b = pairs(9, 2, 5, 5)
    forward, back = mcnemar(torch.tensor(a), torch.tensor(b)), mcnemar(b, a)
    assert (forward.only_a, forward.only_b, forward.p_value) == (back.only_b, back.only_a, back.p_value)
    assert forward.p_value == pytest.approx(134 / 2048)  # 2 (1 + 11 + 55) / 2^11
    assert mcnemar(*pairs(3, 3)).p_value == mcnemar([], []).p_value == 1.0
    with pytest.raises(ValueError, match="got 3 and 2"):
        mcnemar([True] * 3, [False] * 2)


def table(**answers):
    """A table of rows from their answers, 1 for a right one; the first is the reference."""
    rows = []
    for name, said in answers.items():
        right = torch.tensor([answer == "1" for answer in said])
        rows.append(Row(name, ((48, 48), (96, 96)), right, torch.ones_like(right), 1.5, 200.0))
    return Table(tuple(rows), rows[0].name, "A caption.")


def test_two_rows_are_compared_on_the_same_images():
    two = table(a="1111111111", b="0000000011")
    test = two.compare("a", "b")
    assert (test.only_a, test.only_b, test.p_value) == (8, 0, pytest.approx(2 / 256))
    with pytest.raises(ValueError, match="unknown row 'c'; choose one of a, b"):
        two.compare("a", "c")


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


def test_csv_has_every_figure():
    first, second = csv.DictReader(io.StringIO(table(a="1110", **{"b, c": "0001"}).to_csv()))
    assert (first["reference"], first["p_value"]) == ("", "")
    assert [second.pop(key) for key in ("method", "levels", "reference")] == ["b, c", "48x48 96x96", "a"]
    top1 = {"top1_error": 75, "top1_error_low": 30.0642, "top1_error_high": 95.4413}
    top5 = {"top5_error": 0, "top5_error_low": 0, "top5_error_high": 48.9891}
    test = {"only_this_right": 1, "only_reference_right": 3, "p_value": 0.625}
    wanted = {"images": 4, "correct": 1, **top1, **top5, **test, "gmacs": 1.5, "images_per_second": 200}
    assert {key: float(value) for key, value in second.items()} == pytest.approx(wanted, abs=1e-4)


@pytest.fixture(scope="module")
def model(make):
    return make()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_complete_evaluation_leaves_three_files(model, fruit, tmp_path):
    found = evaluate(model, fruit, output=tmp_path / "new" / "folder")
    files = contents(tmp_path / "new" / "folder")
    assert files.keys() == {"table.csv", "table.md", "predictions.csv"}
    assert (files["table.csv"], files["table.md"]) == (found.to_csv().encode(), found.to_markdown().encode())


def test_an_interrupted_one_leaves_what_was_done_under_another_name(model, fruit, tmp_path):
    evaluate(model, fruit, output=tmp_path)
    before, calls = contents(tmp_path), itertools.count(1)

    def interrupt(*_):
        if next(calls) > 6:  # in the fourth batch
            raise KeyboardInterrupt

    hook = model.backbone.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, fruit, batch_size=4, output=tmp_path)
    hook.remove()
    after = contents(tmp_path)
    texts = (after.pop("predictions.csv.partial"), before["predictions.csv"])
    done, complete = ([line.split(b",")[:2] for line in text.splitlines()] for text in texts)
    assert done == complete[: 1 + 3 * 4]
    assert after == before  # the earlier results are whole
    evaluate(model, fruit, batch_size=4, output=tmp_path)
    assert contents(tmp_path).keys() == before.keys()


def test_no_table_stands_beside_other_predictions(model, fruit, tmp_path, monkeypatch):
    evaluate(model, fruit, output=tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Table, "save", full)
    with pytest.raises(OSError, match="No space"):
        evaluate(model, fruit, output=tmp_path)
    assert contents(tmp_path).keys() == {"predictions.csv"}


@pytest.mark.parametrize(("path", "reason"), [("file", "it is a file"), ("file/below", "cannot make the folder")])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(path, reason, model, fruit, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(model, "level_features", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match=reason):
        evaluate(model, fruit, output=tmp_path / path)
