"""Training as users start it: `srnn-zoo train` against timm's own train.py at equal pixels, as whole processes.

An SRNN on levels of S / 2 and S reads as many pixels as its base CNN on one level of 1.118 S. Both train one epoch on
few images and one on more, in turn; the seconds of the second less those of the first are those of the additional
images, without start and end. Each ratio is that of the two programs in one round; above 1 timm's takes longer.

timm's train.py is not part of timm's package: --script is the file from a checkout of it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from _common import ROOT, Row, Turns, imagenet_sample, parser, report
from tqdm import trange


def main() -> None:
    options = parser(__doc__, "training_script.csv", rounds=8)
    options.add_argument("--script", type=Path, required=True, help="timm's train.py")
    options.add_argument("--model", default="resnet18", help="the base CNN (default: %(default)s)")
    options.add_argument("--size", type=int, default=112, help="the largest level (default: %(default)s)")
    options.add_argument("--batch-size", type=int, default=8, help="images in an update (default: %(default)s)")
    options.add_argument("--images", type=int, default=64, help="additional images (default: %(default)s)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(args.script, Path(place) / "train.py")  # by itself, so that it imports the timm that is installed
        few, more = args.batch_size, args.batch_size + args.images
        for count in (few, more):
            make_folder(Path(place) / str(count), count)
        seconds: dict[str, list[float]] = {"ours": [], "timm": [], "ours, CPU": [], "timm, CPU": []}
        for index in trange(args.rounds, unit="round"):
            for name in ("ours", "timm") if index % 2 == 0 else ("timm", "ours"):
                wall, cpu = (
                    b - a for a, b in zip(*(timed(args, name, place, count) for count in (few, more)), strict=True)
                )
                seconds[name].append(wall)
                seconds[f"{name}, CPU"].append(cpu)
    turns = Turns(seconds)
    rows: list[Row] = []
    for clock, end in (("wall", ""), ("CPU", ", CPU")):
        row: Row = {"model": args.model, "levels": f"{args.size // 2}+{args.size}", "timm_size": equal(args.size)}
        row |= {"batch_size": args.batch_size, "images": args.images, "rounds": args.rounds, "seconds": clock}
        row |= {f"{name}_images_per_s": f"{args.images / turns.median(name + end):.2f}" for name in ("ours", "timm")}
        rows.append({**row, **turns.ratio(f"timm{end}", over=f"ours{end}").columns()})
    report(rows, args.csv)


def equal(size: int) -> int:
    """The side of one level that has as many pixels as both."""
    return round(size * 1.25**0.5)


def make_folder(folder: Path, count: int) -> None:
    """So many training images in four classes, and one validation image of each."""
    images = sorted(imagenet_sample().glob("*/*.JPEG"))
    for index, image in enumerate([*images[:count], *images[-4:]]):
        split = "train" if index < count else "val"
        where = folder / split / str(index % 4)
        where.mkdir(parents=True, exist_ok=True)
        (where / image.name).symlink_to(image.resolve())


def timed(args: argparse.Namespace, name: str, place: str, count: int) -> tuple[float, float]:
    """Wall and CPU seconds of one program on a folder of so many images."""
    output = Path(place) / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = ours(args, place, count, output) if name == "ours" else timms(args, place, count, output)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return end - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(args: argparse.Namespace, place: str, count: int, output: Path) -> Sequence[str]:
    options = f"--model srnn_{args.model} --no-pretrained --recipe paper --sizes {args.size // 2},{args.size}"
    options += f" --epochs 1 --set batch_size={args.batch_size} --workers 1 --cpu"
    data = str(Path(place) / str(count))
    return [sys.executable, "-m", "srnn_zoo.cli", "train", data, "--output", str(output), *options.split()]


def timms(args: argparse.Namespace, place: str, count: int, output: Path) -> Sequence[str]:
    size = equal(args.size)
    options = f"--model {args.model} --num-classes 4 --input-size 3 {size} {size} --epochs 1 -b {args.batch_size}"
    options += " --opt sgd --lr 0.001 --sched step --warmup-epochs 0 --workers 1 --device cpu --no-prefetcher"
    data = str(Path(place) / str(count))
    return [sys.executable, "train.py", "--data-dir", data, "--output", str(output), *options.split()]


if __name__ == "__main__":
    main()
