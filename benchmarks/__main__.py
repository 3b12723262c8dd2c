"""Short versions of the benchmarks, one after the other (`make bench`): ratios with intervals in under five minutes.

Every program runs on one thread in a process of its own, and writes its tables to a folder of its own, so that the full
runs in results/ stay as they are. With two cores two run at a time (`--jobs`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _common import ROOT

SHORT = {
    "head_cost": "--models srnn_tf_efficientnet_lite0 --batch-sizes 1 --rounds 12",
    "cpu_network": "--rounds 6 --models efficientnet_lite0",
    "reading": "--rounds 6 --images 4 --large 1",
    "end_to_end": "--rounds 6 --images 4 --large 1",
    "rivals_forward": "--rounds 8 --batch-sizes 1",
    "foveated_time": "--rounds 8",
    "anytime_time": "--rounds 8",
    "packed_batches": "--rounds 6 --base-sizes 32 --batch-size 6 --max-height 3",
    "training": "--rounds 6 --size 96 --batch-size 4 --images 8",
    "startup": "--rounds 6 --light",
    "growth": "--rounds 6",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(SHORT)}; by default all")
    options.add_argument("--output", type=Path, default=ROOT / "build" / "bench", help="folder (default: %(default)s)")
    options.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at a time (default: %(default)s)"
    )
    args = options.parse_args()
    if unknown := sorted({*args.programs} - {*SHORT}):
        options.error(f"no program {', '.join(unknown)}; there are {', '.join(SHORT)}")
    args.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        codes = list(pool.map(lambda name: run(name, args.output), args.programs or SHORT))
    raise SystemExit(max(codes))


def run(name: str, output: Path) -> int:
    """Run a program, then print its name, its seconds and what it printed, all at once; returns its exit code."""
    extra = ["--plot", str(output / f"{name}.png")] if name == "growth" else []
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *SHORT[name].split(), *extra]
    start = time.perf_counter()
    done = subprocess.run(
        [*map(str, command), "--csv", str(output / f"{name}.csv")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"\n## {name}: {time.perf_counter() - start:.0f} s\n\n{done.stdout.strip()}", flush=True)
    return done.returncode


if __name__ == "__main__":
    main()
