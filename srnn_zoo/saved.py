"""A saved model, read back: a folder, a weights file or a Hub id, in timm's files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models._hub import load_model_config_from_path
from torch import Tensor

from ._version import __version__
from .checkpoint import read_weights
from .download import download_files

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "WEIGHTS_FILES",
    "SavedModel",
    "check_architecture",
    "download_model",
    "open_saved",
    "read_config",
]

FORMAT_VERSION = 1  # of the key `srnn` in config.json; raised when an older srnn-zoo would misread it
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")

_BOOKKEEPING = frozenset({"format_version", "srnn_zoo_version", "level_sizes", "zero_shot"})  # written anew each time

StrPath = str | os.PathLike[str]


class SavedModel(NamedTuple):
    """What is in a saved model.

    Attributes:
        source: the folder, file or Hub id it came from.
        state: its state dict.
        config: its `pretrained_cfg`; empty where there is a weights file alone.
        architecture: its name for timm, such as `srnn_resnet18`; empty where there is a weights file alone.
        model_args: what makes the model again.
        metadata: what else was saved: `base_model`, `dataset`, `metrics`, `recipe`, ….
    """

    source: str
    state: dict[str, Tensor]
    config: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    architecture: str = ""
    model_args: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    metadata: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def open_saved(source: StrPath, *, sha256: str = "", cache_dir: StrPath | None = None) -> SavedModel:
    """Read a saved model: a folder, a weights file, or `"owner/name[@revision]"` on the Hub.

    Args:
        source: where it is.
        sha256: of the weights file, where it is known.
        cache_dir: where downloads go.

    Raises:
        FileNotFoundError: if the folder lacks `config.json` or weights.
        ValueError: if its config is damaged or of a newer srnn-zoo, or for a source that can be none of these.
        WeightsUnavailableError: if weights cannot be had or read, or are not those of `sha256`.
    """
    path = Path(source)
    if path.is_file():
        return SavedModel(str(path), read_weights(path, sha256))
    folder = path if path.is_dir() else download_model(os.fspath(source), cache_dir=cache_dir)
    raw = read_config(folder)
    weights = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has no weights: neither {' nor '.join(WEIGHTS_FILES)}")
    config, architecture, model_args = load_model_config_from_path(folder)
    model_args.pop("num_classes", None)  # in files written by timm; the config has it too
    if len(config.get("label_names") or ()) != config.get("num_classes"):
        config.pop("label_names", None)  # transformers leaves the old ones there when it changes the classifier
    if folder is not path:
        config |= {"file": None, "source": "hf-hub", "hf_hub_id": os.fspath(source)}
    metadata = {key: value for key, value in raw.get("srnn", {}).items() if key not in _BOOKKEEPING}
    return SavedModel(os.fspath(source), read_weights(weights, sha256), config, architecture, model_args, metadata)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a saved model.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no config of timm's or ours, or of a newer srnn-zoo.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no saved model: it has no {CONFIG_FILE}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON or the encoding
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(f"{path} is no timm config: it names no architecture")
    version = config.get("srnn", {}).get("format_version", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        wrote = config["srnn"].get("srnn_zoo_version", "a newer version")
        raise ValueError(
            f"{path} has format {version}, written by srnn-zoo {wrote}; this is {__version__}, which reads format "
            f"{FORMAT_VERSION}: pip install -U srnn-zoo"
        )
    return config


def download_model(
    model_id: str,
    *,
    cache_dir: StrPath | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder in the Hugging Face cache of a model on the Hub, fetched where it is not there yet.

    Arguments and errors as of `download_files`.
    """
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise FileNotFoundError(f"no file or folder {model_id}")
    if model_id.endswith((".safetensors", ".bin", ".pth", ".pt", ".tar")):
        raise FileNotFoundError(f"no weights file {model_id}")
    config, *_ = download_files(
        model_id,
        CONFIG_FILE,
        WEIGHTS_FILES,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    return config.parent


def check_architecture(folder: Path) -> None:
    """Refuse a saved model that is no SRNN, or one of an architecture that timm does not know here.

    Raises:
        FileNotFoundError, ValueError: as `read_config`.
    """
    architecture = read_config(folder)["architecture"]
    if not architecture.startswith("srnn_"):
        raise ValueError(
            f"{folder} holds timm's {architecture}, no SRNN: srnn_zoo.create_model('srnn_{architecture}', "
            "pretrained=True, pretrained_backbone=FILE) makes one of its weights"
        )
    if not timm.is_model(architecture):
        raise ValueError(
            f"{folder} holds {architecture}, which timm {timm.__version__} does not know: pip install -U timm"
        )
