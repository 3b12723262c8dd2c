"""`srnn-zoo predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import app, loading
from .answers import Printed, Tally, Written

if TYPE_CHECKING:
    from srnn_zoo.datasets.inputs import Item
    from srnn_zoo.inference.exits import ExitRule
    from srnn_zoo.inference.predict import Answer, Prediction
    from srnn_zoo.inference.processes import Processes
    from srnn_zoo.models.srnn import SRNN
    from srnn_zoo.models.tasks import Task

MAX_PLOTTED = 12
STOP = "Stopping early"  # the group of these options in the help
CALIBRATED = "calibrated"  # the value of --exit that stands for the thresholds stored with the model
LIST = "-"  # stands for a list on standard input


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders or .tar files of them, timm's hfds/food101, or - for a list on standard input.",
            show_default=False,
        ),
    ],
    split: app.SplitOption = None,
    data_dir: app.DataDirOption = None,
    model: app.ModelOption = app.DEFAULT_MODEL,
    variant: app.VariantOption = None,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    exact: app.ExactOption = False,
    topk: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=app.OUTPUT, help="How many classes to name.")
    ] = 5,
    batch_size: app.BatchSizeOption = 8,
    workers: app.WorkersOption = 0,
    device: app.DeviceOption = None,
    as_json: app.JsonOption = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=app.OUTPUT,
            help="Write a row an image to this file as the answers come: .csv, .jsonl or .parquet.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel=app.OUTPUT, help="Go on with the file of an interrupted run."),
    ] = False,
    plot: app.PlotOption = None,
    exit: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            rich_help_panel=STOP,
            help="When an image stops: confidence:0.9, margin:0.5, …, or calibrated.",
            show_default="never",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="GMACS", rich_help_panel=STOP, help="GMACs an image may cost on average: stop early to keep them."
        ),
    ] = None,
    modules: app.ImportOption = None,
) -> None:
    """Name what is on images: the best classes after every level.

    With --exit or --budget an image stops early: larger levels are not read by the network.

    With --output the answers go to a file, and --resume goes on after an interruption. Processes that torchrun or
    accelerate launch starts share the images.

    Images that cannot be read are listed at the end, and make the command exit with 1.
    """
    from srnn_zoo.inference.prepare import for_inference
    from srnn_zoo.inference.processes import Processes

    if not all(images):
        app.fail("a path is empty")
    app.check_plot("--plot", plot)
    level_options = loading.level_options(sizes, zooms, views)
    if exit is not None and budget is not None:
        app.fail("give --exit or --budget, not both")
    given = None if exit in (None, CALIBRATED) else _parse_exit(exit)
    with Processes() as processes:
        processes.first(lambda: _check_output(output, resume, as_json))
        if plot is not None and processes.count > 1:
            app.fail("--plot draws in one process: leave it out, or start one")
        found = _find(images, split, data_dir, processes)
        network = loading.load_in_all(processes, model, variant, level_options, device)
        if plot is not None and network.task == "regression":
            app.fail("--plot draws probabilities, and this model is for regression")
        levels = network.level_sizes()
        rule = processes.first_then_all(lambda: _exit_rule(network, levels, given, exit == CALIBRATED, budget))
        if budget is not None and processes.is_first:
            _say_rule(rule, levels)
        ready = for_inference(network) if len(found) > 1 else network  # also of a process whose part is one image
        kept: list[Prediction] = []
        options = {"topk": topk, "batch_size": batch_size, "exit": rule, "exact": exact, "workers": workers}

        def answer(items: list[str | Item]) -> Iterator[Any]:
            from srnn_zoo.inference.predict import Prediction, predict

            for result in predict(ready, items, maps=plot is not None and network.zooms is not None, **options):
                if plot is not None and len(kept) < MAX_PLOTTED and isinstance(result, Prediction):
                    kept.append(result)
                yield target.row(result)

        if output is None:
            target = Printed(lambda result: _as_text(result, network.task), network.task, as_json)
        else:
            settings = {"exit": exit, "budget": budget, "topk": topk, "exact": exact, "model": model, "split": split}
            settings["data_dir"] = None if data_dir is None else str(data_dir.resolve())  # an image's name lacks both
            target = Written(output, network, settings, found)
        tally = target.answer_all(found, answer, batch_size, processes, resume)
        if processes.is_first:
            _conclude(tally, target, network, levels, kept, plot)


def _check_output(output: Path | None, resume: bool, as_json: bool) -> None:
    from srnn_zoo.inference.answer_file import check_answer_file

    if output is None:
        if resume:
            app.fail("--resume goes on with a file: give --output too")
        return
    if as_json:
        app.fail("--json is for standard output: give --output a name that ends with .jsonl instead")
    with app.about("--output"):
        check_answer_file(output, resume)


def _find(images: list[str], split: str | None, data_dir: Path | None, processes: Processes) -> list[str | Item]:
    """All images; every process must find the same."""
    from srnn_zoo.datasets.inputs import Source, find_inputs, read_list
    from srnn_zoo.inference.answer_file import names_digest

    if images.count(LIST) > 1:
        app.fail("standard input (-) can be read once")
    if LIST in images:
        at = images.index(LIST)
        images[at : at + 1] = processes.first(lambda: read_list(sys.stdin.buffer))
    found = processes.first_then_all(lambda: find_inputs(images, Source(split, data_dir)))
    own = names_digest(found)
    if processes.first(lambda: own) != own:
        app.fail(f"process {processes.rank} finds other images than process 0: all must see the same files")
    return found


def _conclude(
    tally: Tally,
    target: Printed | Written,
    network: SRNN,
    levels: list[tuple[int, int]],
    kept: list[Prediction],
    plot: Path | None,
) -> None:
    """Draw, say what early exit has saved and what could not be read."""
    if plot is not None and kept:
        from srnn_zoo.evaluation.plot import plot_predictions

        plot_predictions(kept, plot)
        drawn, answered = len(kept), tally.rows - tally.skipped
        app.say(f"drawn to {plot}" + (f": the first {drawn} of {answered} images" if answered > drawn else ""))
    if tally.stopped:
        _summarise(tally, network, levels)
    target.say_end()
    app.report_skipped(tally.reasons, tally.rows, tally.skipped - len(tally.reasons))


def _parse_exit(text: str) -> ExitRule:
    from srnn_zoo.inference.exits import exit_rule

    try:
        return exit_rule(text)
    except ValueError as error:
        others = f"; or {CALIBRATED}, for what `srnn-zoo calibrate` has stored" if "choose one of" in str(error) else ""
        app.fail(f"--exit: {error}{others}")


def _exit_rule(
    network: SRNN, levels: list[tuple[int, int]], given: ExitRule | None, calibrated: bool, budget: float | None
) -> ExitRule | None:
    """When images stop."""
    from srnn_zoo.inference.calibrate import budget_rule, check_calibrated
    from srnn_zoo.inference.exits import ScoreRule, stored_rule

    if budget is None:
        with app.about("--exit"):
            if calibrated:
                check_calibrated(network, levels)
                return stored_rule(network)
            if isinstance(given, ScoreRule):
                given.check(len(levels))
            return given
    with app.about("--budget"):
        return budget_rule(network, budget, levels)


def _say_rule(rule: ExitRule | None, levels: list[tuple[int, int]]) -> None:
    """What a budget has come to."""
    from srnn_zoo.inference.exits import FixedLevel, ScoreRule

    if isinstance(rule, FixedLevel):
        height, width = levels[rule.level]
        app.say(
            f"the model was never calibrated: every image stops at {height} x {width}, the largest level that all "
            "can afford (`srnn-zoo calibrate` finds thresholds)"
        )
    elif isinstance(rule, ScoreRule) and isinstance(rule.thresholds, tuple) and min(rule.thresholds) > 1:
        app.say("the budget pays for every level: all are read")


def _as_text(prediction: Prediction, task: Task, width: int = 34) -> str:
    """The path, then one column a level with its best classes."""

    def cell(answer: Answer, rank: int) -> str:
        name, value = answer.top[rank]
        number = f"{value:7.4g}" if task == "regression" else f"{100 * value:5.1f} %"
        return f"{name.split(',')[0][: width - 10]:<{width - 9}}{number}"

    notes = f"  ({'; '.join(prediction.notes)})" if prediction.notes else ""
    names = prediction.level_names[prediction.first_answer :]
    titles = [name if index < len(prediction.answers) else f"{name}  not read" for index, name in enumerate(names)]
    lines = ["  ".join(f"{title:<{width - 2}}" for title in titles)]
    for rank in range(len(prediction.answers[0].top)):
        lines.append("  ".join(cell(answer, rank) for answer in prediction.answers))
    return "\n".join([f"{prediction.path}{notes}", *(f"  {line}".rstrip() for line in lines)])


def _summarise(tally: Tally, network: SRNN, levels: list[tuple[int, int]]) -> None:
    """Say how many images stopped at each level, and what they cost on average beside all levels."""
    from srnn_zoo.transforms.views import level_names

    count, total = tally.stopped, tally.stopped.total()
    titles = level_names(levels, network.zooms)
    parts = [f"{title}: {count[i]} ({100 * count[i] / total:.0f} %)" for i, title in enumerate(titles)]
    mean = tally.gmacs / total
    full = sum(network.level_gmacs(size) for size in levels)
    app.say(f"stopped at  {'  '.join(parts)}")
    app.say(
        f"{mean:.3f} GMACs an image, {max(100 * (1 - mean / full), 0):.1f} % less than the {full:.3f} of all levels"
    )
