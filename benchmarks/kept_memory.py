"""What it saves that a process keeps freed memory (`srnn_zoo.keep_freed_memory`, which the commands call).

Two processes hold the same model and compute in turn: one as Python starts it, one that keeps what was freed. Seconds
are those of the CPU, the kernel's share included. A ratio above 1 means that keeping is faster. Needs Linux with glibc.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from _common import Row, Turns, parser, report
from tqdm import trange

import srnn_zoo

_state: dict[str, Any] = {}


def main() -> None:
    options = parser(__doc__, "kept_memory.csv", rounds=12)
    options.add_argument("--model", default="srnn_tf_efficientnet_lite0", help="(default: %(default)s)")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="(default: 1 8 32)")
    args = options.parse_args()
    context = multiprocessing.get_context("spawn")
    pools = {
        name: ProcessPoolExecutor(1, context, initializer=prepare, initargs=(args, name == "kept"))
        for name in ("as it is", "kept")
    }
    rows: list[Row] = []
    for what in ("inference", "training"):
        for batch_size in args.batch_sizes:
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in pools}
            for index in trange(args.rounds + 1, desc=f"{what}, batch {batch_size}", unit="round", disable=None):
                for name in list(pools) if index % 2 == 0 else reversed(list(pools)):
                    measured[name].append(pools[name].submit(compute, what, batch_size).result())
            turns = Turns({name: [sum(pair) for pair in pairs[1:]] for name, pairs in measured.items()})
            row: Row = {"model": args.model, "what": what, "batch_size": batch_size, "rounds": args.rounds}
            for name, pairs in measured.items():
                kernel = sum(pair[1] for pair in pairs[1:]) / sum(map(sum, pairs[1:]))
                key = name.replace(" ", "_")
                row[f"{key}_ms_per_image"] = f"{1000 * turns.median(name) / batch_size:.1f}"
                row[f"{key}_kernels_share"] = f"{kernel:.2f}"
                row[f"{key}_peak_mib"] = pools[name].submit(peak).result()
            rows.append({**row, **turns.ratio("as it is", over="kept").columns()})
    report(rows, args.csv)


def prepare(args: argparse.Namespace, keep: bool) -> None:
    if keep and not srnn_zoo.keep_freed_memory():
        raise SystemExit("nothing to keep: this needs Linux with glibc, and no MALLOC_… in the environment")
    torch.set_num_threads(args.threads)
    _state["model"] = srnn_zoo.create_model(args.model, scales=(2 / 3, 1.0), img_size=336).eval()
    _state["ready"] = srnn_zoo.for_inference(_state["model"])


def compute(what: str, batch_size: int) -> tuple[float, float]:
    """Seconds of the process's own and of the kernel for one batch."""
    images = torch.randn(batch_size, 3, 336, 336)
    before = resource.getrusage(resource.RUSAGE_SELF)
    if what == "inference":
        with torch.inference_mode():
            _state["ready"](images)
    else:
        model = _state["model"].train()
        model(images).square().mean().backward()
        model.zero_grad()
        model.eval()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
