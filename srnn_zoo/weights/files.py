"""Weights files: written with a checksum, read without running code, refused where they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict, load_state_dict
from torch import Tensor

from srnn_zoo._errors import WeightsUnavailableError

DIGEST_KEY = "sha256"  # in the header of a safetensors file: of names, types, shapes and values


def write_weights(state: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> str:
    """Write a state dict as safetensors, with its `digest` in the header; the same weights give the same bytes.

    Returns:
        the digest.

    Raises:
        OSError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    storages = Counter(value.untyped_storage().data_ptr() for value in tensors.values())
    shared = [key for key, value in tensors.items() if storages[value.untyped_storage().data_ptr()] > 1]
    tensors |= {key: tensors[key].clone() for key in shared}  # the format holds no ties
    checksum = digest(tensors)
    try:
        save_file(tensors, path, metadata={"format": "pt", DIGEST_KEY: checksum, **header})
    except SafetensorError as error:  # a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    _sort_header(path)
    return checksum


def read_weights(path: str | os.PathLike[str], sha256: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict in a checkpoint, on the CPU, and the entries of its header; a pickle has none.

    Reads safetensors, and pickles that load with `weights_only=True`. From a training checkpoint it takes the averaged
    (EMA) weights if there are any, as timm does.

    Args:
        path: the file.
        sha256: of the whole file, if it is known.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsUnavailableError: if it is damaged, has another `sha256`, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if sha256 and (found := file_sha256(path)) != sha256:
        raise WeightsUnavailableError(f"{path} is damaged (SHA-256 {found}, expected {sha256})")
    try:
        if path.suffix == ".safetensors":
            state, header = _read_safetensors(path)
        else:
            state, header = load_state_dict(str(path), device="cpu", weights_only=True), {}
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # header and weights of the same file, whatever is put in its place
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        return clean_state_dict(state), file.metadata() or {}


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
