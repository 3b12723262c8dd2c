"""`srnn-zoo calibrate` and `srnn-zoo pareto`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import app, fail
from .options import SizesOption, VariantOption, load, parse_sizes

if TYPE_CHECKING:
    from srnn_zoo.datasets.images import Skipped
    from srnn_zoo.datasets.loader import ImageLoader
    from srnn_zoo.inference.answers import CollectedAnswers
    from srnn_zoo.inference.curve import Point
    from srnn_zoo.models.srnn import SRNN

DataArgument = Annotated[
    str,
    typer.Argument(
        help="Folder of class folders, .tar of one, or one of timm's data sets (hfds/food101).", show_default=False
    ),
]
SplitOption = Annotated[str | None, typer.Option(help="Subfolder of DATA, or timm's split, such as test.")]
DataDirOption = Annotated[Path | None, typer.Option(help="Where the files of timm's data sets are.")]
SavedModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Folder of a saved model, Hub id, or name.", show_default=False)
]
RuleOption = Annotated[str | None, typer.Option(help="confidence, margin or entropy. [default: confidence]")]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Pictures read at a time.")]
DeviceOption = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; by default a GPU if there is one.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that read pictures; 0 for none beside this one.")]

WORKERS = min(4, os.cpu_count() or 1)


@app.command()
def calibrate(
    data: DataArgument,
    model: SavedModelOption,
    split: SplitOption = None,
    data_dir: DataDirOption = None,
    budget: Annotated[float | None, typer.Option(help="GMACs a picture may cost on average.")] = None,
    target_accuracy: Annotated[float | None, typer.Option(help="Top-1 accuracy to reach, in per cent.")] = None,
    rule: RuleOption = None,
    spend: Annotated[
        bool, typer.Option("--spend", help="Use the budget up, instead of what was most accurate within it.")
    ] = False,
    sizes: SizesOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to save to. [default: the model's own]")
    ] = None,
    variant: VariantOption = None,
    batch_size: BatchSizeOption = 32,
    workers: WorkersOption = WORKERS,
    device: DeviceOption = None,
) -> None:
    """Find exit thresholds on held-out pictures, and save them with the model.

    They keep --budget at the best accuracy, or reach --target-accuracy at the least cost. Afterwards
    `srnn-zoo predict --exit calibrated` uses them, and `--budget` takes those of any other budget. Use pictures that
    the model was neither trained on nor will be tested with.
    """
    from srnn_zoo.inference.calibrate import calibrate as find_thresholds

    if (budget is None) == (target_accuracy is None):
        fail("give either --budget or --target-accuracy")
    if spend and budget is None:
        fail("--spend is about a budget: give --budget")
    folder = _output_folder(model, output, changes=sizes is not None or variant is not None)
    network = _model(model, variant, sizes, device)
    loader = _images(data, network, split, data_dir, parse_sizes(sizes), batch_size, workers)
    answers = _answers(network, loader)
    with _one_line_each():
        find_thresholds(
            network,
            answers,
            budget_gmacs=budget,
            target_accuracy=target_accuracy,
            rule=rule or "confidence",
            spend=spend,
        )
    network.save_pretrained(folder)
    typer.echo(_calibration_as_text(network, answers))
    typer.echo(f"saved to {folder}", err=True)
    _report(loader.skipped, loader.seen)


@app.command()
def pareto(
    data: DataArgument,
    model: SavedModelOption,
    split: SplitOption = None,
    data_dir: DataDirOption = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(help="Held-out images that choose the thresholds. [default: what the model was calibrated on]"),
    ] = None,
    calibration_split: Annotated[
        str | None, typer.Option(help="Subfolder of the calibration data, or timm's split.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all points to this CSV file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve to this file (.png, .pdf, …).")] = None,
    rule: RuleOption = None,
    sizes: SizesOption = None,
    variant: VariantOption = None,
    batch_size: BatchSizeOption = 32,
    workers: WorkersOption = WORKERS,
    device: DeviceOption = None,
) -> None:
    """Show accuracy against mean cost: early exit, every level, single scales of the base CNN, and its ensembles.

    Everything is measured on DATA. Thresholds come from --calibration-data, or from the calibration saved with the
    model; without either they are chosen on DATA itself, and the curve promises too much.
    """
    from srnn_zoo.inference.calibrate import check_calibrated
    from srnn_zoo.inference.curve import pareto as measure
    from srnn_zoo.inference.curve import write_pareto

    _check_files(output, plot)
    network = _model(model, variant, sizes, device)
    loader = _images(data, network, split, data_dir, parse_sizes(sizes), batch_size, workers)
    loaders = [loader]
    with _one_line_each():
        source: Any = None
        if calibration_data is not None:
            options = (calibration_split, data_dir, parse_sizes(sizes), batch_size, workers)
            loaders.insert(0, _images(calibration_data, network, *options))
            source = _answers(network, loaders[0])
        elif "exit" in network.metadata:
            check_calibrated(network, network.level_sizes())
            source = network
        answers = _answers(network, loader)
        points = measure(answers, thresholds_from=source, rule=rule)
    typer.echo(_points_as_text(points))
    if points[0].optimistic:
        typer.echo(
            "the thresholds were chosen on these very pictures, so that the curve promises too much: give "
            "--calibration-data, or calibrate the model first",
            err=True,
        )
    if output is not None:
        write_pareto(points, output)
        typer.echo(f"written to {output}", err=True)
    if plot is not None:
        from srnn_zoo.evaluation.plot import plot_pareto

        plot_pareto(points, plot)
        typer.echo(f"drawn to {plot}", err=True)
    _report([item for each in loaders for item in each.skipped], sum(each.seen for each in loaders))


def _output_folder(model: str, output: Path | None, changes: bool) -> Path:
    """Where the calibrated model goes: back into its folder, unless it has none or is another model then."""
    place = Path(model.removeprefix("local-dir:"))
    if output is None and not (model and place.is_dir()):
        fail(f"{model!r} is no folder of a saved model: give --output FOLDER for the calibrated one")
    if output is None and changes:
        fail("--sizes and --variant change the model: give --output FOLDER for the changed one")
    if output is not None:
        nearest = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
        if not nearest.is_dir():
            fail(f"--output: {nearest} is a file")
    return output or place


def _model(name: str, variant: str | None, sizes: str | None, device: str | None) -> SRNN:
    network = load(name, variant, parse_sizes(sizes), device)
    if len(network.scales) == 1:
        fail("a model of one level cannot stop early; give --sizes of two or more, such as 112,224")
    return network


def _images(
    data: str,
    network: SRNN,
    split: str | None,
    data_dir: Path | None,
    sizes: list[int] | None,
    batch_size: int,
    workers: int,
) -> ImageLoader:
    from srnn_zoo.datasets.loader import ImageLoader

    with _one_line_each():
        return ImageLoader(
            data, network, split=split, data_dir=data_dir, sizes=sizes, batch_size=batch_size, workers=workers
        )


def _answers(network: SRNN, loader: ImageLoader) -> CollectedAnswers:
    """What the model says of all images that can be read, with a progress bar."""
    import torch

    from srnn_zoo.inference.answers import collect

    try:
        with _one_line_each():
            return collect(network, loader, progress=sys.stderr.isatty())
    except SystemExit:
        if 0 < loader.seen == len(loader.skipped):
            typer.echo(f"  {loader.skipped[0].reason}", err=True)
        raise
    except (MemoryError, torch.OutOfMemoryError):
        fail("out of memory; a smaller --batch-size or smaller --sizes may fit")


@contextmanager
def _one_line_each() -> Iterator[None]:
    """Errors that a user can put right end the command in one line, and warnings are lines too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
            fail(str(error))
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            typer.echo(f"warning: {warning.message}", err=True)


