"""Memory for images of 4000 x 3000: levels in sequence against all at once, by number of images and height.

Every figure is the growth of a process of its own at its peak, in MiB, above the loaded model and the images, in
inference. It is measured twice: with glibc's ordinary settings, which keep some freed memory, and with
`MALLOC_MMAP_THRESHOLD_=65536`, which returns it at once and so shows the memory in use. Needs Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, Row, report
from PIL import Image
from tqdm import tqdm

import srnn_zoo

SIZE = (4000, 3000)
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
MAX_HEIGHT = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_resnet18", help="name of a model (default: %(default)s)")
    parser.add_argument("--base-size", type=int, default=224, help="the first level (default: %(default)s)")
    parser.add_argument("--in-sequence", type=int, nargs="+", default=[1, 2, 4, 8], help="images (default: 1 2 4 8)")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4], help="images (default: 1 2 4)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "memory.csv", help="file to write")
    args = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("this benchmark reads a process's memory from /proc, which only Linux has")

    cases = [(1, height, True) for height in range(1, MAX_HEIGHT)]
    cases += [(count, MAX_HEIGHT, True) for count in args.in_sequence]
    cases += [(count, MAX_HEIGHT, False) for count in args.at_once]
    rows: list[Row] = []
    for count, height, in_sequence in tqdm(cases, unit="row", disable=None):
        case = (args.model, args.base_size, count, height, in_sequence)
        largest = args.base_size * 2 ** (height - 1)
        rows.append(
            {
                "model": args.model,
                "levels": "in sequence" if in_sequence else "at once",
                "images": count,
                "height": height,
                "largest_level": f"{largest} x {largest}",
                "largest_level_mib": f"{3 * 4 * largest**2 / 2**20:.1f}",
                "peak_mib": f"{in_its_own_process(GIVE_BACK, *case):.0f}",
                "peak_mib_ordinary_malloc": f"{in_its_own_process({}, *case):.0f}",
            }
        )
    report(rows, args.csv)


def in_its_own_process(environment: dict[str, str], *case: Any) -> float:
    """`peak_growth` in a new process with these variables, which malloc reads when a process starts."""
    for name in GIVE_BACK:
        os.environ.pop(name, None)
    os.environ.update(environment)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_growth, *case).result()


def peak_growth(name: str, base_size: int, count: int, height: int, in_sequence: bool) -> float:
    """The growth of this process at its peak, in MiB, when the model reads this many images."""
    torch.set_num_threads(1)
    model = srnn_zoo.create_model(name).eval()
    variable = srnn_zoo.ScalePyramid.variable(base_size, max_height=height, levels_in_sequence=in_sequence)
    transform: Any = srnn_zoo.create_transform(model, sizes=variable)
    images = [Image.effect_noise(SIZE, 60).convert("RGB") for _ in range(count)]
    with torch.inference_mode():
        model(srnn_zoo.Pyramid.pack([transform(images[0].resize((base_size, base_size)))]))  # loads everything lazy
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = status("VmRSS")
        model(srnn_zoo.Pyramid.pack([transform(image) for image in images]))
    return status("VmHWM") - before


def status(entry: str) -> float:
    """MiB of this process, as the kernel counts them."""
    found = re.search(rf"{entry}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {entry}")
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
