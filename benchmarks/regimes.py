"""Where an SRNN wins: pairs of sizes, zooms, and images whose objects are smaller or larger than in training.

Cells and classifiers on frozen features of EfficientNet-Lite0; the Grocery Store data set's official splits. For every
pair of sizes, and for every size with a level that zooms in, `srnn_zoo.comparison` fits an SRNN and its rivals with
three seeds at one learning rate. The rival that stands beside the SRNN is the best on the validation split: the single
scale at any size within the cost, where levels zoom in a tight crop too, the ensemble, the cascade, and the trained
mean. Accuracies are on the test split, with all levels, and with early exit at the cost of the first level and 30 % of
the second.

With --shift the same fits read test images that are shown at half and at twice their size.

Features and accuracies are kept in --runs, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from _common import RESULTS, Row, grocery, report
from _shown import TIMES, Shown, report_shift
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.comparison.compare import DEFAULT, Creator
from srnn_zoo.comparison.data import open_images
from srnn_zoo.comparison.fits import Fits
from srnn_zoo.comparison.result import best_at, difference
from srnn_zoo.comparison.views import FrozenViews
from srnn_zoo.comparison.ways import Way, Ways
from srnn_zoo.evaluation.plot import new_figure, save_figure
from srnn_zoo.training import recipe

SIZES = (112, 160, 224, 280, 336, 448)
ZOOMED = (112, 160, 224)
ZOOMS = (1.25, 1.6, 2.0, 2.5)
VARIANT = "vanilla_scalar"
RATES = (0.01,)  # which most ways of compare_grocery.csv choose
KINDS = ("ensemble", "cascade", "trained mean", VARIANT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/regimes"), help="folder of the features")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shift", action="store_true", help="measure on smaller and larger objects")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the heat map of the table that is there")
    args = parser.parse_args()
    if args.draw:
        draw(args.draw)
        return
    srnn_zoo.keep_freed_memory()
    (args.runs / "features").mkdir(parents=True, exist_ok=True)
    if args.shift:
        report_shift(shifted(args), RESULTS / "scale_shift_grocery.csv")
    else:
        report(list(regimes(args)), RESULTS / "regimes_grocery.csv")


def opened(args: argparse.Namespace, times: float = 1.0) -> Fits:
    """What fits to the features, and answers; test images are shown so many times as large."""
    images = open_images(grocery(), None, None)
    create = Creator(DEFAULT, len(images.classes))
    splits, versions = dict(images.splits), images.versions()
    if times != 1:
        splits["test"], versions["test"] = Shown(splits["test"], times), f"{versions['test']} shown at {times:g}"
    views = FrozenViews(create.of_views, splits, args.runs / "features", 224, versions)
    how = recipe("probe", loss="anytime", epochs=40)
    return Fits(views, create.of_levels, how, RATES, range(args.seeds), args.runs / "fits.jsonl")


def regimes(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each pair of levels and budget."""
    fits = opened(args)
    whole = [way for size in tqdm(SIZES, desc="single scales") for way in ways(fits, (size,), (), "single scale")]
    pairs = [pair for pair in itertools.combinations(SIZES, 2) if 1.2 <= pair[1] / pair[0] <= 2]
    for pair in tqdm(pairs, desc="pairs of sizes"):
        yield from compared(whole + ways(fits, pair, ()), "sizes", pair[0], f"{pair[1]}")
    crops = [way for size in ZOOMED for way in ways(fits, (size,), ZOOMS, "tight crop")]
    for size, zoom in tqdm([*itertools.product(ZOOMED, ZOOMS)], desc="zooms"):
        yield from compared(whole + crops + ways(fits, (size,), (zoom,)), "zoom", size, f"{zoom:g}")


def ways(fits: Fits, sizes: Sequence[int], zooms: Sequence[float], *kinds: str) -> list[Way]:
    """Those ways of a comparison whose names begin so; by default those of several levels."""
    plan = Ways(fits, sizes, zooms, (VARIANT,), "confidence").plan()
    return [make() for title, make in plan if title.startswith(kinds or KINDS)]


