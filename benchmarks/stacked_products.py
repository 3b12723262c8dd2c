"""Whether U and U_z are faster as one product `[U; U_z] h` than as two, for D = 512, 1280 and 2048 at batch 1 and 8.

`stored` keeps the stacked matrix beside the two, twice the memory; `on the fly` stacks them at each use. Each call
reads other copies of the weights, so that none are in a cache, as in a model, where the backbone has run before.
"""

from __future__ import annotations

import itertools
import time

import torch
from _common import Row, alternate, parser, report
from torch.nn.functional import linear

COLD = 80 * 2**20  # bytes of copies: more than the caches hold


def main() -> None:
    options = parser(__doc__, "stacked_products.csv", rounds=60)
    options.add_argument("--widths", type=int, nargs="+", default=[512, 1280, 2048], help="D (default: 512 1280 2048)")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images in a batch (default: 1 8)")
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    report([row for d in args.widths for b in args.batch_sizes for row in table_rows(d, b, args.rounds)], args.csv)


@torch.inference_mode()
def table_rows(width: int, batch_size: int, rounds: int) -> list[Row]:
    """The rows of one width and batch size."""
    copies = COLD // (8 * width**2) + 1
    matrices = itertools.cycle([torch.randn(2, width, width).unbind() for _ in range(copies)])
    stacked = itertools.cycle([torch.randn(2 * width, width) for _ in range(copies)])
    state = torch.randn(batch_size, width)

    def two() -> object:
        u, u_z = next(matrices)
        return linear(state, u), linear(state, u_z)

    ways = {
        "two": two,
        "stored": lambda: linear(state, next(stacked)),
        "on the fly": lambda: linear(state, torch.cat(next(matrices))),
    }
    turns = alternate(ways, rounds, warm_up=2 * copies, clock=time.process_time, title=f"D = {width}, {batch_size}")
    return [
        {
            "width": width,
            "batch_size": batch_size,
            "rounds": rounds,
            "two_median_ms": f"{1000 * turns.median('two'):.3f}",
            "stacked": way,
            "stacked_median_ms": f"{1000 * turns.median(way):.3f}",
            **turns.ratio(way, "two").columns(),
        }
        for way in ("stored", "on the fly")
    ]


if __name__ == "__main__":
    main()
