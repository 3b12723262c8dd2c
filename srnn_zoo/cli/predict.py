"""`srnn-zoo predict`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .app import app, fail
from .options import DEFAULT_MODEL, ModelOption, SizesOption, VariantOption, load, parse_sizes

if TYPE_CHECKING:
    from srnn_zoo.datasets.images import Skipped
    from srnn_zoo.inference.exits import ExitRule
    from srnn_zoo.inference.predict import Answer, Prediction
    from srnn_zoo.models.srnn import SRNN

MAX_PLOTTED = 12
CALIBRATED = "calibrated"  # the value of --exit that stands for the thresholds stored with the model


class Stopped(NamedTuple):
    """Where a picture stopped, and what it cost."""

    level: int
    gmacs: float


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Picture files, or folders of them.", show_default=False)],
    model: ModelOption = DEFAULT_MODEL,
    variant: VariantOption = None,
    sizes: SizesOption = None,
    topk: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures classified at a time.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; by default a GPU if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a picture and line.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw levels and answers to this file (.png, .pdf, …).")] = None,
    exit: Annotated[
        str | None,
        typer.Option(help="When a picture stops: confidence:0.9, margin:0.5, …, or calibrated. [default: never]"),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="GMACs a picture may cost on average: stop early to keep them.")
    ] = None,
) -> None:
    """Name what is on pictures: the best classes after every level.

    With --exit or --budget a picture stops early: larger levels are not read by the network.

    Pictures that cannot be read are passed over, listed at the end, and make the command exit with 1.
    """
    from tqdm import tqdm

    from srnn_zoo.datasets.images import ImageError, Skipped, find_images
    from srnn_zoo.inference.predict import predict as predict_pictures

    if not all(images):
        fail("a path is empty")
    try:
        paths = find_images(images)
    except ImageError as error:
        fail(str(error))
    if plot is not None:
        _check_plot(plot, len(paths))
    level_sizes = parse_sizes(sizes)
    if exit is not None and budget is not None:
        fail("give --exit or --budget, not both")
    if exit not in (None, CALIBRATED):
        _parse_exit(exit)
    network = load(model, variant, level_sizes, device)
    rule = _exit_rule(network, exit, budget, level_sizes)
    results: Iterable[Prediction | Skipped] = predict_pictures(
        network, paths, sizes=level_sizes, topk=topk, batch_size=batch_size, exit=rule
    )
    skipped: list[Skipped] = []
    kept: list[Prediction] = []
    stopped: list[Stopped] = []
    hide_bar = len(paths) <= batch_size or not sys.stderr.isatty()
    for result in tqdm(_readable(results), total=len(paths), unit="picture", disable=hide_bar, leave=False):
        if isinstance(result, Skipped):
            skipped.append(result)
            continue
        with tqdm.external_write_mode():
            typer.echo(json.dumps(_as_dict(result)) if as_json else _as_text(result))
        if result.stopped_at is not None:
            stopped.append(Stopped(result.stopped_at, result.gmacs or 0.0))
        if plot is not None:
            kept.append(result)
    if plot is not None and kept:
        from srnn_zoo.evaluation.plot import plot_predictions

        plot_predictions(kept, plot)
        typer.echo(f"drawn to {plot}", err=True)
    if stopped:
        typer.echo(_summary(stopped, network, level_sizes or network.level_sizes()), err=True)
    if skipped:
        typer.echo(f"skipped {len(skipped)} of {len(paths)} pictures:", err=True)
        for item in skipped:
            typer.echo(f"  {item.reason}", err=True)
        raise typer.Exit(1)


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    return {
        "path": prediction.path,
        "levels": [
            {"size": list(answer.size), "top": [{"label": name, "probability": p} for name, p in answer.top]}
            for answer in prediction.answers
        ],
        "notes": list(prediction.notes),
        **({} if prediction.stopped_at is None else {"stopped_at": prediction.stopped_at, "gmacs": prediction.gmacs}),
    }


def _as_text(prediction: Prediction, width: int = 34) -> str:
    """The path, then one column a level with its best classes."""

    def cell(answer: Answer, rank: int) -> str:
        name, probability = answer.top[rank]
        return f"{name.split(',')[0][: width - 10]:<{width - 9}}{100 * probability:5.1f} %"

    notes = f"  ({'; '.join(prediction.notes)})" if prediction.notes else ""
    titles = [f"{a.size[0]} x {a.size[1]}" for a in prediction.answers]
    if prediction.stopped_at is not None:
        unread = prediction.levels[prediction.stopped_at + 1 :]
        titles += [f"{level.shape[-2]} x {level.shape[-1]}  not read" for level in unread]
    lines = ["  ".join(f"{title:<{width - 2}}" for title in titles)]
    for rank in range(len(prediction.answers[0].top)):
        lines.append("  ".join(cell(answer, rank) for answer in prediction.answers))
    return "\n".join([f"{prediction.path}{notes}", *(f"  {line}".rstrip() for line in lines)])


def _exit_rule(network: SRNN, exit: str | None, budget: float | None, sizes: list[int] | None) -> ExitRule | None:
    """When pictures stop; says on stderr what a budget has come to."""
    from srnn_zoo.inference.calibrate import budget_rule, check_calibrated
    from srnn_zoo.inference.exits import FixedLevel, ScoreRule, stored_rule
    from srnn_zoo.transforms.pyramid import pair

    levels = [pair(size) for size in sizes] if sizes else network.level_sizes()
    try:
        if exit == CALIBRATED:
            check_calibrated(network, levels)
            return stored_rule(network)
        if exit is not None:
            rule = _parse_exit(exit)
            if isinstance(rule, ScoreRule):
                rule.check(len(levels))
            return rule
        if budget is None:
            return None
        rule = budget_rule(network, budget, levels)
    except ValueError as error:
        fail(f"--{'budget' if exit is None else 'exit'}: {error}")
    if isinstance(rule, FixedLevel):
        height, width = levels[rule.level]
        typer.echo(
            f"the model was never calibrated: every picture stops at {height} x {width}, the largest level that all "
            "can afford (`srnn-zoo calibrate` finds thresholds)",
            err=True,
        )
    elif isinstance(rule.thresholds, tuple) and min(rule.thresholds) > 1:
        typer.echo("the budget pays for every level: all are read", err=True)
    return rule


def _parse_exit(text: str) -> ExitRule:
    from srnn_zoo.inference.exits import exit_rule

    try:
        return exit_rule(text)
    except ValueError as error:
        others = f"; or {CALIBRATED}, for what `srnn-zoo calibrate` has stored" if "choose one of" in str(error) else ""
        fail(f"--exit: {error}{others}")


def _summary(stopped: list[Stopped], network: SRNN, sizes: Sequence[int | tuple[int, int]]) -> str:
    """How many pictures stopped at each level, what they cost, and what all levels would have."""
    from srnn_zoo.models.cost import level_gmacs
    from srnn_zoo.transforms.pyramid import pair

    count = Counter(item.level for item in stopped)
    levels = [pair(size) for size in sizes]
    parts = [
        f"{height} x {width}: {count[index]} ({100 * count[index] / len(stopped):.0f} %)"
        for index, (height, width) in enumerate(levels)
    ]
    mean = sum(item.gmacs for item in stopped) / len(stopped)
    full = sum(level_gmacs(network, size) for size in levels)
    return (
        f"stopped at  {'  '.join(parts)}\n"
        f"{mean:.3f} GMACs a picture, {max(100 * (1 - mean / full), 0):.1f} % less than the {full:.3f} of all levels"
    )


def _readable(results: Iterable[Prediction | Skipped]) -> Iterator[Prediction | Skipped]:
    """The results, or one line where levels of such sizes fit neither the backbone nor the memory."""
    import torch

    try:
        yield from results
    except ValueError as error:
        fail(str(error))
    except (MemoryError, torch.OutOfMemoryError):
        fail("out of memory; a smaller --batch-size or smaller --sizes may fit")


def _check_plot(file: Path, pictures: int) -> None:
    """Fail before the work, not after it."""
    from srnn_zoo.evaluation.plot import check_plot_file

    if pictures > MAX_PLOTTED:
        fail(f"--plot draws up to {MAX_PLOTTED} pictures; got {pictures}")
    try:
        check_plot_file(file)
    except (ImportError, OSError, ValueError) as error:
        fail(f"--plot: {error}")
