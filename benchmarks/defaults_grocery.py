"""Which settings of the recipe `probe` serve which method: length, rate, cell, start of U, and loss, each by itself.

Cells and classifiers on frozen features of EfficientNet-Lite0; the Grocery Store data set's official splits. Every
method is fitted with every setting at three learning rates with three seeds. What counts is the mean accuracy on the
validation split; the test split is read for the best rate of a setting, and no setting is chosen by it. Early exit is
at 1.5 times the cost of the first level.

Features and accuracies are kept in --runs (the folder of regimes.py serves), so that the same command goes on after an
interruption.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, Row, grocery, report
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.comparison.compare import DEFAULT, Creator
from srnn_zoo.comparison.data import open_images
from srnn_zoo.comparison.fits import Fits
from srnn_zoo.comparison.result import difference
from srnn_zoo.comparison.views import FrozenViews, View
from srnn_zoo.comparison.ways import Operating, Way
from srnn_zoo.training import recipe

RATES = (0.005, 0.01, 0.02)
PYRAMIDS = {
    "zoom 1.6 + 224": (View(224, 1.6), View(224)),
    "224 + zoom 1.6": (View(224), View(224, 1.6)),
    "224 + 336": (View(224), View(336)),
    "336": (View(336),),
}
METHODS = ("vanilla_scalar", "half_gru_diag", "mean_logit")
BASE: dict[str, Any] = {"loss": "anytime", "epochs": 40, "recurrence": 0.25, "lr_cell": 0.02, "identity_decay": 0.05}
SETTINGS: dict[str, dict[str, Any]] = {
    "40 epochs, loss at every level, U = I/4, lr_cell 0.02": {},
    "lr_cell 1": {"lr_cell": 1.0},
    "lr_cell 1, U = I": {"lr_cell": 1.0, "recurrence": 1.0},
    "20 epochs": {"epochs": 20},
    "80 epochs": {"epochs": 80},
    "loss after the last level": {"loss": "last"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/regimes"), help="folder of the features")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--pyramids", nargs="+", default=list(PYRAMIDS), choices=list(PYRAMIDS))
    parser.add_argument("--csv", type=Path, default=RESULTS / "defaults_grocery.csv", help="file to write")
    args = parser.parse_args()
    srnn_zoo.keep_freed_memory()
    (args.runs / "features").mkdir(parents=True, exist_ok=True)
    found = sorted(rows(args), key=lambda row: (list(PYRAMIDS).index(row["pyramid"]), METHODS.index(row["method"])))
    report(found, args.csv)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each pyramid, method and setting."""
    images = open_images(grocery(), None, None)
    create = Creator(DEFAULT, len(images.classes))
    views = FrozenViews(create.of_views, images.splits, args.runs / "features", 224, images.versions())
    base: dict[tuple[str, str], Operating] = {}
    for title, method, setting in tqdm([*trials(args.settings, args.pyramids)], desc="settings"):
        how = recipe("probe", **{**BASE, **SETTINGS[setting]})
        fits = Fits(views, create.of_levels, how, RATES, range(args.seeds), args.runs / "fits.jsonl")
        fit = fits.best([PYRAMIDS[title]], method)
        way = Way(setting, "SRNN", "", fits.answers(fit))
        cost = way.answers[0].val.gmacs[0].item()
        found, first, early = way.whole(), way.at(cost), way.at(1.5 * cost)
        beside = base.setdefault((title, method), found)
        gap = difference(found, beside)
        yield {
            "pyramid": title,
            "method": method,
            "setting": setting,
            "lr": fit.lr,
            **{f"val_top1_at_{lr:g}": round(fits.accuracy(fit._replace(lr=lr)), 2) for lr in RATES},
            "val_top1": round(found.val_accuracy, 2),
            "over_first_row_val": round(found.val_accuracy - beside.val_accuracy, 2),
            "test_top1": round(found.accuracy, 2),
            "over_first_row_test": f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})",
            "first_level_test_top1": round(first.accuracy, 2) if first else "",
            "early_exit_gmacs": round(early.gmacs, 3) if early else "",
            "early_exit_val_top1": round(early.val_accuracy, 2) if early else "",
            "early_exit_test_top1": round(early.accuracy, 2) if early else "",
        }


def trials(settings: Sequence[str], pyramids: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Pyramids, methods and settings; what is about several levels, or about U, only where there are some."""
    for setting, title, method in itertools.product(settings, pyramids, METHODS):
        changed = set(SETTINGS[setting])
        single = len(PYRAMIDS[title]) == 1
        if single and (method != "vanilla_scalar" or changed - {"epochs"}):
            continue
        if method == "mean_logit" and changed & {"lr_cell", "recurrence", "identity_decay"}:
            continue
        yield title, method, setting


if __name__ == "__main__":
    main()
