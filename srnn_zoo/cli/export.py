"""`srnn-zoo export`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import app, loading

if TYPE_CHECKING:
    from srnn_zoo.datasets.readers import Images
    from srnn_zoo.models.srnn import SRNN

CALIBRATION_IMAGES = 128  # for ranges of values more change little


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="Name of a model, folder of a saved one, or Hub id.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default=False)],
    format: Annotated[str, typer.Option(metavar="NAME", help="onnx, openvino or torch.")] = "onnx",
    kind: Annotated[
        str, typer.Option(metavar="NAME", help="Graphs for stopping early (steps), one graph (whole), or both.")
    ] = "both",
    input: Annotated[str, typer.Option(metavar="NAME", help="What the whole graph reads: image or levels.")] = "image",
    int8: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Quantise the encoder with these labelled images, and show what it costs."),
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option("--images", metavar="PATH", help="Photographs to compare the graphs with.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    variant: app.VariantOption = None,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    split: app.SplitOption = None,
    data_dir: app.DataDirOption = None,
    modules: app.ImportOption = None,
) -> None:
    """Write a model as graphs that run without Python or torch, each compared with the model.

    The folder also holds run.py, which classifies image files with numpy, Pillow and the runtime alone.
    """
    from srnn_zoo.datasets.images import find_images
    from srnn_zoo.datasets.readers import open_labelled
    from srnn_zoo.export.export import check_place
    from srnn_zoo.export.formats import check_format

    with app.about("--format"):
        check_format(format)
    with app.about("--output"):
        check_place(output, overwrite)
    compared = find_images(images) if images else None
    where: dict[str, Any] = {"split": split, "data_dir": data_dir}
    photographs = None if int8 is None else _some(open_labelled(int8, **where))
    network = loading.load(model, variant, loading.level_options(sizes, zooms, views), "cpu")
    options: dict[str, Any] = {"format": format, "kind": kind, "input": input, "overwrite": overwrite}
    if photographs is not None:
        options |= {"kind": "steps", "int8": photographs}
    done = network.export(output, images=compared, progress=True, **options)
    for name, difference in done.differences.items():
        app.say(f"{name}: answers as the model does, to {difference:.1e}")
    sizes_read = "images of any size" if done.any_size else "levels of the model's own sizes alone"
    program = done.folder / "run.py"  # a whole graph alone has none
    usage = f"; python {output / program.name} IMAGE classifies an image" if program.is_file() else ""
    app.say(f"exported to {done.folder}, for {sizes_read}{usage}")
    if photographs is not None and int8 is not None:
        _show_cost(network, output, int8, len(photographs), **where)


def _some(images: Images) -> list[Any]:
    """At most 128 images, evenly from the whole; of a stream the first."""
    from srnn_zoo.datasets.images import Skipped
    from srnn_zoo.datasets.readers import LabelledImages

    if isinstance(images, LabelledImages):
        step = max(1, len(images) // CALIBRATION_IMAGES)
        items = (images[index] for index in range(0, len(images), step))
    else:
        items = iter(images)
    found = [item[1] for item in islice(items, CALIBRATION_IMAGES) if not isinstance(item[1], Skipped)]
    if not found:
        app.fail("--int8: none of the images can be read")
    return found


def _show_cost(network: SRNN, folder: Path, data: str, count: int, **where: Any) -> None:
    """Accuracy of the model and of the quantised one after every level."""
    from srnn_zoo.datasets.loader import ImageLoader
    from srnn_zoo.inference.answers import collect
    from srnn_zoo.inference.exported import open_exported

    loader = ImageLoader(data, network, **where)
    before, after = (
        collect(model, loader).right.double().mean(dim=1) * 100 for model in (network, open_exported(folder))
    )
    for (height, width), float32, quantised in zip(network.level_sizes(), before.tolist(), after.tolist(), strict=True):
        typer.echo(f"top-1 after {height} x {width}: {float32:.2f} % in float32, {quantised:.2f} % in 8 bits")
    app.say(f"on {loader.seen - len(loader.skipped)} images; {count} of them set the ranges of values")
    app.report_skipped([item.reason for item in loader.skipped], loader.seen)
