"""What cell and classifier add to the time of the backbone: an SRNN against its backbone alone on the same levels.

Both are timed in every round, one after the other, and the order is swapped every round. The figure is the median over
the rounds of the ratio of the two times, which other work on the machine disturbs least. The default is one thread: of
several, the slowest decides, and other work disturbs that one. Cell and classifier are also timed by themselves,
between the two.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from _common import RESULTS, Row, report
from torch import Tensor
from tqdm import trange

import srnn_zoo

WARM_UP_ROUNDS = 4


class Times(NamedTuple):
    """Seconds of one round.

    Attributes:
        backbone: the backbone alone, on every level.
        head: the cell over all levels and the classifier once.
        srnn: the whole model.
    """

    backbone: float
    head: float
    srnn: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="rounds for each variant (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a batch (default: %(default)s)")
    parser.add_argument("--model", default="srnn_resnet18", help="name of a model (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=["half_gru"], help="variants to time (default: half_gru)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "head_cost.csv", help="file to write")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for variant in args.variants:
        model = srnn_zoo.create_model(args.model, variant=variant).eval()
        sizes = model.level_sizes()
        levels = [torch.randn(args.batch_size, model.in_chans, *size) for size in sizes]
        rounds = paired_times(model, levels, args.rounds)
        rows.append(
            {"model": args.model, "batch_size": args.batch_size, "threads": args.threads, **table_row(model, rounds)}
        )
    report(rows, args.csv)


@torch.inference_mode()
def paired_times(model: srnn_zoo.SRNN, levels: list[Tensor], rounds: int) -> list[Times]:
    """Times of backbone, head and whole model after a warm-up: in this order, then backwards, and so on."""
    features = [model.level_features(level) for level in levels]
    runs: dict[str, Callable[[], object]] = {
        "backbone": lambda: [model.backbone(level) for level in levels],
        "head": lambda: model.forward_head(model.fuse(features)),
        "srnn": lambda: model(levels),
    }
    times: list[Times] = []
    for index in trange(WARM_UP_ROUNDS + rounds, desc=model.variant, unit="round", disable=None):
        order = list(runs) if index % 2 == 0 else list(reversed(runs))
        times.append(Times(**{name: seconds(runs[name]) for name in order}))
    return times[WARM_UP_ROUNDS:]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_interval(values: list[float]) -> tuple[float, float]:
    """A distribution-free 95 % interval of the median, from the order statistics."""
    ordered, n = sorted(values), len(values)
    below = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
    return ordered[below], ordered[n - 1 - below]


def table_row(model: srnn_zoo.SRNN, rounds: list[Times]) -> Row:
    ratios = [t.srnn / t.backbone for t in rounds]
    first_quartile, median, third_quartile = statistics.quantiles(ratios, n=4)
    low, high = median_interval(ratios)
    cost = srnn_zoo.count_gmacs(model)
    return {
        "variant": model.variant,
        "levels": "+".join(str(height) for height, _ in model.level_sizes()),
        "rounds": len(rounds),
        "backbone_median_ms": f"{1000 * statistics.median(t.backbone for t in rounds):.1f}",
        "head_median_ms": f"{1000 * statistics.median(t.head for t in rounds):.2f}",
        "srnn_median_ms": f"{1000 * statistics.median(t.srnn for t in rounds):.1f}",
        "ratio_median": f"{median:.4f}",
        "ratio_median_95_percent": f"{low:.4f} to {high:.4f}",
        "ratio_first_quartile": f"{first_quartile:.4f}",
        "ratio_third_quartile": f"{third_quartile:.4f}",
        "backbone_gmacs": f"{sum(cost.levels):.4f}",
        "head_gmacs": f"{cost.head:.6f}",
        "gmacs_ratio": f"{cost.total / sum(cost.levels):.5f}",
    }


if __name__ == "__main__":
    main()
