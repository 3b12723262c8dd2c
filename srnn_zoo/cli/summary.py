"""What `srnn-zoo train` says at its end: how good the model is, how sure that is, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from . import app

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN
    from srnn_zoo.training import FitResult, TrainingData

FEW_IMAGES = 100  # with fewer, the interval may be wider than ±10 points


def summarise(result: FitResult, network: SRNN, data: Sequence[str], imports: Sequence[str]) -> None:
    """Say it; `data` are the arguments that name the validation images, `imports` the modules the model needs."""
    from srnn_zoo.evaluation.table import wilson

    best, images = result.best, result.val_images
    low, high = (100 * bound for bound in wilson(round(best["val_top1"] / 100 * images), images))
    typer.echo(
        f"best epoch {best['epoch']:.0f}: top-1 {best['val_top1']:.1f} % (95 %: {low:.1f} to {high:.1f}), "
        f"top-5 {best['val_top5']:.1f} %, of {images} validation images; saved in {result.output}/best"
    )
    if result.skipped:
        count = len(result.skipped)
        what = "1 image that cannot be read" if count == 1 else f"{count} images that cannot be read"
        typer.echo(f"skipped {what}, listed in {result.output}/skipped.txt")
    if images < FEW_IMAGES:
        app.say(
            f"warning: {images} validation images are few, and the interval is wide: take {FEW_IMAGES} or more to tell "
            "a better model from a worse one"
        )
    app.say("next:")
    for command in _next_commands(f"{result.output}/best", network, images, data):
        app.say(f"  {shlex.join(['srnn-zoo', *command, *(word for name in imports for word in ('--import', name))])}")


def _next_commands(saved: str, network: SRNN, images: int, data: Sequence[str]) -> list[list[str]]:
    from srnn_zoo.models.cost import count_gmacs
    from srnn_zoo.models.temperatures import MIN_IMAGES

    commands = [["predict", "image.jpg", "--model", saved], ["evaluate", *data, saved]]
    if len(network.scales) > 1 and network.cell.anytime and images >= MIN_IMAGES:
        cost = count_gmacs(network)
        budget = f"{(cost.levels[0] + cost.total) / 2:.2g}"  # between the first level alone and all of them
        commands.append(["calibrate", *data, "--model", saved, "--budget", budget])
    return commands


def validation_arguments(
    data: str, splits: TrainingData, output: Path, val: Path | None, val_split: str, data_dir: Path | None
) -> list[str]:
    """The arguments by which other commands read the validation images of a run."""
    from srnn_zoo.datasets.holdout import SPLIT_FILE
    from srnn_zoo.datasets.readers import named_prefix

    if splits.val.holdout is not None:
        return [str(output / SPLIT_FILE)]
    source = data if val is None else str(val)
    split = val_split or "validation" if named_prefix(source) else splits.val.name.partition("/")[2]
    words = [source, *(["--split", split] if split else [])]
    return words if data_dir is None else [*words, "--data-dir", str(data_dir)]
