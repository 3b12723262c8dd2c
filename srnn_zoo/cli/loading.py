"""The model that a command loads or makes, and the options that say what its levels are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import app

if TYPE_CHECKING:
    from srnn_zoo.inference.processes import Processes
    from srnn_zoo.models.srnn import SRNN

NumberT = TypeVar("NumberT", int, float)


class LevelOptions(NamedTuple):
    """What --sizes, --zooms and --views say; what is None is as the model has it."""

    sizes: list[int] | None = None
    zooms: list[float] | None = None
    views: str | None = None

    @property
    def changed(self) -> bool:
        """Whether one of them was given."""
        return self != LevelOptions()


def level_options(sizes: str | None, zooms: str | None, views: str | None = None) -> LevelOptions:
    """The options as numbers; exits where they make no pyramid."""
    from srnn_zoo.models.views import find_view
    from srnn_zoo.transforms.views import check_zooms

    options = LevelOptions(numbers("--sizes", sizes, int), numbers("--zooms", zooms, float), views)
    if options.zooms is not None:
        with app.about("--zooms"):
            check_zooms(options.zooms, len(options.sizes or options.zooms))
    if views is not None:
        with app.about("--views"):
            find_view(views)
    return options


def numbers(option: str, text: str | None, kind: type[NumberT]) -> list[NumberT] | None:
    """The numbers in a text such as `224,448`, or None for none."""
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers with commas between, such as 224,448" if kind is int else "numbers such as 1,1.6"
        app.fail(f"{option} takes {what}; got {text!r}")


def load(name: str, variant: str | None, levels: LevelOptions, device: str | None) -> SRNN:
    """A pretrained model in eval mode on its device, or an exported one."""
    import torch

    from srnn_zoo.inference.exported import is_exported

    if is_exported(name):
        return _open_exported(name, variant, levels, device)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen).tolist()  # before the work; "meta" exists, but has no values to give
    except (RuntimeError, AssertionError) as error:
        app.fail(f"--device {chosen} is not available here ({type(error).__name__}); cpu always is")
    return create(name, variant, levels, pretrained=True).eval().to(chosen)


def load_in_all(processes: Processes, name: str, variant: str | None, levels: LevelOptions, device: str | None) -> SRNN:
    """The same in every process, on a GPU of its own if there are any; the first may fetch it for all."""
    chosen = processes.device(device)
    return processes.first_then_all(lambda: load(name, variant, levels, chosen))


def _open_exported(name: str, variant: str | None, levels: LevelOptions, device: str | None) -> SRNN:
    from srnn_zoo.inference.exported import open_exported

    if variant is not None or device not in (None, "cpu"):
        app.fail(
            f"{name} is an exported model: it has its variant, and runs on the CPU: leave out --variant and --device"
        )
    if levels.zooms is not None or levels.views is not None:
        app.fail(f"{name} is an exported model: it has its views: leave out --zooms and --views")
    return open_exported(name, sizes=levels.sizes)


def create(
    name: str, variant: str | None, levels: LevelOptions, *, pretrained: bool, device: str = "cpu", **options: Any
) -> SRNN:
    """A model by name, folder or Hub id; exits with the reason where there is none. A saved one is never on meta."""
    import torch

    from srnn_zoo.models.create import create_model
    from srnn_zoo.transforms.scale_pyramid import ScalePyramid

    options |= {"variant": variant, "zooms": levels.zooms, "views": levels.views}
    options = {key: value for key, value in options.items() if value is not None}
    source = _source(name)
    if levels.sizes is not None:
        with app.about("--sizes"):
            pyramid = ScalePyramid(levels.sizes, zooms=levels.zooms or _saved_zooms(source))
        largest = max(levels.sizes)
        options |= {"scales": [size / largest for size in levels.sizes], "img_size": pyramid.image_size}
    pretrained = pretrained or source.startswith("local-dir:")  # nothing needs downloading
    try:
        with torch.device("cpu" if pretrained else device):
            return create_model(source, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:  # timm's own are RuntimeErrors
        app.fail(str(error))


def _saved_zooms(source: str) -> list[float] | None:
    """The zooms of a model in a folder."""
    if not source.startswith("local-dir:"):
        return None
    from srnn_zoo.weights.saved import read_config

    return read_config(Path(source.removeprefix("local-dir:"))).get("model_args", {}).get("zooms")


def _source(name: str) -> str:
    """What `create_model` calls a saved folder, a Hub id or a model's name; what is on disk is asked first."""
    from srnn_zoo.weights.saved import CONFIG_FILE

    place = Path(name)
    if name and (place / CONFIG_FILE).is_file():
        return f"local-dir:{name}"
    if not name or name.startswith(("local-dir:", "hf-hub:")):
        return name
    is_path = name.startswith((".", "~")) or place.is_absolute() or ":" in name or "\\" in name
    if place.is_dir() and (is_path or "/" in name or not name.startswith("srnn_")):
        app.fail(f"{name} is no saved model: it has no {CONFIG_FILE}")
    if is_path:
        app.fail(f"{name} is no saved model: no such folder")
    return f"hf-hub:{name}" if "/" in name else name
