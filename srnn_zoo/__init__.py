"""Scale-recurrent networks (SRNN; D.-Q. Zhang, 2018) over any timm backbone.

    model = srnn_zoo.srnn_resnet18(variant="half_gru", pretrained=True)

Every timm architecture has a factory, `srnn_zoo.srnn_<architecture>`, and a name for `timm.create_model`.
"""

from __future__ import annotations

import importlib
from typing import Any

from ._errors import WeightsUnavailableError
from .inference.answers import collect
from .inference.calibrate import budget_rule, calibrate
from .inference.curve import pareto, write_pareto
from .inference.early_exit import Anytime
from .inference.exits import list_exits, register_exit
from .models.cells import Cell, list_cells, register_cell
from .models.convert import to_base_cnn
from .models.cost import count_gmacs
from .models.create import ModelFactory, create_model, get_factory, list_models, register_weights
from .models.entries import Weights, get_weights, list_pretrained
from .models.factories import *  # noqa: F403
from .models.initial import init_from_base_cnn
from .models.srnn import SRNN, Step
from .transforms.batches import HeightBatchSampler, pyramid_collate
from .transforms.packed import LazyLevels, PackedPyramid
from .transforms.presets import create_transform
from .transforms.pyramid import Pyramid
from .transforms.scale_pyramid import ScalePyramid

__version__ = "0.1.0"

__all__ = [
    "SRNN",
    "Anytime",
    "Cell",
    "HeightBatchSampler",
    "LazyLevels",
    "ModelFactory",
    "PackedPyramid",
    "Pyramid",
    "ScalePyramid",
    "Step",
    "Weights",
    "WeightsUnavailableError",
    "__version__",
    "budget_rule",
    "calibrate",
    "collect",
    "count_gmacs",
    "create_model",
    "create_transform",
    "get_weights",
    "init_from_base_cnn",
    "list_cells",
    "list_exits",
    "list_models",
    "list_pretrained",
    "pareto",
    "pyramid_collate",
    "register_cell",
    "register_exit",
    "register_weights",
    "to_base_cnn",
    "write_pareto",
]


def __getattr__(name: str) -> Any:
    """`srnn_zoo.srnn_<architecture>`, for every architecture timm knows."""
    if name in ("evaluation", "training"):  # what nobody should wait for who does not ask for it
        return importlib.import_module(f"{__name__}.{name}")
    if not name.startswith("srnn_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return get_factory(name)
    except ValueError as error:
        raise AttributeError(str(error)) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *list_models()})
