"""Levels that zoom in, against whole images and a tight crop: cells and classifiers on frozen features.

The data are the Grocery Store data set's official splits. Every way is fitted with three seeds and several learning
rates; the rate, and where a way has one the zoom, are those with the best mean accuracy on the validation split. The
test split is read once, for these. Early exit stops by thresholds that were chosen on the validation split.

Features are kept in --runs, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _common import RESULTS, Row, grocery, report
from scipy.stats import binomtest
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.training import image_transform, open_split, recipe
from srnn_zoo.training.features import Features, evaluate_features, extract_features, fit_features

NAME = "srnn_tf_efficientnet_lite0"
SIZE = 224
ZOOMS = (1.25, 1.6, 2.0)
SPLITS = ("train", "val", "test")
RATES = (0.005, 0.01, 0.02)


class Way(NamedTuple):
    """A way to look at images: sizes and zooms of the levels, and where these look."""

    sizes: tuple[int, ...]
    zooms: tuple[float, ...] | None = None
    views: str = "center"


def ways() -> dict[str, list[Way]]:
    """The ways by their names in the table; of several, the one that is best on the validation split counts."""
    return {
        "224": [Way((SIZE,))],
        "336": [Way((336,))],
        "224 + 336": [Way((SIZE, 336))],
        "tight crop alone": [Way((SIZE,), (zoom,)) for zoom in ZOOMS],
        "224 + zoom at the middle": [Way((SIZE, SIZE), (1.0, zoom)) for zoom in ZOOMS],
        "three views": [Way((SIZE,) * 3, (1.0, 1.6, 2.5)), Way((SIZE,) * 3, (1.0, 1.25, 2.0))],
        "224 + zoom by attention": [Way((SIZE, SIZE), (1.0, 1.6), "attention")],
    }


COMPARED = {
    "224 + 336": Way((SIZE, 336)),
    "224 + zoom at the middle": Way((SIZE, SIZE), (1.0, 1.6)),
}
"""The ways on which other programs compare cells and exit rules."""


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options of all programs that fit models to these features."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/foveated"), help="folder of the features")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    return parser


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--variant", default="vanilla_scalar")
    parser.add_argument("--ways", nargs="+", default=list(ways()), choices=list(ways()))
    parser.add_argument(
        "--pairs", action="store_true", help="compare the rows of the table that is there, pair by pair"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.runs.mkdir(parents=True, exist_ok=True)
    if args.pairs:
        report(list(pairs(args)), RESULTS / "foveated_grocery_pairs.csv")
        return
    rows: list[Row] = []
    curves: list[Row] = []
    for name in args.ways:
        row, curve = measured(args, name, ways()[name])
        rows.append(row)
        curves += curve
        print(row, flush=True)
    report(rows, RESULTS / "foveated_grocery.csv")
    report(curves, RESULTS / "foveated_grocery_curve.csv")


def measured(args: argparse.Namespace, name: str, choices: Sequence[Way]) -> tuple[Row, list[Row]]:
    """The row of a way, and its points of early exit."""
    trials = [(way, lr) for way in choices for lr in RATES]
    found = {
        (way, lr): [fitted(args, way, lr, seed) for seed in args.seeds]
        for way, lr in tqdm(trials, desc=name, leave=False)
    }
    way, lr = max(found, key=lambda trial: statistics.mean(accuracy(answers["val"]) for answers in found[trial]))
    best = found[way, lr]
    on_test = [accuracy(answers["test"]) for answers in best]
    row: Row = {
        "way": name,
        "levels": "+".join(map(str, way.sizes)),
        "zooms": "+".join(f"{zoom:g}" for zoom in way.zooms or ()),
        "lr": lr,
        "gmacs": round(float(best[0]["test"].gmacs[-1]), 3),
        "val_top1": round(statistics.mean(accuracy(answers["val"]) for answers in best), 2),
        "test_top1": round(statistics.mean(on_test), 2),
        "test_top1_of_seeds": " ".join(f"{value:.2f}" for value in on_test),
    }
    return row, [] if len(way.sizes) == 1 else list(curve(name, best))


def fitted(args: argparse.Namespace, way: Way, lr: float, seed: int) -> dict[str, CollectedAnswers]:
    """What a model that is fitted to the training images says of the other splits after every level."""
    data = {split: features(args, way, split) for split in SPLITS}
    model = create(args, way)
    torch.manual_seed(seed)
    model.reset_classifier(model.num_classes)
    how = recipe("probe", loss="anytime", lr=lr, epochs=args.epochs, seed=seed)
    fit_features(model, data["train"], how, progress=False)
    gmacs = torch.tensor([model.level_gmacs(size) for size in data["val"].sizes], dtype=torch.float64).cumsum(0)
    return {
        split: CollectedAnswers(evaluate_features(model, data[split]), data[split].targets, gmacs, data[split].sizes)
        for split in ("val", "test")
    }


def create(args: argparse.Namespace, way: Way) -> srnn_zoo.SRNN:
    """The model of a way at its start, with a frozen backbone."""
    largest = max(way.sizes)
    options: dict[str, Any] = {"img_size": largest} if way.zooms is None else {"zooms": way.zooms, "views": way.views}
    return srnn_zoo.create_model(
        NAME,
        pretrained_backbone=True,
        variant=args.variant,
        num_classes=len(open_split(grocery() / "train").classes),
        scales=[size / largest for size in way.sizes],
        **options,
    )


def features(args: argparse.Namespace, way: Way, split: str) -> Features:
    """C(x_s) of a split, computed once; those of single levels are parts of those of several."""
    if way.views != "center":
        return kept(args, way, split)
    zooms = way.zooms or (1.0,) * len(way.sizes)
    return joined([kept(args, Way((size,), (zoom,)), split) for size, zoom in zip(way.sizes, zooms, strict=True)])


def joined(parts: Sequence[Features]) -> Features:
    """The features of several single levels as those of one pyramid."""
    sizes = tuple(size for part in parts for size in part.sizes)
    return dataclasses.replace(parts[0], levels=torch.cat([part.levels for part in parts]), sizes=sizes)


def kept(args: argparse.Namespace, way: Way, split: str) -> Features:
    """The features in the folder, or new ones, which are put there."""
    if way.zooms == (1.0,):
        way = Way(way.sizes)
    words = ["x".join(map(str, way.sizes)), "x".join(map(str, way.zooms or ())), way.views, split]
    file = args.runs / ("-".join(word for word in words if word) + ".safetensors")
    if file.is_file():
        return Features.load(file)
    model = create(args, way)
    if way.views != "center":
        looks(args, model, way)
    batches = loader(model, split)
    found = extract_features(srnn_zoo.for_inference(model.eval()), batches)
    found.save(file)
    return found


def loader(model: srnn_zoo.SRNN, split: str) -> DataLoader[Any]:
    """The images of a split as a model reads them, with their classes."""
    images: Any = open_split(grocery() / split, classes=open_split(grocery() / "train").classes)
    images.transform = image_transform(model)
    return DataLoader(images, 32)


def looks(args: argparse.Namespace, model: srnn_zoo.SRNN, way: Way) -> None:
    """Fit the classifier to the first level, as its answers say where the second one looks; once for all seeds."""
    torch.manual_seed(0)
    model.reset_classifier(model.num_classes)
    first = kept(args, Way(way.sizes[:1]), "train")
    fit_features(model, first, recipe("probe", loss="anytime", lr=0.01, epochs=args.epochs), progress=False)


def accuracy(answers: CollectedAnswers) -> float:
    """Top-1 after the last level, in per cent."""
    return 100 * float(answers.right[-1].float().mean())


def curve(name: str, best: Sequence[dict[str, CollectedAnswers]]) -> Iterator[Row]:
    """Accuracy and mean cost of the test split where images stop by thresholds of the validation split."""
    for seed, answers in enumerate(best):
        for point in srnn_zoo.pareto(answers["test"], thresholds_from=answers["val"]):
            if point.kind in ("curve", "level"):
                row: Row = {"way": name, "seed": seed, "point": point.kind, "gmacs": round(point.gmacs, 4)}
                yield {**row, "test_top1": round(point.accuracy, 2)}


def pairs(args: argparse.Namespace) -> Iterator[Row]:
    """McNemar's exact test of the zoom at the middle against every other way, as the table says to fit them."""
    right: dict[str, list[Tensor]] = {}
    with (RESULTS / "foveated_grocery.csv").open(encoding="utf-8") as file:
        for row in tqdm(list(csv.DictReader(file)), leave=False):
            zooms = tuple(map(float, row["zooms"].split("+"))) if row["zooms"] else None
            views = "attention" if "attention" in row["way"] else "center"
            way = Way(tuple(map(int, row["levels"].split("+"))), zooms, views)
            found = [fitted(args, way, float(row["lr"]), seed)["test"] for seed in args.seeds]
            right[row["way"]] = [answers.right[-1] for answers in found]
    ours = right.pop("224 + zoom at the middle")
    for name, theirs in right.items():
        for seed, one, other in zip(args.seeds, ours, theirs, strict=True):
            gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
            p = binomtest(gained, gained + lost).pvalue
            yield {"against": name, "seed": seed, "only_zoom_right": gained, "only_other_right": lost, "p": f"{p:.2g}"}


if __name__ == "__main__":
    main()
