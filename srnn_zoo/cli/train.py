"""`srnn-zoo train`."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .app import app, fail
from .options import DEFAULT_MODEL, ModelOption, SizesOption, VariantOption, create, parse_sizes

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN
    from srnn_zoo.training import FitResult, Recipe


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(help="Folder with train/<class>/* and val/<class>/*, or a name of timm's such as hfds/food101."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", show_default=False)],
    model: ModelOption = DEFAULT_MODEL,
    variant: VariantOption = None,
    recipe: Annotated[
        str,
        typer.Option("--recipe", "-r", help="finetune, paper, probe, or a TOML file such as a run's recipe.toml."),
    ] = "finetune",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another value for a setting of the recipe: lr=0.001. Repeatable.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="The same as --set epochs=…", show_default=False)] = None,
    sizes: SizesOption = None,
    val: Annotated[Path | None, typer.Option(help="Folder of the validation images, if elsewhere.")] = None,
    train_split: Annotated[
        str, typer.Option(help="Name of the training split. [default: train]", show_default=False)
    ] = "",
    val_split: Annotated[
        str, typer.Option(help="Name of the validation split. [default: val or validation]", show_default=False)
    ] = "",
    data_dir: Annotated[Path | None, typer.Option(help="Where the files of timm's data sets are.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Start from pretrained weights.")] = True,
    exits: Annotated[
        str | None,
        typer.Option(help="shared or separate: one classifier for all levels, or one for each. [default: shared]"),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(help="Batch norm: shared, per_level or frozen. [default: shared]", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    corrupt: Annotated[str, typer.Option(help="skip images that cannot be read, or take them for fatal.")] = "skip",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images. [default: up to 4]")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's files as well.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
) -> None:
    """Fine-tune a model on a folder of images.

    OUTPUT holds the best and the last model, a log and curves. Several GPUs: accelerate launch -m srnn_zoo.cli train …
    """
    import torch

    from srnn_zoo.datasets.images import ImageError
    from srnn_zoo.training import Interrupted, fit, open_data

    chosen = _recipe(recipe, [*(settings or []), *([] if epochs is None else [f"epochs={epochs}"])])
    try:
        with _log_shown():
            splits = open_data(data, val=val, train_split=train_split, val_split=val_split, data_dir=data_dir)
            torch.manual_seed(chosen.seed)  # of the new classifier
            options = {"pretrained": pretrained, "exits": exits, "norm": norm}
            network = _create(model, variant, parse_sizes(sizes), splits.train.classes, options)
            result = fit(
                network,
                splits.train,
                splits.val,
                chosen,
                output,
                resume=resume,
                corrupt=_corrupt(corrupt),
                workers=workers,
                tensorboard=tensorboard,
                dataset=splits.name,
                cpu=cpu,
            )
    except Interrupted as error:
        fail(f"{error}: {_resume_command()}", code=128 + error.signum)
    except (FloatingPointError, ImageError) as error:
        fail(str(error), code=1)
    except (ValueError, TypeError, ImportError, FileNotFoundError, FileExistsError) as error:
        fail(str(error))
    except torch.OutOfMemoryError:
        fail("out of memory: --set grad_accum_steps=2 halves what is needed at a time; or smaller --sizes", code=1)
    _summarise(result)


def _recipe(name: str, settings: list[str]) -> Recipe:
    from srnn_zoo.training import Recipe, recipe

    try:
        chosen = Recipe.from_toml(name) if name.endswith(".toml") else recipe(name)
    except (FileNotFoundError, TypeError, ValueError, ImportError) as error:
        fail(f"--recipe: {error}")
    try:
        return chosen.with_settings(settings)
    except (TypeError, ValueError) as error:
        fail(f"--set: {error}")


def _create(
    name: str, variant: str | None, sizes: list[int] | None, classes: list[str], options: dict[str, Any]
) -> SRNN:
    """A model for these classes; its classifier is a new one unless it was trained for the very same."""
    from timm.data import ImageNetInfo

    of_imagenet = classes == ImageNetInfo().label_names()  # whose pretrained classifier is part of the paper's start
    given = {option: value for option, value in options.items() if value is not None}
    network = create(name, variant, sizes, num_classes=len(classes), **given)
    names = network.pretrained_cfg.get("label_names")
    if not of_imagenet and (names is None or list(names) != classes):
        network.reset_classifier(len(classes))
    return network


def _corrupt(value: str) -> Literal["skip", "fatal"]:
    if value == "skip" or value == "fatal":
        return value
    return fail(f"--corrupt is skip or fatal; got {value!r}")


def _resume_command() -> str:
    """The command that goes on, as the user has written it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["srnn-zoo", *arguments, "--resume"])


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """What the package logs goes to stderr, above the progress bar."""
    from tqdm import tqdm

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stderr)

    logger, handler = logging.getLogger("srnn_zoo"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _summarise(result: FitResult) -> None:
    if int(os.environ.get("RANK", "0")) != 0:
        return
    best = result.best
    typer.echo(
        f"best epoch {best['epoch']:.0f}: top-1 {best['val_top1']:.1f} %, top-5 {best['val_top5']:.1f} %, "
        f"saved in {result.output}/best"
    )
    if result.skipped:
        typer.echo(f"skipped {len(result.skipped)} images that cannot be read, listed in {result.output}/skipped.txt")
