"""The table of an evaluation: errors with their intervals, paired tests and costs, and the files it is written to."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srnn_zoo._errors import unknown_name
from srnn_zoo.inference.predict import Skipped

from .statistics import McNemar, mcnemar, wilson

__all__ = ["PARTIAL", "PREDICTIONS_FILE", "Row", "Table", "check_folder", "prediction_columns", "predictions_file"]

PREDICTIONS_FILE = "predictions.csv"
PARTIAL = ".partial"  # ends the name of a file that is not complete
_TABLES = ("table.csv", "table.md")


@dataclass(frozen=True, eq=False)
class Row:
    """One method on all images.

    Attributes:
        name: what the table calls it.
        sizes: `(H, W)` of the levels it reads, smallest first.
        correct: whether its first answer is right, bool `(N,)`.
        in_top5: whether one of its first five answers is (of all classes, where there are fewer), bool `(N,)`.
        gmacs: billions of multiply-accumulates for one image: all levels, cell and classifier.
        images_per_second: backbone, cell and classifier on images in memory.
        not_finite: images whose logits were not finite; they count as wrong.
    """

    name: str
    sizes: tuple[tuple[int, int], ...]
    correct: Tensor = field(repr=False)
    in_top5: Tensor = field(repr=False)
    gmacs: float
    images_per_second: float
    not_finite: int = 0

    @property
    def images(self) -> int:
        """How many images there were."""
        return len(self.correct)

    @property
    def top1_error(self) -> float:
        """In per cent."""
        return _error(self.correct)

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of the top-1 error (Wilson), in per cent."""
        return _interval(self.correct)

    @property
    def top5_error(self) -> float:
        """In per cent."""
        return _error(self.in_top5)

    @property
    def top5_interval(self) -> tuple[float, float]:
        """95 % interval of the top-5 error (Wilson), in per cent."""
        return _interval(self.in_top5)


@dataclass(frozen=True, eq=False)
class Table:
    """What `evaluate` found.

    Attributes:
        rows: single scales, ensembles, then the models.
        reference: name of the row that the others are tested against.
        caption: what was read, and how the figures were made, for a reader who sees the table alone.
        skipped: pictures that could not be read, and are in no figure.
    """

    rows: tuple[Row, ...]
    reference: str
    caption: str
    skipped: tuple[Skipped, ...] = ()

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            ValueError: if there is none, with the closest.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(unknown_name("row", name, [row.name for row in self.rows]))

    def compare(self, a: str, b: str) -> McNemar:
        """McNemar's test of two rows by their names."""
        return mcnemar(self.row(a).correct, self.row(b).correct)

    def to_csv(self) -> str:
        """The table with all digits: errors and their intervals in per cent, one row a method."""
        text = io.StringIO()
        lines = [self._values(row) for row in self.rows]
        writer = csv.DictWriter(text, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The table and its caption, to read."""
        test = f"p against {self.reference} (only this : only that right)"
        titles = ["method", "top-1 error % (95 %)", "top-5 error % (95 %)", test, "GMACs", "images/s"]
        lines = [titles, *([_cell(text) for text in self._texts(row)] for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
        lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
        return "\n".join([*(f"| {' | '.join(line)} |" for line in padded), "", self.caption, ""])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `table.csv` and `table.md` into a folder that exists; each appears there only when it is complete."""
        for name, text in zip(_TABLES, (self.to_csv(), self.to_markdown()), strict=True):
            partial = Path(folder, name + PARTIAL)
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may be no text
            partial.replace(Path(folder, name))

    def _values(self, row: Row) -> dict[str, Any]:
        test = None if row.name == self.reference else self.compare(row.name, self.reference)
        return {
            "method": row.name,
            "levels": " ".join(f"{h}x{w}" for h, w in row.sizes),
            "images": row.images,
            "correct": int(row.correct.sum()),
            "top1_error": row.top1_error,
            "top1_error_low": row.top1_interval[0],
            "top1_error_high": row.top1_interval[1],
            "top5_error": row.top5_error,
            "top5_error_low": row.top5_interval[0],
            "top5_error_high": row.top5_interval[1],
            "reference": "" if test is None else self.reference,
            "only_this_right": "" if test is None else test.only_a,
            "only_reference_right": "" if test is None else test.only_b,
            "p_value": "" if test is None else test.p_value,
            "gmacs": row.gmacs,
            "images_per_second": row.images_per_second,
        }

    def _texts(self, row: Row) -> list[str]:
        errors = [
            f"{error:.2f} ({low:.2f}–{high:.2f})"
            for error, (low, high) in ((row.top1_error, row.top1_interval), (row.top5_error, row.top5_interval))
        ]
        test = "reference"
        if row.name != self.reference:
            found = self.compare(row.name, self.reference)
            p = f"{found.p_value:.4f}" if found.p_value >= 1e-4 else "< 0.0001"
            test = f"{p} ({found.only_a} : {found.only_b})"
        return [row.name, *errors, test, f"{row.gmacs:.3f}", f"{row.images_per_second:.1f}"]


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder results go to, made where it is missing; before the work.

    Raises:
        ValueError: if it is a file, or cannot be made or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"cannot write results to {path}: it is a file") from None
    except OSError as error:
        raise ValueError(f"cannot make the folder {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"no permission to write to the folder {path}")
    return path


def prediction_columns(names: Sequence[str]) -> list[str]:
    """The columns of `predictions.csv` for rows of these names."""
    return ["path", "target", *(f"{name}: {kind}" for name in names for kind in ("class", "probability", "correct"))]


@contextlib.contextmanager
def predictions_file(folder: Path, names: Sequence[str]) -> Iterator[Any]:
    """A CSV writer for the predictions of rows of these names, one line an image, as they come.

    What is not complete has another name, `predictions.csv.partial`, and stays there when the work is interrupted. An
    earlier evaluation's files are kept till the end; then its table goes first: none stands beside other predictions.
    """
    path = folder / PREDICTIONS_FILE
    partial = folder / (PREDICTIONS_FILE + PARTIAL)
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(prediction_columns(names))
        yield writer
    for name in _TABLES:
        (folder / name).unlink(missing_ok=True)
    partial.replace(path)


def _error(right: Tensor) -> float:
    return 100 * (len(right) - int(right.sum())) / len(right)


def _interval(right: Tensor) -> tuple[float, float]:
    low, high = wilson(int(torch.sum(~right)), len(right))
    return 100 * low, 100 * high


def _cell(text: str) -> str:
    """A text that ends no cell and no line of a table."""
    return " ".join(text.split()).replace("|", "\\|")
