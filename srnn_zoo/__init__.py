"""Scale-recurrent networks (SRNN; D.-Q. Zhang, 2018) over any timm backbone.

    model = srnn_zoo.srnn_resnet18(variant="half_gru", pretrained=True)

Every timm architecture has a factory, `srnn_zoo.srnn_<architecture>`, and a name for `timm.create_model`.
"""

from __future__ import annotations

from ._version import __version__
from .cells import Cell, list_cells, register_cell
from .factories import *  # noqa: F403
from .flops import count_gmacs
from .model import SRNN, Step
from .pretrained import WeightsUnavailableError, init_from_base_cnn
from .pyramid import Pyramid
from .registry import ModelFactory, create_model, get_factory, list_models
from .transforms import ScalePyramid, create_transform

__all__ = [
    "SRNN",
    "Cell",
    "ModelFactory",
    "Pyramid",
    "ScalePyramid",
    "Step",
    "WeightsUnavailableError",
    "__version__",
    "count_gmacs",
    "create_model",
    "create_transform",
    "init_from_base_cnn",
    "list_cells",
    "list_models",
    "register_cell",
]


def __getattr__(name: str) -> ModelFactory:
    """`srnn_zoo.srnn_<architecture>`, for every architecture timm knows."""
    if not name.startswith("srnn_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return get_factory(name)
    except ValueError as error:
        raise AttributeError(str(error)) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *list_models()})
