"""Names: `create_model`, the factories, `list_models`, and the registration of every name with timm."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, cast

import timm
from timm.data import infer_imagenet_subset
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    build_model_with_cfg,
    get_arch_pretrained_cfgs,
    model_entrypoint,
    register_model,
)

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.levels import pair
from srnn_zoo.weights.download import download_files
from srnn_zoo.weights.saved import CONFIG_FILE, SavedModel, open_saved

from .backbone import create_backbone, srnn_config, unexpected_argument
from .base_cnn import create_base_cnn
from .entries import TimmConfig, Weights, add_weights, matching, plan_weights, weights_of
from .initial import init_from_base_cnn, load_saved
from .srnn import SRNN
from .views import View
from .wrap import WRAPPED, as_backbone

PREFIX = "srnn_"

default_cfgs: dict[str, DefaultCfg] = {}  # timm's register_model reads it

_logger = logging.getLogger(__name__)

_SCALE_OPTIONS = frozenset({"variant", "scales", "zooms", "views", "activation", "interpolation", "exits", "norm"})
_TIMM_OPTIONS = frozenset({"num_classes", "drop_rate", "global_pool", "img_size"})  # the rest is for the backbone

StrPath = str | os.PathLike[str]
P = ParamSpec("P")


class ModelFactory(Protocol[P]):
    """A function that makes one architecture's SRNN, with the arguments of `create_model` after the name."""

    __name__: str
    __doc__: str | None
    __signature__: inspect.Signature

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> SRNN:
        """See `create_model`."""
        ...


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    variant: str | None = None,
    scales: Sequence[float] | None = None,
    zooms: Sequence[float] | None = None,
    views: str | View | None = None,
    activation: Literal["auto", "relu", "identity"] | None = None,
    interpolation: str | None = None,
    exits: Literal["shared", "separate"] | None = None,
    norm: Literal["shared", "per_level", "frozen"] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float | None = None,
    img_size: int | tuple[int, int] | None = None,
    weights: str | os.PathLike[str] | None = None,
    pretrained_backbone: bool | str | os.PathLike[str] = False,
    cache_dir: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> SRNN:
    """An SRNN by name: `srnn_` and any timm architecture, with or without one of timm's tags.

    What is not given, or None, is as in the saved SRNN whose weights are loaded; without one, as said here.

    Args:
        name: such as `"srnn_resnet18"`; with a tag of `list_pretrained()`, such as `"srnn_resnet18.half_gru_in1k"`, or
            with one of timm's, which chooses the backbone's weights and preprocessing: `"srnn_resnet18.tv_in1k"`. And
            `"hf-hub:owner/name"` or `"local-dir:PATH"` for a saved model.
        pretrained: take the best weights for this architecture and variant (`list_pretrained()`). Where there are none,
            take backbone *and* classifier from timm's weights, U = I and zero gates: a zero-shot model that works
            before any training. With another `num_classes` than theirs, the classifier is new.
        variant: what happens between two scales, one of `list_cells()`; by default `"half_gru"`.
        scales: sizes of the levels relative to the largest; they grow and end with 1.0. By default `(0.5, 1.0)`, with
            zooms all 1.0.
        zooms: how much each level zooms in: `(1.0, 1.6)` is the whole image, then a part of it 1.6 times as large. By
            default every level shows the whole.
        views: where a level with a zoom looks: `"center"`, the default; `"attention"`, where the level before found its
            answer; or a function (`srnn_zoo.register_view`).
        activation: φ; by default `"auto"`, the rectifier where the backbone's features are non-negative.
        interpolation: how levels are made: `"bicubic"`, the default, `"bilinear"` or `"gaussian"`.
        exits: `"shared"`, one classifier for all levels, as is the default; or `"separate"`, one for each.
        norm: batch norm `"shared"` by the levels, as is the default; `"per_level"`; or `"frozen"`.
        num_classes: width of the classifier; by default the pretrained weights' own, 1000 for ImageNet.
        in_chans: channels of the images; by default 3.
        drop_rate: dropout before the classifier, in [0, 1); by default 0.
        img_size: the size `(H, W)` of the largest level the model is meant for, with zooms of the image that levels are
            parts of; by default the one that makes the smallest level the backbone's own size.
        weights: a saved model (a folder, or a Hub id `"owner/name@revision"`), an SRNN's weights file, or a tag.
        pretrained_backbone: take the backbone alone from timm's weights, or from a checkpoint file of the base CNN.
        cache_dir: where downloads go instead of the usual caches.
        **kwargs: for the timm backbone, such as `drop_path_rate`.

    Raises:
        ValueError: for an unknown name, tag, variant or interpolation, with the closest names, and for wrong scales
            or zooms.
        TypeError: for an unknown option, with the closest names.
        WeightsUnavailableError: where weights are neither on this machine nor available from the network.

    Examples:
        >>> model = create_model("srnn_resnet18", variant="vanilla", num_classes=37)
    """
    if not isinstance(pretrained, bool | int):
        raise TypeError(f"pretrained must be True or False; got {pretrained!r}: is variant={pretrained!r} meant?")
    own = inspect.signature(create_model).parameters.keys() - {"name", "pretrained", "kwargs"}
    kwargs |= {key: value for key, value in locals().items() if key in own}
    if name.startswith(("hf-hub:", "local-dir:")) and pretrained and weights is None:
        saved = open_saved(name, cache_dir=cache_dir)
        name = saved.architecture
        kwargs["weights"] = saved
    elif name.startswith("hf-hub:"):
        (config,) = download_files(name.removeprefix("hf-hub:"), CONFIG_FILE, cache_dir=cache_dir)
        name = f"local-dir:{config.parent}"
    elif not name.startswith("local-dir:"):
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
    return matching(cast("list[str]", timm.list_models(f"{PREFIX}*", exclude_filters=f"{PREFIX}{WRAPPED}")), pattern)


