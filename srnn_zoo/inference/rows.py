"""Answers as rows: of a table, with the answer after the last level that was read, or of JSON lines, with all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from srnn_zoo.datasets.classes import class_names
from srnn_zoo.datasets.images import Skipped
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.models.tasks import Task

from .predict import Prediction

Columns = dict[str, type]
"""The columns of a table in order, each with the type of its values: str, float or int; any value may be missing."""


class Row(NamedTuple):
    """An image's answer as text, and what is counted of it.

    Attributes:
        text: what is written, with its end of line.
        error: why the image cannot be read; empty if it can.
        stopped_at: with an exit rule, the level at which the image stopped.
        gmacs: with an exit rule, what the backbone then cost.
    """

    text: str
    error: str = ""
    stopped_at: int | None = None
    gmacs: float = 0.0


def table_columns(model: SRNN, topk: int = 5, exit: bool = False) -> Columns:
    """The columns of a table of a model's answers.

    `path`; `label` and `probability` of the best class, then `label_2` and so on, or for a regression every output by
    its name; `stopped_at` and `gmacs` with an exit rule; `notes`; and `error`, for an image that cannot be read.
    """
    columns: Columns = {"path": str}
    if model.task == "regression":
        for name in class_names(model):
            ends = ("" if rank == 1 else f"_{rank}" for rank in count(1))  # two outputs may have one name
            columns[next(key for end in ends if (key := f"value: {name}{end}") not in columns)] = float
    else:
        for rank in range(1, min(topk, model.num_classes) + 1):
            end = "" if rank == 1 else f"_{rank}"
            columns |= {f"label{end}": str, f"probability{end}": float}
    return columns | ({"stopped_at": int, "gmacs": float} if exit else {}) | {"notes": str, "error": str}


def table_cells(result: Prediction | Skipped, columns: Columns) -> dict[str, Any]:
    """The values of an image's row; None for those that are missing, and for a number that is not finite."""
    cells: dict[str, Any] = dict.fromkeys(columns)
    cells["path"] = result.path
    if isinstance(result, Skipped):
        return cells | {"error": result.reason}
    has_labels = "label" in columns
    answer = [value for pair in result.answers[-1].top for value in (pair if has_labels else pair[1:])]
    cells |= dict(zip(list(columns)[1:], map(_number, answer), strict=False))
    cells |= {"notes": "; ".join(result.notes) or None}
    if "stopped_at" in columns:
        cells |= {"stopped_at": result.stopped_at, "gmacs": _number(result.gmacs)}
    return cells


def arrow_table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> Any:
    """Rows of `table_cells` as a `pyarrow.Table`, for Parquet; bytes of a path that are no text become `\\xe9`."""
    import pyarrow as pa

    def text(value: str | None) -> str | None:
        return value and value.encode(errors="surrogateescape").decode(errors="backslashreplace")

    types = {str: pa.string(), float: pa.float64(), int: pa.int32()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    values = {name: [text(row[name]) if kind is str else row[name] for row in rows] for name, kind in columns.items()}
    return pa.table(values, schema=schema)


def as_object(result: Prediction | Skipped, task: Task) -> dict[str, Any]:
    """An image's answers after every level, for JSON."""
    if isinstance(result, Skipped):
        return {"path": result.path, "error": result.reason}
    kind = "value" if task == "regression" else "probability"
    return {
        "path": result.path,
        "levels": [
            {
                "size": list(answer.size),
                **({"view": [round(edge, 4) for edge in result.views[level]]} if result.views else {}),
                "top": [{"label": name, kind: p if math.isfinite(p) else None} for name, p in answer.top],
            }
            for level, answer in enumerate(result.answers)
        ],
        "notes": list(result.notes),
        **({} if result.stopped_at is None else {"stopped_at": result.stopped_at, "gmacs": result.gmacs}),
    }


def json_line(result: Prediction | Skipped, task: Task) -> str:
    """`as_object` as one line."""
    return json.dumps(as_object(result, task)) + "\n"


def csv_line(values: Any) -> str:
    """Values as a row of CSV; one in which a path has line breaks has these in quotes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # so that it quotes what has either
    return text.getvalue()[:-2] + "\n"


def _number(value: Any) -> Any:
    """A number to six digits, None for what is no number, or a text as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None  # no table has one for NaN
