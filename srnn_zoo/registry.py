"""Names: the factories, `create_model`, `list_models`, and the registration of every name with timm."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import inspect
import os
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import timm
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    build_model_with_cfg,
    get_arch_pretrained_cfgs,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)

from ._errors import unknown_name
from .backbone import create_backbone, srnn_config, unexpected_argument
from .model import SRNN
from .pretrained import create_base_cnn, init_from_base_cnn, require_hub_model
from .pyramid import Interpolation, pair, scale_ratios

PREFIX = "srnn_"

_SCALE_OPTIONS = frozenset({"variant", "scales", "activation", "interpolation"})
_TIMM_OPTIONS = frozenset({"num_classes", "drop_rate", "global_pool", "img_size"})  # the rest is for the backbone

default_cfgs: dict[str, DefaultCfg] = {}  # timm's register_model reads it


class ModelFactory(Protocol):
    """A function that makes one architecture's SRNN."""

    __name__: str
    __doc__: str | None
    __signature__: inspect.Signature

    def __call__(
        self,
        pretrained: bool = False,
        *,
        variant: str = "half_gru",
        scales: Sequence[float] = (0.5, 1.0),
        activation: Literal["auto", "relu", "identity"] = "auto",
        interpolation: Interpolation = "bicubic",
        num_classes: int | None = None,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        img_size: int | tuple[int, int] | None = None,
        pretrained_backbone: bool | str | os.PathLike[str] = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **backbone_args: Any,
    ) -> SRNN:
        """See `create_model`."""
        ...


def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> SRNN:
    """An SRNN by name: `srnn_` and any timm architecture, with or without one of timm's tags.

    Args:
        name: such as `"srnn_resnet18"` or `"srnn_resnet18.tv_in1k"`; the tag chooses the backbone's weights and
            preprocessing.
        pretrained: take backbone *and* classifier from timm's weights, U = I and zero gates: a zero-shot model that
            works before any training. With another `num_classes` than theirs, the classifier is new.
        variant: what happens between two scales (`list_cells()`).
        scales: relative sizes of the levels; they grow and end with 1.0.
        activation: φ: `"auto"`, `"relu"` or `"identity"` (`SRNN`).
        interpolation: how levels are made: `"bicubic"`, `"bilinear"` or `"gaussian"`.
        num_classes: width of the classifier, by default the pretrained weights' own (1000 for ImageNet).
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
        img_size: the size `(H, W)` of the largest level the model is meant for.
        pretrained_backbone: take the backbone alone from timm's weights, or from a checkpoint file of the base CNN.
        cache_dir: where downloads go.
        **kwargs: for the timm backbone, such as `drop_path_rate`.

    Raises:
        ValueError: for an unknown name, tag, variant or interpolation, with the closest names, and for wrong scales.
        TypeError: for an unknown option, with the closest names.
        WeightsUnavailableError: where weights are neither on this machine nor to be had from the network.

    Examples:
        >>> model = create_model("srnn_resnet18", variant="vanilla", num_classes=37)
    """
    if name.startswith("hf-hub:"):
        require_hub_model(name.removeprefix("hf-hub:"), kwargs.get("cache_dir"))
    if ":" not in name:
        architecture, _, tag = name.partition(".")
        get_factory(architecture)
        tags = [key.partition(".")[2] for key in get_arch_pretrained_cfgs(architecture)]
        if tag and tag not in tags:
            raise ValueError(unknown_name(f"tag of {architecture}", tag, tags))
    return cast(SRNN, timm.create_model(name, pretrained=pretrained, **kwargs))


def list_models(pattern: str = "") -> list[str]:
    """Names of all SRNNs, sorted as timm sorts them.

    Args:
        pattern: a wildcard pattern for the whole name; a plain word is looked for anywhere in it.

    Examples:
        >>> list_models("srnn_resnet1*")[:2]
        ['srnn_resnet10t', 'srnn_resnet14t']
    """
    names = cast("list[str]", timm.list_models(f"{PREFIX}*"))
    if pattern and not any(c in pattern for c in "*?["):
        pattern = f"*{pattern}*"
    return fnmatch.filter(names, pattern) if pattern else names


def get_factory(name: str) -> ModelFactory:
    """The factory of a name such as `"srnn_resnet18"`, also for an architecture registered with timm just now.

    Raises:
        ValueError: for an unknown name, with the closest ones.
    """
    architecture = name.removeprefix(PREFIX)
    known = timm.is_model(architecture) and not architecture.startswith(PREFIX)
    if name.startswith(PREFIX) and known and not timm.is_model(name):
        register(architecture)
    if not name.startswith(PREFIX) or not timm.is_model(name):
        raise ValueError(unknown_name("model", name, list_models(), "srnn_zoo.list_models() gives all names"))
    return cast(ModelFactory, model_entrypoint(name))


def register(architecture: str) -> ModelFactory:
    """Make the factory `srnn_<architecture>` and register it with timm, with the preprocessing of every tag."""

    def factory(pretrained: bool = False, **kwargs: Any) -> SRNN:
        return _create(architecture, pretrained=pretrained, **kwargs)

    factory.__name__ = factory.__qualname__ = f"{PREFIX}{architecture}"
    factory.__doc__ = f"SRNN over timm's `{architecture}`. Arguments: see `srnn_zoo.create_model`."
    configs = {
        name.partition(".")[2]: PretrainedCfg(**srnn_config(vars(config)))
        for name, config in get_arch_pretrained_cfgs(architecture).items()
        if config.architecture
    }
    if configs:
        default_cfgs[factory.__name__] = DefaultCfg(tags=deque(configs), cfgs=configs)
    return cast(ModelFactory, register_model(factory))


