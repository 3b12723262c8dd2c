"""torchvision: after `register()`, `torchvision.models.get_model` and the like find every SRNN and its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, cast

import torchvision
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import get_arch_pretrained_cfgs
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms import Compose

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.presets import levels_transform

from .create import create_model, list_models
from .entries import PREPROCESSING, best_weights, weights_of
from .srnn import SRNN


def register() -> None:
    """Make every SRNN known to torchvision: `get_model`, `list_models`, `get_weight`, `torchvision.models.srnn_…`.

    Call it again after `srnn_zoo.register_weights`, for torchvision to know them too.

    Raises:
        ImportError: if this torchvision lacks `torchvision.models._api.BUILTIN_MODELS`, which is not public.

    Examples:
        >>> register()
        >>> torchvision.models.get_model("srnn_resnet18", weights="DEFAULT", variant="vanilla")
        >>> torchvision.models.get_weight("SRNN_RESNET18_Weights.A1_IN1K").transforms()
    """
    try:
        from torchvision.models._api import BUILTIN_MODELS
    except ImportError as error:
        raise ImportError(
            f"torchvision {torchvision.__version__} takes no other models (it has no BUILTIN_MODELS); "
            "use srnn_zoo.create_model or timm.create_model"
        ) from error
    for name in list_models():
        weights = _weights_enum(name, tuple(entry.tag for entry in weights_of(name)))
        BUILTIN_MODELS[name] = builder = _builder(name, weights)
        setattr(torchvision.models, name, builder)
        setattr(torchvision.models, weights.__name__, weights)


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

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state dict of the model with these weights; files with a known checksum are always checked."""
        return create_model(self.meta["name"], pretrained=True).state_dict()


def largest_level(*, antialias: bool = True, exact: bool = False, **config: Any) -> Compose:
    """A transform of an image to the largest level, one normalised tensor `(C, H, W)`; the model builds the others.

    Args:
        antialias: for torchvision's callers; must be True.
        exact: as for `srnn_zoo.create_transform`.
        **config: `input_size` `(C, H, W)`, `mean`, `std`, `crop_pct`, `crop_mode` and `interpolation`, as in timm.

    Raises:
        ValueError: if `antialias` is False.
    """
    if not antialias:
        raise ValueError("levels are always antialiased; leave antialias=True")
    levels = levels_transform(config, (config["input_size"][-2:],), exact=exact)
    return Compose([*levels.transforms, itemgetter(0)])


def _builder(name: str, weights_enum: type[WeightsOfSRNN]) -> Callable[..., SRNN]:
    """What torchvision has for every architecture; it reads the enum off the annotation of `weights`."""

    def build(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> SRNN:
        """An SRNN with weights of `torchvision.models.get_model_weights`; arguments as of `srnn_zoo.create_model`."""
        member = weights_enum.verify(weights)
        pretrained = kwargs.pop("pretrained", False)  # as programs for an old torchvision say it
        if member is not None and pretrained:
            raise ValueError("give either weights or pretrained=True")
        full_name = name if member is None else member.meta["name"]
        return create_model(full_name, pretrained or member is not None, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__annotations__["weights"] = weights_enum
    return build


@functools.cache
def _weights_enum(name: str, tags: tuple[str, ...]) -> type[WeightsOfSRNN]:
    """The weights of an architecture; the same class while its entries are those of `tags`."""
    configs, entries = get_arch_pretrained_cfgs(name), {entry.tag: entry for entry in weights_of(name)}
    timms = {c.tag: c for c in get_arch_pretrained_cfgs(name.removeprefix("srnn_")).values() if c.has_weights and c.tag}
    members: dict[str, Weights] = {}
    for tag in (*entries, *timms):
        config, entry = configs[f"{name}.{tag}"], entries.get(tag)
        preprocessing = {key: getattr(config, key) for key in ("input_size", *PREPROCESSING)}
        names = list(config.label_names) if config.label_names else _imagenet_names(config.num_classes)
        meta = {"architecture": name, "categories": names}
        if entry is not None:
            preprocessing["input_size"] = (3, *entry.sizes[-1])
            url = entry.url
            meta = {**vars(entry), "variant": entry.variant, **meta}
        else:
            repo = timms[tag].hf_hub_id
            url = f"https://huggingface.co/{repo.partition('@')[0]}" if repo else str(timms[tag].url)
            meta |= {"name": f"{name}.{tag}", "base": f"{name.removeprefix('srnn_')}.{tag}", "variant": "half_gru"}
            meta |= {"zero_shot": config.num_classes > 0, "num_classes": config.num_classes, "license": config.license}
            meta["recipe"] = "timm's weights of the base CNN, U = I, gates zero; no training as an SRNN"
        members[tag.upper()] = Weights(url, partial(largest_level, **preprocessing), meta)
    best = best_weights(name, "half_gru")
    default = best.tag if best else next(iter(timms), None)  # timm's first is its default
    if default:
        members["DEFAULT"] = members[default.upper()]
    create_enum = cast("Callable[..., type[WeightsOfSRNN]]", WeightsOfSRNN)
    return create_enum(f"{name.upper()}_Weights", members, module=torchvision.models.__name__)


@functools.cache
def _imagenet_names(num_classes: int) -> list[str] | None:
    """Names of the classes of the ImageNet that has so many of them; the same list every time."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return list(ImageNetInfo(subset).label_descriptions()) if subset else None
