"""torchvision: after `register()`, `torchvision.models.get_model` and the like find every SRNN and its weights."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Optional, cast

import torchvision
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, is_model
from torch import Tensor
from torchvision.models import Weights, WeightsEnum

from srnn_zoo._errors import unknown_name
from srnn_zoo.models.create import create_model, list_models
from srnn_zoo.models.entries import Weights as SRNNWeights
from srnn_zoo.models.entries import best_weights, weights_of
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.presets import levels_transform

__all__ = ["LargestLevel", "WeightsOfSRNN", "register", "weights_enum"]


def register() -> None:
    """Make every SRNN known to torchvision: `get_model`, `list_models`, `get_weight`, `torchvision.models.srnn_…`.

    Call it again after `srnn_zoo.register_weights`, for `torchvision.models.get_weight` to know them too.

    Raises:
        ImportError: if this torchvision lacks `torchvision.models._api.register_model`, which is not public.

    Examples:
        >>> register()
        >>> torchvision.models.get_model("srnn_resnet18", weights="DEFAULT", variant="vanilla")
        >>> torchvision.models.get_weight("SRNN_RESNET18_Weights.A1_IN1K").transforms()
    """
    try:
        from torchvision.models._api import BUILTIN_MODELS, register_model
    except ImportError as error:
        raise ImportError(
            f"torchvision {torchvision.__version__} cannot be told of other models (it has no register_model); "
            "use srnn_zoo.create_model or timm.create_model"
        ) from error
    for name in list_models():
        if name not in BUILTIN_MODELS:
            setattr(torchvision.models, name, register_model(name)(Builder(name)))
        enum = weights_enum(name)
        setattr(torchvision.models, enum.__name__, enum)


class Builder:
    """A model builder as torchvision has one for every architecture, such as `torchvision.models.srnn_resnet18`.

    Args:
        name: of the architecture, such as `"srnn_resnet18"`.
    """

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self.__doc__ = f"`{name}` with torchvision's arguments. Arguments: see `Builder.__call__`."

    def __call__(self, *, weights: WeightsOfSRNN | str | None = None, progress: bool = True, **kwargs: Any) -> SRNN:
        """An SRNN.

        Args:
            weights: a member of `torchvision.models.get_model_weights(name)`, its name, or `"DEFAULT"`; None for random
                weights.
            progress: whether downloads show a progress bar.
            **kwargs: as of `srnn_zoo.create_model`: `variant`, `num_classes`, …. Unlike in torchvision, `num_classes`
                may differ from the weights' own, and then the classifier is new. `pretrained=True` is
                `srnn_zoo.create_model(name, pretrained=True)`, for programs that were written for old torchvision.

        Raises:
            ValueError: for unknown weights, with the closest names.
            TypeError: for weights of another architecture.
        """
        pretrained = kwargs.pop("pretrained", False)
        if weights is not None and pretrained:
            raise ValueError("give either weights or pretrained=True")
        member = weights_enum(self.__name__).verify(weights)
        name = self.__name__ if member is None else member.value.name
        with _progress_bars(progress):
            return create_model(name, pretrained=bool(pretrained or member), **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """What `torchvision.models.get_model_weights` reads."""
        Parameter = inspect.Parameter
        weights_type = Optional[weights_enum(self.__name__)]  # noqa: UP045 - torchvision reads its arguments
        return inspect.Signature(
            [
                Parameter("weights", Parameter.KEYWORD_ONLY, default=None, annotation=weights_type),
                Parameter("progress", Parameter.KEYWORD_ONLY, default=True, annotation=bool),
                Parameter("kwargs", Parameter.VAR_KEYWORD, annotation=Any),
            ],
            return_annotation=SRNN,
        )

    def __repr__(self) -> str:
        return f"<torchvision builder of {self.__name__}>"


class WeightsOfSRNN(WeightsEnum):
    """Weights of one architecture: those of the SRNN (`srnn_zoo.list_pretrained`), then timm's of its base CNN.

    A member's name is the tag in capital letters. With timm's weights an SRNN is zero-shot.
    """

    @classmethod
    def verify(cls, obj: Any) -> Any:
        """The member that is meant by itself or by its name; None for None."""
        if not isinstance(obj, str):
            return super().verify(obj)
        name = obj.removeprefix(f"{cls.__name__}.")
        if not len(cls):
            raise ValueError(f"there are no weights for {cls.__name__.removesuffix('_Weights').lower()}")
        if name not in cls.__members__:
            raise ValueError(unknown_name(f"member of {cls.__name__}", name, cls.__members__))
        return cls[name]

    def get_state_dict(self, *, progress: bool = True, check_hash: bool = True) -> dict[str, Any]:
        """The state dict of the model with these weights.

        Args:
            progress: whether downloads show a progress bar.
            check_hash: for torchvision's callers; files with a known checksum are always checked.
        """
        with _progress_bars(progress):
            return create_model(self.value.name, pretrained=True).state_dict()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return getattr, (type(self), self.name)


class DescribedWeights(Weights):
    """torchvision's `Weights` that write their `meta` when it is first read: the names of classes take time.

    Attributes:
        name: for `srnn_zoo.create_model`, such as `"srnn_resnet18.a1_in1k"`.
    """

    def __init__(
        self, name: str, url: str, transforms: Callable[..., LargestLevel], describe: Callable[[], dict[str, Any]]
    ) -> None:
        self.name = name
        self.url = url
        self.transforms = transforms
        self._describe = describe

    @functools.cached_property
    def meta(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """torchvision's keys, and this package's, where they are known."""
        return self._describe()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DescribedWeights) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class LargestLevel:
    """An image to the largest level: one normalised tensor `(C, H, W)`, as torchvision's models have it.

    A model builds the other levels from it. `srnn_zoo.create_transform(model)` gives all levels, each resized from the
    image itself.

    Takes a PIL image, or a tensor `(…, C, H, W)`, uint8 or float in [0, 1].

    Args:
        input_size: `(C, H, W)`.
        mean: one value a channel.
        std: one value a channel.
        crop_pct: the part of the image that the centre crop keeps, in (0, 1].
        crop_mode: timm's: `"center"`, `"squash"` or `"border"`.
        interpolation: `"bicubic"` or `"bilinear"`.
        antialias: for torchvision's callers; must be True.

    Raises:
        ValueError: if `antialias` is False.
    """

    def __init__(self, *, antialias: bool = True, **config: Any) -> None:
        if not antialias:
            raise ValueError("levels are always antialiased; leave antialias=True")
        self.config = config
        self._transform = levels_transform(config, (config["input_size"][-2:],))

    def __call__(self, image: Any) -> Tensor:
        return self._transform(image)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config.items())})"


def weights_enum(name: str) -> type[WeightsOfSRNN]:
    """The weights of an architecture such as `"srnn_resnet18"`, as torchvision has them.

    The same class every time, until weights are added to the architecture.
    """
    entries = weights_of(name)
    tags = tuple(entry.tag for entry in entries)
    known = _enums.get(name)
    if known is None or known.tags != tags:
        known = _enums[name] = _Enum(tags, _make_enum(name, entries))
    return known.members


class _Enum(NamedTuple):
    tags: tuple[str, ...]
    members: type[WeightsOfSRNN]


_enums: dict[str, _Enum] = {}


def __getattr__(name: str) -> type[WeightsOfSRNN]:
    """`SRNN_RESNET18_Weights`, also in a process that unpickles a member of it."""
    architecture = name.removesuffix("_Weights").lower()
    if not re.fullmatch("SRNN_[A-Z0-9_]+_Weights", name) or not is_model(architecture):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return weights_enum(architecture)


def _make_enum(name: str, entries: list[SRNNWeights]) -> type[WeightsOfSRNN]:
    members = {entry.tag.upper(): _from_entry(entry) for entry in entries}
    default = best_weights(name, "half_gru") if entries else None
    default_tag = "" if default is None else default.tag.upper()
    for base, config in get_arch_pretrained_cfgs(name.removeprefix("srnn_")).items():
        tag = (config.tag or "").upper()
        if config.has_weights and tag:
            default_tag = default_tag or tag  # timm's first is its default
            members.setdefault(tag, _from_timm(base, config))
    if default_tag:
        members["DEFAULT"] = members[default_tag]
    create_enum = cast("Callable[..., type[WeightsOfSRNN]]", WeightsOfSRNN)
    return create_enum(f"{name.upper()}_Weights", members, module=__name__)


def _from_entry(entry: SRNNWeights) -> DescribedWeights:
    config = {**entry.preprocessing, "input_size": (3, *entry.sizes[-1])}

    def describe() -> dict[str, Any]:
        return {
            "architecture": entry.architecture,
            "variant": entry.variant,
            "zero_shot": entry.zero_shot,
            "base": entry.base,
            "recipe": entry.recipe,
            "license": entry.license,
            "sha256": entry.sha256,
            "num_classes": entry.num_classes,
            "categories": list(entry.categories) or _imagenet_names(entry.num_classes),
            "_file_size": round(entry.file_size / 1024**2, 3),  # as torchvision gives it
            "_metrics": {_TORCHVISION_DATA.get(data, data): _metrics(values) for data, values in entry.metrics.items()},
        }

    return DescribedWeights(entry.name, entry.url, partial(LargestLevel, **config), describe)


def _from_timm(base: str, config: PretrainedCfg) -> DescribedWeights:
    """Zero-shot weights: timm's of the base CNN, for the levels at its own size and at twice that."""
    channels, height, width = config.input_size
    keys = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    transforms = partial(
        LargestLevel,
        **{key: getattr(config, key) for key in keys},
        input_size=(channels, 2 * height, 2 * width),
    )

    def describe() -> dict[str, Any]:
        meta = {
            "architecture": f"srnn_{config.architecture}",
            "variant": "half_gru",
            "zero_shot": config.num_classes > 0,
            "base": base,
            "recipe": "timm's weights of the base CNN, U = I, gates zero; no training as an SRNN",
            "license": config.license,
            "num_classes": config.num_classes,
            "categories": config.label_names or _imagenet_names(config.num_classes),
        }
        return {key: value for key, value in meta.items() if value is not None}

    repo = config.hf_hub_id
    url = f"https://huggingface.co/{repo.partition('@')[0]}" if repo else str(config.url)
    return DescribedWeights(f"srnn_{base}", url, transforms, describe)


_TORCHVISION_DATA = {"imagenet-1k": "ImageNet-1K"}
_TORCHVISION_METRICS = {"top1": "acc@1", "top5": "acc@5"}


def _metrics(values: Mapping[str, float]) -> dict[str, float]:
    return {_TORCHVISION_METRICS.get(key, key): value for key, value in values.items()}


@functools.cache
def _imagenet_names(num_classes: int) -> list[str] | None:
    """Names of the classes of the ImageNet that has so many of them; the same list every time."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return list(ImageNetInfo(subset).label_descriptions()) if subset else None


@contextmanager
def _progress_bars(show: bool) -> Iterator[None]:
    """Without the Hub's progress bars, where they are not to be shown."""
    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