def register_all() -> None:
    """Register an SRNN for every architecture timm knows."""
    for architecture in timm.list_models(exclude_filters=f"{PREFIX}*"):
        register(architecture)


def _create(
    architecture: str,
    *,
    pretrained: bool,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    pretrained_backbone: bool | str | os.PathLike[str] = False,
    **kwargs: Any,
) -> SRNN:
    """Build through timm's own builder, which resolves the config, loads SRNN weights and wraps `features_only`."""
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    config = _resolve_config(architecture, pretrained_cfg, pretrained_cfg_overlay, kwargs)
    own_weights = pretrained and bool(config.has_weights or config.state_dict)
    scale_options = {key: kwargs[key] for key in _SCALE_OPTIONS & kwargs.keys()}  # not for timm: it has a `variant` too
    notes: list[str] = []

    def build(in_chans: int = 3, backbone_img_size: Any = None, **arguments: Any) -> SRNN:
        options = {key: arguments.pop(key) for key in _TIMM_OPTIONS & arguments.keys()} | scale_options
        if "img_size" in options and len(options.get("scales", (0.5, 1.0))) == 1 and _fixed_size(architecture):
            backbone_img_size = pair(options["img_size"])
        if backbone_img_size is not None:
            arguments["img_size"] = tuple(backbone_img_size)
        backbone = _create_backbone(architecture, in_chans=in_chans, **arguments)
        model = SRNN(backbone, **options)
        if (pretrained or pretrained_backbone) and not own_weights:
            file = None if isinstance(pretrained_backbone, bool) else pretrained_backbone
            base_cnn = create_base_cnn(
                architecture, config.tag or "", file=file, cache_dir=cache_dir, in_chans=in_chans, **arguments
            )
            init_from_base_cnn(model, base_cnn, classifier=pretrained)
            notes.extend(model.pretrained_cfg.get("notes", ()))
        return model

    arguments: dict[str, Any] = {
        "pretrained_cfg": config.to_dict(),
        "cache_dir": cache_dir,
        "feature_cfg": {"feature_cls": "getter", "out_indices": None},  # all maps of `forward_intermediates`
        **{key: value for key, value in kwargs.items() if key not in scale_options},
    }
    model = build_model_with_cfg(cast(Any, build), f"{PREFIX}{architecture}", own_weights, **arguments)
    if notes:
        model.pretrained_cfg["notes"] = tuple(notes)
    model._model_args = kwargs
    return cast(SRNN, model)


def _resolve_config(
    architecture: str,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None,
    overlay: dict[str, Any] | None,
    kwargs: dict[str, Any],
) -> PretrainedCfg:
    """The config as timm resolves it; one that does not come with weights gets the input size of these scales."""
    config = resolve_pretrained_cfg(f"{PREFIX}{architecture}", cast(Any, pretrained_cfg), overlay)
    if isinstance(pretrained_cfg, dict | PretrainedCfg):
        return config
    numerator, denominator = scale_ratios(kwargs.get("scales", (0.5, 1.0)))[0]
    channels, *size = config.input_size  # as registered: twice the backbone's own
    height, width = (length * denominator // (2 * numerator) for length in size)
    if "img_size" in kwargs:
        height, width = pair(kwargs["img_size"])
    return dataclasses.replace(config, input_size=(channels, height, width))


def _fixed_size(architecture: str) -> bool:
    """Whether timm makes the architecture for one size, given as `img_size`."""
    config = timm.models.get_pretrained_cfg(architecture)
    return config is not None and config.fixed_input_size


def _create_backbone(architecture: str, **arguments: Any) -> Any:
    """The backbone, or an error with the closest name for an option that is neither an SRNN's nor the backbone's."""
    try:
        backbone = create_backbone(architecture, **arguments)
    except TypeError as error:
        name = unexpected_argument(error)
        if name is None or name not in arguments:
            raise
        raise TypeError(unknown_name("option", name, _options(), "see help(srnn_zoo.create_model)")) from error
    known = inspect.signature(type(backbone)).parameters  # some architectures swallow any argument
    for name in arguments.keys() - known.keys() - set(_options()):
        if difflib.get_close_matches(name, _options(), n=1, cutoff=0.8):
            raise TypeError(unknown_name("option", name, _options()))
    return backbone


def _options() -> list[str]:
    """All options a factory takes for the SRNN."""
    return list(inspect.signature(ModelFactory.__call__).parameters)[1:-1]


def documented(architecture: str, title: str) -> ModelFactory:
    """A popular architecture's factory, with a title and the arguments of `create_model` in its help."""
    factory = get_factory(f"{PREFIX}{architecture}")
    signature = inspect.signature(ModelFactory.__call__)
    factory.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # without self
    help_text = inspect.cleandoc(create_model.__doc__ or "")
    arguments = help_text[help_text.index("    pretrained:") : help_text.index("Raises:")]
    factory.__doc__ = f"SRNN over {title}, timm's `{architecture}`.\n\nArgs:\n{arguments}"
    return factory


register_all()
