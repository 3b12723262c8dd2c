"""Which weights a model gets: a saved model's, an entry of `list_pretrained()`, or those of its base CNN."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, resolve_pretrained_cfg

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.pyramid import pair, scale_ratios
from srnn_zoo.weights.saved import SavedModel, open_saved

from .entries import PipFile, Weights, best_weights, find_weights, weights_of

__all__ = ["Plan", "TimmConfig", "plan_weights"]

StrPath = str | os.PathLike[str]
TimmConfig = str | dict[str, Any] | PretrainedCfg | None


class Plan(NamedTuple):
    """What a model is made from.

    Attributes:
        config: timm's config of the model.
        arguments: of the factory, the saved ones included.
        saved: the weights of an SRNN, or None.
        base_tag: timm's tag of the base CNN's weights.
    """

    config: PretrainedCfg
    arguments: dict[str, Any]
    saved: SavedModel | None
    base_tag: str


def plan_weights(
    name: str,
    arguments: dict[str, Any],
    *,
    pretrained: bool,
    weights: StrPath | SavedModel | None = None,
    pretrained_cfg: TimmConfig = None,
    overlay: Mapping[str, Any] | None = None,
    base_cnn_given: bool = False,
    cache_dir: StrPath | None = None,
) -> Plan:
    """Find out what to make a model from.

    Args:
        name: such as `srnn_resnet18`.
        arguments: of the factory, as the user gave them.
        pretrained: whether weights are wanted.
        weights: a saved model, a weights file, a Hub id or a tag, in place of all else.
        pretrained_cfg: a tag, or the config of a saved model, from timm.
        overlay: entries in place of the config's, from timm.
        base_cnn_given: whether the user named the base CNN's weights.
        cache_dir: where downloads go.

    Raises:
        ValueError: for unknown weights, with the closest names, and for weights of another architecture or variant.
    """
    overlay = dict(overlay or {})
    place: StrPath | SavedModel | None = None
    if weights is not None:
        pretrained_cfg, place = _tag_or_place(name, weights)
    entry = None if place else _entry(name, pretrained, pretrained_cfg, arguments, base_cnn_given)
    base_tag = ""
    if entry is not None:
        arguments = _entry_arguments(entry, arguments)
        pretrained_cfg, base_tag = entry.tag, entry.base.partition(".")[2]
    saved = _open(place, entry, pretrained_cfg, overlay, cache_dir) if pretrained else None
    if saved is not None:
        _check_same_kind(name, saved, arguments)
        arguments = {**saved.model_args, **arguments}
        pretrained_cfg = saved.config or pretrained_cfg
        overlay = {key: value for key, value in overlay.items() if key not in _LOCATIONS}
        if entry is not None:
            overlay = {"tag": entry.tag, **entry.preprocessing, **overlay}
        if not saved.config and "fc.weight" in saved.state:
            overlay["num_classes"] = len(saved.state["fc.weight"])
    config = _resolve_config(name, pretrained_cfg, overlay, arguments)
    return Plan(config, arguments, saved, base_tag or config.tag or "")


_LOCATIONS = frozenset({"file", "state_dict", "hf_hub_id", "source"})


def _tag_or_place(name: str, weights: StrPath | SavedModel) -> tuple[str | None, StrPath | SavedModel | None]:
    """`weights=` as a tag, or as the saved model, path or Hub id that it is else."""
    if not isinstance(weights, str):
        return None, weights
    tag = weights.removeprefix(f"{name}.")
    tags = _tags(name)
    if tag in tags:
        return tag, None
    if weights and ("/" in weights or Path(weights).exists()):
        return None, weights
    hint = "or give a folder, a file or a Hub id (owner/name)"
    raise ValueError(f"{unknown_name(f'weights of {name}', tag, tags)} {hint}")


def _tags(name: str) -> list[str]:
    """Tags of an SRNN's own weights, and timm's of its base CNN."""
    timms = get_arch_pretrained_cfgs(name.removeprefix("srnn_"))
    return [*(weights.tag for weights in weights_of(name)), *(key.partition(".")[2] for key in timms)]


def _entry(
    name: str, pretrained: bool, pretrained_cfg: TimmConfig, arguments: Mapping[str, Any], base_cnn_given: bool
) -> Weights | None:
    """The entry of a tag, or without one the best."""
    if isinstance(pretrained_cfg, str):
        return find_weights(f"{name}.{pretrained_cfg}")
    if pretrained_cfg is None and pretrained and not base_cnn_given:
        return best_weights(name, arguments.get("variant", "half_gru"))
    return None


def _entry_arguments(entry: Weights, arguments: dict[str, Any]) -> dict[str, Any]:
    variant = arguments.get("variant", entry.variant)
    if variant != entry.variant:
        raise ValueError(f"weights {entry.name} are of variant {entry.variant!r}; asked for {variant!r}")
    return {**entry.model_args, **arguments}


def _open(
    place: StrPath | SavedModel | None,
    entry: Weights | None,
    pretrained_cfg: TimmConfig,
    overlay: Mapping[str, Any],
    cache_dir: StrPath | None,
) -> SavedModel | None:
    """The saved model, where the weights are one's."""
    if isinstance(place, SavedModel):
        return place
    if place is not None:
        return open_saved(place, cache_dir=cache_dir)
    if entry is not None:
        if isinstance(entry.source, PipFile):
            return None
        return open_saved(entry.source, sha256=entry.sha256, cache_dir=cache_dir)
    config = pretrained_cfg if isinstance(pretrained_cfg, dict) else getattr(pretrained_cfg, "__dict__", {})
    config = {**config, **overlay}
    if config.get("state_dict"):
        return SavedModel("the state dict", config["state_dict"])
    location = config.get("file") or config.get("hf_hub_id")
    return open_saved(location, cache_dir=cache_dir) if location else None


def _check_same_kind(name: str, saved: SavedModel, arguments: Mapping[str, Any]) -> None:
    """Refuse another architecture, and another variant, whose parameters may have the same names and shapes."""
    if saved.architecture not in ("", name):
        raise ValueError(f"the weights of {saved.source} are of {saved.architecture}; asked for {name}")
    variant = saved.model_args.get("variant")
    asked = arguments.get("variant", variant)
    if variant and asked != variant and any(key.startswith("cell.") for key in saved.state):
        raise ValueError(f"the weights of {saved.source} are of variant {variant!r}; asked for {asked!r}")


def _resolve_config(
    name: str, pretrained_cfg: TimmConfig, overlay: dict[str, Any], arguments: Mapping[str, Any]
) -> PretrainedCfg:
    """The config as timm resolves it; one that does not come with weights gets the input size of these scales."""
    config = resolve_pretrained_cfg(name, pretrained_cfg, overlay)  # pyright: ignore[reportArgumentType]
    if isinstance(pretrained_cfg, dict | PretrainedCfg):
        return config
    numerator, denominator = scale_ratios(arguments.get("scales", (0.5, 1.0)))[0]
    channels, *size = config.input_size  # as registered: twice the backbone's own
    height, width = (length * denominator // (2 * numerator) for length in size)
    if "img_size" in arguments:
        height, width = pair(arguments["img_size"])
    return dataclasses.replace(config, input_size=(channels, height, width))
