"""Scale-recurrent networks (SRNN; D.-Q. Zhang, 2018) over any timm backbone.

    model = srnn_zoo.srnn_resnet18(variant="half_gru", pretrained=True)

Every timm architecture has a factory, `srnn_zoo.srnn_<architecture>`, and a name for `timm.create_model`.
"""

from __future__ import annotations

import importlib
from typing import Any

import lazy_loader
import wrapt

_import, _, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names, and where each is, are in __init__.pyi

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is imported on first use, and `srnn_zoo.srnn_<architecture>` for every architecture timm knows."""
    if name in __all__:
        return _import(name)
    if not name.startswith("srnn_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .models.create import get_factory

    try:
        return get_factory(name)
    except ValueError as error:
        raise AttributeError(str(error)) from None


def __dir__() -> list[str]:
    from .models.create import list_models

    return sorted({*globals(), *__all__, *list_models()})


@wrapt.when_imported("timm")  # at once, where it is imported already
def _register_names(timm: Any) -> None:
    """Make every `srnn_<architecture>` known to timm.

    The folders that `models.create` imports must have imported none of their modules yet: those of them that need timm
    import it in their `__init__.py`.
    """
    importlib.import_module(f"{__name__}.models.create")
