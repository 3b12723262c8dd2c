"""`srnn-zoo calibrate` and `srnn-zoo pareto`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import app, loading

if TYPE_CHECKING:
    from srnn_zoo.datasets.loader import ImageLoader
    from srnn_zoo.inference.answers import CollectedAnswers
    from srnn_zoo.inference.curve import Point
    from srnn_zoo.inference.processes import Processes
    from srnn_zoo.models.srnn import SRNN

RuleOption = Annotated[
    str | None, typer.Option(help="Exit rule with a score, such as margin.", show_default="confidence")
]


@app.command()
def calibrate(
    data: app.DataArgument,
    model: app.ModelOption,
    split: app.SplitOption = None,
    data_dir: app.DataDirOption = None,
    budget: Annotated[float | None, typer.Option(help="GMACs an image may cost on average.")] = None,
    target_accuracy: Annotated[float | None, typer.Option(help="Top-1 accuracy to reach, in per cent.")] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Points of top-1 accuracy that may be lost, for certain.")
    ] = None,
    probability: Annotated[float, typer.Option(help="Of --max-loss: how certain.")] = 0.95,
    rule: RuleOption = None,
    spend: Annotated[
        bool, typer.Option("--spend", help="Use the budget up, rather than the most accurate thresholds in it.")
    ] = False,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to save to.", show_default="the model's own")
    ] = None,
    variant: app.VariantOption = None,
    batch_size: app.BatchSizeOption = 32,
    workers: app.WorkersOption = app.WORKERS,
    device: app.DeviceOption = None,
    modules: app.ImportOption = None,
) -> None:
    """Find exit thresholds on held-out images, and save them with the model.

    They keep --budget at the best accuracy, or reach --target-accuracy or keep --max-loss at the least cost. Afterwards
    `srnn-zoo predict --exit calibrated` uses them, and `--budget` those for any other budget. Use images on which the
    model was not trained and will not be tested. Processes that torchrun or accelerate launch starts share them.
    """
    from srnn_zoo.datasets.loader import ImageLoader
    from srnn_zoo.inference.calibrate import calibrate as find_thresholds
    from srnn_zoo.inference.exits import score_rule
    from srnn_zoo.inference.processes import Processes

    if [budget, target_accuracy, max_loss].count(None) != 2:
        app.fail("give one of --budget, --target-accuracy and --max-loss")
    if spend and budget is None:
        app.fail("--spend is about a budget: give --budget")
    score_rule(rule or "confidence")  # refuses an unknown one before the work
    levels = loading.level_options(sizes, zooms, views)
    folder = _output_folder(model, output, changes=levels.changed or variant is not None)
    aim: dict[str, Any] = {"budget_gmacs": budget, "target_accuracy": target_accuracy, "spend": spend}
    aim |= {"max_loss": max_loss, "probability": probability}
    with Processes() as processes:
        network = _load(model, variant, levels, device, processes)
        options: dict[str, Any] = {"split": split, "data_dir": data_dir, "batch_size": batch_size, "workers": workers}
        loader = processes.first_then_all(lambda: ImageLoader(data, network, **options))
        answers = _collect(network, loader, processes)
        if not processes.is_first:
            return
    find_thresholds(network, answers, rule=rule or "confidence", **aim)
    network.save_pretrained(folder)
    typer.echo(_calibration_as_text(network, answers))
    app.say(f"saved to {folder}")
    app.report_skipped([item.reason for item in loader.skipped], loader.seen)


@app.command()
def pareto(
    data: app.DataArgument,
    model: app.ModelOption,
    split: app.SplitOption = None,
    data_dir: app.DataDirOption = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            help="Held-out images that choose the thresholds.", show_default="what the model was calibrated on"
        ),
    ] = None,
    calibration_split: Annotated[
        str | None, typer.Option(help="Subfolder of the calibration data, or timm's split.", show_default=False)
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Another model to show. Repeatable: of two or more also the ensemble and cascades in this order.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all points to this CSV file.")] = None,
    plot: app.PlotOption = None,
    rule: RuleOption = None,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    variant: app.VariantOption = None,
    batch_size: app.BatchSizeOption = 32,
    workers: app.WorkersOption = app.WORKERS,
    device: app.DeviceOption = None,
    modules: app.ImportOption = None,
) -> None:
    """Show accuracy against mean cost: early exit, every level, single scales of the base CNN, and its ensembles.

    Everything is measured on DATA. Thresholds come from --calibration-data, or from the calibration saved with the
    model; without either they are chosen on DATA itself, and the curve promises too much. Those of cascades come from
    --calibration-data alone. Processes that torchrun or accelerate launch starts share the images.
    """
    from srnn_zoo.datasets.loader import ImageLoader
    from srnn_zoo.evaluation.table import check_can_write
    from srnn_zoo.inference.calibrate import check_calibrated
    from srnn_zoo.inference.cascade import rivals
    from srnn_zoo.inference.curve import pareto as measure
    from srnn_zoo.inference.curve import write_pareto
    from srnn_zoo.inference.exits import score_rule
    from srnn_zoo.inference.processes import Processes

    score_rule(rule or "confidence")  # refuses an unknown one before the work
    if output is not None:
        with app.about("--output"):
            check_can_write(output)
    app.check_plot("--plot", plot)
    level_options = loading.level_options(sizes, zooms, views)
    with Processes() as processes:
        network = _load(model, variant, level_options, device, processes)
        others = _load_beside(beside or [], network, device, processes)
        options: dict[str, Any] = {"data_dir": data_dir, "batch_size": batch_size, "workers": workers}
        places = [(data, split)]
        if calibration_data is not None:
            places.append((calibration_data, calibration_split))

        def answers_of(each: SRNN) -> tuple[list[ImageLoader], list[CollectedAnswers]]:
            """On all images that are measured, and on those that choose thresholds."""
            loaders = [
                processes.first_then_all(lambda at=at, part=part: ImageLoader(at, each, split=part, **options))
                for at, part in places
            ]
            return loaders, [_collect(each, loader, processes) for loader in loaders]

        if calibration_data is None and "exit" in network.metadata:
            check_calibrated(network, network.level_sizes())
        loaders, found = answers_of(network)  # others read the same images
        theirs = {name: answers_of(each)[1] for name, each in others.items()}
        if not processes.is_first:
            return
    source: Any = network if "exit" in network.metadata else None
    points = measure(found[0], thresholds_from=found[1] if found[1:] else source, rule=rule)
    if theirs:
        held_out = {name: each[1] for name, each in theirs.items()} if found[1:] else None
        points += rivals({name: each[0] for name, each in theirs.items()}, held_out, rule or "confidence")
    typer.echo(_points_as_text(points))
    if points[0].optimistic:
        app.say(
            "the thresholds were chosen on these same images, so the curve promises too much: give "
            "--calibration-data, or calibrate the model first"
        )
    elif any(point.optimistic for point in points):
        app.say("the thresholds of cascades were chosen on these same images: give --calibration-data")
    if output is not None:
        write_pareto(points, output)
        app.say(f"written to {output}")
    if plot is not None:
        from srnn_zoo.evaluation.plot import plot_pareto

        plot_pareto(points, plot)
        app.say(f"drawn to {plot}")
    app.report_skipped([item.reason for each in loaders for item in each.skipped], sum(each.seen for each in loaders))


def _output_folder(model: str, output: Path | None, changes: bool) -> Path:
    """Where the calibrated model goes: back into its folder, unless it has none or would be another model then."""
    if output is not None:
        nearest = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
        if not nearest.is_dir():
            app.fail(f"--output: {nearest} is a file")
        return output
    place = Path(model.removeprefix("local-dir:"))
    if not model or not place.is_dir():
        app.fail(f"{model!r} is no folder of a saved model: give --output FOLDER for the calibrated one")
    if changes:
        app.fail("--variant, --sizes, --zooms and --views change the model: give --output FOLDER for the changed one")
    return place


def _load(
    name: str, variant: str | None, levels: loading.LevelOptions, device: str | None, processes: Processes
) -> SRNN:
    network = loading.load_in_all(processes, name, variant, levels, device)
    if len(network.scales) == 1:
        app.fail("a model of one level cannot stop early; give --sizes of two or more, such as 112,224")
    return network


def _load_beside(names: list[str], network: SRNN, device: str | None, processes: Processes) -> dict[str, SRNN]:
    """Other models by their names, which must have the same classes in the same order."""
    from srnn_zoo.datasets.classes import label_names
    from srnn_zoo.models.tasks import check_classifies

    if repeated := sorted({name for name in names if names.count(name) > 1}):
        app.fail(f"--beside: {repeated[0]} is named twice")
    others = {name: loading.load_in_all(processes, name, None, loading.LevelOptions(), device) for name in names}
    for name, each in others.items():
        with app.about(f"--beside {name}"):
            check_classifies(each, "pareto")
        theirs, ours = label_names(each), label_names(network)
        if theirs != ours:
            which = "the model's classes in another order" if {*theirs} == {*ours} else "other classes than the model"
            app.fail(f"--beside: {name} has {which}")
    return others


def _collect(network: SRNN, loader: ImageLoader, processes: Processes) -> CollectedAnswers:
    """What the model says of all images that can be read, with a progress bar."""
    from srnn_zoo.inference.answers import collect

    try:
        return collect(network, loader, progress=processes.is_first and sys.stderr.isatty(), processes=processes)
    except ValueError as error:
        if loader.skipped and len(loader.skipped) == loader.seen:
            app.fail(f"{error}: {loader.skipped[0].reason}")
        raise


def _calibration_as_text(network: SRNN, answers: CollectedAnswers) -> str:
    """Thresholds, where the held-out images stop, and what that gives, beside all levels."""
    from srnn_zoo.inference.exits import stored_rule
    from srnn_zoo.inference.thresholds import measure
    from srnn_zoo.transforms.views import level_names

    rule = stored_rule(network)
    thresholds = network.metadata["exit"]["thresholds"]
    [found] = measure(answers, rule, [thresholds])
    full, full_cost = 100 * answers.right[-1].double().mean().item(), answers.gmacs[-1].item()
    texts = [*("never" if threshold > 1 else f"{threshold:.4f}" for threshold in thresholds), ""]
    names = level_names(answers.sizes, answers.zooms)
    width = max(14, *(len(name) + 2 for name in names))
    levels = [
        f"  {name:<{width}}{text:>10}{100 * share:>7.1f} %"
        for name, text, share in zip(names, texts, found.stop_shares, strict=True)
    ]
    return "\n".join(
        [
            f"{rule.name}, on {len(answers.targets)} held-out images",
            f"  {'level':<{width}}{'threshold':>10}{'stop':>9}",
            *levels,
            f"  early exit  {found.accuracy:6.2f} %  {found.gmacs:8.3f} GMACs an image",
            f"  all levels  {full:6.2f} %  {full_cost:8.3f} GMACs an image",
        ]
    )


def _points_as_text(points: list[Point]) -> str:
    """A table; of each curve at most ten points, at equal distances."""
    width = max(28, *(len(_title(point)) + 2 for point in points))
    lines = [f"{'':<{width}}{'GMACs':>8}{'top-1':>10}   share that stops at each level"]
    for _, group in itertools.groupby(points, key=lambda point: (point.kind, point.name)):
        curve = list(group)
        count = min(10, len(curve))
        for index in range(count):
            point = curve[round(index * (len(curve) - 1) / max(count - 1, 1))]
            shares = "  ".join(f"{100 * share:.0f} %" for share in point.stop_shares)
            lines.append(f"{_title(point):<{width}}{point.gmacs:>8.3f}{point.accuracy:>8.2f} %   {shares}".rstrip())
    return "\n".join(lines)


def _title(point: Point) -> str:
    return f"early exit, {point.name}" if point.kind == "curve" else point.name
