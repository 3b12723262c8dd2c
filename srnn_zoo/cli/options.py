"""Options that several commands have, and what they stand for: a model with its weights, on its device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import fail

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN

__all__ = ["DEFAULT_MODEL", "ModelOption", "SizesOption", "VariantOption", "create", "load", "parse_sizes"]

DEFAULT_MODEL = "srnn_tf_efficientnet_lite0"

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name of a model (`srnn-zoo list`), folder of a saved one, or Hub id.")
]
VariantOption = Annotated[
    str | None,
    typer.Option("--variant", "-v", help="What happens between two scales. [default: half_gru, or as saved]"),
]
SizesOption = Annotated[
    str | None, typer.Option("--sizes", help="Sizes of the levels in pixels, smallest first: 224,448.")
]


def parse_sizes(text: str | None) -> list[int] | None:
    """The sizes in a text such as `224,448`, or None for none; exits where they make no pyramid."""
    if text is None:
        return None
    from srnn_zoo.transforms.scale_pyramid import ScalePyramid

    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"--sizes takes whole numbers with commas between, such as 224,448; got {text!r}")
    try:
        ScalePyramid(sizes)
    except ValueError as error:
        fail(f"--sizes: {error}")
    return sizes


def load(name: str, variant: str | None, sizes: list[int] | None, device: str | None) -> SRNN:
    """A pretrained model in eval mode on its device."""
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen).tolist()  # before the work; "meta" exists, but has no values to give
    except (RuntimeError, AssertionError) as error:
        kind = type(error).__name__
        fail(f"--device {chosen} is not to be had here ({kind}); cpu always is")
    return create(name, variant, sizes, pretrained=True).eval().to(chosen)


def create(name: str, variant: str | None, sizes: list[int] | None, *, pretrained: bool, **options: Any) -> SRNN:
    """A model by name, folder or Hub id; exits with the reason where there is none."""
    from srnn_zoo.models.create import create_model

    options |= {} if variant is None else {"variant": variant}
    if sizes is not None:
        options |= {"scales": [size / sizes[-1] for size in sizes], "img_size": sizes[-1]}
    if name and ":" not in name and Path(name).is_dir():
        name = f"local-dir:{name}"
        pretrained = True  # nothing needs downloading
    elif ":" not in name and "/" in name:
        name = f"hf-hub:{name}"
    try:
        return create_model(name, pretrained=pretrained, **options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:  # timm's own are RuntimeErrors
        fail(str(error))
