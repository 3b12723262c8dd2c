"""The table of an evaluation: errors with their intervals, paired tests and costs, and the files that hold it."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srnn_zoo._errors import unknown_name
from srnn_zoo.datasets.images import Skipped

PREDICTIONS_FILE = "predictions.csv"
PARTIAL = ".partial"  # ends the name of a file that is not complete
_TABLES = ("table.csv", "table.md")
_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


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
        """Write `table.csv` and `table.md` into an existing folder; each appears only when it is complete."""
        for name, text in zip(_TABLES, (self.to_csv(), self.to_markdown()), strict=True):
            partial = Path(folder, name + PARTIAL)
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may hold undecodable bytes
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
    p, z2 = correct / n, _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return 0.0 if correct == 0 else middle - half, 1.0 if correct == n else middle + half  # no rounding at the ends


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
    a, b = (torch.as_tensor(x, dtype=torch.bool).flatten().cpu() for x in (a_correct, b_correct))
    if len(a) != len(b):
        raise ValueError(f"a paired test needs both methods' answers on the same images; got {len(a)} and {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, _two_sided(min(only_a, only_b), only_a + only_b))


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder for results, made if it is missing; called before the work.

    Raises:
        ValueError: if it is a file, or cannot be made or written to.
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


@contextlib.contextmanager
def predictions_file(folder: Path, names: Sequence[str]) -> Iterator[Any]:
    """A CSV writer for the predictions of the rows with these names, one line an image.

    Until it is complete, the file is called `predictions.csv.partial`; it stays when the work is interrupted. The files
    of an earlier evaluation are kept until the end. Then its tables go first, so that none stands beside predictions of
    another evaluation.
    """
    path = folder / PREDICTIONS_FILE
    partial = folder / (PREDICTIONS_FILE + PARTIAL)
    columns = [f"{name}: {kind}" for name in names for kind in ("class", "probability", "correct")]
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "target", *columns])
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
    """A text that ends neither its cell nor its line of the table."""
    return " ".join(text.split()).replace("|", "\\|")


def _two_sided(fewer: int, n: int) -> float:
    """P(X ≤ fewer or X ≥ n - fewer) for X ~ Binomial(n, ½)."""
    if 2 * fewer == n:
        return 1.0
    if n < 1000:
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    constant = math.lgamma(n + 1) - n * math.log(2)  # in logarithms: for many images the exact integers are too long
    terms = (math.exp(constant - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(terms))
