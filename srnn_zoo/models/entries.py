"""The SRNN weights that exist, and which of them, or which saved model, a name and its options mean."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, resolve_pretrained_cfg

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.levels import default_scales, pair, scale_ratios
from srnn_zoo.transforms.presets import levels_transform
from srnn_zoo.transforms.views import check_zooms
from srnn_zoo.weights.download import split_hub_id
from srnn_zoo.weights.saved import SavedModel, open_saved

from . import light_cells, map_cells  # noqa: F401 -- they register variants
from .base_cnn import PIP_FILES, PipFile
from .cells import list_cells

if TYPE_CHECKING:
    from torchvision.transforms import Compose

PREPROCESSING = ("mean", "std", "crop_pct", "crop_mode", "interpolation")  # the keys of timm's that belong to weights

StrPath = str | os.PathLike[str]
TimmConfig = str | dict[str, Any] | PretrainedCfg | None


@dataclass(frozen=True)
class Weights:
    """One set of weights of one model.

    Attributes:
        name: `srnn_<architecture>.<tag>`, in timm's grammar; the tag begins with the variant.
        source: a Hub id, `"owner/name@revision"`, of a model that `save_pretrained` wrote; or, for zero-shot weights,
            the pip package that carries the base CNN's.
        sha256: checksum of the weights file, verified before it is used.
        file_size: of the weights file, in bytes.
        sizes: `(H, W)` of the levels, smallest first, that the weights are meant for.
        model_args: what the factory needs to make the model: `variant`, `scales`, ….
        preprocessing: `mean`, `std`, `crop_pct`, `crop_mode` and `interpolation`, as in timm's configs and with its
            defaults.
        num_classes: width of the classifier.
        categories: names of the classes; empty for ImageNet's, which timm knows.
        base: timm's name for the weights of the base CNN it started from.
        zero_shot: whether this is the paper's initialisation, never trained as an SRNN.
        metrics: figures by data set, such as `{"imagenet-1k": {"top1": 71.5}}`, in per cent.
        recipe: how it was trained.
        license: SPDX identifier in lower case.

    Raises:
        ValueError: for an entry that cannot be right, with what is wrong.
    """

    name: str
    source: str | PipFile
    sha256: str
    file_size: int
    sizes: tuple[tuple[int, int], ...]
    model_args: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    num_classes: int = 1000
    categories: tuple[str, ...] = ()
    base: str = ""
    zero_shot: bool = False
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    recipe: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        variant, unknown = self.model_args.get("variant"), sorted(self.preprocessing.keys() - set(PREPROCESSING))
        for right, fault in (
            (re.fullmatch(r"srnn_\w+\.[\w.-]+", self.name), "a name is srnn_<architecture>.<tag>"),
            (variant, "model_args must name the variant"),
            (self.tag.startswith(str(variant)), f"the tag must begin with the variant, {variant}"),
            (
                re.fullmatch("[0-9a-fA-F]{64}", self.sha256),
                f"sha256 must be 64 hexadecimal digits; got {self.sha256!r}",
            ),
            (
                self.sizes and all(len(size) == 2 for size in self.sizes),
                f"sizes must be (H, W) of every level, smallest first; got {self.sizes!r}",
            ),
            (not unknown, unknown and unknown_name("preprocessing", unknown[0], PREPROCESSING)),
        ):
            if not right:
                raise ValueError(f"weights {self.name!r}: {fault}")
        if isinstance(self.source, str):
            split_hub_id(self.source)
        object.__setattr__(self, "sha256", self.sha256.lower())

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def architecture(self) -> str:
        """Such as `srnn_resnet18`."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """Such as `half_gru_in1k`."""
        return self.name.partition(".")[2]

    @property
    def variant(self) -> str:
        """What happens between two scales."""
        return self.model_args["variant"]

    @property
    def url(self) -> str:
        """Where the weights are: the file's address on the Hub, or the pip package's page."""
        if isinstance(self.source, PipFile):
            return self.source.url
        from huggingface_hub import hf_hub_url

        repo, _, revision = self.source.partition("@")
        return hf_hub_url(repo, "model.safetensors", revision=revision or None)

    def transforms(self, *, train: bool = False, **options: Any) -> Compose:
        """The preprocessing of these weights; options as for `create_transform`."""
        config = {**self.preprocessing, "input_size": (3, *self.sizes[-1])}
        return levels_transform(config, self.sizes, train=train, **options)


def list_pretrained(pattern: str = "") -> list[str]:
    """Names of all weights of SRNNs; those of their base CNNs are in `timm.list_pretrained()`.

    Args:
        pattern: a wildcard pattern for the whole name; a plain word is looked for anywhere in it.

    Examples:
        >>> list_pretrained("*lite0.half_gru*")
        ['srnn_tf_efficientnet_lite0.half_gru_zero_shot_in1k']
    """
    return matching(sorted(_WEIGHTS), pattern)


def get_weights(name: str) -> Weights:
    """The entry of a name from `list_pretrained()`.

    Raises:
        ValueError: for an unknown name, with the closest ones.
    """
    if name not in _WEIGHTS:
        raise ValueError(unknown_name("weights", name, _WEIGHTS, "srnn_zoo.list_pretrained() gives all names"))
    return _WEIGHTS[name]


def find_weights(name: str) -> Weights | None:
    """The entry of a name, if there is one."""
    return _WEIGHTS.get(name)


def weights_of(architecture: str) -> list[Weights]:
    """All entries of an architecture such as `srnn_resnet18`, in the order they were registered."""
    return [weights for weights in _WEIGHTS.values() if weights.name.startswith(f"{architecture}.")]


def best_weights(architecture: str, variant: str) -> Weights | None:
    """What `pretrained=True` takes: trained on ImageNet-1k with the best top-1 accuracy, else zero-shot, else None.

    Weights trained on other data are asked for by their tag.
    """

    top1 = {w: w.metrics.get("imagenet-1k", {}).get("top1", -1) for w in weights_of(architecture)}
    usable = [w for w in top1 if w.variant == variant and (w.zero_shot or top1[w] >= 0)]
    return max(usable, key=top1.__getitem__, default=None)


def add_weights(weights: Weights) -> None:
    """Enter weights into the list; `srnn_zoo.register_weights` tells timm as well.

    Raises:
        ValueError: for a name that is taken by other weights.
    """
    if _WEIGHTS.get(weights.name, weights) != weights:
        raise ValueError(f"weights named {weights.name!r} exist already, and are others")
    _WEIGHTS[weights.name] = weights


def matching(names: list[str], pattern: str) -> list[str]:
    """The names that a wildcard pattern, or a word anywhere in them, picks; all for an empty one."""
    if pattern and not any(c in pattern for c in "*?["):
        pattern = f"*{pattern}*"
    return fnmatch.filter(names, pattern) if pattern else names


_WEIGHTS: dict[str, Weights] = {}

# no trained SRNN is published yet; the paper's initialisation of these base CNNs works in every cell
for _base, _file in PIP_FILES.items():
    _config = get_arch_pretrained_cfgs(_base)[f"{_base}.in1k"]
    _height, _width = _config.input_size[1:]
    for _variant in sorted(list_cells(), key=lambda variant: variant != "half_gru"):  # the first tag is the default
        add_weights(
            Weights(
                name=f"srnn_{_base}.{_variant}_zero_shot_in1k",
                source=_file,
                sha256=_file.sha256,
                file_size=_file.file_size,
                sizes=((_height, _width), (2 * _height, 2 * _width)),
                model_args={"variant": _variant, "scales": (0.5, 1.0)},
                preprocessing={key: getattr(_config, key) for key in PREPROCESSING},
                base=f"{_base}.in1k",
                zero_shot=True,
                recipe="the base CNN's backbone and classifier, U = I, gates zero (section 4); no training",
                license="apache-2.0",
            )
        )


class Plan(NamedTuple):
    """What a model is made from: timm's config, all arguments of the factory, an SRNN's weights or a base CNN's tag."""

    config: PretrainedCfg
    arguments: dict[str, Any]
    saved: SavedModel | None
    base_tag: str


