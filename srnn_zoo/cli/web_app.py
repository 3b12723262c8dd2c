"""`srnn-zoo app`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import app, loading


@app.command("app")
def web_app(
    model: Annotated[
        str, typer.Argument(help="Name of a model (`srnn-zoo list`), folder of a saved one, or Hub id.")
    ] = app.DEFAULT_MODEL,
    variant: app.VariantOption = None,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    title: Annotated[str, typer.Option(help="Heading of the page.", show_default="the model's name")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="the first free from 7860")
    ] = None,
    device: app.DeviceOption = None,
    modules: app.ImportOption = None,
) -> None:
    """Open a page in the browser: drop an image, and see what each level says, where it looks, and where it stops.

    The page is for classification. It runs until Ctrl-C.
    """
    from srnn_zoo.evaluation.app import launch

    network = loading.load(model, variant, loading.level_options(sizes, zooms, views), device)
    launch(network, title, server_name=host, server_port=port)
