"""Batches of mixed heights: images a second of a packed batch against the same images one by one.

Sizes are drawn evenly on a logarithmic scale, from 60 to 4000 pixels, and the heights follow from them. Both ways are
timed in turn, in CPU seconds if the device is one. Training is forward and backward.
"""

from __future__ import annotations

import random
import time

import torch
from _common import Row, Turns, alternate, parser, report
from torch import Tensor
from torch.nn import functional as F

import srnn_zoo

SIDES = (60, 4000)


def main() -> None:
    options = parser(__doc__, "packed_batches.csv", rounds=7)
    options.add_argument("--batch-size", type=int, default=16, help="images in a batch (default: %(default)s)")
    options.add_argument("--model", default="srnn_resnet18", help="name of a model (default: %(default)s)")
    options.add_argument("--base-sizes", type=int, nargs="+", default=[32, 64], help="first levels (default: 32 64)")
    options.add_argument("--max-height", type=int, default=4, help="the greatest height (default: %(default)s)")
    options.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    args = options.parse_args()

    srnn_zoo.keep_freed_memory()  # as the commands do
    torch.set_num_threads(args.threads)
    model = srnn_zoo.create_model(args.model, num_classes=10).eval().to(args.device)
    rows: list[Row] = []
    for base_size in args.base_sizes:
        images = draw_images(base_size, args.max_height, args.batch_size, args.device)
        for training in (False, True):
            turns = paired_times(model, images, args.rounds, training)
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
                    "one_by_one_images_per_s": f"{len(images) / turns.median('one by one'):.1f}",
                    "packed_images_per_s": f"{len(images) / turns.median('packed'):.1f}",
                    **turns.ratio("one by one", "packed").columns(),
                }
            )
    report(rows, args.csv)


def draw_images(base_size: int, max_height: int, count: int, device: str) -> list[list[Tensor]]:
    """Random levels `(3, S, S)` of every image, as many as its size allows."""
    generator = random.Random(0)
    transform = srnn_zoo.ScalePyramid.variable(base_size, max_height=max_height, small="upsample")
    sides = [round(SIDES[0] * (SIDES[1] / SIDES[0]) ** generator.random()) for _ in range(count)]
    return [[torch.randn(3, *size, device=device) for size in transform.level_sizes(side, side)] for side in sides]


def paired_times(model: srnn_zoo.SRNN, images: list[list[Tensor]], rounds: int, training: bool) -> Turns:
    """Times of the two ways in turn, one by one and packed (packing included), after a round to warm up."""
    targets = torch.zeros(len(images), dtype=torch.long, device=images[0][0].device)

    def answer(levels: srnn_zoo.Pyramid | srnn_zoo.PackedPyramid | list[Tensor]) -> None:
        with torch.inference_mode(not training):
            logits = model(levels)
            if training:
                F.cross_entropy(logits, targets[: len(logits)], reduction="sum").backward()

    def one_by_one() -> None:
        model.zero_grad()
        for levels in images:
            answer([level[None] for level in levels])

    def packed() -> None:
        model.zero_grad()
        answer(srnn_zoo.Pyramid.pack(images))

    ways = {"one by one": one_by_one, "packed": packed}
    clock = time.process_time if images[0][0].device.type == "cpu" else time.perf_counter
    return alternate(ways, rounds, clock=clock, title="training" if training else "inference")


if __name__ == "__main__":
    main()
