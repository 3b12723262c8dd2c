"""What a new SRNN starts from: the paper's initialisation by a base CNN, or the weights of a saved SRNN."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from timm.models import PretrainedCfg, load_pretrained
from torch import Tensor, nn

from srnn_zoo.weights.files import digest
from srnn_zoo.weights.saved import SavedModel

from .backbone import probe
from .cells import create_cell
from .norms import spread_state

_logger = logging.getLogger(__name__)

_BACKBONE = "backbone."
_KEYS_LISTED = 20


def init_from_base_cnn(model: Any, base_cnn: nn.Module, classifier: bool = True) -> None:
    """The paper's initialisation (section 4): C, and F where the classes agree, from a pretrained classifier.

    U = I and zero gates are how every cell starts. With C and F from `base_cnn`, the model is *zero-shot*: it works
    before any training, and `model.zero_shot` says so.

    Args:
        model: an SRNN over the same architecture.
        base_cnn: a timm model.
        classifier: whether to take F as well; needs a linear one.

    Raises:
        ValueError: if the two differ in architecture (missing or wrongly shaped keys are listed), or F is not affine.
    """
    state = spread_state(base_cnn.state_dict(), model.backbone)
    wanted = model.backbone.state_dict()
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise ValueError(f"base CNN does not fit the backbone; missing or wrongly shaped: {', '.join(wrong)}")
    model.backbone.load_state_dict({key: state[key] for key in wanted})
    model.zero_shot = False
    base: Any = base_cnn
    classes = int(base.num_classes)
    if not classifier or classes == 0 or classes != model.num_classes:
        return
    weight, bias = _linear_parameters(model, base)
    for head in (*model.exit_classifiers, model.fc):
        head.load_state_dict({"weight": weight, "bias": bias})
    cell = model.cell.state_dict()
    initial = create_cell(model.variant, model.cell.dim, height=model.cell.height).state_dict()
    model.zero_shot = all(torch.equal(cell[key].to(value), value) for key, value in initial.items())


def load_saved(model: Any, saved: SavedModel, config: PretrainedCfg) -> None:
    """Load the weights of a saved SRNN strictly, in the precision they were saved in, and what is known of them.

    Only a classifier of other classes than the model's stays new. A classifier or batch norm that the levels of the
    weights share is copied to each level that has its own in the model. The first convolution is adapted to another
    number of channels as timm does it.

    Args:
        model: an SRNN; gets `metadata` and `zero_shot` as well.
        saved: the weights.
        config: the `pretrained_cfg` that belongs to them.

    Raises:
        ValueError: with the missing, unexpected and wrongly shaped keys, the first twenty of each.
    """
    state = _copied_to_every_level(model, saved.state)
    same_classes = config.num_classes == model.num_classes
    heads = () if same_classes else (*_exits_before_the_last(model), "fc")
    skip = [f"{name}.{part}" for name in heads for part in ("weight", "bias")]
    if model.in_chans != config.input_size[0]:
        first_conv = config.first_conv or ()
        skip += [f"{name}.weight" for name in ((first_conv,) if isinstance(first_conv, str) else first_conv)]
    _check_keys(model, state, saved.source, skip)
    sources = dict.fromkeys(("url", "file", "hf_hub_id", "source"))
    load_pretrained(
        model,
        pretrained_cfg={**config.to_dict(), **sources, "classifier": heads, "state_dict": state},
        num_classes=model.num_classes,
        in_chans=model.in_chans,
    )
    dtypes = {value.dtype for value in saved.state.values() if value.is_floating_point()}
    if saved.config and len(dtypes) == 1:
        model.to(dtypes.pop())
    model.metadata = dict(saved.about.get("metadata", {}))
    if same_classes:
        _logger.info("%s: weights of %s", config.architecture, saved.source)
        # as the config says, while it is of these weights and not of ones trained since
        known = saved.about.get("weights_sha256")
        model.zero_shot = bool(saved.about.get("zero_shot")) and known in (None, digest(saved.state))
        return
    text = "%s: weights of %s; the classifier is new, of %d classes instead of %d"
    _logger.warning(text, config.architecture, saved.source, model.num_classes, config.num_classes)
    base = config.hf_hub_id or model.metadata.get("base_model")
    model.metadata = {"base_model": base} if base else {}


@torch.no_grad()
def _linear_parameters(model: Any, base_cnn: Any) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K) that turn C(x) into what the base CNN says of x, to within rounding.

    timm names one classifier, or two of which the mean is taken, but some networks do more between C and their answer,
    such as batch norm. So the candidates are compared on images, and the closest is taken.
    """
    features, expected = probe(model.backbone, base_cnn)
    tolerance = (1e-3 if expected.dtype in (torch.float32, torch.float64) else 3e-2) * expected.abs().max().double()
    classifier = base_cnn.get_classifier()
    found = []
    for parts in (classifier if isinstance(classifier, tuple) else (classifier,), _parents_of_classifiers(base_cnn)):
        affine = [_affine(part, model.num_features) for part in parts]
        if affine and None not in affine:
            weight, bias = (torch.stack(values).mean(dim=0) for values in zip(*affine, strict=True))
            error = (features.to(weight) @ weight.T + bias - expected.to(weight)).abs().max().nan_to_num(0.0)
            found.append((error, weight, bias))
    error, weight, bias = min(found, key=lambda values: values[0], default=(tolerance + 1, None, None))
    if weight is None or bias is None or error > tolerance:
        raise ValueError(
            f"{model.pretrained_cfg['architecture']} has no zero-shot form: its base CNN does more to its features "
            "than one linear layer. Use pretrained_backbone=True and train the classifier"
        )
    return weight, bias


