"""`srnn-zoo curves`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app, fail

if TYPE_CHECKING:
    from srnn_zoo.evaluation.plot import Curve


@app.command()
def curves(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders of training runs; NAME=FOLDER names the curve.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to draw (.png, .pdf, …).")] = Path(
        "curves.png"
    ),
    line: Annotated[
        list[str] | None,
        typer.Option(help="Horizontal line at an error in per cent: 'logit ensemble=28.26'.", show_default=False),
    ] = None,
) -> None:
    """Draw the validation error of training runs against the epoch: the paper's Figure 3."""
    from srnn_zoo.evaluation.plot import check_plot_file, plot_curves, read_curve

    lines = dict(_parse_line(text) for text in line or ())
    try:
        check_plot_file(output)
    except (ImportError, OSError, ValueError) as error:
        fail(f"--output: {error}")
    try:
        found: list[Curve] = []
        for run in runs:
            name, equals, folder = run.partition("=")
            found.append(read_curve(folder, name) if equals and not Path(run).is_dir() else read_curve(run))
        plot_curves(_told_apart(found, runs), output, lines=lines)
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))
    typer.echo(f"drawn to {output}", err=True)


def _parse_line(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        error = float(value)
    except ValueError:
        error = -1.0
    if not equals or not 0 <= error <= 100:
        fail(f"--line takes a name and an error in per cent, such as 'logit ensemble=28.26'; got {text!r}")
    return name.strip(), error


def _told_apart(curves: list[Curve], runs: list[str]) -> list[Curve]:
    """The curves, named as their runs were given where two folders have one name."""
    from dataclasses import replace

    if len({curve.name for curve in curves}) == len(curves):
        return curves
    return [replace(curve, name=run.partition("=")[0]) for curve, run in zip(curves, runs, strict=True)]
