"""What light cells give up on the Grocery Store data set: full, diagonal, low-rank and single-number U and gates.

Every cell is fitted to the features in the folder of `foveated.py`, with three seeds and several learning rates; the
rate is the one with the best mean accuracy on the validation split.
"""

from __future__ import annotations

import argparse
import statistics

import foveated
from _common import RESULTS, Row, report
from tqdm import tqdm

CELLS = (
    "vanilla vanilla_diag vanilla_scalar vanilla_low_rank half_gru half_gru_diag half_gru_scalar half_gru_low_rank"
).split()


def main() -> None:
    parser = foveated.options(__doc__ or "")
    parser.add_argument("--rates", type=float, nargs="+", default=list(foveated.RATES))
    parser.add_argument("--cells", nargs="+", default=CELLS, choices=CELLS)
    parser.add_argument("--ways", nargs="+", default=list(foveated.COMPARED), choices=list(foveated.COMPARED))
    args = parser.parse_args()
    work = [(name, cell) for name in args.ways for cell in args.cells]
    report([measured(args, name, cell) for name, cell in tqdm(work)], RESULTS / "cells_grocery.csv")


def measured(args: argparse.Namespace, name: str, cell: str) -> Row:
    """The row of a cell."""
    way, args.variant = foveated.COMPARED[name], cell
    found = {lr: [foveated.fitted(args, way, lr, seed) for seed in args.seeds] for lr in args.rates}
    val = {lr: statistics.mean(foveated.accuracy(answers["val"]) for answers in found[lr]) for lr in found}
    lr = max(val, key=lambda rate: val[rate])
    on_test = [foveated.accuracy(answers["test"]) for answers in found[lr]]
    parameters = sum(parameter.numel() for parameter in foveated.create(args, way).cell.parameters())
    return {
        "way": name,
        "cell": cell,
        "parameters_of_the_cell": parameters,
        "lr": lr,
        "val_top1": round(val[lr], 2),
        "test_top1": round(statistics.mean(on_test), 2),
        "test_top1_of_seeds": " ".join(f"{value:.2f}" for value in on_test),
    }


if __name__ == "__main__":
    main()
