"""The table of an evaluation: how it reads, and the files it is written to, also when something goes wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srnn_zoo import SRNN
from srnn_zoo.evaluation.compare import Row, Table, evaluate


def row(name: str, answers: str) -> Row:
    """A row from its answers, 1 for a right one."""
    right = torch.tensor([answer == "1" for answer in answers])
    return Row(name, ((48, 48), (96, 96)), right, torch.ones_like(right), 1.5, 200.0)


def test_two_rows_are_compared_on_the_same_images() -> None:
    table = Table((row("a", "1111111111"), row("b", "0000000011")), "a", "")
    test = table.compare("a", "b")
    assert (test.only_a, test.only_b, test.p_value) == (8, 0, pytest.approx(2 / 256))
    with pytest.raises(ValueError, match="unknown row 'c'; choose one of a, b"):
        table.compare("a", "c")


def test_markdown_shows_errors_intervals_and_tests_aligned() -> None:
    table = Table((row("a", "1110"), row("b | c\n", "0001")), "a", "Four images.")
    title, rule, first, second, empty, caption = table.to_markdown().splitlines()
    assert "p against a (only this : only that right)" in title
    assert set(rule) == set("| -:")
    assert [cell.strip() for cell in first.strip("|").split(" | ")] == [
        "a",
        "25.00 (4.56–69.94)",
        "0.00 (0.00–48.99)",
        "reference",
        "1.500",
        "200.0",
    ]
    assert second.startswith("| b \\| c ")
    assert "0.6250 (1 : 3)" in second
    assert (empty, caption) == ("", "Four images.")
    assert len({len(line) for line in (title, rule, first, second)}) == 1


def test_small_p_values_are_bounds() -> None:
    table = Table((row("a", "1" * 30), row("b", "0" * 30)), "a", "")
    assert "< 0.0001 (0 : 30)" in table.to_markdown()


def test_csv_has_every_figure() -> None:
    table = Table((row("a", "1110"), row("b, c", "0001")), "a", "")
    first, second = csv.DictReader(io.StringIO(table.to_csv()))
    assert (first["reference"], first["p_value"]) == ("", "")
    assert second["method"] == "b, c"
    assert second["levels"] == "48x48 96x96"
    figures = {key: float(value) for key, value in second.items() if key not in ("method", "levels", "reference")}
    assert figures == pytest.approx(
        {
            "images": 4,
            "correct": 1,
            "top1_error": 75,
            "top1_error_low": 30.0642,
            "top1_error_high": 95.4413,
            "top5_error": 0,
            "top5_error_low": 0,
            "top5_error_high": 48.9891,
            "only_this_right": 1,
            "only_reference_right": 3,
            "p_value": 0.625,
            "gmacs": 1.5,
            "images_per_second": 200,
        },
        abs=1e-4,
    )


def test_a_complete_evaluation_leaves_three_files(
    make_fruit_model: Callable[..., SRNN], fruit_folder: Path, tmp_path: Path
) -> None:
    table = evaluate(make_fruit_model(), fruit_folder, output=tmp_path / "new" / "folder")
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new" / "folder").iterdir()}
    assert files.keys() == {"table.csv", "table.md", "predictions.csv"}
    assert (files["table.csv"], files["table.md"]) == (table.to_csv(), table.to_markdown())


def test_an_interrupted_one_leaves_what_was_done_under_another_name(
    make_fruit_model: Callable[..., SRNN], fruit_folder: Path, tmp_path: Path
) -> None:
    model = make_fruit_model()
    evaluate(model, fruit_folder, output=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) > 6:  # in the fourth batch
            raise KeyboardInterrupt

    hook = model.backbone.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, fruit_folder, batch_size=4, output=tmp_path)
    hook.remove()
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done, complete = (
        [line.split(b",")[:2] for line in text.splitlines()]
        for text in (after.pop("predictions.csv.partial"), before["predictions.csv"])
    )
    assert done == complete[: 1 + 3 * 4]
    assert after == before  # the earlier results are whole
    evaluate(model, fruit_folder, batch_size=4, output=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before.keys()


def test_no_table_stands_beside_other_predictions(
    make_fruit_model: Callable[..., SRNN], fruit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_fruit_model()
    evaluate(model, fruit_folder, output=tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Table, "save", full)
    with pytest.raises(OSError, match="No space"):
        evaluate(model, fruit_folder, output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    make_fruit_model: Callable[..., SRNN], fruit_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    model = make_fruit_model()
    model.backbone.register_forward_hook(lambda *_: pytest.fail("read"))
    for path, reason in {"file": "it is a file", "file/below": "cannot make the folder"}.items():
        with pytest.raises(ValueError, match=reason):
            evaluate(model, fruit_folder, output=tmp_path / path)
