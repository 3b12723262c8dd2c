"""`srnn-zoo compare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import app, loading

if TYPE_CHECKING:
    from srnn_zoo.comparison import Comparison


@app.command()
def compare(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder with train/, val/ and test/<class>/*, or of classes, or a timm name such as hfds/food101.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the comparison.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            rich_help_panel=app.MODEL,
            help="Name of a model (`srnn-zoo list`), whose pretrained backbone every way starts from.",
        ),
    ] = app.DEFAULT_MODEL,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            rich_help_panel=app.MODEL,
            help="Sizes of the levels in pixels, smallest first: 224,336.",
            show_default="the model's own and 1.5 times that",
        ),
    ] = None,
    zooms: Annotated[
        str,
        typer.Option(
            metavar="ZOOMS",
            rich_help_panel=app.MODEL,
            help="To try for tight crops and for a second level that zooms in; none for whole images alone.",
        ),
    ] = "1.25,1.6,2",
    variants: Annotated[
        str, typer.Option(metavar="NAMES", rich_help_panel=app.MODEL, help="Variants of the SRNNs.")
    ] = "vanilla_scalar,half_gru_diag",
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=app.RECIPE, help="Seeds, of which the mean counts.")
    ] = 3,
    rates: Annotated[
        str, typer.Option(metavar="RATES", rich_help_panel=app.RECIPE, help="Learning rates to try for every way.")
    ] = "0.005,0.01,0.02",
    epochs: Annotated[int, typer.Option(min=1, metavar="N", rich_help_panel=app.RECIPE, help="Of each fit.")] = 40,
    rule: Annotated[str, typer.Option(metavar="NAME", help="Exit rule with a score, such as margin.")] = "confidence",
    test: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=app.DATA,
            help="Folder of the test images, if elsewhere.",
            show_default="DATA/test, else half of the validation images",
        ),
    ] = None,
    val_fraction: app.ValFractionOption = None,
    data_dir: app.DataDirOption = None,
    pretrained: Annotated[bool, typer.Option(rich_help_panel=app.MODEL, help="Pretrained weights.")] = True,
    workers: app.WorkersOption = app.WORKERS,
    device: app.DeviceOption = None,
    plot: app.PlotOption = None,
    modules: app.ImportOption = None,
) -> None:
    """Compare an SRNN with its rivals on your images: which to use at which budget, and how sure that is.

    The rivals are single scales, tight crops, FixRes, GeM, test-time augmentation, ensembles, cascades and the trained
    mean. The backbone is frozen: features are computed once, and everything else is fitted to them and chosen on the
    validation images. The same command goes on after an interruption.
    """
    from srnn_zoo import comparison
    from srnn_zoo.evaluation.table import check_folder
    from srnn_zoo.training import recipe

    app.check_plot("--plot", plot)
    with app.about("--output"):
        check_folder(output)
    tried = [] if zooms in ("", "none") else loading.level_options(None, zooms).zooms or []
    try:
        found = comparison.compare(
            model,
            data,
            output,
            sizes=loading.level_options(sizes, None).sizes,
            zooms=tried,
            variants=[name.strip() for name in variants.split(",")],
            seeds=seeds,
            rates=loading.numbers("--rates", rates, float) or (),
            settings=recipe("probe", loss="anytime", epochs=epochs),
            rule=rule,
            test=test,
            data_dir=data_dir,
            val_fraction=val_fraction,
            workers=workers,
            pretrained=pretrained,
            device=device,
        )
    except KeyboardInterrupt:
        app.fail("interrupted; the same command goes on", code=130)
    typer.echo(found.to_markdown(), nl=False)
    if plot is not None:
        comparison.plot_comparison(found, plot)
        app.say(f"drawn to {plot}")
    place = [str(data), *(["--val-fraction", f"{val_fraction:g}"] if val_fraction else [])]
    place += [*(["--data-dir", str(data_dir)] if data_dir else []), *([] if pretrained else ["--no-pretrained"])]
    if command := _train_command(found, model, epochs):
        app.say(f"the best SRNN as a model of its own: {shlex.join(['srnn-zoo', 'train', *place, *command])}")
    app.report_skipped(found.skipped, found.images)


def _train_command(found: Comparison, model: str, epochs: int) -> list[str]:
    """The arguments of `srnn-zoo train`, except the data, that make the best SRNN."""
    fit = found.best_srnn.fit
    if fit is None:
        return []
    levels = ["--sizes", ",".join(str(view.size) for view in fit.views)]
    if any(view.zoom > 1 for view in fit.views):
        levels += ["--zooms", ",".join(f"{view.zoom:g}" for view in fit.views)]
    how = ["--recipe", "probe", "--set", "loss=anytime", "--set", f"lr={fit.lr:g}", "--epochs", str(epochs)]
    return ["--model", model, "--variant", fit.variant, *levels, *how, "--output", f"runs/{fit.variant}"]
