"""A file of answers, written as they come: an interrupted run goes on with it, and no row is lost or repeated."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from srnn_zoo._errors import missing_extra
from srnn_zoo.datasets.classes import class_names
from srnn_zoo.datasets.inputs import Item, name_of
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.weights.files import digest

from .rows import Columns, Row, arrow_table, csv_line

SUFFIXES = (".csv", ".jsonl", ".parquet")
PARTIAL, SETTINGS = ".partial", ".settings.json"  # what ends the names of the files beside it
_CHUNK = 10_000  # rows of a Parquet row group
_CONFIG = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
_INFO = "about"  # the settings that may differ


def check_answer_file(path: str | os.PathLike[str], resume: bool = True) -> Path:
    """The path of a file that answers can be written to.

    Args:
        path: the file.
        resume: whether it may exist, whole or in part.

    Raises:
        FileExistsError: if it may not.
        ValueError: for another suffix than .csv, .jsonl or .parquet.
        ImportError: for Parquet without pyarrow.
        FileNotFoundError: if there is no such folder.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file} must end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if file.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise missing_extra("pyarrow", "table", "a Parquet file")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent} to write {file.name} to")
    for found, what in ((file, ""), (Path(f"{file}{PARTIAL}"), ", of a run that was interrupted,")):
        if found.exists() and not resume:
            raise FileExistsError(f"{found}{what} exists: go on with --resume, or give another --output")
    return file


