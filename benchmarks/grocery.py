"""Fully fine-tuned scale recurrence against honest baselines on the Grocery Store data set, official split.

Every row of the table is trained with the same recipe, seeds and images: single-scale networks of each size, the mean
of the levels' logits, concatenation, and the recurrent variants. The untrained ensembles average the answers of the
single-scale network of the largest size. `--rows` chooses others, among them ideas to improve scale recurrence
(`--list` shows all); `--probe` keeps the backbone frozen instead.

Finished runs are kept in --runs; the same command resumes interrupted ones. The printed figures, and those in results/,
are of the validation split; with --test, once everything is chosen, of the test split.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, Row, grocery, report
from _grocery_rows import FUSIONS, IDEAS, Trial
from _grocery_table import compare, summarise
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.training import Recipe, fit, image_transform, open_data, open_split, recipe
from srnn_zoo.training.features import Features, extract_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_tf_efficientnet_lite0", help="name of a model (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[168, 336], help="of the levels, smallest first")
    parser.add_argument("--rows", nargs="+", help="names of rows (default: single scales and all fusions)")
    parser.add_argument("--list", action="store_true", help="show the names of all rows, and stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--probe", action="store_true", help="keep the backbone frozen (the recipe probe)")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, such as epochs=10")
    parser.add_argument("--runs", type=Path, default=Path("runs/grocery"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch in each (default: torch's own)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images in each")
    parser.add_argument("--test", action="store_true", help="measure on the test split, not on the validation split")
    parser.add_argument("--compare", nargs="*", default=["half_gru"], help="rows to compare with all others")
    parser.add_argument("--csv", type=Path, help="file to write (default: results/grocery_TRAINING_SPLIT.csv)")
    args = parser.parse_args()
    rows = {single(size): Trial("vanilla") for size in args.sizes} | FUSIONS
    everything = rows | IDEAS
    if args.list:
        print("\n".join(everything))
        return
    if unknown := sorted({*(args.rows or ())} - {*everything}):
        parser.error(f"no row {unknown[0]!r}; --list shows all")
    chosen = {name: everything[name] for name in args.rows or rows}
    work = [(name, seed) for seed in args.seeds for name in chosen]
    print(args.runs, flush=True)
    in_parallel(args.jobs, [partial(train, args, name, chosen[name], seed) for name, seed in work], "runs")
    split = "test" if args.test else "val"
    in_parallel(args.jobs, [partial(answer, args, name, seed, split) for name, seed in work], f"{split} split")
    table(args, chosen, split)


def single(size: int) -> str:
    """The name of the row of a single-scale network."""
    return f"single scale {size}"


def in_parallel(jobs: int, calls: Sequence[partial[None]], what: str) -> None:
    """Make every call; after a failure no other is started."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(call) for call in calls]
        for future in tqdm(as_completed(futures), desc=what, total=len(futures), disable=None):
            if future.exception() is not None:
                pool.shutdown(cancel_futures=True)
            future.result()


def folder_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a run is."""
    slug = name.replace(",", "").replace("/", "÷").replace(" ", "-")
    return args.runs / f"{kind(args)}-{'+'.join(map(str, args.sizes))}" / f"{slug}-{seed}"


def kind(args: argparse.Namespace) -> str:
    """How the rows are trained, in a word."""
    return "probe" if args.probe else "fine-tuned"


def train(args: argparse.Namespace, name: str, trial: Trial, seed: int) -> None:
    """Train a model of a row, or resume its training."""
    set_threads(args)
    folder = folder_of(args, name, seed)
    if (folder / "finished").is_file():
        return
    data = open_data(grocery())
    torch.manual_seed(seed)
    model = create(args, name, trial, len(data.train.classes))
    if args.probe:
        shared = folder.parent / "features"
        shared.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        if not (folder / "features").exists():
            (folder / "features").symlink_to(shared.resolve(), target_is_directory=True)
    how = recipe_of(args, trial, seed)
    resume = any((folder / "state").glob("*"))
    fit(model, data.train, data.val, how, folder, resume=resume, workers=args.workers, dataset="Grocery Store")
    (folder / "finished").touch()


def create(args: argparse.Namespace, name: str, trial: Trial, num_classes: int) -> srnn_zoo.SRNN:
    """The model of a row at its start."""
    sizes = sizes_of(args, name, trial)
    scales = [size / sizes[-1] for size in sizes]
    return srnn_zoo.create_model(
        args.model,
        pretrained_backbone=True,
        variant=trial.variant,
        num_classes=num_classes,
        scales=scales,
        img_size=sizes[-1],
        **trial.options,
    )


def sizes_of(args: argparse.Namespace, name: str, trial: Trial) -> list[int]:
    """The sizes of the levels of a row."""
    if name in map(single, args.sizes):
        return [size for size in args.sizes if name == single(size)]
    return [round(part * args.sizes[-1]) for part in trial.parts] or args.sizes


def recipe_of(args: argparse.Namespace, trial: Trial, seed: int) -> Recipe:
    """How a row is trained: U starts at the identity, as in the paper, unless the row says another start."""
    start = recipe(
        "probe" if args.probe else "finetune", **{"seed": seed, "recurrence": 1.0, "loss": "last", **trial.settings}
    )
    return start.with_settings(args.set)


def set_threads(args: argparse.Namespace) -> None:
    """Set torch's threads, in the process that works."""
    if args.threads:
        torch.set_num_threads(args.threads)


