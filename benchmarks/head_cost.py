"""What cell and classifier add to the time of the backbone: an SRNN against its backbone alone on the same levels.

Both are timed in turn, made ready by `for_inference`, which makes the backbone faster and so the head's share larger.
Cell and classifier are also timed by themselves, after one of the two, when their weights have left the caches: that
share has a narrower interval than the difference of two long times. Times are the process's own, which other programs
disturb least; the default is one thread.
"""

from __future__ import annotations

import time

import torch
from _common import Row, Turns, alternate, parser, report
from torch import Tensor

import srnn_zoo

MODELS = ["srnn_resnet18", "srnn_efficientnet_lite0", "srnn_convnext_atto", "srnn_resnet50"]
TARGETS = {1: 1.03, 8: 1.01}  # at most, by batch size


def main() -> None:
    options = parser(__doc__, "head_cost.csv", rounds=24)
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images in a batch (default: 1 8)")
    options.add_argument("--models", nargs="+", default=MODELS, help="names of models (default: four of them)")
    options.add_argument("--variants", nargs="+", default=["half_gru"], help="variants to time (default: half_gru)")
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name in args.models:
        for variant in args.variants:
            model = srnn_zoo.for_inference(srnn_zoo.create_model(name, variant=variant).eval())
            for batch_size in args.batch_sizes:
                levels = [torch.randn(batch_size, model.in_chans, *size) for size in model.level_sizes()]
                turns = paired_times(model, levels, max(6, args.rounds // batch_size), f"{name} {variant} {batch_size}")
                rows.append({"model": name, "batch_size": batch_size, "threads": args.threads, "variant": variant})
                rows[-1] |= table_row(model, turns, TARGETS.get(batch_size, 1.01))
                report(rows, args.csv)


@torch.inference_mode()
def paired_times(model: srnn_zoo.SRNN, levels: list[Tensor], rounds: int, title: str) -> Turns:
    """Times of backbone, head and whole model in turn."""
    features = [model.level_features(level) for level in levels]
    ways = {
        "backbone": lambda: [model.backbone(level) for level in levels],
        "head": lambda: model.forward_head(model.fuse(features)),
        "srnn": lambda: model(levels),
    }
    return alternate(ways, rounds, clock=time.process_time, title=title)


def table_row(model: srnn_zoo.SRNN, turns: Turns, target: float) -> Row:
    cost = srnn_zoo.count_gmacs(model)
    share = turns.ratio("head", "backbone")
    return {
        "levels": "+".join(str(height) for height, _ in model.level_sizes()),
        "rounds": len(turns.seconds["srnn"]),
        "backbone_median_ms": f"{1000 * turns.median('backbone'):.1f}",
        "head_median_ms": f"{1000 * turns.median('head'):.2f}",
        "srnn_median_ms": f"{1000 * turns.median('srnn'):.1f}",
        **turns.ratio("srnn", "backbone").columns(target, digits=4),
        **{f"head_share_{key}": value for key, value in share.columns(target - 1, digits=4).items()},
        "gmacs_ratio": f"{cost.total / sum(cost.levels):.5f}",
    }


if __name__ == "__main__":
    main()
