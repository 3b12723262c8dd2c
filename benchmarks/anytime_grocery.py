"""Early exit on the Grocery Store data set: accuracy, cost and time against the full pyramid and single-scale networks.

The backbone keeps its ImageNet weights. Its features are extracted once (and kept in --cache); a classifier for each
level is fitted to the features of the training split (`srnn_zoo.training.features`) with a loss at every level. A
single-scale network is the same backbone with one classifier, fitted to the features of one size in the same way.
Thresholds are found on the validation split, for budgets in parts of the full pyramid's cost; everything else is
measured on the test split. Times are those of whole models: batches of levels go through `model(levels)` and through
`srnn_zoo.Anytime`, in turns, with the order swapped every batch. Loading and resizing do not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, Row, grocery, report
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.datasets.loader import ImageLoader
from srnn_zoo.evaluation.plot import plot_pareto
from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.inference.curve import Point, pareto, write_pareto
from srnn_zoo.inference.thresholds import measure
from srnn_zoo.training import recipe
from srnn_zoo.training.features import Features, evaluate_features, extract_features, fit_features

SPLITS = ("train", "val", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_tf_efficientnet_lite0", help="name of a model (default: %(default)s)")
    parser.add_argument(
        "--levels", nargs="+", default=["168+336", "224+336", "112+224+336"], help="sizes of the levels"
    )
    parser.add_argument("--singles", type=int, nargs="+", default=[112, 168, 224, 280, 336], help="single-scale sizes")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.4, 0.45, 0.5, 0.6], help="parts of the full cost"
    )
    parser.add_argument("--timed", default="112+224+336", help="levels that are timed (default: %(default)s)")
    parser.add_argument("--timed-budget", type=float, default=0.5, help="that is timed (default: %(default)s)")
    parser.add_argument("--recurrence", type=float, default=0.5, help="u in U = u I (default: %(default)s)")
    parser.add_argument("--distillation", type=float, default=0.5, help="of the loss (default: %(default)s)")
    parser.add_argument("--rule", default="margin", help="exit rule whose thresholds are found (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="of every probe (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="probes of each kind (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the timed batches (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "srnn_zoo_grocery", help="features")
    parser.add_argument("--csv", type=Path, default=RESULTS / "anytime_grocery.csv", help="file to write")
    parser.add_argument("--plot", type=Path, help="draw the curve of the timed levels to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", ".* of the model's .* classes have no image in the calibration set")

    data = {split: load_features(args, split) for split in SPLITS}
    singles = [single_scale(args, data, size) for size in args.singles]
    rows = [
        row(args, "single scale", f"{size}", [point], None, singles)
        for size, point in zip(args.singles, singles, strict=True)
    ]
    timed: list[SRNNRun] = []
    for levels in args.levels:
        runs = [SRNNRun(args, data, sizes_of(levels), seed) for seed in range(args.seeds)]
        rows += srnn_rows(args, levels, runs, singles)
        if levels == args.timed:
            timed = runs[:1]
    report(rows, args.csv)
    for run in timed:
        curve = [*run.curve(), *singles]
        write_pareto(curve, args.csv.with_name(f"{args.csv.stem}_curve.csv"))
        if args.plot is not None:
            plot_pareto(curve, args.plot, title=f"Grocery Store, EfficientNet-Lite0 frozen, levels {args.timed}")
        report([time_in_turns(args, run)], args.csv.with_name(f"{args.csv.stem}_time.csv"))


def srnn_rows(args: argparse.Namespace, levels: str, runs: Sequence[SRNNRun], singles: Sequence[Point]) -> list[Row]:
    """One row for each level at which all images stop, and one for each budget that pays for the first level."""
    full = Point("full", "level", runs[0].full.gmacs, statistics.fmean(run.full.accuracy for run in runs))
    rows: list[Row] = []
    for level in range(len(runs[0].levels)):
        rows.append(row(args, f"all stop at level {level}", levels, [r.levels[level] for r in runs], full, singles))
    for part in args.budgets:
        if part * full.gmacs > runs[0].levels[0].gmacs:
            points = [run.at_budget(part) for run in runs]
            rows.append(row(args, f"early exit, budget {part:.0%}", levels, points, full, singles))
    return rows


def sizes_of(levels: str) -> list[int]:
    """`168+336` as numbers."""
    return [int(size) for size in levels.split("+")]


class SRNNRun:
    """A vanilla SRNN with a classifier for each level, fitted with a seed, and its answers on both held-out splits."""

    def __init__(self, args: argparse.Namespace, data: dict[str, Features], sizes: list[int], seed: int) -> None:
        torch.manual_seed(seed)
        self.rule = args.rule
        self.model = create(args, sizes, variant="vanilla", exits="separate")
        loss = {"loss": "anytime", "distillation": args.distillation, "temperature": 2.0}
        chosen = {split: features_of(data[split], sizes) for split in SPLITS}
        fit(args, self.model, chosen["train"], seed, recurrence=args.recurrence, **loss)
        costs = torch.tensor([self.model.level_gmacs(size) for size in chosen["test"].sizes]).cumsum(0)
        self.held_out, self.test = (
            CollectedAnswers(evaluate_features(self.model, chosen[s]), chosen[s].targets, costs, chosen[s].sizes)
            for s in ("val", "test")
        )
        self.levels = [point for point in pareto(self.test) if point.kind == "level"]
        self.full = self.levels[-1]

    def exit_at(self, part: float) -> srnn_zoo.Anytime:
        """Early exit for a part of the full cost, by thresholds from the validation split."""
        budget = part * self.full.gmacs
        return srnn_zoo.calibrate(self.model, self.held_out, budget_gmacs=budget, rule=self.rule, spend=True)

    def at_budget(self, part: float) -> Point:
        """Accuracy and cost on the test split for a part of the full cost."""
        rule: Any = self.exit_at(part).exit
        [outcome] = measure(self.test, rule, [rule.thresholds])
        return Point(rule.name, "curve", outcome.gmacs, outcome.accuracy, outcome.stop_shares, outcome.thresholds)

    def curve(self) -> list[Point]:
        """The whole curve on the test split, by thresholds from the validation split."""
        return pareto(self.test, thresholds_from=self.held_out, rule=self.rule)


def fit(args: argparse.Namespace, model: srnn_zoo.SRNN, train: Features, seed: int, **settings: Any) -> None:
    """Fit the classifiers; the cell stays as it starts."""
    chosen = recipe(
        "probe", epochs=args.epochs, lr_cell=0.0, seed=seed, **{"recurrence": 1.0, "loss": "last", **settings}
    )
    fit_features(model, train, chosen, progress=False)


def create(args: argparse.Namespace, sizes: Sequence[int], **options: Any) -> srnn_zoo.SRNN:
    """A model for the 81 classes, over the backbone with its ImageNet weights."""
    classes = sorted(folder.name for folder in (grocery() / "train").iterdir())
    scales = [size / sizes[-1] for size in sizes]
    model = srnn_zoo.create_model(
        args.model, pretrained_backbone=True, num_classes=len(classes), scales=scales, img_size=sizes[-1], **options
    )
    model.pretrained_cfg["label_names"] = classes
    return model.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def load_features(args: argparse.Namespace, split: str) -> Features:
    """C(x_s) at every size for a split, extracted once."""
    sizes = sorted({*args.singles, *(size for levels in args.levels for size in sizes_of(levels))})
    args.cache.mkdir(parents=True, exist_ok=True)
    file = args.cache / f"{args.model}-{'-'.join(map(str, sizes))}-{split}.safetensors"
    if not file.is_file():
        model = create(args, sizes)
        extract_features(model, folder(args, model, split)).save(file)
    return Features.load(file)


def features_of(features: Features, sizes: Sequence[int]) -> Features:
    """The features of some sizes only."""
    return features.select([[height for height, _ in features.sizes].index(size) for size in sizes])


def single_scale(args: argparse.Namespace, data: dict[str, Features], size: int) -> Point:
    """The mean of --seeds single-scale networks on the test split."""
    accuracies: list[float] = []
    test = features_of(data["test"], [size])
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        model = create(args, [size], variant="vanilla")
        fit(args, model, features_of(data["train"], [size]), seed)
        right = evaluate_features(model, test)[0].argmax(1) == test.targets
        accuracies.append(100 * right.double().mean().item())
    gmacs = create(args, [size], variant="vanilla").level_gmacs((size, size))
    return Point(f"single scale {size} x {size}", "single scale", gmacs, statistics.fmean(accuracies))


def row(
    args: argparse.Namespace,
    name: str,
    levels: str,
    points: Sequence[Point],
    full: Point | None,
    singles: Sequence[Point],
) -> Row:
    """A row of the table: the mean over the seeds, and its comparison with the full pyramid and single scales."""
    accuracy = statistics.fmean(point.accuracy for point in points)
    gmacs = statistics.fmean(point.gmacs for point in points)
    as_good = [single.gmacs for single in singles if single.accuracy >= accuracy]
    return {
        "levels": levels,
        "method": name,
        "seeds": args.seeds,
        "top1_percent": f"{accuracy:.2f}",
        "top1_std": f"{statistics.stdev(p.accuracy for p in points):.2f}" if len(points) > 1 else "",
        "gmacs": f"{gmacs:.3f}",
        "percent_of_full_gmacs": f"{100 * gmacs / full.gmacs:.1f}" if full else "",
        "top1_minus_full": f"{accuracy - full.accuracy:+.2f}" if full else "",
        "gmacs_of_a_single_scale_as_good": f"{min(as_good):.3f}" if as_good else "none",
    }


def time_in_turns(args: argparse.Namespace, run: SRNNRun) -> Row:
    """The full pyramid against early exit on the test split, batch by batch: the time and cost that are saved."""
    fast = run.exit_at(args.timed_budget)
    model = run.model

    @torch.inference_mode()
    def full(levels: list[torch.Tensor]) -> None:
        model(levels)

    costs: list[float] = []
    seconds = [0.0, 0.0]
    images = 0
    runs: list[Callable[[list[torch.Tensor]], Any]] = [full, lambda levels: costs.extend(fast(levels).gmacs.tolist())]
    for index, (levels, targets) in enumerate(
        tqdm(folder(args, model, "test"), desc="timing", unit="batch", disable=None)
    ):
        levels = [level.contiguous(memory_format=torch.channels_last) for level in levels]
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            start = time.perf_counter()
            runs[which](levels)
            if index > 0:  # the first batch warms up
                seconds[which] += time.perf_counter() - start
        images += len(targets) if index > 0 else 0
    saved_time = 1 - seconds[1] / seconds[0]
    saved_gmacs = 1 - statistics.fmean(costs) / run.full.gmacs
    return {
        "model": args.model,
        "levels": args.timed,
        "budget": f"{args.timed_budget:.0%}",
        "batch_size": args.batch_size,
        "threads": args.threads,
        "images": images,
        "full_ms_per_image": f"{1000 * seconds[0] / images:.2f}",
        "early_exit_ms_per_image": f"{1000 * seconds[1] / images:.2f}",
        "full_gmacs_per_image": f"{run.full.gmacs:.3f}",
        "early_exit_gmacs_per_image": f"{statistics.fmean(costs):.3f}",
        "time_saved_percent": f"{100 * saved_time:.1f}",
        "gmacs_saved_percent": f"{100 * saved_gmacs:.1f}",
        "time_saved_over_gmacs_saved": f"{saved_time / saved_gmacs:.3f}",
    }


def folder(args: argparse.Namespace, model: srnn_zoo.SRNN, split: str) -> Any:
    """Batches of a split."""
    return ImageLoader(grocery() / split, model, batch_size=args.batch_size, workers=1)


if __name__ == "__main__":
    main()
