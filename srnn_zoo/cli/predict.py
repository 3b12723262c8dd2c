"""`srnn-zoo predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import app, fail
from .options import DEFAULT_MODEL, ModelOption, SizesOption, VariantOption, load, parse_sizes

if TYPE_CHECKING:
    from srnn_zoo.predict import Answer, Prediction, Skipped

MAX_PLOTTED = 12


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
) -> None:
    """Name what is on pictures: the best classes after every level.

    Pictures that cannot be read are passed over, listed at the end, and make the command exit with 1.
    """
    from tqdm import tqdm

    from srnn_zoo.images import ImageError, find_images
    from srnn_zoo.predict import Skipped
    from srnn_zoo.predict import predict as predict_pictures

    if not all(images):
        fail("a path is empty")
    try:
        paths = find_images(images)
    except ImageError as error:
        fail(str(error))
    if plot is not None:
        _check_plot(plot, len(paths))
    level_sizes = parse_sizes(sizes)
    network = load(model, variant, level_sizes, device)
    results: Iterable[Prediction | Skipped] = predict_pictures(
        network, paths, sizes=level_sizes, topk=topk, batch_size=batch_size
    )
    skipped: list[Skipped] = []
    kept: list[Prediction] = []
    hide_bar = len(paths) <= batch_size or not sys.stderr.isatty()
    for result in tqdm(_readable(results), total=len(paths), unit="picture", disable=hide_bar, leave=False):
        if isinstance(result, Skipped):
            skipped.append(result)
            continue
        with tqdm.external_write_mode():
            typer.echo(json.dumps(_as_dict(result)) if as_json else _as_text(result))
        if plot is not None:
            kept.append(result)
    if plot is not None and kept:
        from srnn_zoo.plot import plot_predictions

        plot_predictions(kept, plot)
        typer.echo(f"drawn to {plot}", err=True)
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
    }


def _as_text(prediction: Prediction, width: int = 34) -> str:
    """The path, then one column a level with its best classes."""

    def cell(answer: Answer, rank: int) -> str:
        name, probability = answer.top[rank]
        return f"{name.split(',')[0][: width - 10]:<{width - 9}}{100 * probability:5.1f} %"

    notes = f"  ({'; '.join(prediction.notes)})" if prediction.notes else ""
    titles = [f"{a.size[0]} x {a.size[1]}" for a in prediction.answers]
    lines = ["  ".join(f"{title:<{width - 2}}" for title in titles)]
    for rank in range(len(prediction.answers[0].top)):
        lines.append("  ".join(cell(answer, rank) for answer in prediction.answers))
    return "\n".join([f"{prediction.path}{notes}", *(f"  {line}".rstrip() for line in lines)])


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
    from srnn_zoo.plot import check_plot_file

    if pictures > MAX_PLOTTED:
        fail(f"--plot draws up to {MAX_PLOTTED} pictures; got {pictures}")
    try:
        check_plot_file(file)
    except (ImportError, OSError, ValueError) as error:
        fail(f"--plot: {error}")
