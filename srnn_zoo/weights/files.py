"""Weights files: written with a checksum, read without running code, refused where they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict, load_pretrained, load_state_dict
from torch import Tensor, nn

from srnn_zoo._errors import WeightsUnavailableError
from srnn_zoo.models.norms import spread_state

__all__ = [
    "digest",
    "file_sha256",
    "fingerprint",
    "load_weights",
    "read_weights",
    "why_unreadable",
    "write_weights",
]

_BACKBONE = "backbone."
_KEYS_LISTED = 20

DIGEST_KEY = "sha256"  # in the header of a safetensors file: of names, types, shapes and values


def write_weights(state: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> str:
    """Write a state dict as safetensors with a checksum in the header; the same weights give the same bytes.

    Args:
        state: the weights.
        path: where to.
        header: more entries for the header.

    Returns:
        the checksum, of names, types, shapes and values.

    Raises:
        OSError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    checksum = digest(tensors)
    try:
        save_file(tensors, path, metadata={"format": "pt", DIGEST_KEY: checksum, **header})
    except SafetensorError as error:  # a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    _sort_header(path)
    return checksum


def read_weights(path: str | os.PathLike[str], sha256: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict in a checkpoint, on the CPU, and the entries of its header, of which a pickle has none.

    Reads safetensors, and pickles that load with `weights_only=True`. Of a training checkpoint, the averaged (EMA)
    weights are taken where there are some, as timm does.

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
        state, header = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    except Exception as error:  # each file format has errors of its own
        reason = why_unreadable(error)
        raise WeightsUnavailableError(f"cannot read the weights in {path}: {reason}") from error
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        what = f"other things than tensors ({', '.join(map(str, wrong[:5]))})" if wrong else "nothing"
        raise WeightsUnavailableError(f"{path} is no state dict: it holds {what}")
    if header.get(DIGEST_KEY) and digest(state) != header[DIGEST_KEY]:
        raise WeightsUnavailableError(f"{path} is damaged: its weights do not match the checksum saved with them")
    return state, header


def why_unreadable(error: Exception) -> str:
    """Why a weights file cannot be read, in one line; advice to run code from it is left out."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return "it holds more than tensors, and unpickling that could run code" if "weights_only" in reason else reason


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for key in sorted(state):
        value: Any = state[key].contiguous()
        found.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@torch.no_grad()
def fingerprint(*modules: nn.Module) -> float:
    """A number that training changes and a change of device or precision hardly does: Σ|w|."""
    return sum(p.abs().sum(dtype=torch.float64).item() for module in modules for p in module.parameters())


def load_weights(model: nn.Module, state: Mapping[str, Tensor], config: dict[str, Any], source: str) -> bool:
    """Load a state dict strictly, but for a classifier of other classes, which stays new.

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
    net: Any = model
    state = _copied_to_every_level(net, state)
    same_classes = config["num_classes"] == net.num_classes
    heads = () if same_classes else (*(f"exit_fc.{level}" for level in range(len(net.exit_fc))), "fc")
    classifier = [f"{name}.{part}" for name in heads for part in ("weight", "bias")]
    stem = () if net.in_chans == config["input_size"][0] else _names(config.get("first_conv"))
    _check_keys(model, state, source, skip=(*classifier, *(f"{name}.weight" for name in stem)))
    sources = dict.fromkeys(("url", "file", "hf_hub_id", "source"))
    load_pretrained(
        model,
        pretrained_cfg={**config, **sources, "classifier": heads, "state_dict": dict(state)},
        num_classes=net.num_classes,
        in_chans=net.in_chans,
    )
    return same_classes


def _copied_to_every_level(net: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with one classifier and one batch norm a place, for a model that has some for each level."""
    backbone = {key.removeprefix(_BACKBONE): value for key, value in state.items() if key.startswith(_BACKBONE)}
    spread = {key: value for key, value in state.items() if not key.startswith(_BACKBONE)}
    spread |= {_BACKBONE + key: value for key, value in spread_state(backbone, net.backbone).items()}
    if net.norm == "frozen":  # which counts no batches
        spread = {key: value for key, value in spread.items() if not key.endswith(".num_batches_tracked")}
    if not any(key.startswith("exit_fc.") for key in state):
        shared = [key for key in state if key.startswith("fc.")]
        spread |= {f"exit_fc.{level}.{key[3:]}": state[key] for level in range(len(net.exit_fc)) for key in shared}
    return spread


def _names(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """An entry of timm's config that is one name, several, or none."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _check_keys(model: nn.Module, state: Mapping[str, Tensor], source: str, skip: Collection[str]) -> None:
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # header and weights of the same file, whatever is put in its place
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        return clean_state_dict(state), file.metadata() or {}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    return load_state_dict(str(path), device="cpu", weights_only=True)


def _sort_header(path: Path) -> None:
    """Put the entries of the header into a fixed order, which safetensors leaves to chance."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))
