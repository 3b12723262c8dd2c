"""Names: the factories, `create_model`, `list_models`, and the registration of every name with timm."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections import deque
from typing import Any, cast

import timm
from timm.models import DefaultCfg, PretrainedCfg, get_arch_pretrained_cfgs, model_entrypoint, register_model

from srnn_zoo._errors import unknown_name
from srnn_zoo.weights.download import download_files
from srnn_zoo.weights.saved import CONFIG_FILE, open_saved

from .backbone import srnn_config
from .build import ModelFactory, build
from .entries import PipFile, Weights, add_weights, matching, weights_of
from .srnn import SRNN

__all__ = ["create_model", "documented", "get_factory", "list_models", "register", "register_all", "register_weights"]

PREFIX = "srnn_"

default_cfgs: dict[str, DefaultCfg] = {}  # timm's register_model reads it


def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> SRNN:
    """An SRNN by name: `srnn_` and any timm architecture, with or without one of timm's tags.

    Args:
        name: such as `"srnn_resnet18"`; with a tag of `list_pretrained()`, such as `"srnn_resnet18.half_gru_in1k"`, or
            with one of timm's, which chooses the backbone's weights and preprocessing: `"srnn_resnet18.tv_in1k"`. And
            `"hf-hub:owner/name"` or `"local-dir:PATH"` for a saved model.
        pretrained: take the best weights there are for this architecture and variant (`list_pretrained()`), else
            backbone *and* classifier from timm's weights, U = I and zero gates: a zero-shot model that works before
            any training. With another `num_classes` than theirs, the classifier is new.
        variant: what happens between two scales (`list_cells()`).
        scales: relative sizes of the levels; they grow and end with 1.0.
        activation: φ: `"auto"`, `"relu"` or `"identity"` (`SRNN`).
        interpolation: how levels are made: `"bicubic"`, `"bilinear"` or `"gaussian"`.
        exits: `"shared"`, one classifier for all levels, or `"separate"`, one for each.
        norm: batch norm `"shared"` by the levels, `"per_level"`, or `"frozen"`.
        num_classes: width of the classifier, by default the pretrained weights' own (1000 for ImageNet).
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
        img_size: the size `(H, W)` of the largest level the model is meant for.
        weights: a saved model (a folder, or a Hub id `"owner/name@revision"`), an SRNN's weights file, or a tag.
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
    if name.startswith(("hf-hub:", "local-dir:")) and pretrained:
        saved = open_saved(name, cache_dir=kwargs.get("cache_dir"))
        return cast(SRNN, timm.create_model(saved.architecture, weights=saved, **kwargs))
    if name.startswith("hf-hub:"):
        (config,) = download_files(name.removeprefix("hf-hub:"), CONFIG_FILE, cache_dir=kwargs.get("cache_dir"))
        name = f"local-dir:{config.parent}"
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
    return matching(cast("list[str]", timm.list_models(f"{PREFIX}*")), pattern)


def get_factory(name: str) -> ModelFactory:
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
    return cast(ModelFactory, model_entrypoint(name))


def register(architecture: str) -> ModelFactory:
    """Make the factory `srnn_<architecture>` and register it with timm, with the preprocessing of every tag."""

    def factory(pretrained: bool = False, **kwargs: Any) -> SRNN:
        return build(architecture, pretrained=pretrained, **kwargs)

    factory.__name__ = factory.__qualname__ = f"{PREFIX}{architecture}"
    factory.__doc__ = f"SRNN over timm's `{architecture}`. Arguments: see `srnn_zoo.create_model`."
    configs = {
        name.partition(".")[2]: PretrainedCfg(**srnn_config(vars(config)))
        for name, config in get_arch_pretrained_cfgs(architecture).items()
        if config.architecture
    }
    for weights in weights_of(factory.__name__):
        configs[weights.tag] = _weights_config(weights, next(iter(configs.values())))
    if configs:
        default_cfgs[factory.__name__] = DefaultCfg(tags=deque(configs), cfgs=configs)
    return cast(ModelFactory, register_model(factory))


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


def _weights_config(weights: Weights, default: PretrainedCfg) -> PretrainedCfg:
    """timm's config of an entry. As all configs here, it has twice the backbone's own size (`sources`)."""
    height, width = weights.sizes[0]
    return dataclasses.replace(
        default,
        tag=weights.tag,
        hf_hub_id=None if isinstance(weights.source, PipFile) else weights.source,
        input_size=(3, 2 * height, 2 * width),
        num_classes=weights.num_classes,
        label_names=weights.categories or None,
        license=weights.license or None,
        **weights.preprocessing,
    )


def register_all() -> None:
    """Register an SRNN for every architecture timm knows."""
    for architecture in timm.list_models(exclude_filters=f"{PREFIX}*"):
        register(architecture)


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
