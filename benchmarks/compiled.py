"""What `torch.compile` costs in seconds, and what it saves per image: a compiled model against the same model in eager.

Both are timed in every round, one after the other, and the order is swapped every round. The figure is the median over
the rounds of the ratio of the two times, which other work on the machine disturbs least. The seconds until the first
answer are those of an empty cache.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path

import torch
from _common import RESULTS, Row, report
from head_cost import seconds
from torch import Tensor
from torch._inductor.utils import fresh_cache
from tqdm import trange

import srnn_zoo

WARM_UP_ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds for each batch size (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images in a batch (default: 1 8)")
    parser.add_argument("--models", nargs="+", default=["srnn_efficientnet_lite0"], help="names of models")
    parser.add_argument("--csv", type=Path, default=RESULTS / "compiled.csv", help="file to write")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name in args.models:
        for batch_size in args.batch_sizes:
            for dynamic in (True, False):
                model = srnn_zoo.create_model(name).eval()
                rows.append({"model": name, **compare(model, batch_size, dynamic, args.rounds)})
                report(rows, args.csv)  # after each, as compiling takes minutes


@torch.inference_mode()
def compare(model: srnn_zoo.SRNN, batch_size: int, dynamic: bool, rounds: int) -> Row:
    """Seconds until the first compiled answer, for any size or for this one, then paired times of a batch."""
    images = torch.randn(batch_size, model.in_chans, *model.img_size)
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    with fresh_cache():
        compiled.compile(fullgraph=True, dynamic=dynamic)
        first = seconds(lambda: compiled(images))
        times = paired(model, compiled, images, rounds)
        difference = (compiled(images) - model(images)).abs().max().item()
    eager_ms, compiled_ms = (1000 * statistics.median(of_all) / batch_size for of_all in zip(*times, strict=True))
    ratios = [eager / fast for eager, fast in times]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    saved = statistics.median(eager - fast for eager, fast in times) / batch_size
    return {
        "levels": "+".join(str(height) for height, _ in model.level_sizes()),
        "batch_size": batch_size,
        "sizes": "any" if dynamic else "one",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "compile_s": f"{first:.1f}",
        "eager_ms_per_image": f"{eager_ms:.1f}",
        "compiled_ms_per_image": f"{compiled_ms:.1f}",
        "speedup_median": f"{ratio:.2f}",
        "speedup_quartiles": f"{low:.2f} to {high:.2f}",
        "pays_after_images": f"{first / saved:.0f}" if saved > 0 else "never",
        "max_difference": f"{difference:.1e}",
    }


def paired(model: srnn_zoo.SRNN, compiled: srnn_zoo.SRNN, images: Tensor, rounds: int) -> list[tuple[float, float]]:
    """Seconds of eager and compiled in every round, after a warm-up."""
    times: list[tuple[float, float]] = []
    for index in trange(WARM_UP_ROUNDS + rounds, unit="round", disable=None):
        order = (model, compiled) if index % 2 == 0 else (compiled, model)
        one, other = (seconds(lambda m=m: m(images)) for m in order)
        times.append((one, other) if index % 2 == 0 else (other, one))
    return times[WARM_UP_ROUNDS:]


if __name__ == "__main__":
    main()