@torch.inference_mode()
def answer(args: argparse.Namespace, name: str, seed: int, split: str) -> None:
    """Write the logits of a trained model on a split; the single-scale network of the largest size reads every size."""
    set_threads(args)
    folder = folder_of(args, name, seed)
    file = folder / f"{split}.safetensors"
    if file.is_file():
        return
    model = srnn_zoo.create_model(f"local-dir:{folder / 'last'}", pretrained=True)
    is_largest = name == single(args.sizes[-1])
    if is_largest:
        model = at_every_size(args, model)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    for features, classes in feature_batches(args, model, split):
        if is_largest:
            logits.append(torch.stack([model.forward_head(level[:, :, None, None]) for level in features]).cpu())
        else:
            logits.append(model.forward_head(model.fuse(list(features)), level=len(features) - 1)[None].cpu())
        targets.append(classes)
    save_file({"logits": torch.cat(logits, dim=1), "targets": torch.cat(targets)}, file)


def feature_batches(args: argparse.Namespace, model: srnn_zoo.SRNN, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """C(x_s) of all levels, `(L, B, D)`, and the classes; features of a frozen backbone are computed once."""
    sizes = "+".join(str(height) for height, _ in model.level_sizes())
    file = args.runs / f"frozen-{args.model}-{sizes}-{split}.safetensors"
    if args.probe and file.is_file():
        features = Features.load(file)
    else:
        images: Any = open_split(grocery() / split, classes=model.pretrained_cfg["label_names"])
        images.transform = image_transform(model)
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        features = extract_features(model, DataLoader(images, 32, num_workers=args.workers), progress=False)
        if args.probe:
            features.save(file)
    device = next(model.parameters()).device
    yield from zip(features.levels.to(device).split(1024, dim=1), features.targets.split(1024), strict=True)


def at_every_size(args: argparse.Namespace, model: srnn_zoo.SRNN) -> srnn_zoo.SRNN:
    """A trained single-scale network that reads every size of the pyramid."""
    trial = Trial("mean_logit")
    reader = create(args, "", trial, model.num_classes)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("cell.")}
    reader.load_state_dict(state)
    reader.pretrained_cfg["label_names"] = model.pretrained_cfg["label_names"]
    return reader


def ensembles(args: argparse.Namespace, logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ensembles of the single-scale networks: the one of the largest size at all sizes, and each one at its own."""
    singles = [logits[name] for name in map(single, args.sizes) if name in logits]
    found: dict[str, Tensor] = {}
    at_all = logits.get(single(args.sizes[-1]))
    if len(args.sizes) > 1 and at_all is not None:
        found["untrained probability ensemble"] = at_all.softmax(dim=2).mean(dim=0).log()
        found["untrained logit ensemble"] = at_all.mean(dim=0)
    if 1 < len(singles) == len(args.sizes):
        found["ensemble of the single-scale networks"] = torch.stack([x[-1] for x in singles]).mean(dim=0)
    return found


def table(args: argparse.Namespace, rows: dict[str, Trial], split: str) -> None:
    """Write and print the table."""
    right, losses = outcomes(args, rows, split)
    backbone = srnn_zoo.create_model(args.model)
    measured: list[Row] = []
    for row in summarise(right, losses):
        name = row["method"]
        trial = rows.get(name, Trial(""))
        costs = [backbone.level_gmacs((size, size)) for size in sizes_of(args, name, trial)]
        row = about(args, split, sizes_of(args, "", trial)) | row | {"gmacs": f"{sum(costs):.4f}"}
        if args.probe:
            row["fit_seconds"] = fit_seconds(args, name) if name in rows else ""
        measured.append(row)
    file = args.csv or RESULTS / f"grocery_{kind(args)}_{split}.csv"
    report(measured, file)
    if methods := [name for name in args.compare if name in right]:
        pairs = [about(args, split, args.sizes) | row for row in compare(right, methods)]
        report(pairs, file.with_name(f"{file.stem}_pairs.csv"))


def about(args: argparse.Namespace, split: str, levels: Sequence[int]) -> Row:
    """The first columns of a row: its levels, training and split."""
    return {"levels": "+".join(map(str, levels)), "training": kind(args), "split": split}


def outcomes(
    args: argparse.Namespace, rows: dict[str, Trial], split: str
) -> tuple[dict[str, list[Tensor]], dict[str, list[float]]]:
    """For every method and seed: whether each answer is right, and the cross-entropy."""
    right: dict[str, list[Tensor]] = {}
    losses: dict[str, list[float]] = {}
    for seed in args.seeds:
        found = {name: load_file(folder_of(args, name, seed) / f"{split}.safetensors") for name in rows}
        logits = {name: of_run["logits"] for name, of_run in found.items()}
        targets = next(iter(found.values()))["targets"]
        for method, answers in {**{name: x[-1] for name, x in logits.items()}, **ensembles(args, logits)}.items():
            right.setdefault(method, []).append(answers.argmax(dim=1) == targets)
            losses.setdefault(method, []).append(F.cross_entropy(answers, targets).item())
    return right, losses


def fit_seconds(args: argparse.Namespace, name: str) -> str:
    """Seconds of the fastest seed of a probe: one that found the features of an earlier run, if any did."""
    logs = [(folder_of(args, name, seed) / "log.csv").read_text(encoding="utf-8") for seed in args.seeds]
    return f"{min(float(row['seconds']) for log in logs for row in csv.DictReader(log.splitlines())):.1f}"


if __name__ == "__main__":
    main()