def get_factory(name: str) -> ModelFactory[...]:
    """The factory of a name such as `"srnn_resnet18"`, also for an architecture registered with timm just now.

    Raises:
        ValueError: for an unknown name, with the closest ones.
    """
    architecture = name.removeprefix(PREFIX)
    known = timm.is_model(architecture) and not architecture.startswith(PREFIX)
    if name.startswith(PREFIX) and known and not timm.is_model(name):
        register(architecture)
    if "/" in name:
        raise ValueError(f"{name!r} is no model's name; srnn_zoo.SRNN.from_pretrained opens a folder or a Hub id")
    if not name.startswith(PREFIX) or not timm.is_model(name):
        raise ValueError(unknown_name("model", name, list_models(), "srnn_zoo.list_models() gives all names"))
    return cast("ModelFactory[...]", model_entrypoint(name))


def register(architecture: str) -> None:
    """Make the factory `srnn_<architecture>` and register it with timm, with the preprocessing of every tag."""

    factory = _factory(architecture)
    configs = {
        tag: PretrainedCfg(**srnn_config({**vars(config), "architecture": architecture, "tag": tag or None}))
        for tag, config in _backbone_configs(architecture).items()
    }
    for weights in weights_of(factory.__name__):  # as all configs here, with twice the backbone's own size (`entries`)
        height, width = weights.sizes[0]
        configs[weights.tag] = dataclasses.replace(
            next(iter(configs.values()), PretrainedCfg(architecture=factory.__name__)),  # timm may know none
            tag=weights.tag,
            hf_hub_id=weights.source if isinstance(weights.source, str) else None,
            input_size=(3, 2 * height, 2 * width),
            num_classes=weights.num_classes,
            label_names=weights.categories or None,
            license=weights.license or None,
            **weights.preprocessing,
        )
    if architecture == WRAPPED:
        configs = {"": PretrainedCfg(architecture=factory.__name__)}
    if configs:
        default_cfgs[factory.__name__] = DefaultCfg(tags=deque(configs), cfgs=configs)
    factory.__module__ = __name__  # timm adds the name to the module's `__all__`
    register_model(factory)
    factory.__module__ = __name__.partition(".")[0]  # where anybody finds it


def _backbone_configs(architecture: str) -> dict[str, PretrainedCfg]:
    """What `get_arch_pretrained_cfgs` gives, by tag, without its deep copies, which take longer than all the rest."""
    if not timm.is_model(architecture):
        return {}
    known = getattr(sys.modules[model_entrypoint(architecture).__module__], "default_cfgs", {}).get(architecture)
    if isinstance(known, DefaultCfg):
        return {tag: known.cfgs[tag] for tag in known.tags}
    return {"": PretrainedCfg(**known)} if known else {}


@functools.cache
def _factory(architecture: str) -> Any:
    """The one factory of an architecture; it pickles by its public name."""

    def factory(pretrained: bool = False, **kwargs: Any) -> SRNN:
        return _build(architecture, pretrained, **kwargs)

    factory.__name__ = factory.__qualname__ = f"{PREFIX}{architecture}"
    factory.__doc__ = f"SRNN over timm's `{architecture}`. Arguments: see `srnn_zoo.create_model`."
    return factory


