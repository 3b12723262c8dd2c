"""Weights files: written with a checksum and never half, read without running code, refused where they do not fit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import load_pretrained, load_state_dict
from torch import Tensor, nn

from ._errors import WeightsUnavailableError

__all__ = ["check_keys", "file_sha256", "load_weights", "read_weights", "write_weights"]

_DIGEST_KEY = "sha256"  # in the header of a safetensors file: of names, types, shapes and values


def write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, with a checksum in its header that `read_weights` verifies."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(tensors, path, metadata={"format": "pt", _DIGEST_KEY: _digest(tensors)})


def read_weights(path: str | os.PathLike[str], sha256: str = "") -> dict[str, Tensor]:
    """The state dict in a checkpoint, on the CPU: safetensors, or a pickle that loads with `weights_only=True`.

    Of a training checkpoint, the averaged (EMA) weights are taken where there are some, as timm does.

    Args:
        path: the file.
        sha256: of the whole file, where it is known.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsUnavailableError: if it is damaged, is other than `sha256` says, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if sha256 and (found := file_sha256(path)) != sha256:
        raise WeightsUnavailableError(f"{path} is damaged (SHA-256 {found}, expected {sha256})")
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
        expected = _stored_digest(path)
    except Exception as error:  # each file format has errors of its own
        raise WeightsUnavailableError(f"cannot read the weights in {path}: {type(error).__name__}: {error}") from error
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        what = f"other things than tensors ({', '.join(map(str, wrong[:5]))})" if wrong else "nothing"
        raise WeightsUnavailableError(f"{path} is no state dict: it holds {what}")
    if expected and _digest(state) != expected:
        raise WeightsUnavailableError(f"{path} is damaged: its weights do not match the checksum saved with them")
    return state


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_keys(model: nn.Module, state: Mapping[str, Tensor], source: str, skip: Collection[str] = ()) -> None:
    """Refuse weights that are not this model's.

    Args:
        model: that shall be loaded.
        state: the weights.
        source: where they come from, for the message.
        skip: keys that may differ.

    Raises:
        ValueError: with all missing, unexpected and wrongly shaped keys.
    """
    wanted = model.state_dict()
    shared = [key for key in wanted if key in state and key not in skip]
    found = {
        "missing": [key for key in wanted if key not in state and key not in skip],
        "unexpected": [key for key in state if key not in wanted and key not in skip],
        "wrongly shaped": [
            f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
            for key in shared
            if state[key].shape != wanted[key].shape
        ],
    }
    if any(found.values()):
        lists = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in found.items() if keys)
        without = "missing: fc.weight, fc.bias" in lists and "unexpected" not in lists
        hint = "; they have no classifier: give another num_classes for a new one" if without else ""
        raise ValueError(f"the weights of {source} do not fit this model; {lists}{hint}")


def load_weights(model: nn.Module, state: Mapping[str, Tensor], config: dict[str, Any], source: str) -> bool:
    """Load a state dict strictly, but for a classifier of other classes, which stays new.

    The first convolution is adapted to other channels than the weights' own as timm does it.

    Args:
        model: an SRNN.
        state: the weights.
        config: the `pretrained_cfg` that belongs to them.
        source: where they come from, for the message.

    Returns:
        whether the classifier was loaded too.

    Raises:
        ValueError: with all missing, unexpected and wrongly shaped keys.
    """
    net: Any = model
    same_classes = config["num_classes"] == net.num_classes
    classifier = () if same_classes else (f"{config['classifier']}.weight", f"{config['classifier']}.bias")
    first = config.get("first_conv") or ()
    stem = () if net.in_chans == config["input_size"][0] else (first,) if isinstance(first, str) else tuple(first)
    check_keys(model, state, source, skip=(*classifier, *(f"{name}.weight" for name in stem)))
    sources = dict.fromkeys(("url", "file", "hf_hub_id", "source"))
    load_pretrained(
        model,
        pretrained_cfg={**config, **sources, "state_dict": dict(state)},
        num_classes=net.num_classes,
        in_chans=net.in_chans,
    )
    return same_classes


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        value: Any = state[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _stored_digest(path: Path) -> str:
    """The checksum in a safetensors header; none where another program wrote the file."""
    if path.suffix != ".safetensors":
        return ""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(_DIGEST_KEY, "")
