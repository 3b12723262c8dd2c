"""Batches of mixed heights: images a second of a packed batch against the same images one by one.

Sizes are drawn evenly on a logarithmic scale, from 60 to 4000 pixels, and the heights follow from them. Both ways are
timed in every round, one after the other, and the order is swapped every round. The figure is the median over the
rounds of the ratio of the two times, which other work on the machine disturbs least. Training is forward and backward.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import RESULTS, Row, report
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

import srnn_zoo

SIDES = (60, 4000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each row (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a batch (default: %(default)s)")
    parser.add_argument("--model", default="srnn_resnet18", help="name of a model (default: %(default)s)")
    parser.add_argument("--base-sizes", type=int, nargs="+", default=[32, 64], help="first levels (default: 32 64)")
    parser.add_argument("--max-height", type=int, default=4, help="the greatest height (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "packed_batches.csv", help="file to write")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = srnn_zoo.create_model(args.model, num_classes=10).eval().to(args.device)
    rows: list[Row] = []
    for base_size in args.base_sizes:
        images = draw_images(base_size, args.max_height, args.batch_size, args.device)
        for training in (False, True):
            loop, packed = paired_times(model, images, args.rounds, training)
            ratios = [a / b for a, b in zip(loop, packed, strict=True)]
            heights = [len(levels) for levels in images]
            rows.append(
                {
                    "model": args.model,
                    "device": args.device,
                    "threads": args.threads,
                    "what": "training" if training else "inference",
                    "base_size": base_size,
                    "images": len(images),
                    "heights": "+".join(str(heights.count(h)) for h in range(1, args.max_height + 1)),
                    "rounds": args.rounds,
                    "one_by_one_images_per_s": f"{len(images) / statistics.median(loop):.1f}",
                    "packed_images_per_s": f"{len(images) / statistics.median(packed):.1f}",
                    "ratio_median": f"{statistics.median(ratios):.2f}",
                    "ratio_least": f"{min(ratios):.2f}",
                    "ratio_greatest": f"{max(ratios):.2f}",
                }
            )
    report(rows, args.csv)


def draw_images(base_size: int, max_height: int, count: int, device: str) -> list[list[Tensor]]:
    """Random levels `(3, S, S)` of every image, as many as its size allows."""
    generator = random.Random(0)
    transform = srnn_zoo.ScalePyramid.variable(base_size, max_height=max_height, small="upsample")
    sides = [round(SIDES[0] * (SIDES[1] / SIDES[0]) ** generator.random()) for _ in range(count)]
    return [[torch.randn(3, *size, device=device) for size in transform.level_sizes(side, side)] for side in sides]


def paired_times(
    model: srnn_zoo.SRNN, images: list[list[Tensor]], rounds: int, training: bool
) -> tuple[list[float], list[float]]:
    """Seconds of every round, one by one and packed (packing included), after a round to warm up."""
    targets = torch.zeros(len(images), dtype=torch.long, device=images[0][0].device)

    def answer(levels: srnn_zoo.Pyramid | srnn_zoo.PackedPyramid | list[Tensor]) -> None:
        with torch.inference_mode(not training):
            logits = model(levels)
            if training:
                F.cross_entropy(logits, targets[: len(logits)], reduction="sum").backward()

    def one_by_one() -> None:
        for levels in images:
            answer([level[None] for level in levels])

    runs = [one_by_one, lambda: answer(srnn_zoo.Pyramid.pack(images))]
    times: tuple[list[float], list[float]] = ([], [])
    for index in trange(1 + rounds, desc="training" if training else "inference", unit="round", disable=None):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].append(seconds(runs[which]))
        model.zero_grad()
    return times[0][1:], times[1][1:]


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
