"""The table of an evaluation: errors with their intervals, paired tests and costs, and the files that hold it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srnn_zoo._errors import unknown_name
from srnn_zoo.datasets.images import Skipped

PREDICTIONS_FILE = "predictions.csv"
PARTIAL = ".partial"  # ends the name of a file that is not complete
_TABLES = ("table.csv", "table.md")
_COLUMNS = "method levels images correct top1_error top1_error_low top1_error_high top5_error top5_error_low".split()
_COLUMNS += "top5_error_high reference only_this_right only_reference_right p_value gmacs images_per_second".split()


@dataclass(frozen=True, eq=False)
class Row:
    """One method on all images.

    Attributes:
        name: what the table calls it.
        sizes: `(H, W)` of the levels it reads, smallest first.
        correct: whether its first answer is right, bool `(N,)`.
        in_top5: whether one of its first five answers is right, bool `(N,)`; with fewer classes, one of all.
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
        caption: which images were read and how the figures were made, for a reader who sees the table alone.
        skipped: images that could not be read; they are in no figure.
    """

    rows: tuple[Row, ...]
    reference: str
    caption: str
    skipped: tuple[Skipped, ...] = ()

    def row(self, name: str) -> Row:
        """The row of that name; ValueError where there is none, with the closest."""
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
        csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *map(self._values, self.rows)])
        return text.getvalue()

    def to_markdown(self) -> str:
        """The table and its caption, to read."""
        test = f"p against {self.reference} (only this : only that right)"
        titles = ["method", "top-1 error % (95 %)", "top-5 error % (95 %)", test, "GMACs", "images/s"]
        lines = [titles, *map(self._texts, self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
        lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
        return "\n".join([*(f"| {' | '.join(line)} |" for line in padded), "", self.caption, ""])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `table.csv` and `table.md` into an existing folder; each appears only when it is complete."""
        for name, text in zip(_TABLES, (self.to_csv(), self.to_markdown()), strict=True):
            partial = Path(folder, name + PARTIAL)
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may hold undecodable bytes
            partial.replace(Path(folder, name))

    def _values(self, row: Row) -> list[Any]:
        levels = " ".join(f"{height}x{width}" for height, width in row.sizes)
        errors = (row.top1_error, *row.top1_interval, row.top5_error, *row.top5_interval)
        test: tuple[Any, ...] = ("", "", "", "")
        if row.name != self.reference:
            test = (self.reference, *astuple(self.compare(row.name, self.reference)))
        counts = (row.images, int(row.correct.sum()))
        return [row.name, levels, *counts, *errors, *test, row.gmacs, row.images_per_second]

    def _texts(self, row: Row) -> list[str]:
        """The same for people, in texts that end neither their cell nor their line of the table."""
        measured = ((row.top1_error, row.top1_interval), (row.top5_error, row.top5_interval))
        errors = [f"{error:.2f} ({low:.2f}–{high:.2f})" for error, (low, high) in measured]
        test = "reference"
        if row.name != self.reference:
            found = self.compare(row.name, self.reference)
            p = f"{found.p_value:.4f}" if found.p_value >= 1e-4 else "< 0.0001"
            test = f"{p} ({found.only_a} : {found.only_b})"
        texts = [row.name, *errors, test, f"{row.gmacs:.3f}", f"{row.images_per_second:.1f}"]
        return [" ".join(text.split()).replace("|", "\\|") for text in texts]


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two methods on the same images.

    Attributes:
        only_a: images that only the first method gets right.
        only_b: images that only the second gets right.
        p_value: two-sided, in [0, 1]: how likely a split at least as uneven would be by chance.
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
    from scipy.stats import binomtest  # here, as it takes long to import

    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a_correct: Sequence[bool] | Tensor, b_correct: Sequence[bool] | Tensor) -> McNemar:
    """McNemar's test (1947): whether two methods differ, judged by the images that only one of them gets right.

    It is the exact binomial test, for any number of such images. It does not correct for several comparisons.

    Args:
        a_correct: for every image, whether the first method gets it right, `(N,)`.
        b_correct: the same for the second method, on the same images in the same order.

    Raises:
        ValueError: if the two have different numbers of images.

    Examples:
        >>> mcnemar([True] * 9 + [False], [False] * 8 + [True, True])
        McNemar(only_a=8, only_b=1, p_value=0.0390625)
    """
    from scipy.stats import binomtest

    a, b = (torch.as_tensor(x, dtype=torch.bool).flatten().cpu() for x in (a_correct, b_correct))
    if len(a) != len(b):
        raise ValueError(f"a paired test needs both methods' answers on the same images; got {len(a)} and {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(min(only_a, only_b), n).pvalue) if n else 1.0)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder for results, made if it is missing; ValueError if it cannot be made or written to, or is a file."""
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


def check_can_write(path: Path) -> None:
    """Before the work: ValueError for a file in a folder that does not exist, for a folder, and without permission."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"no folder {path.parent} to write to")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"no permission to write {path}")


@contextlib.contextmanager
def predictions_file(folder: Path, names: Sequence[str]) -> Iterator[Any]:
    """A CSV writer for the predictions of the rows with these names, one line an image.

    Until it is complete, the file is called `predictions.csv.partial`; it stays when the work is interrupted. Files of
    an earlier evaluation are kept until then; its tables go before its predictions, so that they never disagree.
    """
    partial = folder / (PREDICTIONS_FILE + PARTIAL)
    columns = [f"{name}: {kind}" for name in names for kind in ("class", "probability", "correct")]
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "target", *columns])
        yield writer
    for name in _TABLES:
        (folder / name).unlink(missing_ok=True)
    partial.replace(folder / PREDICTIONS_FILE)


def _error(right: Tensor) -> float:
    return 100 * (len(right) - int(right.sum())) / len(right)


def _interval(right: Tensor) -> tuple[float, float]:
    low, high = wilson(int(torch.sum(~right)), len(right))
    return 100 * low, 100 * high
