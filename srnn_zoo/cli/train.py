"""`srnn-zoo train`, and `srnn-zoo curves` for what it leaves."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import app, loading
from .summary import summarise, validation_arguments

if TYPE_CHECKING:
    from srnn_zoo.evaluation.plot import Curve
    from srnn_zoo.models.srnn import SRNN
    from srnn_zoo.training import Recipe


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder with train/<class>/* and val/<class>/*, or of classes, or a timm name such as hfds/food101."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.", show_default=False)
    ],
    model: app.ModelOption = app.DEFAULT_MODEL,
    variant: app.VariantOption = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME",
            rich_help_panel=app.RECIPE,
            help="finetune, paper, probe, or a TOML file such as a run's recipe.toml.",
        ),
    ] = "finetune",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            rich_help_panel=app.RECIPE,
            help="Another value for a setting of the recipe: lr=0.001. Repeatable.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, rich_help_panel=app.RECIPE, help="The same as --set epochs=…", show_default=False
        ),
    ] = None,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    val: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=app.DATA, help="Folder of the validation images, if elsewhere."),
    ] = None,
    val_fraction: app.ValFractionOption = None,
    train_split: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=app.DATA, help="Name of the training split.", show_default="train"
        ),
    ] = "",
    val_split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=app.DATA,
            help="Name of the validation split.",
            show_default="val or validation",
        ),
    ] = "",
    data_dir: app.DataDirOption = None,
    pretrained: Annotated[bool, typer.Option(rich_help_panel=app.MODEL, help="Start from pretrained weights.")] = True,
    exits: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            rich_help_panel=app.MODEL,
            help="shared or separate: one classifier for all levels, or one for each.",
            show_default="shared",
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            rich_help_panel=app.MODEL,
            help="Batch norm: shared, per_level or frozen.",
            show_default="shared",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    corrupt: Annotated[
        str,
        typer.Option(
            metavar="HOW", rich_help_panel=app.DATA, help="What to do with images that cannot be read: skip or fatal."
        ),
    ] = "skip",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", rich_help_panel=app.MACHINE, help="Processes that read images.", show_default="up to 4"
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's files as well.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", rich_help_panel=app.MACHINE, help="Do not use a GPU.")] = False,
    modules: app.ImportOption = None,
) -> None:
    """Fine-tune a model on a folder of images.

    OUTPUT holds the best and the last model, a log and curves. Several GPUs: accelerate launch -m srnn_zoo.cli train …
    """
    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    from srnn_zoo.datasets.images import ImageError
    from srnn_zoo.training import Interrupted, fit, open_data

    chosen = _recipe(recipe, [*(settings or []), *([] if epochs is None else [f"epochs={epochs}"])])
    if output.resolve().is_relative_to(Path(data).resolve()) and not Path(data, "train").is_dir():
        app.fail(f"--output: {output} is inside {data}, where every folder is a class: choose another place")
    log = logging.getLogger("srnn_zoo")
    log.setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm([log]):  # to stderr, above the progress bar
            held = {"val_fraction": _fraction(val_fraction, data, output, resume), "seed": chosen.seed}
            splits = open_data(data, val=val, train_split=train_split, val_split=val_split, data_dir=data_dir, **held)
            torch.manual_seed(chosen.seed)  # of the new classifier
            options = {name: value for name, value in {"exits": exits, "norm": norm}.items() if value is not None}
            options |= {
                "variant": variant,
                "levels": loading.level_options(sizes, zooms, views),
                "pretrained": pretrained,
            }
            network = _create(model, splits.train.classes, **options)
            if recipe == "finetune" and not output.exists() and (cpu or not _has_gpu()):
                log.info("on a CPU this may take hours: --recipe probe takes minutes, and is a good first run")
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
        app.fail(f"{error}: {_resume_command()}", code=128 + error.signum)
    except ImageError as error:  # with --corrupt fatal
        app.fail(str(error), code=1)
    except torch.OutOfMemoryError:
        app.fail("out of memory: --set grad_accum_steps=2 halves what is needed at a time; or smaller --sizes", code=1)
    if os.environ.get("RANK", "0") == "0":
        words = validation_arguments(data, splits, output, val, val_split, data_dir)
        summarise(result, network, words, modules or ())


def _fraction(given: float | None, data: str, output: Path, resume: bool) -> float | None:
    """The share to hold out: of a run that is resumed its own, unless the user gives one."""
    from srnn_zoo.datasets.holdout import SPLIT_FILE, Holdout

    recorded = resume and given is None and Path(data).is_dir() and (output / SPLIT_FILE).is_file()
    return Holdout.load(output / SPLIT_FILE).val_fraction if recorded else given


def _recipe(name: str, settings: list[str]) -> Recipe:
    from srnn_zoo.training import Recipe, recipe

    with app.about("--recipe"):
        chosen = Recipe.from_toml(name) if name.endswith(".toml") else recipe(name)
    with app.about("--set"):
        return chosen.with_settings(settings)


def _create(name: str, classes: list[str], **options: Any) -> SRNN:
    """A model for these classes; its classifier is a new one unless it was trained for the very same."""
    from timm.data import ImageNetInfo

    of_imagenet = classes == ImageNetInfo().label_names()  # the paper starts from its classifier
    network = loading.create(name, num_classes=len(classes), **options)
    names = network.pretrained_cfg.get("label_names")
    if not of_imagenet and (names is None or list(names) != classes):
        network.reset_classifier(len(classes))
    return network


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _corrupt(value: str) -> Literal["skip", "fatal"]:
    if value == "skip" or value == "fatal":
        return value
    return app.fail(f"--corrupt is skip or fatal; got {value!r}")


def _resume_command() -> str:
    """The command that goes on, as the user has written it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["srnn-zoo", *arguments, "--resume"])


@app.command()
def curves(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of training runs; NAME=FOLDER names the curve.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to draw to (.png, .pdf, …).")] = Path(
        "curves.png"
    ),
    line: Annotated[
        list[str] | None,
        typer.Option(help="Horizontal line at an error in per cent: 'logit ensemble=28.26'.", show_default=False),
    ] = None,
) -> None:
    """Draw the validation error of training runs against the epoch: the paper's Figure 3."""
    from srnn_zoo.evaluation.plot import plot_curves, read_curve

    lines = dict(_parse_line(text) for text in line or ())
    app.check_plot("--output", output)
    found: list[Curve] = []
    for run in runs:
        name, equals, folder = run.partition("=")
        found.append(read_curve(folder, name) if equals and not Path(run).is_dir() else read_curve(run))
    if len({curve.name for curve in found}) < len(found):  # two folders have one name: name them as they were given
        found = [replace(curve, name=run.partition("=")[0]) for curve, run in zip(found, runs, strict=True)]
    plot_curves(found, output, lines=lines)
    app.say(f"drawn to {output}")


def _parse_line(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        error = float(value)
    except ValueError:
        error = -1.0
    if not equals or not 0 <= error <= 100:
        app.fail(f"--line takes a name and an error in per cent, such as 'logit ensemble=28.26'; got {text!r}")
    return name.strip(), error