def register_weights(weights: Weights) -> None:
    """Add weights to `list_pretrained()`: their tag then works here, in timm and in torchvision, as any other.

    Args:
        weights: the entry; its name's architecture is one of `list_models()`.

    Raises:
        ValueError: for an unknown architecture, or a name that is taken.

    Examples:
        >>> register_weights(Weights("srnn_resnet18.half_gru_flowers", "owner/name@v1", sha256=…, …))
    """
    get_factory(weights.architecture)
    architecture = weights.architecture.removeprefix(PREFIX)
    if f"{architecture}.{weights.tag}" in get_arch_pretrained_cfgs(architecture):
        raise ValueError(f"{weights.tag} is timm's tag of other weights")
    add_weights(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm says that the name is taken
        register(architecture)


def documented(architecture: str, title: str):  # the type is that of create_model without the name
    """A popular architecture's factory, with a title and the arguments of `create_model` in its help."""
    factory = _like(create_model, get_factory(f"{PREFIX}{architecture}"))
    signature = inspect.signature(create_model)
    factory.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    help_text = inspect.cleandoc(create_model.__doc__ or "")
    arguments = help_text[help_text.index("    pretrained:") : help_text.index("Raises:")]
    factory.__doc__ = f"SRNN over {title}, timm's `{architecture}`.\n\nArgs:\n{arguments}"
    return factory


def _like(create: Callable[Concatenate[str, P], SRNN], factory: Any) -> ModelFactory[P]:
    """The factory as what it is to a type checker: `create` without the name."""
    return factory


def _build(
    architecture: str,
    pretrained: bool,
    *,
    weights: StrPath | SavedModel | None = None,
    pretrained_cfg: TimmConfig = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: StrPath | None = None,
    pretrained_backbone: bool | StrPath = False,
    **kwargs: Any,
) -> SRNN:
    """The SRNN over an architecture of timm's; arguments as of `create_model`, and what timm hands to a factory."""
    pretrained = pretrained or weights is not None
    plan = plan_weights(
        f"{PREFIX}{architecture}",
        {key: value for key, value in kwargs.items() if value is not None},
        pretrained=pretrained,
        weights=weights,
        pretrained_cfg=pretrained_cfg,
        overlay=pretrained_cfg_overlay,
        base_cnn_given=bool(pretrained_backbone),
        cache_dir=cache_dir,
    )
    own = {key: plan.arguments[key] for key in _SCALE_OPTIONS & plan.arguments.keys()}  # timm has a `variant` too
    file = None if isinstance(pretrained_backbone, bool) else pretrained_backbone
    fixed_size = getattr(timm.models.get_pretrained_cfg(architecture), "fixed_input_size", False)

    def make(in_chans: int = 3, backbone_img_size: Any = None, **arguments: Any) -> SRNN:
        options = {key: arguments.pop(key) for key in _TIMM_OPTIONS & arguments.keys()} | own
        one_level = len(options.get("scales", (0.5, 1.0))) == 1 and "zooms" not in options
        if fixed_size and "img_size" in options and one_level:
            backbone_img_size = pair(options["img_size"])
        if backbone_img_size is not None:
            arguments["img_size"] = tuple(backbone_img_size)
        base_cnn: Any = None
        if plan.saved is None and (pretrained or pretrained_backbone):
            base_cnn = create_base_cnn(
                architecture, plan.base_tag, file=file, cache_dir=cache_dir, in_chans=in_chans, **arguments
            )
            if pretrained and file is not None and "num_classes" not in plan.arguments:
                options["num_classes"] = base_cnn.num_classes
        model = SRNN(_create_backbone(architecture, in_chans=in_chans, **arguments), **options)
        if plan.saved is not None:
            load_saved(model, plan.saved, plan.config)
        elif base_cnn is not None:
            init_from_base_cnn(model, base_cnn, classifier=pretrained)
            base = f"{architecture}.{plan.base_tag}" if plan.base_tag else architecture
            model.metadata = {} if file else {"base_model": base}
            subset = infer_imagenet_subset(base_cnn)
            if pretrained and not file and subset and base_cnn.num_classes == model.num_classes:
                model.metadata["dataset"] = subset  # what the classifier's classes are named after
            text = "%s: zero-shot, from %s" if model.zero_shot else "%s: the backbone's weights are those of %s"
            _logger.info(text, f"{PREFIX}{architecture}", os.fspath(file) if file else f"timm's {base}")
        return model

    timm_options: dict[str, Any] = {
        "pretrained_cfg": plan.config.to_dict(),
        "cache_dir": cache_dir,
        "feature_cfg": {"feature_cls": "getter", "out_indices": None},  # all maps of `forward_intermediates`
        **{key: value for key, value in plan.arguments.items() if key not in own},
    }
    model = build_model_with_cfg(cast(Any, make), f"{PREFIX}{architecture}", False, **timm_options)
    model._model_args = plan.arguments
    return cast(SRNN, model)


def _create_backbone(architecture: str, **arguments: Any) -> Any:
    """The backbone, or an error with the closest name for an option that is neither an SRNN's nor the backbone's."""
    options = list(inspect.signature(create_model).parameters)[1:-1]
    try:
        if architecture == WRAPPED:
            return as_backbone(**{"net": None, "img_size": (224, 224), **arguments})
        backbone = create_backbone(architecture, **arguments)
    except TypeError as error:
        if (name := unexpected_argument(error)) not in arguments:
            raise
        raise TypeError(unknown_name("option", name, options, "see help(srnn_zoo.create_model)")) from error
    known = inspect.signature(type(backbone)).parameters  # some architectures swallow any argument
    for name in arguments.keys() - known.keys() - set(options):
        if difflib.get_close_matches(name, options, n=1, cutoff=0.8):
            raise TypeError(unknown_name("option", name, options))
    return backbone


for _architecture in (*timm.list_models(exclude_filters=f"{PREFIX}*"), WRAPPED):
    register(_architecture)
