"""`srnn-zoo calibrate` and `srnn-zoo pareto`."""

from __future__ import annotations

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
    model; without either they are chosen on DATA itself, and the curve promises too much. Processes that torchrun or
    accelerate launch starts share the images.
    """
    from srnn_zoo.datasets.loader import ImageLoader
    from srnn_zoo.evaluation.table import check_can_write
    from srnn_zoo.inference.calibrate import check_calibrated
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
        options: dict[str, Any] = {"data_dir": data_dir, "batch_size": batch_size, "workers": workers}

        def open_images(place: str, split: str | None) -> ImageLoader:
            return processes.first_then_all(lambda: ImageLoader(place, network, split=split, **options))

        loaders = [open_images(data, split)]
        source: Any = None
        if calibration_data is not None:
            loaders.insert(0, open_images(calibration_data, calibration_split))
            source = _collect(network, loaders[0], processes)
        elif "exit" in network.metadata:
            check_calibrated(network, network.level_sizes())
            source = network
        answers = _collect(network, loaders[-1], processes)
        if not processes.is_first:
            return
    points = measure(answers, thresholds_from=source, rule=rule)
    typer.echo(_points_as_text(points))
    if points[0].optimistic:
        app.say(
            "the thresholds were chosen on these same images, so the curve promises too much: give "
            "--calibration-data, or calibrate the model first"
        )
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
    """A table; of the curve at most ten points, at equal distances."""
    curve = [point for point in points if point.kind == "curve"]
    count = min(10, len(curve))
    shown = [curve[round(index * (len(curve) - 1) / max(count - 1, 1))] for index in range(count)]
    lines = [f"{'':<28}{'GMACs':>8}{'top-1':>10}   share that stops at each level"]
    for point in shown + points[len(curve) :]:
        name = f"early exit, {point.name}" if point.kind == "curve" else point.name
        shares = "  ".join(f"{100 * share:.0f} %" for share in point.stop_shares)
        lines.append(f"{name:<28}{point.gmacs:>8.3f}{point.accuracy:>8.2f} %   {shares}".rstrip())
    return "\n".join(lines)
