"""What cell and classifier add to the time of the backbone: an SRNN against its backbone alone on the same levels.

Both are timed in turn. The default is one thread: of several, the slowest decides, and other work disturbs that one.
Cell and classifier are also timed by themselves, between the two.
"""

from __future__ import annotations

import torch
from _common import Row, Turns, alternate, parser, report
from torch import Tensor

import srnn_zoo


def main() -> None:
    options = parser(__doc__, "head_cost.csv", rounds=100)
    options.add_argument("--batch-size", type=int, default=8, help="images in a batch (default: %(default)s)")
    options.add_argument("--model", default="srnn_resnet18", help="name of a model (default: %(default)s)")
    options.add_argument("--variants", nargs="+", default=["half_gru"], help="variants to time (default: half_gru)")
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for variant in args.variants:
        model = srnn_zoo.create_model(args.model, variant=variant).eval()
        levels = [torch.randn(args.batch_size, model.in_chans, *size) for size in model.level_sizes()]
        turns = paired_times(model, levels, args.rounds)
        rows.append(
            {"model": args.model, "batch_size": args.batch_size, "threads": args.threads, **table_row(model, turns)}
        )
    report(rows, args.csv)


@torch.inference_mode()
def paired_times(model: srnn_zoo.SRNN, levels: list[Tensor], rounds: int) -> Turns:
    """Times of backbone, head and whole model in turn, after a warm-up."""
    features = [model.level_features(level) for level in levels]
    ways = {
        "backbone": lambda: [model.backbone(level) for level in levels],
        "head": lambda: model.forward_head(model.fuse(features)),
        "srnn": lambda: model(levels),
    }
    return alternate(ways, rounds, warm_up=4, title=model.variant)


def table_row(model: srnn_zoo.SRNN, turns: Turns) -> Row:
    cost = srnn_zoo.count_gmacs(model)
    return {
        "variant": model.variant,
        "levels": "+".join(str(height) for height, _ in model.level_sizes()),
        "rounds": len(turns.seconds["srnn"]),
        "backbone_median_ms": f"{1000 * turns.median('backbone'):.1f}",
        "head_median_ms": f"{1000 * turns.median('head'):.2f}",
        "srnn_median_ms": f"{1000 * turns.median('srnn'):.1f}",
        **turns.ratio("srnn", "backbone").columns(digits=4),
        "backbone_gmacs": f"{sum(cost.levels):.4f}",
        "head_gmacs": f"{cost.head:.6f}",
        "gmacs_ratio": f"{cost.total / sum(cost.levels):.5f}",
    }


if __name__ == "__main__":
    main()
