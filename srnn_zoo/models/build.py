"""One SRNN from an architecture's name and options, through timm's own builder."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast

import timm
from timm.models import PretrainedCfg, build_model_with_cfg

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.pyramid import Interpolation, pair
from srnn_zoo.weights.saved import SavedModel

from .backbone import create_backbone, unexpected_argument
from .initial import create_base_cnn, init_from_base_cnn, load_weights
from .norms import Norm
from .sources import TimmConfig, plan_weights
from .srnn import SRNN

__all__ = ["ModelFactory", "build"]

_logger = logging.getLogger(__name__)

_SCALE_OPTIONS = frozenset({"variant", "scales", "activation", "interpolation", "exits", "norm"})
_TIMM_OPTIONS = frozenset({"num_classes", "drop_rate", "global_pool", "img_size"})  # the rest is for the backbone

StrPath = str | os.PathLike[str]


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
        exits: Literal["shared", "separate"] = "shared",
        norm: Norm = "shared",
        num_classes: int | None = None,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        img_size: int | tuple[int, int] | None = None,
        weights: str | os.PathLike[str] | None = None,
        pretrained_backbone: bool | str | os.PathLike[str] = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **backbone_args: Any,
    ) -> SRNN:
        """See `create_model`."""
        ...


def build(
    architecture: str,
    *,
    pretrained: bool = False,
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
        f"srnn_{architecture}",
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
    about = [_About()]

    def make(in_chans: int = 3, backbone_img_size: Any = None, **arguments: Any) -> SRNN:
        options = {key: arguments.pop(key) for key in _TIMM_OPTIONS & arguments.keys()} | own
        if "img_size" in options and len(options.get("scales", (0.5, 1.0))) == 1 and _fixed_size(architecture):
            backbone_img_size = pair(options["img_size"])
        if backbone_img_size is not None:
            arguments["img_size"] = tuple(backbone_img_size)
        base_cnn = None
        if plan.saved is None and (pretrained or pretrained_backbone):
            base_cnn = create_base_cnn(
                architecture, plan.base_tag, file=file, cache_dir=cache_dir, in_chans=in_chans, **arguments
            )
            if pretrained and file is not None and "num_classes" not in plan.arguments:
                options["num_classes"] = cast(Any, base_cnn).num_classes
        model = SRNN(_create_backbone(architecture, in_chans=in_chans, **arguments), **options)
        if plan.saved is not None:
            about.append(_load_saved(model, plan.saved, plan.config))
        elif base_cnn is not None:
            init_from_base_cnn(model, base_cnn, classifier=pretrained)
            about.append(_about_base_cnn(model, architecture, plan.base_tag, file))
        return model

    timm_options: dict[str, Any] = {
        "pretrained_cfg": plan.config.to_dict(),
        "cache_dir": cache_dir,
        "feature_cfg": {"feature_cls": "getter", "out_indices": None},  # all maps of `forward_intermediates`
        **{key: value for key, value in plan.arguments.items() if key not in own},
    }
    model = build_model_with_cfg(cast(Any, make), f"srnn_{architecture}", False, **timm_options)
    model.metadata = dict(about[-1].metadata)
    model.zero_shot = about[-1].zero_shot
    model.pretrained_cfg.pop("notes", None)  # earlier versions wrote there that a model was zero-shot
    if not about[-1].has_old_classifier:
        model.pretrained_cfg.pop("label_names", None)
    model._model_args = plan.arguments
    return cast(SRNN, model)


class _About(NamedTuple):
    """What is true of a model for the weights it has."""

    zero_shot: bool = False
    metadata: dict[str, Any] = {}  # noqa: RUF012 (copied before it is changed)
    has_old_classifier: bool = True


def _load_saved(model: SRNN, saved: SavedModel, config: PretrainedCfg) -> _About:
    """Load an SRNN's weights, in the precision they were saved in."""
    same_classes = load_weights(model, saved.state, config.to_dict(), saved.source)
    dtypes = {value.dtype for value in saved.state.values() if value.is_floating_point()}
    if saved.config and len(dtypes) == 1:
        model.to(dtypes.pop())
    metadata = saved.about.get("metadata", {})
    if same_classes:
        _logger.info("%s: weights of %s", config.architecture, saved.source)
        return _About(bool(saved.about.get("zero_shot", False)), metadata)
    text = "%s: weights of %s; the classifier is new, of %d classes instead of %d"
    _logger.warning(text, config.architecture, saved.source, model.num_classes, config.num_classes)
    base = config.hf_hub_id or metadata.get("base_model")
    return _About(metadata={"base_model": base} if base else {}, has_old_classifier=False)


def _about_base_cnn(model: SRNN, architecture: str, tag: str, file: StrPath | None) -> _About:
    """What is true of a model with the paper's initialisation, or with the backbone's weights alone."""
    base = f"{architecture}.{tag}" if tag else architecture
    source = f"timm's {base}" if file is None else os.fspath(file)
    text = "%s: zero-shot, from %s" if model.zero_shot else "%s: the backbone's weights are those of %s"
    _logger.info(text, f"srnn_{architecture}", source)
    return _About(model.zero_shot, {"base_model": base} if file is None else {})


def _fixed_size(architecture: str) -> bool:
    """Whether timm makes the architecture for one size, given as `img_size`."""
    config = timm.models.get_pretrained_cfg(architecture)
    return config is not None and config.fixed_input_size


def _create_backbone(architecture: str, **arguments: Any) -> Any:
    """The backbone, or an error with the closest name for an option that is neither an SRNN's nor the backbone's."""
    options = list(inspect.signature(ModelFactory.__call__).parameters)[1:-1]
    try:
        backbone = create_backbone(architecture, **arguments)
    except TypeError as error:
        name = unexpected_argument(error)
        if name is None or name not in arguments:
            raise
        raise TypeError(unknown_name("option", name, options, "see help(srnn_zoo.create_model)")) from error
    known = inspect.signature(type(backbone)).parameters  # some architectures swallow any argument
    for name in arguments.keys() - known.keys() - set(options):
        if difflib.get_close_matches(name, options, n=1, cutoff=0.8):
            raise TypeError(unknown_name("option", name, options))
    return backbone