def plan_weights(
    name: str,
    arguments: dict[str, Any],
    *,
    pretrained: bool,
    weights: StrPath | SavedModel | None,
    pretrained_cfg: TimmConfig,
    overlay: Mapping[str, Any] | None,
    base_cnn_given: bool,
    cache_dir: StrPath | None,
) -> Plan:
    """Find out what to make a model from.

    `weights`, a saved model, a weights file, a Hub id or a tag, goes before all else; then comes `pretrained_cfg` from
    timm, a tag or the config of a saved model, with `overlay`; then the best entry, unless the base CNN's weights are
    given.

    Raises:
        ValueError: for unknown weights, with the closest names, and for weights of another architecture or variant.
    """
    overlay = dict(overlay or {})
    asked_size, zoomed = arguments.get("img_size"), "zooms" in arguments
    if "zooms" in arguments:
        arguments.setdefault("scales", default_scales(arguments["zooms"]))  # not those that weights come with
        check_zooms(arguments["zooms"], len(arguments["scales"]))
    if weights is not None:
        pretrained_cfg = _tag(name, weights)
        weights = weights if pretrained_cfg is None else None
    entry = None
    if isinstance(pretrained_cfg, str):
        entry = find_weights(f"{name}.{pretrained_cfg}")
    elif weights is None and pretrained_cfg is None and pretrained and not base_cnn_given:
        entry = best_weights(name, arguments.get("variant", "half_gru"))
    base_tag = ""
    if entry is not None:
        if (asked := arguments.get("variant", entry.variant)) != entry.variant:
            raise ValueError(f"weights {entry.name} are of variant {entry.variant!r}; asked for {asked!r}")
        arguments = {**entry.model_args, **arguments}
        pretrained_cfg, base_tag = entry.tag, entry.base.partition(".")[2]
    saved = _open(weights, entry, pretrained_cfg, overlay, cache_dir) if pretrained else None
    if saved is not None:
        _check_kind(saved, name, arguments)
        arguments = {**saved.model_args, **arguments}
        pretrained_cfg = saved.config or pretrained_cfg
        overlay = {key: value for key, value in overlay.items() if key not in _LOCATIONS}
        if entry is not None:
            overlay = {"tag": entry.tag, **entry.preprocessing, **overlay}
        if not saved.config and "fc.weight" in saved.state:
            overlay["num_classes"] = len(saved.state["fc.weight"])
        if saved.config and (asked_size or zoomed):
            factor = _smallest(saved.model_args) / _smallest(arguments)  # the smallest level keeps its size
            channels, *size = saved.config["input_size"]
            size = pair(asked_size) if asked_size else [round(length * factor) for length in size]
            overlay["input_size"] = (channels, *size)
    config = _resolve_config(name, pretrained_cfg, overlay, arguments)
    return Plan(config, arguments, saved, base_tag or config.tag or "")