def _check_files(output: Path | None, plot: Path | None) -> None:
    """Fail before the work, not after it."""
    if output is not None and not output.absolute().parent.is_dir():
        fail(f"--output: no folder {output.parent} to write to")
    if output is not None and output.is_dir():
        fail(f"--output: {output} is a folder")
    if plot is not None:
        from srnn_zoo.evaluation.plot import check_plot_file

        try:
            check_plot_file(plot)
        except (ImportError, OSError, ValueError) as error:
            fail(f"--plot: {error}")


def _calibration_as_text(network: SRNN, answers: CollectedAnswers) -> str:
    """Thresholds, where the held-out pictures stop, and what that gives, beside all levels."""
    from srnn_zoo.inference.exits import stored_rule
    from srnn_zoo.inference.thresholds import measure

    rule = stored_rule(network)
    thresholds = network.metadata["exit"]["thresholds"]
    [found] = measure(answers, rule, [thresholds])
    full, full_cost = 100 * answers.right[-1].double().mean().item(), answers.gmacs[-1].item()
    lines = [
        f"{rule.name}, on {len(answers.targets)} held-out pictures",
        f"  {'level':<14}{'threshold':>10}{'stop':>9}",
    ]
    for index, (height, width) in enumerate(answers.sizes):
        last = index + 1 == len(answers.sizes)
        threshold = "" if last else "never" if thresholds[index] > 1 else f"{thresholds[index]:.4f}"
        lines.append(f"  {f'{height} x {width}':<14}{threshold:>10}{100 * found.stop_shares[index]:>7.1f} %")
    lines += [
        f"  early exit  {found.accuracy:6.2f} %  {found.gmacs:8.3f} GMACs a picture",
        f"  all levels  {full:6.2f} %  {full_cost:8.3f} GMACs a picture",
    ]
    return "\n".join(lines)


def _points_as_text(points: list[Point]) -> str:
    """A table; of the curve at most ten points, at equal distances."""
    curve = [point for point in points if point.kind == "curve"]
    count = min(10, len(curve))
    shown = [curve[round(index * (len(curve) - 1) / max(count - 1, 1))] for index in range(count)]
    rows = [(f"early exit, {p.name}" if p.kind == "curve" else p.name, p) for p in shown + points[len(curve) :]]
    lines = [f"{'':<28}{'GMACs':>8}{'top-1':>10}   part that stops at each level"]
    for name, point in rows:
        exits = "  ".join(f"{100 * part:.0f} %" for part in point.stop_shares)
        lines.append(f"{name:<28}{point.gmacs:>8.3f}{point.accuracy:>8.2f} %   {exits}".rstrip())
    return "\n".join(lines)


def _report(skipped: list[Skipped], total: int) -> None:
    """List what could not be read, and exit with 1 then."""
    if skipped:
        typer.echo(f"skipped {len(skipped)} of {total} pictures:", err=True)
        for item in skipped:
            typer.echo(f"  {item.reason}", err=True)
        raise typer.Exit(1)
