"""A saved model, read back: a folder, a weights file or a Hub id, in timm's files."""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_path
from torch import Tensor

from srnn_zoo._errors import WeightsUnavailableError

from .download import download_files, split_hub_id
from .files import DIGEST_KEY, read_weights

FORMAT_VERSION = 1  # of the key `srnn` in config.json; raised when an older srnn-zoo would misread it
DISTRIBUTION = "srnn-zoo"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
RECIPE_FILE, CURVES_FILE = "recipe.toml", "curves.png"  # of a run, whose folder has the models best and last
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
UNFINISHED = ".saving-"  # a folder of files that are not yet in their place

StrPath = str | os.PathLike[str]


class SavedModel(NamedTuple):
    """What is in a saved model.

    Attributes:
        source: the folder, file or Hub id it came from.
        state: its state dict.
        config: its `pretrained_cfg`; empty for a weights file alone.
        architecture: its name for timm, such as `srnn_resnet18`; empty for a weights file alone.
        model_args: the arguments of the factory that make the model again.
        about: what is under `srnn` in its config: `metadata`, `zero_shot`, `cell` (its class, `"module.Class"`), ….
    """

    source: str
    state: dict[str, Tensor]
    config: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    architecture: str = ""
    model_args: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    about: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def package_version() -> str:
    """The version of srnn-zoo that is installed; this floor cannot import it from the package."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # torch.hub runs a checkout
        return "(a checkout that is not installed)"


def open_saved(source: StrPath, *, sha256: str = "", **download: Any) -> SavedModel:
    """Read a saved model: a folder, a weights file, or `"owner/name[@revision]"` on the Hub.

    timm's `local-dir:` or `hf-hub:` may stand before it. The weights file must have this `sha256`, if it is given;
    `download` is for `download_files`.

    Raises:
        FileNotFoundError: if there is no such folder, or it lacks `config.json` or weights.
        ValueError: if its config is damaged, of a newer srnn-zoo or of no SRNN, or if `source` can be none of these.
        WeightsUnavailableError: if weights are not available, cannot be read, or are not those of `sha256`.
    """
    source = re.sub("^(local-dir|hf-hub):", "", os.fspath(source))
    path = Path(source)
    if path.is_file():
        state, header = read_weights(path, sha256)
        return SavedModel(source, state, model_args=json.loads(header.get("model_args", "{}")))
    is_folder = bool(source) and path.is_dir()
    folder = path if is_folder else _download(source, **download)
    raw = read_config(folder)
    _check_architecture(raw["architecture"], source)
    state = _read_weights_of(folder, raw, sha256)
    config, architecture, model_args = load_model_config_from_path(folder)
    model_args.pop("num_classes", None)  # in files written by timm; the config has it too
    about = dict(raw.get("srnn", {}))
    if not is_folder:
        config |= {"file": None, "source": "hf-hub", "hf_hub_id": source}
    names = config.get("label_names")
    if names and len(names) != config.get("num_classes"):  # transformers keeps all this with another classifier
        del config["label_names"]
        base = about.get("metadata", {}).get("base_model")
        about["metadata"] = {"base_model": base} if base else {}
    return SavedModel(source, state, config, architecture, model_args, about)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a saved model.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no config of timm's or ours, or is of a newer srnn-zoo.
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
    for key, kind in _TYPES.items():
        if key in config and not isinstance(config[key], kind):
            raise ValueError(f"{path} is damaged: {key} is {config[key]!r}")
    format_version = config.get("srnn", {}).get("format_version", FORMAT_VERSION)
    if not isinstance(format_version, int):
        raise ValueError(f"{path} is damaged: format_version is {format_version!r}")
    if format_version > FORMAT_VERSION:
        wrote = config["srnn"].get("srnn_zoo_version", "a newer version")
        raise ValueError(
            f"{path} has format {format_version}, written by srnn-zoo {wrote}; this is {package_version()}, which "
            f"reads format {FORMAT_VERSION}: pip install -U srnn-zoo"
        )
    unknown = config.get("pretrained_cfg", {}).keys() - vars(PretrainedCfg()).keys()
    if unknown:
        raise ValueError(
            f"{path} has entries in pretrained_cfg that timm {timm.__version__} does not know: "
            f"{', '.join(sorted(unknown))}; pip install -U timm"
        )
    return config


_TYPES = {"srnn": dict, "model_args": dict, "pretrained_cfg": dict, "num_classes": int, "label_names": list}


def _check_architecture(architecture: str, source: str) -> None:
    """Refuse a model that is no SRNN, and an architecture that this timm does not know."""
    if not architecture.startswith("srnn_"):
        raise ValueError(
            f"{source} holds timm's {architecture}, no SRNN: srnn_zoo.create_model('srnn_{architecture}', "
            "pretrained=True, pretrained_backbone=FILE) makes one of its weights"
        )
    if not timm.is_model(architecture):
        raise ValueError(
            f"{source} holds {architecture}, which timm {timm.__version__} does not know: pip install -U timm"
        )


def _read_weights_of(folder: Path, config: dict[str, Any], sha256: str) -> dict[str, Tensor]:
    """The weights that belong to a config: those in their place, or those that a killed save left unfinished.

    A save puts config.json in its place before the weights. Both name the checksum of the weights.
    """
    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no weights: neither {' nor '.join(WEIGHTS_FILES)}")
    expected = config.get("srnn", {}).get("weights_sha256", "")
    for candidate in (path, *folder.glob(f"{UNFINISHED}*/{WEIGHTS_FILES[0]}"), path):  # by now it may be in its place
        if candidate.is_file():
            state, header = read_weights(candidate, sha256)
            if expected in ("", header.get(DIGEST_KEY, expected)):  # other programs write no checksum
                return state
    raise WeightsUnavailableError(f"{folder} holds the config of one model and the weights of another: save it again")


def _download(source: str, **options: Any) -> Path:
    """The folder of a model of the Hub in the Hugging Face cache, fetched if it is not there yet."""
    if "://" in source:
        raise ValueError(f"give a Hub id (owner/name or owner/name@revision), not an address; got {source!r}")
    repo = source.partition("@")[0]
    if not repo or repo.startswith((".", "/", "~")) or repo.count("/") > 1:
        raise FileNotFoundError(f"no file or folder {source!r}")
    if repo.endswith((".safetensors", ".bin", ".pth", ".pt", ".tar")):
        raise FileNotFoundError(f"no weights file {source}")
    split_hub_id(source)
    if timm.is_model(repo.partition(".")[0]):
        raise ValueError(f"{source!r} is the name of a model: use srnn_zoo.create_model({source!r}, pretrained=True)")
    config, *_ = download_files(source, CONFIG_FILE, WEIGHTS_FILES, **options)
    return config.parent