def compared(found: Sequence[Way], kind: str, first: int, second: str) -> Iterator[Row]:
    """The SRNN of this pair beside the best rival, with all levels and with early exit."""
    ours = [way for way in found if way.group == "SRNN"]
    rivals = [way for way in found if way.group != "SRNN"]
    costs = ours[0].answers[0].val.gmacs.tolist()
    for levels, budget in (("all", costs[-1]), ("early exit", 0.7 * costs[0] + 0.3 * costs[-1])):
        srnn, theirs = best_at(ours, budget), best_at(rivals, budget)
        if srnn is None or theirs is None:
            continue
        gap = difference(srnn[1], theirs[1])
        yield {
            "kind": kind,
            "first": first,
            "second": second,
            "levels": levels,
            "gmacs": round(budget, 3),
            "srnn": srnn[0].name,
            "srnn_val": round(srnn[1].val_accuracy, 2),
            "srnn_test": round(srnn[1].accuracy, 2),
            "rival": f"{theirs[0].name} {theirs[0].chosen}",
            "rival_val": round(theirs[1].val_accuracy, 2),
            "rival_test": round(theirs[1].accuracy, 2),
            "difference": round(gap.mean, 2),
            "low": round(gap.low, 2),
            "high": round(gap.high, 2),
            "p_value": f"{gap.p_value:.2g}",
        }


def shifted(args: argparse.Namespace) -> dict[float, dict[str, Way]]:
    """All ways by name, for each size at which objects are shown."""
    measured: dict[float, dict[str, Way]] = {}
    for times in tqdm(TIMES, desc="sizes of objects"):
        fits = opened(args, times)
        found = ways(fits, (224, 336), (1.6,), "single scale", "tight crop", "FixRes 336", "GeM 336", *KINDS)
        found += ways(fits, (112, 224, 336), (), *KINDS)
        measured[times] = {way.name: way for way in found}
    return measured


def draw(file: Path) -> None:
    """A heat map of SRNN less best rival: pairs of sizes, and zooms; bold where p < 0.05."""
    with (RESULTS / "regimes_grocery.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    figure = new_figure(file, 8.4, 7)
    axes = figure.subplots(2, 2, squeeze=False)
    for (kind, levels), axis in zip(
        itertools.product(("sizes", "zoom"), ("all", "early exit")), axes.flat, strict=True
    ):
        cells = {(row["first"], row["second"]): row for row in rows if row["kind"] == kind and row["levels"] == levels}
        firsts, seconds = (list(dict.fromkeys(key[side] for key in sorted(cells, key=_numbers))) for side in (0, 1))
        seconds.sort(key=float)
        grid = [[float(cells[a, b]["difference"]) if (a, b) in cells else math.nan for b in seconds] for a in firsts]
        axis.imshow(grid, cmap="RdBu", vmin=-4, vmax=4, aspect="auto")
        for (y, a), (x, b) in itertools.product(enumerate(firsts), enumerate(seconds)):
            if (a, b) in cells:
                sure = float(cells[a, b]["p_value"]) < 0.05
                look = {"weight": "bold" if sure else "normal", "color": "white" if abs(grid[y][x]) > 2.5 else "black"}
                axis.text(x, y, f"{grid[y][x]:+.1f}", ha="center", va="center", **look)
        axis.set_xticks(range(len(seconds)), seconds)
        axis.set_yticks(range(len(firsts)), firsts)
        axis.set_xlabel("second level: size in pixels" if kind == "sizes" else "second level: zoom at the first's size")
        axis.set_ylabel("first level: size in pixels")
        title = "whole images at two sizes" if kind == "sizes" else "a level that zooms in"
        axis.set_title(f"{title}, {'all levels' if levels == 'all' else 'early exit'}")
    save_figure(figure, file)


def _numbers(key: tuple[str, str]) -> tuple[float, float]:
    return float(key[0]), float(key[1])


if __name__ == "__main__":
    main()
