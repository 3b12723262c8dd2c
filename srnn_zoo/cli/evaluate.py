"""`srnn-zoo evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app, fail
from .options import SizesOption, load, parse_sizes

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN


@app.command()
def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder of class folders, .tar of one, or one of timm's data sets (hfds/food101).", show_default=False
        ),
    ],
    models: Annotated[
        list[str],
        typer.Argument(help="Names of models, folders of saved ones, or Hub ids: one row each.", show_default=False),
    ],
    variants: Annotated[
        str | None, typer.Option("--variants", help="Make every model in these variants: vanilla,half_gru.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Whose backbone and classifier give single scales and ensembles; by default the first model."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Subfolder of DATA, or timm's split, such as test.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the files of timm's data sets are.")] = None,
    sizes: SizesOption = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Row that the others are tested against; by default the better ensemble.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read pictures; by default none on a CPU, else up to 8.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; by default a GPU if there is one.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for table.csv, table.md and predictions.csv.")
    ] = None,
) -> None:
    """Compare models with single scales and with ensembles of scales: the paper's Table 1.

    Pictures that cannot be read are in no figure, listed at the end, and make the command exit with 1.
    """
    import torch

    from srnn_zoo import evaluation
    from srnn_zoo.evaluation.table import PARTIAL, PREDICTIONS_FILE, check_folder

    level_sizes = parse_sizes(sizes)
    if output is not None:
        try:
            check_folder(output)
        except ValueError as error:
            fail(f"--output: {error}")
    named = _load_models(models, variants, level_sizes, device)
    try:
        table = evaluation.evaluate(
            named,
            data,
            base=None if base is None else load(base, None, level_sizes, device),
            split=split,
            data_dir=data_dir,
            reference=reference,
            batch_size=batch_size,
            workers=workers,
            output=output,
            progress=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        fail("out of memory; a smaller --batch-size or smaller --sizes may fit")
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        if output is None:
            raise
        fail(f"interrupted; what was done is in {output / (PREDICTIONS_FILE + PARTIAL)}", code=130)
    typer.echo(table.to_markdown(), nl=False)
    if table.skipped:
        total = len(table.skipped) + table.rows[0].images
        typer.echo(f"skipped {len(table.skipped)} of {total} pictures:", err=True)
        for item in table.skipped:
            typer.echo(f"  {item.reason}", err=True)
        raise typer.Exit(1)


def _load_models(
    names: list[str], variants: str | None, sizes: list[int] | None, device: str | None
) -> dict[str, SRNN]:
    """The models by the names of their rows: their variants, and where two have the same one, what they are as well."""
    chosen: list[str | None] = [None] if variants is None else [variant.strip() for variant in variants.split(",")]
    for what, given in (("model", list(map(str, names))), ("variant", list(map(str, chosen)))):
        if repeated := sorted({name for name in given if given.count(name) > 1}):
            fail(f"{what} {repeated[0]!r} is named twice")
    models = [(name, load(name, variant, sizes, device)) for name in names for variant in chosen]
    found = [model.variant for _, model in models]
    if len(set(found)) == len(found):
        return {model.variant: model for _, model in models}
    return {f"{model.variant}, {name}": model for name, model in models}
