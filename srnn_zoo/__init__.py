"""Scale-recurrent networks (SRNN; D.-Q. Zhang, 2018) over any timm backbone.

    model = srnn_zoo.srnn_resnet18(variant="half_gru", pretrained=True)

Every timm architecture has a factory, `srnn_zoo.srnn_<architecture>`, and a name for `timm.create_model`.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import Any

import lazy_loader

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


def _register_names() -> None:
    """Make every `srnn_<architecture>` known to timm.

    The folders that `models.create` imports must have imported none of their modules yet: those of them that need timm
    import it in their `__init__.py`.
    """
    importlib.import_module(f"{__name__}.models.create")


class _TimmFinder:
    """Calls `_register_names` as soon as timm has been imported, whoever imports it."""

    asking = False

    def find_spec(self, name: str, *_: Any) -> Any:
        """What the other finders find, with our names to follow; importlib's protocol, whose base class is slow."""
        if name != "timm" or self.asking:
            return None
        self.asking = True
        try:
            spec: Any = find_spec(name)
        finally:
            self.asking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            if module.__name__ == name:  # a loader may load others too
                _register_names()

        spec.loader.exec_module = execute_and_register
        return spec


if "timm" in sys.modules:
    _register_names()
else:
    sys.meta_path.insert(0, _TimmFinder())
