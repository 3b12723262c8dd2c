"""`SRNN.wrap`: an SRNN over a network that is not in timm."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeVar, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.levels import default_scales, level_sizes, pair, scale_ratios
from srnn_zoo.transforms.views import shares

from .dry_run import DryRun, Found, Output, Size, call_options, first_conv, own_size, take
from .norms import LevelNorm
from .sizes import Reads, pool

WRAPPED = "wrapped"  # what stands for timm's name of an architecture
_FUNCTION = "<function>"  # what a config says of an output= that cannot be written down
_NO_DECAY = re.compile(r"(^|[._])(cls|class|mask)_(token|embedding)$|pos(ition)?_embed")

ModelT = TypeVar("ModelT", bound="WrapMixin")

_logger = logging.getLogger(__name__)


class WrapMixin:
    """What makes an SRNN over any network."""

    @classmethod
    def wrap(
        cls: type[ModelT],
        net: nn.Module | str,
        *,
        num_classes: int | None = None,
        classifier: nn.Linear | None = None,
        img_size: int | Size | None = None,
        in_chans: int | None = None,
        output: Output = None,
        multiple: int | None = None,
        tile: int | Size | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_pct: float | None = None,
        **options: Any,
    ) -> ModelT:
        """An SRNN over a network that is not in timm: torchvision's, transformers' or your own.

        The network reads images `(B, C, H, W)` and gives features `(B, D)`, tokens `(B, L, D)` or maps `(B, D, H, W)`;
        tokens and maps are averaged. One dry run, which changes nothing, finds D and which sizes it reads. The network
        becomes part of the model, under `model.backbone.net`; it is not copied.

        Args:
            net: the network without its classifier; or `"module:callable"`, a function or class that makes it, which
                is imported, called without arguments and recorded, so that the saved model can be loaded by it.
            num_classes: width of the classifier; by default that of `classifier`, else 1000.
            classifier: the linear layer that was trained on the network's pooled features. The model then has the
                paper's initialisation: with one level it is the base CNN.
            img_size: the size `(H, W)` of the largest level; by default the one that makes the smallest level the
                network's own size, or 224 where it names none.
            in_chans: channels of the images; by default those of the first convolution.
            output: which of several things that the network gives are the features: a key, an index, or a function of
                its output. By default the only one; of transformers' outputs `pooler_output`, `last_hidden_state`, or
                the last of `feature_maps`.
            multiple: level sizes are rounded to it, in pixels; by default found out.
            tile: the one size `(H, W)` that the network reads; larger levels are then read in tiles. By default found
                out.
            mean: of every channel, for images in [0, 1], such as transformers' `image_processor.image_mean`; by default
                ImageNet's.
            std: as `mean`.
            crop_pct: which share of an image's shorter side the evaluation transform keeps; by default 0.875.
            **options: of `SRNN`: `variant`, `scales`, `zooms`, `activation`, `exits`, `norm`, `drop_rate`, ….

        Raises:
            ValueError: where the network cannot read such images or gives something else than features; and as `SRNN`.
            TypeError: for something that is no `nn.Module`, and an unknown option.

        Examples:
            >>> net = torchvision.models.resnet18(weights="DEFAULT")
            >>> classifier, net.fc = net.fc, torch.nn.Identity()
            >>> model = SRNN.wrap(net, classifier=classifier, variant="half_gru")
        """
        known = inspect.signature(cls).parameters.keys() - {"backbone"}
        if unknown := options.keys() - known:
            raise TypeError(unknown_name("option", min(unknown), known | inspect.signature(cls.wrap).parameters.keys()))
        zooms = options.get("zooms")
        ratios = scale_ratios(options.get("scales") or default_scales(zooms), zooms)
        module = find_net(net, may_import=True)
        native = own_size(module) or (224, 224)
        if img_size is None:
            smallest = min(Fraction(*ratio) for ratio in ratios)  # it has the network's own size
            levels = [native, pair([round(length / smallest) for length in native])]
        else:
            levels = level_sizes(*pair(img_size), ratios, multiple or 1, shares(zooms))
            native = own_size(module) or levels[0]
        backbone = as_backbone(
            module,
            name=net if isinstance(net, str) else "",
            img_size=native,
            levels=levels,
            in_chans=in_chans,
            output=output,
            multiple=multiple,
            tile=tile,
            preprocessing={"mean": mean, "std": std, "crop_pct": crop_pct},
        )
        if classifier is not None:
            num_classes = _check_classifier(classifier, backbone, num_classes)
        num_classes = 1000 if num_classes is None else num_classes
        model = cast(Any, cls)(backbone, num_classes=num_classes, img_size=img_size, **options)
        model._model_args = {name: options[name] for name in ("drop_rate", "global_pool") if name in options}
        if classifier is not None:
            with torch.no_grad():
                for head in (*model.exit_classifiers, model.fc):
                    head.weight.copy_(classifier.weight)
                    head.bias.zero_() if classifier.bias is None else head.bias.copy_(classifier.bias)
            model.zero_shot = True
        return model


class WrappedBackbone(nn.Module):
    """A network as what timm calls a backbone without classifier: images `(B, C, H, W)` to features `(B, D)`.

    Attributes:
        net: the network.
        arguments: of `as_backbone`, in JSON's types, which make it again.
        reads: which sizes of levels the network reads.
    """

    num_classes = 0

    def __init__(
        self,
        net: nn.Module,
        found: Found,
        output: Output,
        reads: Reads,
        pretrained_cfg: dict[str, Any],
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        self.net = net
        self.reads = reads
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        self.in_chans = pretrained_cfg["input_size"][0]
        self.head_hidden_size = self.num_features = found.width
        self.feature_info = []
        if found.kind == "maps":
            reduction = round(pretrained_cfg["input_size"][1] / found.shape[2])
            self.feature_info = [{"num_chs": found.width, "reduction": reduction, "module": "net"}]
        self.arguments = arguments
        self._options = call_options(net)
        self._take = output if callable(output) else None
        self._path = found.path

    def forward(self, x: Tensor) -> Tensor:
        """C(x): features `(B, D)`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the network gives: features `(B, D)`, tokens `(B, L, D)` or maps `(B, D, H, W)`."""
        out = self.net(x, **self._options)
        return take(out, self._path) if self._take is None else self._take(out)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """The mean of tokens or maps, `(B, D)`; there is no classifier."""
        return pool(x)

    @property
    def forward_intermediates(self) -> Any:
        """timm's method, where the network gives maps: its last one is the only one."""
        if not self.feature_info:
            raise AttributeError("the network gives no maps")
        return self._forward_intermediates

    def _forward_intermediates(self, x: Tensor, *, intermediates_only: bool = False, **_: Any) -> Any:
        maps = self.forward_features(x)
        return [maps] if intermediates_only else (maps, [maps])

    @property
    def set_grad_checkpointing(self) -> Any:
        """timm's method, or what transformers has for it; where the network has neither, there is none here."""
        if getattr(self.net, "supports_gradient_checkpointing", False):
            return self._checkpoint_transformers
        return cast(Any, self.net).set_grad_checkpointing

    def _checkpoint_transformers(self, enable: bool = True) -> None:
        net, name = cast(Any, self.net), "activation_checkpointing"
        name = name if hasattr(net, f"{name}_enable") else "gradient_checkpointing"  # as transformers 4 says it
        if enable:
            getattr(net, f"{name}_enable")({"use_reentrant": False})
        else:
            getattr(net, f"{name}_disable")()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The network's parts in their order, for layer-wise learning rates."""
        parts = enumerate(_parts(self.net), start=1)
        return {"net": [*((rf"^{re.escape(name)}\.", (index,)) for index, name in parts), (r"^net\.", (0,))]}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the network's own, and embeddings of positions and classes."""
        own = set(getattr(self.net, "no_weight_decay", set)())
        return {f"net.{name}" for name, _ in self.net.named_parameters() if name in own or _NO_DECAY.search(name)}

    def stand_in(self) -> nn.Module:
        """A small network with the same interface, to see whether the rest of an SRNN comes back."""
        return nn.Sequential(nn.Conv2d(self.in_chans, self.num_features, 1), nn.BatchNorm2d(self.num_features))


