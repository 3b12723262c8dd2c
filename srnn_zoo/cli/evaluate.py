"""`srnn-zoo evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import app, loading

if TYPE_CHECKING:
    from srnn_zoo.inference.processes import Processes
    from srnn_zoo.models.srnn import SRNN


@app.command()
def evaluate(
    data: app.DataArgument,
    models: Annotated[
        list[str],
        typer.Argument(help="Names of models, folders of saved ones, or Hub ids: one row each.", show_default=False),
    ],
    variants: Annotated[
        str | None, typer.Option("--variants", help="Make every model in these variants: vanilla,half_gru.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Model of the rows of single scales and ensembles; by default the first of the models."),
    ] = None,
    split: app.SplitOption = None,
    data_dir: app.DataDirOption = None,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    exact: app.ExactOption = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="A row for all models together: the mean of their probabilities.")
    ] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Rows of test-time augmentation: the base CNN on mirror images too.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="Row that the others are tested against; by default the better ensemble.")
    ] = None,
    batch_size: app.BatchSizeOption = 8,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images; by default none on a CPU, else up to 8.")
    ] = None,
    device: app.DeviceOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for table.csv, table.md and predictions.csv.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Page that shows where the models are wrong: by level, by class, image by image."
        ),
    ] = None,
    exit: Annotated[
        str | None,
        typer.Option(
            metavar="RULE", help="When images stop in the report: confidence:0.9, margin:0.5, …, or calibrated."
        ),
    ] = None,
    save_as: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="Save the scores with the models, which are folders, as those on this data set: owner/name.",
        ),
    ] = None,
    modules: app.ImportOption = None,
) -> None:
    """Compare models with single scales and with ensembles of scales: the paper's Table 1.

    Processes that torchrun or accelerate launch starts share the images.

    Images that cannot be read count in no figure. They are listed at the end, and make the command exit with 1.
    """
    from srnn_zoo import evaluation
    from srnn_zoo.evaluation.by_level import rule_for
    from srnn_zoo.evaluation.table import PARTIAL, PREDICTIONS_FILE, check_folder
    from srnn_zoo.inference.processes import Processes

    levels = loading.level_options(sizes, zooms, views)
    if output is not None:
        with app.about("--output"):
            check_folder(output)
    if report is not None:
        from srnn_zoo.evaluation.report import check_report_file

        with app.about("--report"):
            check_report_file(report)
    elif exit is not None:
        app.fail("--exit says when images stop in a report: give --report report.html too")
    if save_as is not None:
        _check_can_be_saved(models, changed=levels.changed or variants is not None)
    with Processes() as processes:
        named = _load_models(models, variants, levels, device, processes)
        if exit is not None:
            with app.about("--exit"):
                for model in named.values():
                    rule_for(model, exit)
        try:
            table = evaluation.evaluate(
                named,
                data,
                base=None if base is None else loading.load_in_all(processes, base, None, levels, device),
                split=split,
                data_dir=data_dir,
                reference=reference,
                batch_size=batch_size,
                workers=workers,
                exact=exact,
                ensemble=ensemble,
                flip=flip,
                output=output,
                report=report,
                exit=exit,
                progress=True,
                processes=processes,
            )
        except KeyboardInterrupt:
            if output is None:
                raise
            app.fail(f"interrupted; what was done is in {output / (PREDICTIONS_FILE + PARTIAL)}", code=130)
        if not processes.is_first:
            return
    typer.echo(table.to_markdown(), nl=False)
    if report is not None:
        app.say(f"report written to {report}")
    if save_as is not None and not table.skipped:
        for place, (name, model) in zip(models, named.items(), strict=True):
            row = table.row(name)
            _save_scores(model, Path(place.removeprefix("local-dir:")), save_as, row.top1_error, row.top5_error)
    app.report_skipped([item.reason for item in table.skipped], len(table.skipped) + table.rows[0].images)


def _check_can_be_saved(models: list[str], changed: bool) -> None:
    """Refuse --save-as for what has no folder, and for models that are evaluated in another way than they are saved."""
    for name in models:
        if not Path(name.removeprefix("local-dir:")).is_dir():
            app.fail(f"--save-as saves scores with a model, and {name!r} is no folder of a saved one")
    if changed:
        app.fail("--variants, --sizes, --zooms and --views change the model: leave out --save-as")


def _save_scores(model: SRNN, folder: Path, dataset: str, top1_error: float, top5_error: float) -> None:
    scores = {"top1": round(100 - top1_error, 2)}
    scores |= {"top5": round(100 - top5_error, 2)} if model.num_classes > 5 else {}
    model.save_pretrained(folder, metrics={**model.metadata.get("metrics", {}), dataset: scores})
    app.say(f"scores saved to {folder}")


def _load_models(
    names: list[str],
    variants: str | None,
    levels: loading.LevelOptions,
    device: str | None,
    processes: Processes,
) -> dict[str, SRNN]:
    """The models by the names of their rows: their variants, and where two have the same one, what they are as well."""
    chosen: list[str | None] = [None] if variants is None else [variant.strip() for variant in variants.split(",")]
    for what, given in (("model", names), ("variant", list(map(str, chosen)))):
        if repeated := sorted({name for name in given if given.count(name) > 1}):
            app.fail(f"{what} {repeated[0]!r} is named twice")
    every = [(name, variant) for name in names for variant in chosen]
    models = [(name, loading.load_in_all(processes, name, variant, levels, device)) for name, variant in every]
    found = [model.variant for _, model in models]
    if len(set(found)) == len(found):
        return {model.variant: model for _, model in models}
    return {f"{model.variant}, {name}": model for name, model in models}