class AnswerFile:
    """Rows in the order of the images, in `FILE.partial` until all are there.

    What made the rows stands in `FILE.settings.json`. A Parquet file, which cannot be read before it is complete, is
    written as CSV until then.

    Args:
        path: the file, `.csv`, `.jsonl` or `.parquet`.
        columns: of a table (`table_columns`); `.jsonl` has none.
        settings: what must be the same when a run goes on; what is under "about" may differ.
        names: of all images, in order.

    Attributes:
        rows: how many are written.
        complete: whether the file itself is there with all its rows; then `write` and `finish` are over.
    """

    def __init__(
        self, path: str | os.PathLike[str], columns: Columns, settings: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        self.path = check_answer_file(path)
        self.columns, self.settings, self.names = columns, dict(settings), names
        self.partial, self._beside = (Path(f"{self.path}{end}") for end in (PARTIAL, SETTINGS))
        self.rows = 0
        self.complete = False
        self._file: BinaryIO | None = None

    def start(self, resume: bool = False, multiple: int = 1, count: Callable[[Row], Any] = lambda _: None) -> None:
        """Begin the file, or go on with it.

        Args:
            resume: go on with what an interrupted run has written, or begin where there is nothing.
            multiple: keep a multiple of so many rows, to go on with whole batches.
            count: is called with every row that is there already, without its text.

        Raises:
            FileExistsError: if the file exists and `resume` is not set, or another process is writing it.
            ValueError: to resume with other settings, which it lists, or a file that was changed, also a complete one.
        """
        check_answer_file(self.path, resume)
        if not self.path.exists():
            self._file = _lock(self.partial)  # before anything is read or written: two runs may begin together
        try:
            if not resume and (self.path.exists() or self.partial.stat().st_size > 0):  # by another run, just now
                check_answer_file(self.path, resume)
            if self.path.exists():
                self.close()
                self._check_settings()
                self.partial.unlink(missing_ok=True)  # left where a run ended between the two
                self._count_all(count)
                self.complete = True
                return
            self._go_on(multiple, count)
        except BaseException:
            self.close()
            raise

    def _go_on(self, multiple: int, count: Callable[[Row], Any]) -> None:
        assert self._file is not None
        header, size = self._header.encode(), self.partial.stat().st_size
        if size > 0:
            self._check_settings()
        else:
            _write_whole(self._beside, json.dumps(self.settings, indent=1))
        if size < len(header) or size == 0:
            self._file.truncate(0)
            self._append(self._header)
            return
        kept, end = [], len(header)
        for row, after in self._found(self.partial):
            kept.append(row)
            if len(kept) == multiple or self.rows + len(kept) == len(self.names):
                for each in kept:
                    count(each)
                self.rows, end, kept = self.rows + len(kept), after, []
        self._file.truncate(end)

    def _count_all(self, count: Callable[[Row], Any]) -> None:
        """Count the rows of the complete file."""
        if self.path.suffix == ".parquet":
            import pyarrow.parquet as pq

            names = [name for name in ("stopped_at", "gmacs", "error") if name in self.columns]
            batches = pq.ParquetFile(self.path).iter_batches(columns=names)
            rows: Iterator[Row] = (_as_row(cells) for batch in batches for cells in batch.to_pylist())
        else:
            rows = (row for row, _ in self._found(self.path))
        for row in rows:
            count(row)
            self.rows += 1
        if self.rows != len(self.names):
            raise ValueError(
                f"{self.path} was changed: it has {self.rows} whole rows, and there are {len(self.names)} images"
            )

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; OSError if the disk takes no more, and then those before are kept."""
        rows = list(rows)
        self._append("".join(row.text for row in rows))
        self.rows += len(rows)

    def finish(self) -> None:
        """Give the file its name, once all rows are there."""
        assert self._file is not None
        with self._said():
            os.fsync(self._file.fileno())
            if self.path.suffix == ".parquet":
                unfinished = Path(f"{self.path}.unfinished")
                self._write_parquet(unfinished)
                with unfinished.open("rb+") as file:
                    os.fsync(file.fileno())
                unfinished.replace(self.path)
                self.close()
                self.partial.unlink()
            else:
                self.close()
                self.partial.replace(self.path)
        self.complete = True

    def close(self) -> None:
        """Let go of the file, which stays as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _header(self) -> str:
        return "" if self.path.suffix == ".jsonl" else csv_line(self.columns)

    def _append(self, text: str) -> None:
        assert self._file is not None
        rest = memoryview(text.encode(errors="surrogateescape"))  # a path may hold bytes that are no text
        with self._said():
            while rest:  # a nearly full disk takes a part
                rest = rest[self._file.write(rest) :]

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"{self.partial} cannot be written: {error.strerror or error}") from error

    def _check_settings(self) -> None:
        try:
            found = json.loads(self._beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(
                f"{self.path} cannot be resumed: {self._beside.name}, which says what made it, is missing"
            ) from None
        keys = [key for key in dict.fromkeys([*self.settings, *found]) if key != _INFO]
        different = [
            f"{key} {_text(self.settings.get(key))}, was {_text(found.get(key))}"
            for key in keys
            if _text(self.settings.get(key)) != _text(found.get(key))
        ]
        if different:
            raise ValueError(
                f"{self.path} cannot be resumed with other settings: {'; '.join(different)}; give the same, or another "
                "--output"
            )

    def _found(self, path: Path) -> Iterator[tuple[Row, int]]:
        """The whole rows of a file, and where each ends; ValueError for those of another list."""
        with path.open("rb") as file:
            read = _json_rows if self.path.suffix == ".jsonl" else self._csv_rows
            for number, ((cells, end), name) in enumerate(zip(read(file), self.names, strict=False)):
                if cells["path"] != name:
                    raise ValueError(
                        f"{path} was changed: row {number + 1} is of {cells['path']}, and the image of {name}"
                    )
                yield _as_row(cells), end

    def _csv_rows(self, file: BinaryIO) -> Iterator[tuple[dict[str, str], int]]:
        end = 0

        def lines() -> Iterator[str]:
            nonlocal end
            for line in file:
                if not line.endswith(b"\n"):  # the last one, cut short
                    return
                end += len(line)
                yield line.decode(errors="surrogateescape")

        rows = csv.reader(lines(), strict=True)
        with contextlib.suppress(csv.Error):  # quotes that never end: cut short as well
            if next(rows, None) != list(self.columns):
                raise ValueError(f"{file.name} was changed: its first line does not name the columns")
            for row in rows:
                if len(row) != len(self.columns):
                    return
                yield dict(zip(self.columns, row, strict=True)), end

    def _write_parquet(self, path: Path) -> None:
        import pyarrow.parquet as pq

        with self.partial.open("rb") as file, pq.ParquetWriter(path, arrow_table([], self.columns).schema) as writer:
            rows = (cells for cells, _ in self._csv_rows(file))
            while chunk := list(islice(rows, _CHUNK)):
                values = [{name: _value(row[name], kind) for name, kind in self.columns.items()} for row in chunk]
                writer.write_table(arrow_table(values, self.columns))


def fingerprint(model: SRNN) -> str:
    """SHA-256 of all that a model's answers follow from: weights, preprocessing, classes and calibration."""
    config = {key: model.pretrained_cfg.get(key) for key in _CONFIG}
    stored = {key: model.metadata.get(key) for key in ("exit", "temperatures")}
    about = [model.variant, model.exits, model.norm, model.task, class_names(model), config, stored]
    about.append(getattr(model, "about", None))  # what an exported model says, with the SHA-256 of its graphs
    weights = digest({key: value.detach().cpu() for key, value in model.state_dict().items()})
    return hashlib.sha256(f"{weights} {json.dumps(about, default=str, sort_keys=True)}".encode()).hexdigest()


def names_digest(items: Iterable[str | Item]) -> str:
    """SHA-256 of what images are called, in order."""
    found = hashlib.sha256()
    for item in items:
        found.update(name_of(item).encode(errors="surrogateescape") + b"\0")
    return found.hexdigest()


def _as_row(cells: Mapping[str, Any]) -> Row:
    """What is counted of a row that was read; of an image that cannot be read, and of an empty cell, nothing."""
    stopped_at = cells.get("stopped_at")
    level = None if stopped_at in (None, "") else int(stopped_at)
    return Row("", cells.get("error") or "", level, float(cells.get("gmacs") or 0))


def _json_rows(file: BinaryIO) -> Iterator[tuple[dict[str, Any], int]]:
    end = 0
    for line in file:
        try:
            row = json.loads(line)
        except ValueError:  # cut short
            return
        if not line.endswith(b"\n") or "path" not in row:
            return
        end += len(line)
        yield row, end


def _value(text: str, kind: type) -> Any:
    return kind(text) if text else None


def _text(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _write_whole(path: Path, text: str) -> None:
    beside = Path(f"{path}{PARTIAL}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _lock(path: Path) -> BinaryIO:
    """The file, open to append without a buffer, and for this process alone."""
    file = path.open("ab", buffering=0)
    with contextlib.suppress(ImportError):  # which Windows lacks
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise FileExistsError(f"another process is writing {path}: wait for it, or give another --output") from None
        except OSError:  # a file system that knows no locks
            pass
    return file  # pyright: ignore[reportReturnType]