def as_backbone(
    net: nn.Module | str | None,
    *,
    name: str = "",
    img_size: Size,
    in_chans: int | None = None,
    output: Output = None,
    multiple: int | None = None,
    tile: int | Sequence[int] | None = None,
    levels: Sequence[Size] = (),
    preprocessing: dict[str, Any] | None = None,
) -> WrappedBackbone:
    """A network as a backbone; arguments as of `SRNN.wrap`.

    Args:
        net: the network, or the name of what makes it; a module that is not imported yet is not imported here.
        name: of what made the network.
        img_size: the size `(H, W)` that the network is for.
        in_chans: as of `SRNN.wrap`.
        output: as of `SRNN.wrap`.
        multiple: as of `SRNN.wrap`.
        tile: as of `SRNN.wrap`.
        levels: sizes to try where neither `multiple` nor `tile` is given.
        preprocessing: `mean`, `std` and `crop_pct`, each or None.
    """
    module = find_net(net)
    if output == _FUNCTION:
        raise ValueError("this model was made with a function as output=: give it again")
    conv, channels = first_conv(module)
    run = DryRun(module, in_chans or channels, output)
    size = img_size if tile is None else pair(tuple(tile) if isinstance(tile, Sequence) else tile)
    found = run(size)
    if multiple is not None or tile is not None:
        reads = Reads(multiple or 1, None if tile is None else size)
    else:
        reads = run.reads(size, levels)
        _logger.info("%s reads %s", type(module).__name__, reads)
    _warn_of_classifier(module, found)
    timms = getattr(module, "pretrained_cfg", None)
    given = {key: value for key, value in (preprocessing or {}).items() if value is not None}
    config = {
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        **{key: timms[key] for key in ("mean", "std", "crop_pct", "interpolation") if timms and key in timms},
        **{key: tuple(value) if isinstance(value, Sequence) else value for key, value in given.items()},
        "architecture": WRAPPED,
        "input_size": (run.in_chans, *size),
        "first_conv": conv and f"net.{conv}",
        "classifier": None,
        "num_classes": 0,
    }
    arguments = {
        "net": name or (net if isinstance(net, str) else type(module).__name__),
        "backbone_img_size": size,
        "in_chans": run.in_chans,
        "output": _FUNCTION if callable(output) else output,
        "multiple": reads.multiple,
        "tile": reads.tile,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    return WrappedBackbone(module, found, output, reads, config, arguments)


def find_net(net: nn.Module | str | None, *, may_import: bool = False) -> nn.Module:
    """The network itself, made by the callable that is named `"module:callable"`, where it is named.

    Args:
        net: the network or the name; a class's name alone is what a config records of a network.
        may_import: whether a module may be imported. A config's may not: reading it must not run code. Where the user
            has imported the module, the function or class that it defines is called.

    Raises:
        ValueError: where there is no network; it says how to give one.
        TypeError: for something else than a network with floating-point weights.
    """
    name = net
    if isinstance(net, str):
        net = _make(net, may_import)
    if net is None:
        raise ValueError("an SRNN over a network that is not in timm needs it: give net=")
    if not isinstance(net, nn.Module):
        raise TypeError(f"{name if isinstance(name, str) else 'SRNN.wrap'} must be a torch.nn.Module; got {net!r:.60}")
    first = next(net.parameters(), None)
    if first is None or not first.is_floating_point():
        raise TypeError(f"{type(net).__name__} has no floating-point weights")
    if any(isinstance(module, LevelNorm) for module in net.modules()):
        raise ValueError('this network is in an SRNN with norm="per_level": give a new one')
    return net


def _make(name: str, may_import: bool) -> Any:
    """What a callable, named `"module:callable"`, makes."""
    place, colon, attribute = name.partition(":")
    if may_import:
        if not (colon and place and attribute):
            raise ValueError(f'a network is named by its module and what makes it, "my_nets:make_net"; got {name!r}')
        module = importlib.import_module(place)
    elif not colon:
        raise ValueError(f"this model was made over a network that is not in timm, a {name}: give it as net=")
    elif place not in sys.modules or place.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(
            f"this model was made over {name}: give net=, or import {place} first (on the command line "
            f"--import {place})"
        )
    else:
        module = sys.modules[place]
    make = getattr(module, attribute, None)
    if not callable(make):
        raise ValueError(unknown_name(f"callable of {place}", attribute, vars(module)))
    owner = getattr(make, "__module__", None) or ""
    if not may_import and owner.partition(".")[0] != place.partition(".")[0]:
        raise ValueError(f"this model was made over {name}, which {place} does not define: give net=")
    return make()


def _check_classifier(classifier: Any, backbone: WrappedBackbone, num_classes: int | None) -> int:
    """How many classes a trained classifier has; refuses one that does not fit."""
    if not isinstance(classifier, nn.Linear):
        raise TypeError(f"classifier must be the torch.nn.Linear of the base CNN; got {type(classifier).__name__}")
    if classifier.in_features != backbone.num_features:
        raise ValueError(
            f"the classifier reads {classifier.in_features} features, and {type(backbone.net).__name__} gives "
            f"{backbone.num_features}"
        )
    if num_classes not in (None, classifier.out_features):
        raise ValueError(f"the classifier has {classifier.out_features} classes; num_classes is {num_classes}")
    return classifier.out_features


def _warn_of_classifier(net: nn.Module, found: Found) -> None:
    """Say so where the features are most probably the answers of a classifier."""
    last = next((module for module in reversed(list(net.modules())) if isinstance(module, nn.Linear)), None)
    if found.path[:1] == ("logits",) or (last is not None and last.out_features == found.width == 1000):
        warnings.warn(
            f"the {found.width} features of {type(net).__name__} look like the answers of its classifier: replace it "
            "by torch.nn.Identity() before the network is wrapped",
            stacklevel=4,
        )


def _parts(module: nn.Module, name: str = "net") -> Iterator[str]:
    """The names of a network's parts with parameters, from stem to head; of lists of blocks, every block is one."""
    is_list = isinstance(module, nn.Sequential | nn.ModuleList)
    for child_name, child in module.named_children():
        is_all = not is_list and _size(child) == _size(module) and any(True for _ in child.children())
        if is_all or _holds_blocks(child, or_lists=not is_list):
            yield from _parts(child, f"{name}.{child_name}")
        elif _size(child):
            yield f"{name}.{child_name}"


def _holds_blocks(module: nn.Module, or_lists: bool) -> bool:
    """Whether a module is a list of blocks with parts of their own, or (an encoder) is mostly made of lists."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return any(any(True for _ in block.children()) for block in module.children())
    lists = [part for part in module.children() if isinstance(part, nn.Sequential | nn.ModuleList)]
    return or_lists and 2 * sum(map(_size, lists)) > _size(module)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
