"""What the benchmarks share: where the images are, and how a table of figures is written."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL
import timm
import torch
import torchvision

import srnn_zoo

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"

Row = dict[str, Any]


def imagenet_sample() -> Path:
    """The folder `imagenet-sample` (`<WordNet id>/*.JPEG`) in `SRNN_ZOO_DATA`, by default `../shared/data`."""
    return _data("imagenet-sample")


def grocery() -> Path:
    """The folder `grocery` (`{train,val,test}/<class>/*.jpg`) in the same place."""
    return _data("grocery")


def _data(name: str) -> Path:
    folder = Path(os.environ.get("SRNN_ZOO_DATA", ROOT / ".." / "shared" / "data")) / name
    if not folder.is_dir():
        raise SystemExit(f"no folder {name}: set SRNN_ZOO_DATA to the folder that holds it")
    return folder


def report(rows: Sequence[Row], path: Path) -> None:
    """Write rows with the same columns to a CSV file, and print them as a Markdown table with versions and processor.

    Args:
        rows: one or more; numbers are already rounded.
        path: the CSV file.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(markdown_table(rows))
    print(environment())


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, its columns named as in the CSV file."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def environment() -> str:
    """Date, versions and kind of processor, in one line."""
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "Pillow": PIL.__version__,
        "srnn_zoo": srnn_zoo.__version__,
    }
    processor = f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    return f"{datetime.date.today()}; {', '.join(f'{k} {v}' for k, v in versions.items())}; {processor}"
