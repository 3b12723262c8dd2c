"""What the benchmarks share: where the images are, timing in turn, and how a table of figures is written."""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import timm
import torch
import torchvision
from scipy.stats import binom
from tqdm import trange

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


def parser(description: str | None, csv_name: str, rounds: int) -> argparse.ArgumentParser:
    """The options that programs which time things share: `--rounds`, `--threads` and `--csv`."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=rounds, help="rounds for each row (default: %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    options.add_argument("--csv", type=Path, default=RESULTS / csv_name, help="file to write (default: %(default)s)")
    return options


class Ratio(NamedTuple):
    """A median ratio of two times, with its 95 % interval.

    Attributes:
        median: the median over the rounds.
        low: the lower end of the interval.
        high: the upper end.
    """

    median: float
    low: float
    high: float

    def answer(self, target: float = 1.0) -> str:
        """On which side of the target the ratio lies, or that noise hides it: the interval contains the target."""
        if self.low > target:
            return f"above {target:g}"
        return f"below {target:g}" if self.high < target else "noise hides the answer"

    def columns(self, target: float = 1.0, digits: int = 3) -> Row:
        """The columns of a table: the median, the interval, and the answer."""
        return {
            "ratio_median": f"{self.median:.{digits}f}",
            "ratio_95_percent": f"{self.low:.{digits}f} to {self.high:.{digits}f}",
            "answer": self.answer(target),
        }


class Turns(NamedTuple):
    """Seconds that each way took, round by round.

    Attributes:
        seconds: the seconds of every round, by the way's name.
    """

    seconds: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Median seconds of one way."""
        return statistics.median(self.seconds[way])

    def ratio(self, way: str, over: str) -> Ratio:
        """The median over the rounds of the seconds of `way` over those of `over`, and its interval."""
        ratios = [a / b for a, b in zip(self.seconds[way], self.seconds[over], strict=True)]
        return Ratio(statistics.median(ratios), *median_interval(ratios))


def alternate(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    title: str | None = None,
) -> Turns:
    """Time two or more ways in turn in this process, so that other work on the machine meets all of them.

    Every round runs every way once, and the order is turned round every round. Ratios within a round, and their median
    over the rounds, are what noise disturbs least.

    Args:
        ways: what to time, by name.
        rounds: the rounds that count, at least 6: fewer give no 95 % interval.
        warm_up: rounds before them that do not count.
        clock: reads seconds; `time.process_time` leaves out what other programs take.
        title: shown before the bar of progress.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for index in trange(warm_up + rounds, desc=title, unit="round", disable=None):
        for name in list(ways) if index % 2 == 0 else reversed(list(ways)):
            found[name].append(seconds(ways[name], clock))
    return Turns({name: times[warm_up:] for name, times in found.items()})


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, until a GPU has finished its work too."""
    start = clock()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock() - start


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median from the order statistics, whatever the distribution."""
    outside = int(binom.ppf(0.025, len(values), 0.5))  # so many values may lie on the wrong side of the median
    if outside == 0:
        raise ValueError(f"a 95 % interval of a median needs at least 6 rounds; got {len(values)}")
    ordered = sorted(values)
    return ordered[outside - 1], ordered[-outside]


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
