"""`srnn-zoo predict` over many links to photographs, killed several times and resumed: rows, rate and memory.

The network is tiny, so that what is measured is everything but the network. The run fails unless, at the end, each link
has one row, in order. Needs Linux.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _common import RESULTS, Row, grocery, report

import srnn_zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of .jpg files; by default those of Grocery Store")
    parser.add_argument("--links", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(list(trial(Path(folder), args.images or grocery(), args.links, args.kills)), RESULTS / "many_links.csv")


def trial(folder: Path, images: Path, links: int, kills: int) -> Iterator[Row]:
    """A row for each time that the command is started."""
    files = itertools.cycle(sorted(images.rglob("*.jpg")))
    (folder / "links").mkdir()
    names = [folder / "links" / f"{number:06}.jpg" for number in range(links)]
    for name, file in zip(names, files, strict=False):
        name.symlink_to(file.resolve())
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=4, img_size=32)
    model.save_pretrained(folder / "tiny", label_names=list("abcd"))
    output, partial = folder / "answers.csv", folder / "answers.csv.partial"
    options = ["-m", folder / "tiny", "--batch-size", "32", "--topk", "1", "--output", output, "--resume"]
    command = [sys.executable, "-m", "srnn_zoo.cli", "predict", folder / "links", *options]
    for run in range(1, kills + 2):
        stop = links * run // (kills + 1) if run <= kills else None
        yield {"start": run, **one_run(list(map(str, command)), partial, stop, links)}
    with output.open(encoding="utf-8") as rows:
        assert [row["path"] for row in csv.DictReader(rows)] == list(map(str, names))


def one_run(command: list[str], partial: Path, stop: int | None, links: int) -> Row:
    """The command until so many rows are there, and then it is killed; or to its end."""
    before, memory, began = rows_of(partial), list[int](), None
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            time.sleep(0.5)
            rows, now = rows_of(partial), time.monotonic()
            if rows > before:
                began = began or (now, rows)
                memory += resident_mib(process.pid)
            if stop is not None and rows >= stop:
                process.kill()
        said = process.stderr.read().decode() if process.stderr else ""
    assert process.returncode == (0 if stop is None else -9), said
    assert began is not None
    done = links if stop is None else rows_of(partial)
    return {
        "rows_before": before,
        "rows_after": done,
        "images_per_second": round((done - began[1]) / (time.monotonic() - began[0])),
        "first_mib": memory[0],
        "last_mib": memory[-1],
        "most_mib": max(memory),
        "ended": "killed" if stop else "complete",
    }


def rows_of(file: Path) -> int:
    """Rows of a table that is being written."""
    return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0


def resident_mib(pid: int) -> list[int]:
    """The memory of a process, unless it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return [int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")]


if __name__ == "__main__":
    main()
