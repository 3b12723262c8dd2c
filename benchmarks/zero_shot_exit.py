"""What a zero-shot model saves by stopping early on images of ImageNet classes, one at a time, on one thread.

The last column is the time of all levels over the time of the rule: each image is answered by every rule in turn, so
that noise of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import time

import torch
from _common import RESULTS, Row, imagenet_sample, report
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.datasets.loader import ImageLoader

RULES: tuple[str, ...] = (
    "level:1",
    "level:0",
    "confidence:0.5",
    "confidence:0.7",
    "confidence:0.9",
    "margin:0.5",
    "entropy:0.8",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_tf_efficientnet_lite0")
    parser.add_argument("--limit", type=int, help="number of images, by default all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = srnn_zoo.create_model(args.model, pretrained=True).eval()
    ways = {rule: srnn_zoo.Anytime(model, rule) for rule in RULES}
    right, first, gmacs, seconds = (dict.fromkeys(RULES, 0.0) for _ in range(4))
    count = 0
    for levels, targets in tqdm(ImageLoader(imagenet_sample(), model, batch_size=1), unit="image"):
        if count == args.limit:
            break
        with torch.inference_mode():
            for rule, way in ways.items():
                way(levels)  # once before, so that caches are as warm for each
                start = time.perf_counter()
                logits, stopped_at, cost = way(levels)
                seconds[rule] += time.perf_counter() - start
                right[rule] += (logits.argmax(1) == targets).item()
                first[rule] += (stopped_at == 0).item()
                gmacs[rule] += cost.item()
        count += 1
    rows: list[Row] = [
        {
            "exit": "all levels" if rule == "level:1" else rule,
            "images": count,
            "top1": round(100 * right[rule] / count, 1),
            "stopped at the first level": round(100 * first[rule] / count, 1),
            "GMACs": round(gmacs[rule] / count, 3),
            "ms": round(1000 * seconds[rule] / count, 1),
            "times as fast": round(seconds["level:1"] / seconds[rule], 2),
        }
        for rule in RULES
    ]
    report(rows, RESULTS / "zero_shot_exit.csv")


if __name__ == "__main__":
    main()
