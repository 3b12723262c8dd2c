"""`srnn-zoo predict`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import app, loading

if TYPE_CHECKING:
    from srnn_zoo.inference.exits import ExitRule
    from srnn_zoo.inference.predict import Answer, Prediction
    from srnn_zoo.models.srnn import SRNN
    from srnn_zoo.models.tasks import Task

MAX_PLOTTED = 12
STOP = "Stopping early"  # the group of these options in the help
CALIBRATED = "calibrated"  # the value of --exit that stands for the thresholds stored with the model


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, or folders of them.", show_default=False)],
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
    device: app.DeviceOption = None,
    as_json: app.JsonOption = False,
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

    Images that cannot be read are listed at the end, and make the command exit with 1.
    """
    from tqdm import tqdm

    from srnn_zoo.datasets.images import Skipped, find_images
    from srnn_zoo.inference.predict import predict as predict_images

    if not all(images):
        app.fail("a path is empty")
    paths = find_images(images)
    app.check_plot("--plot", plot)
    level_options = loading.level_options(sizes, zooms, views)
    if exit is not None and budget is not None:
        app.fail("give --exit or --budget, not both")
    given = None if exit in (None, CALIBRATED) else _parse_exit(exit)
    network = loading.load(model, variant, level_options, device)
    if plot is not None and network.task == "regression":
        app.fail("--plot draws probabilities, and this model is for regression")
    levels = network.level_sizes()
    rule = _exit_rule(network, levels, given, exit == CALIBRATED, budget)
    options = {"topk": topk, "batch_size": batch_size, "exit": rule, "exact": exact}
    results = predict_images(network, paths, maps=plot is not None and network.zooms is not None, **options)
    skipped: list[Skipped] = []
    kept: list[Prediction] = []
    stopped: list[tuple[int, float]] = []
    hide_bar = len(paths) <= batch_size or not sys.stderr.isatty()
    for result in tqdm(results, total=len(paths), unit="image", disable=hide_bar, leave=False):
        if isinstance(result, Skipped):
            skipped.append(result)
            continue
        with tqdm.external_write_mode():
            typer.echo(json.dumps(_as_dict(result, network.task)) if as_json else _as_text(result, network.task))
        if result.stopped_at is not None:
            stopped.append((result.stopped_at, result.gmacs or 0.0))
        if plot is not None and len(kept) < MAX_PLOTTED:
            kept.append(result)
    if plot is not None and kept:
        from srnn_zoo.evaluation.plot import plot_predictions

        plot_predictions(kept, plot)
        more = len(paths) - len(skipped) - len(kept)
        app.say(f"drawn to {plot}" + (f": the first {len(kept)} of {len(kept) + more} images" if more else ""))
    if stopped:
        _summarise(stopped, network, levels)
    app.report_skipped([item.reason for item in skipped], len(paths))


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
    """When images stop; says on stderr what a budget has come to."""
    from srnn_zoo.inference.calibrate import budget_rule, check_calibrated
    from srnn_zoo.inference.exits import FixedLevel, ScoreRule, stored_rule

    if budget is None:
        with app.about("--exit"):
            if calibrated:
                check_calibrated(network, levels)
                return stored_rule(network)
            if isinstance(given, ScoreRule):
                given.check(len(levels))
            return given
    with app.about("--budget"):
        rule = budget_rule(network, budget, levels)
    if isinstance(rule, FixedLevel):
        height, width = levels[rule.level]
        app.say(
            f"the model was never calibrated: every image stops at {height} x {width}, the largest level that all "
            "can afford (`srnn-zoo calibrate` finds thresholds)"
        )
    elif isinstance(rule.thresholds, tuple) and min(rule.thresholds) > 1:
        app.say("the budget pays for every level: all are read")
    return rule


def _as_dict(prediction: Prediction, task: Task) -> dict[str, Any]:
    kind = "value" if task == "regression" else "probability"
    return {
        "path": prediction.path,
        "levels": [
            {
                "size": list(answer.size),
                **({"view": [round(edge, 4) for edge in prediction.views[level]]} if prediction.views else {}),
                "top": [{"label": name, kind: _finite(p)} for name, p in answer.top],
            }
            for level, answer in enumerate(prediction.answers)
        ],
        "notes": list(prediction.notes),
        **({} if prediction.stopped_at is None else {"stopped_at": prediction.stopped_at, "gmacs": prediction.gmacs}),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


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


def _summarise(stopped: list[tuple[int, float]], network: SRNN, levels: list[tuple[int, int]]) -> None:
    """Say how many images stopped at each level, and what they cost on average beside all levels."""
    count = Counter(level for level, _ in stopped)
    from srnn_zoo.transforms.views import level_names

    titles = level_names(levels, network.zooms)
    parts = [f"{title}: {count[i]} ({100 * count[i] / len(stopped):.0f} %)" for i, title in enumerate(titles)]
    mean = sum(gmacs for _, gmacs in stopped) / len(stopped)
    full = sum(network.level_gmacs(size) for size in levels)
    app.say(f"stopped at  {'  '.join(parts)}")
    app.say(
        f"{mean:.3f} GMACs an image, {max(100 * (1 - mean / full), 0):.1f} % less than the {full:.3f} of all levels"
    )