_LOCATIONS = ("file", "state_dict", "hf_hub_id", "source")  # where timm's configs say that weights are


def _tag(name: str, weights: StrPath | SavedModel) -> str | None:
    """The tag that `weights=` is; None where it is a saved model, its path or its Hub id."""
    if not isinstance(weights, str):
        return None
    tag = weights.removeprefix(f"{name}.")
    timms = get_arch_pretrained_cfgs(name.removeprefix("srnn_"))
    tags = [entry.tag for entry in weights_of(name)] + [key.partition(".")[2] for key in timms]
    if tag in tags:
        return tag
    if weights and ("/" in weights or Path(weights).exists()):
        return None
    hint = "or give a folder, a file or a Hub id (owner/name)"
    raise ValueError(f"{unknown_name(f'weights of {name}', tag, tags)} {hint}")


def _open(
    weights: StrPath | SavedModel | None,
    entry: Weights | None,
    pretrained_cfg: TimmConfig,
    overlay: Mapping[str, Any],
    cache_dir: StrPath | None,
) -> SavedModel | None:
    """The saved model, where the weights are one's."""
    if isinstance(weights, SavedModel):
        return weights
    place, sha256 = weights, ""
    if weights is None and entry is not None:
        place, sha256 = (None if isinstance(entry.source, PipFile) else entry.source), entry.sha256
    elif weights is None:
        config = pretrained_cfg if isinstance(pretrained_cfg, dict) else getattr(pretrained_cfg, "__dict__", {})
        config = {**config, **overlay}
        if config.get("state_dict"):
            return SavedModel("the state dict", config["state_dict"])
        place = config.get("file") or config.get("hf_hub_id")
    return open_saved(place, sha256=sha256, cache_dir=cache_dir) if place else None


def _check_kind(saved: SavedModel, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse another architecture, another variant (its parameters may have the same shapes), and an unknown cell."""
    if saved.architecture not in ("", name):
        raise ValueError(f"the weights of {saved.source} are of {saved.architecture}; asked for {name}")
    variant = saved.model_args.get("variant")
    asked = arguments.get("variant", variant)
    if variant and asked != variant and any(key.startswith("cell.") for key in saved.state):
        raise ValueError(f"the weights of {saved.source} are of variant {variant!r}; asked for {asked!r}")
    module = saved.about.get("cell", "").rpartition(".")[0]
    if module and module not in sys.modules and asked == variant and variant not in list_cells():
        raise ValueError(
            f"the model of {saved.source} has the cell {variant!r} of module {module}: import it first "
            f"(on the command line --import {module})"
        )


def _smallest(arguments: Mapping[str, Any]) -> Fraction:
    """The size of the smallest level relative to the image."""
    zooms = arguments.get("zooms")
    return min(Fraction(*ratio) for ratio in scale_ratios(arguments.get("scales") or default_scales(zooms), zooms))


def _resolve_config(
    name: str, pretrained_cfg: TimmConfig, overlay: dict[str, Any], arguments: Mapping[str, Any]
) -> PretrainedCfg:
    """The config as timm resolves it; one that does not come with weights gets the input size of these scales."""
    config = resolve_pretrained_cfg(name, pretrained_cfg, overlay)  # pyright: ignore[reportArgumentType]
    changes: dict[str, Any] = {"notes": None}  # earlier versions wrote there that a model was zero-shot
    if arguments.get("num_classes", config.num_classes) != config.num_classes:
        changes |= {"label_names": None, "label_descriptions": None}
    if not isinstance(pretrained_cfg, dict | PretrainedCfg):
        channels, *size = config.input_size  # as registered: twice the backbone's own
        height, width = (round(length / (2 * _smallest(arguments))) for length in size)
        if "img_size" in arguments:
            height, width = pair(arguments["img_size"])
        changes["input_size"] = (channels, height, width)
    return dataclasses.replace(config, **changes)
