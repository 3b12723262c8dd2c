"""From a base CNN to an SRNN, and back to an ordinary model that answers as the SRNN does on one level."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .backbone import create_timm_model, in_mode
from .create import create_model
from .initial import init_from_base_cnn
from .norms import LevelNorm, state_of_level
from .sizes import native_size
from .wrap import WrappedBackbone

_SRNN_ARGUMENTS = (  # what a factory takes for the SRNN, not for its backbone
    "variant scales zooms views activation interpolation exits norm num_classes drop_rate global_pool img_size "
    "backbone_img_size in_chans"
).split()
_KEPT = "mean std interpolation crop_pct crop_mode label_names label_descriptions".split()  # of its config


def from_base_cnn(base_cnn: Any, **options: Any) -> Any:
    """The zero-shot SRNN over a timm model that you already have, such as one that you fine-tuned.

    It takes a copy of the model's weights, its classes, its preprocessing, and its image size for the smallest level.
    With one level, `vanilla` answers as the model does; with two, `half_gru` as the mean of its logits.

    Args:
        base_cnn: a timm model with a linear classifier; it is not changed.
        **options: `variant`, `scales`, `zooms` and others of `create_model`. Options that the model was made with and
            that change its shapes must be given again.

    Returns:
        an SRNN in evaluation mode, on the model's device and in its precision.

    Raises:
        ValueError: for a model that timm did not make or that does not fit, and as `create_model`.

    Examples:
        >>> base_cnn = timm.create_model("resnet50", num_classes=37, checkpoint_path="pets.pth")
        >>> model = srnn_zoo.from_base_cnn(base_cnn, scales=(0.5, 1.0))
    """
    config = dict(getattr(base_cnn, "pretrained_cfg", None) or {})
    if not timm.is_model(str(config.get("architecture"))):
        raise ValueError(f"{type(base_cnn).__name__} is no model of timm's: SRNN.wrap takes any other network")
    same = {"num_classes": int(base_cnn.num_classes), "in_chans": int(getattr(base_cnn, "in_chans", 3))}
    model = create_model(f"srnn_{config['architecture']}", **{**same, **options})
    if "img_size" not in options:
        ours, known = model.pretrained_cfg["input_size"], timm.models.get_pretrained_cfg(config["architecture"])
        if known is not None:  # as much larger than the base CNN's as it would be by default
            sides = zip(ours, config["input_size"], known.input_size, strict=True)
            model.pretrained_cfg["input_size"] = (ours[0], *(a * b // c for a, b, c in [*sides][1:]))
    init_from_base_cnn(model, base_cnn)
    model.pretrained_cfg.update({key: config[key] for key in _KEPT if config.get(key) is not None})
    parameter = next(base_cnn.parameters())
    return model.to(parameter.device, parameter.dtype).eval()


@torch.no_grad()
def to_base_cnn(model: Any) -> nn.Module:
    """The timm model, with its classifier, that gives the same probabilities as an SRNN on one level.

    Its `state_dict()` is a checkpoint of the base CNN, as torchvision and timm write them, and its `pretrained_cfg` has
    the SRNN's preprocessing and names of classes. Over a network that is not in timm (`SRNN.wrap`), it is a copy of the
    backbone and a linear layer: `base_cnn.backbone.net` is a copy of the network, and `base_cnn.fc` the classifier of
    its pooled features. There is one where the state after one level is a multiple of the features: in `vanilla` and
    the mean ensembles always, in gated cells as long as training has not moved the gates. A multiple is folded into the
    classifier.

    Args:
        model: an SRNN with a classifier.

    Raises:
        ValueError: where no base CNN does what the model does.

    Examples:
        >>> torch.save(to_base_cnn(model).state_dict(), "resnet18.pth")
    """
    if not model.cell.anytime:
        raise ValueError(f"variant {model.variant!r} fuses a fixed number of levels: no base CNN does that")
    if model.num_classes == 0:
        raise ValueError("the model has no classifier (num_classes=0), so that there is no base CNN of it")
    base_cnn = _wrapped_copy(model) if isinstance(model.backbone, WrappedBackbone) else _timm_copy(model)
    classifier = model.classifier(0)
    weight = _one_level_factor(model) * classifier.get_parameter("weight")
    _set_classifier(base_cnn, weight, classifier.get_parameter("bias"))
    _check_same(model, base_cnn)
    kept = {key: model.pretrained_cfg[key] for key in _KEPT if model.pretrained_cfg.get(key) is not None}
    kept["num_classes"] = model.num_classes
    base_cnn.pretrained_cfg = base_cnn.default_cfg = {**base_cnn.pretrained_cfg, **kept}
    return base_cnn


def _timm_copy(model: Any) -> Any:
    """The timm model with the backbone's weights, and a classifier that is not set yet."""
    architecture = model.pretrained_cfg["architecture"].removeprefix("srnn_")
    stored = model._model_args
    arguments = {key: value for key, value in stored.items() if key not in _SRNN_ARGUMENTS}
    if "backbone_img_size" in stored:
        arguments["img_size"] = tuple(stored["backbone_img_size"])
    base_cnn: Any = create_timm_model(architecture, num_classes=model.num_classes, in_chans=model.in_chans, **arguments)
    parameter = next(model.parameters())
    base_cnn.to(parameter.device, parameter.dtype).eval()
    base_cnn.load_state_dict(state_of_level(model.backbone, 0), strict=False)
    return base_cnn