def _parents_of_classifiers(base_cnn: Any) -> list[nn.Module]:
    """The modules that hold the classifiers which timm names, such as a batch norm and a linear layer."""
    names = base_cnn.pretrained_cfg.get("classifier") or ()
    parents = [name.rpartition(".")[0] for name in ((names,) if isinstance(names, str) else names)]
    return [base_cnn.get_submodule(parent) for parent in parents] if all(parents) else []


def _affine(module: Any, dim: int) -> tuple[Tensor, Tensor] | None:
    """Weight (K, D) and bias (K) of a module of features (B, D); None where it is not affine."""
    inner = getattr(module, "fc", module)  # a few architectures return the pooling head around it
    if isinstance(inner, nn.Linear) or (isinstance(inner, nn.Conv2d) and inner.kernel_size == (1, 1)):
        return inner.weight.flatten(1), inner.weight.new_zeros(len(inner.weight)) if inner.bias is None else inner.bias
    if not isinstance(module, nn.Module) or isinstance(module, nn.ModuleList):
        return None
    affine = copy.deepcopy(module).double().eval()
    inputs = torch.linspace(-3, 3, dim, dtype=torch.float64)[None]
    try:
        bias = affine(torch.zeros_like(inputs))
        weight = (affine(torch.eye(dim, dtype=torch.float64)) - bias).T
        if torch.allclose(affine(inputs), inputs @ weight.T + bias):
            like = next(module.parameters())
            return weight.to(like), bias[0].to(like)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError):  # it reads maps
        return None
    return None


def _copied_to_every_level(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state for a model in which every level has a classifier or batch norms of its own."""
    state = {re.sub(r"^exit_fc\.", "exit_classifiers.", key): value for key, value in state.items()}  # the earlier name
    backbone = {key.removeprefix(_BACKBONE): value for key, value in state.items() if key.startswith(_BACKBONE)}
    spread = {key: value for key, value in state.items() if not key.startswith(_BACKBONE)}
    spread |= {_BACKBONE + key: value for key, value in spread_state(backbone, model.backbone).items()}
    if model.norm == "frozen":  # it counts no batches
        spread = {key: value for key, value in spread.items() if not key.endswith(".num_batches_tracked")}
    if not any(key.startswith("exit_classifiers.") for key in state):
        shared = [key for key in state if key.startswith("fc.")]
        spread |= {f"{name}.{key[3:]}": state[key] for name in _exits_before_the_last(model) for key in shared}
    return spread


def _exits_before_the_last(model: Any) -> list[str]:
    """The names of the classifiers that levels before the last have of their own."""
    return [f"exit_classifiers.{level}" for level in range(len(model.exit_classifiers))]


def _check_keys(model: Any, state: Mapping[str, Tensor], source: str, skip: Collection[str]) -> None:
    wanted = model.state_dict()
    found = {
        "missing": [key for key in wanted if key not in state and key not in skip],
        "unexpected": [key for key in state if key not in wanted and key not in skip],
        "wrongly shaped": [
            f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in state and key not in skip and state[key].shape != value.shape
        ],
    }
    if not any(found.values()):
        return
    hint = ""
    if found["missing"] == ["fc.weight", "fc.bias"] and not found["unexpected"]:
        hint = "; they have no classifier: give another num_classes for a new one"
    elif not any(key.startswith("backbone.") for key in state) and any(f"backbone.{key}" in wanted for key in state):
        hint = "; they are a base CNN's: give them as pretrained_backbone=, with pretrained=True for its classifier too"
    lists = []
    for kind, keys in found.items():
        rest = f" and {len(keys) - _KEYS_LISTED} more" if len(keys) > _KEYS_LISTED else ""
        lists += [f"{kind}: {', '.join(keys[:_KEYS_LISTED])}{rest}"] if keys else []
    raise ValueError(f"the weights of {source} do not fit this model{hint}; {'; '.join(lists)}")
