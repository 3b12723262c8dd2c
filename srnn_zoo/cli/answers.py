"""Where the answers of `srnn-zoo predict` go: to standard output, or to a file that an interrupted run goes on with."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import app

if TYPE_CHECKING:
    from srnn_zoo.datasets.images import Skipped
    from srnn_zoo.datasets.inputs import Item
    from srnn_zoo.inference.predict import Prediction
    from srnn_zoo.inference.processes import Processes
    from srnn_zoo.inference.rows import Row
    from srnn_zoo.models.srnn import SRNN
    from srnn_zoo.models.tasks import Task

MOST_REASONS = 10  # of rows in a file, which has them all

Answer = Callable[[Any], Iterator["Row"]]


@dataclass
class Tally:
    """What is counted of the rows, however many there are."""

    most_reasons: float
    rows: int = 0
    skipped: int = 0
    gmacs: float = 0.0
    stopped: Counter[int] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a row."""
        self.rows += 1
        self.skipped += bool(row.error)
        if row.error and len(self.reasons) < self.most_reasons:
            self.reasons.append(row.error)
        if row.stopped_at is not None:
            self.stopped[row.stopped_at] += 1
            self.gmacs += row.gmacs


class Printed:
    """Answers on standard output, as text or JSON.

    Args:
        as_text: what is printed of an image.
        task: of the model.
        as_json: one object a line instead.
    """

    def __init__(self, as_text: Callable[[Prediction], str], task: Task, as_json: bool) -> None:
        self.as_text, self.as_json = as_text, as_json
        self.task: Task = task

    def row(self, result: Prediction | Skipped) -> Row:
        """What is printed of an image; nothing where it cannot be read."""
        from srnn_zoo.datasets.images import Skipped
        from srnn_zoo.inference.rows import Row, json_line

        if isinstance(result, Skipped):
            return Row("", result.reason)
        text = json_line(result, self.task).rstrip("\n") if self.as_json else self.as_text(result)
        return Row(text, "", result.stopped_at, result.gmacs or 0.0)

    def answer_all(
        self, items: Sequence[str | Item], answer: Answer, batch_size: int, processes: Processes, resume: bool
    ) -> Tally:
        """Print what `answer` says of all images, shared out among processes."""
        from tqdm import tqdm

        from srnn_zoo.inference.processes import in_order

        tally = Tally(float("inf"))
        hide = len(items) <= batch_size or not (processes.is_first and sys.stderr.isatty())
        with tqdm(total=len(items), unit="image", disable=hide, leave=False) as bar:
            for rows in in_order(items, answer, batch_size, processes):
                for row in rows:
                    tally.add(row)
                    if row.text:
                        with tqdm.external_write_mode():
                            typer.echo(row.text)
                bar.update(len(rows))
        return tally

    def say_end(self) -> None:
        """Nothing more is to be said."""


class Written:
    """Answers in a file, by the first process.

    Args:
        output: the file.
        network: that answers.
        settings: the options that its answers follow from; `model` may be written in another way.
        items: the images.
    """

    def __init__(self, output: Path, network: SRNN, settings: dict[str, Any], items: Sequence[str | Item]) -> None:
        import srnn_zoo
        from srnn_zoo.datasets.inputs import name_of
        from srnn_zoo.inference.answer_file import AnswerFile, fingerprint, names_digest
        from srnn_zoo.inference.rows import table_columns

        about = {"model": settings.pop("model"), "srnn_zoo": srnn_zoo.__version__}
        exits = settings["exit"] is not None or settings["budget"] is not None
        self.columns = table_columns(network, settings["topk"], exits)
        self.is_json = output.suffix == ".jsonl"
        self.task: Task = network.task
        settings = {
            **settings,
            "variant": network.variant,
            "sizes": ",".join(f"{height}x{width}" for height, width in network.level_sizes()),
            "zooms": None if network.zooms is None else list(network.zooms),
            "views": str(network.views),
            "SHA-256 of the model": fingerprint(network),
            "images": len(items),
            "SHA-256 of their paths": names_digest(items),
            "about": about,
        }
        self.file = AnswerFile(output, self.columns, settings, [name_of(item) for item in items])
        self.was_complete = False

    def row(self, result: Prediction | Skipped) -> Row:
        """The row of an image; also of one that cannot be read."""
        from srnn_zoo.datasets.images import Skipped
        from srnn_zoo.inference.rows import Row, csv_line, json_line, table_cells

        text = json_line(result, self.task) if self.is_json else csv_line(table_cells(result, self.columns).values())
        if isinstance(result, Skipped):
            return Row(text, result.reason)
        return Row(text, "", result.stopped_at, result.gmacs or 0.0)

    def answer_all(
        self, items: Sequence[str | Item], answer: Answer, batch_size: int, processes: Processes, resume: bool
    ) -> Tally:
        """Write what `answer` says of all images that have no row yet, shared out among processes."""
        from tqdm import tqdm

        from srnn_zoo.inference.processes import in_order

        tally, file = Tally(MOST_REASONS), self.file
        start = processes.first(lambda: self._start(resume, batch_size, tally))
        hide = not (processes.is_first and sys.stderr.isatty())
        try:
            with closing(file), tqdm(total=len(items), initial=start, unit="image", disable=hide, leave=False) as bar:
                for rows in in_order(items[start:], answer, batch_size, processes):
                    for row in rows:
                        tally.add(row)
                    if processes.is_first:
                        file.write(rows)
                    bar.update(len(rows))
                if processes.is_first and not self.was_complete:
                    file.finish()
        except BaseException:
            if processes.is_first:
                kept = f"{file.rows} of {len(items)} rows are kept in {file.partial}"
                app.say(f"{kept}: put right what stopped it, and go on with --resume")
            raise
        return tally

    def _start(self, resume: bool, batch_size: int, tally: Tally) -> int:
        with app.about("--output"):
            self.file.start(resume, batch_size, tally.add)
        self.was_complete = self.file.complete
        return self.file.rows

    def say_end(self) -> None:
        """How many rows there are, and where."""
        was = " was complete already" if self.was_complete else ""
        app.say(f"{self.file.path}{was}: {self.file.rows} rows")