def _wrapped_copy(model: Any) -> Any:
    """A copy of a wrapped network with the batch norms of the smallest level, and a classifier that is not set yet."""
    backbone = copy.deepcopy(model.backbone)
    for name, module in list(backbone.named_modules()):
        if isinstance(module, LevelNorm):
            backbone.set_submodule(name, module[0])
    base_cnn: Any = nn.Sequential(OrderedDict(backbone=backbone, fc=copy.deepcopy(model.fc))).eval()
    base_cnn.pretrained_cfg = {**backbone.pretrained_cfg, "classifier": "fc"}
    return base_cnn


def _one_level_factor(model: Any) -> float:
    """The c in h_1 = c · C(x_1), found out by looking; features of a rectified backbone are non-negative."""
    parameter = next(model.parameters())
    features = torch.rand(64, model.num_features, device=parameter.device, dtype=parameter.dtype) + 0.1
    state = model.forward_head(model.fuse([model.cell.as_read(features)]), pre_logits=True)
    ratios = state / features
    factor = ratios.mean().item()
    if not torch.allclose(ratios, torch.full_like(ratios, factor), rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"no base CNN does what this {model.variant} model does on one level: its state is no multiple of the "
            "features, as the gates have been trained"
        )
    return factor


def _set_classifier(base_cnn: Any, weight: Tensor, bias: Tensor) -> None:
    """Put F into the classifier that timm's config names."""
    name = base_cnn.pretrained_cfg.get("classifier")
    layer = base_cnn.get_submodule(name) if isinstance(name, str) else None
    wanted = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear | nn.Conv2d) or wanted is None or wanted.numel() != weight.numel():
        raise ValueError(f"timm's {type(base_cnn).__name__} does not classify with one linear layer")
    wanted.copy_(weight.view_as(wanted))
    if layer.bias is not None:
        layer.bias.copy_(bias)


def _check_same(model: Any, base_cnn: nn.Module) -> None:
    """Both on an image, in eval mode: what else is in timm's head, or in φ, shows there."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, model.in_chans, *native_size(model.backbone), generator=generator)
    images = images.to(parameter.device, parameter.dtype)
    with in_mode(model, training=False):
        ours, theirs = model([images]).float(), base_cnn(images).float()
    if not torch.allclose(ours.log_softmax(1), theirs.log_softmax(1), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"timm's {type(base_cnn).__name__} does more than its backbone and one linear layer, or the model's "
            f"activation ({model.cell.activation}) changes the features: no base CNN does what this model does"
        )
