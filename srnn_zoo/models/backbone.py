"""Backbones: any timm architecture as the base CNN, behind one small interface."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.resizing import is_captured

from .signs import Signs
from .sizes import native_size, reads

# Constructor arguments that make an architecture accept images of several sizes, in the order they are tried.
_FLEXIBLE_SIZE_ARGS: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})

# entries of a backbone's config that are not true of an SRNN over it
_WEIGHTS_SOURCE = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "label_offset")
_TEST_SIZES = ("test_input_size", "test_crop_pct", "test_pool_size", "min_input_size")
_BACKBONE_ONLY = frozenset((*_WEIGHTS_SOURCE, *_TEST_SIZES, "notes"))


def create_timm_model(architecture: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, with the option to accept several image sizes where the architecture has one.

    Raises:
        ValueError: for an unknown architecture, with the closest names.
        TypeError: for an argument the architecture does not take.
    """
    if not timm.is_model(architecture):
        names = timm.list_models(exclude_filters="srnn_*")
        raise ValueError(unknown_name("timm architecture", architecture, names, "see timm.list_models()"))
    for flexible in _FLEXIBLE_SIZE_ARGS:
        if flexible.keys() & kwargs.keys():
            continue
        try:
            return timm.create_model(architecture, **flexible, **kwargs)
        except TypeError as error:
            if unexpected_argument(error) not in flexible:
                raise
    raise AssertionError("unreachable: the last attempt adds no argument")


def create_backbone(architecture: str, **kwargs: Any) -> nn.Module:
    """The base CNN C of an architecture: a timm model without classifier, `(B, C, H, W)` to `(B, D)`.

    Args:
        architecture: a name from `timm.list_models()`, without tag.
        **kwargs: for the timm model (`in_chans`, `drop_path_rate`, …).
    """
    backbone = create_timm_model(architecture, num_classes=0, **kwargs)
    if (patch_embed := _flexible_patch_embed(backbone)) is not None:
        patch_embed.register_forward_pre_hook(_check_patches_cover)
    forget_patch_size_check(backbone)
    return backbone


def forget_patch_size_check(backbone: nn.Module) -> None:
    """Switch off timm's check that patches cover an image, where ours (`_check_patches_cover`) stands in its place.

    It writes the height into its message before it is needed, so that `torch.compile` compiles anew for each height.
    """
    if (patch_embed := _flexible_patch_embed(backbone)) is not None:
        patch_embed.img_size = None  # as timm has it where there is no size to check


def _flexible_patch_embed(backbone: nn.Module) -> Any:
    """timm's layer that cuts images of any size into patches, if the backbone has it."""
    layer = getattr(backbone, "patch_embed", None)
    is_flexible = isinstance(layer, PatchEmbed) and not layer.strict_img_size and not layer.dynamic_img_pad
    return layer if is_flexible else None


def _check_patches_cover(patch_embed: Any, images: tuple[Tensor]) -> None:
    """Raise an error for images whose last rows or columns the patches would leave out."""
    if is_captured(images[0]):
        return
    (height, width), (patch_height, patch_width) = images[0].shape[-2:], patch_embed.patch_size
    if height % patch_height or width % patch_width:
        patch = f"{patch_height} x {patch_width}"
        raise ValueError(
            f"the sides of an image must be multiples of its patches, {patch} pixels; got {height} x {width}"
        )


def replace_removed_classifier(backbone: nn.Module) -> None:
    """Put a plain function where timm leaves an `nn.Identity` named `fc` for the classifier of a backbone without one.

    Tools that find modules by the end of their names, such as PEFT's `target_modules="all-linear"`, would take it for
    the `fc` of the SRNN.
    """
    removed = [name for name, module in backbone.named_modules() if type(module) is nn.Identity]
    for parent, _, name in (name.rpartition(".") for name in removed):
        if name == "fc":
            module: Any = backbone.get_submodule(parent)
            del module.fc
            module.fc = _unchanged


def _unchanged(x: Tensor) -> Tensor:
    return x


def has_nonnegative_features(backbone: nn.Module) -> bool:
    """Whether C(x) is never negative, so that ReLU leaves a pretrained classifier intact.

    The operations say it, not the values (`models.signs`): a rectified net cannot give a negative feature, whatever its
    weights are, and these may be on the meta device.
    """
    with torch.inference_mode(False), torch.no_grad(), Signs() as signs:  # inference mode hides what operations do
        (features,) = probe(backbone)
    return signs.never_negative(features)


@torch.no_grad()
def probe(backbone: nn.Module, *others: nn.Module) -> list[Tensor]:
    """What a backbone, and others, say of the same two random images: small ones if all read them, else of its size."""
    native, multiple = native_size(backbone), reads(backbone).multiple
    channels = int(getattr(backbone, "in_chans", 3))
    # transformers' Swin shrinks its windows for good when it reads an image that is small for them
    small = max(native) if hasattr(backbone, "net") else multiple * -(-96 // multiple)
    generator = torch.Generator().manual_seed(0)
    contrast = torch.tensor([0.3, 3.0], device="cpu").view(2, 1, 1, 1)
    for size in ((min(small, native[0]), min(small, native[1])), native):
        images = torch.randn(2, channels, *size, generator=generator, device="cpu") * contrast
        try:
            return [_evaluated(network, images) for network in (backbone, *others)]
        except (AssertionError, IndexError, RuntimeError, ValueError):
            if size == native:
                raise
    raise AssertionError("unreachable: the native size either returns or raises")


def _evaluated(network: nn.Module, images: Tensor) -> Tensor:
    with in_mode(network, training=False):
        return network(images.to(next(network.parameters())))


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode; afterwards every part is in the mode that it was in."""
    before = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part in before:
            if isinstance(part, torch.fx.GraphModule):  # torchvision's extractors have a graph for each mode
                part.train(before[part])
        for part, mode in before.items():
            part.training = mode


def srnn_config(config: dict[str, Any], ratios: Sequence[tuple[int, int]] = ((1, 2), (1, 1))) -> dict[str, Any]:
    """The `pretrained_cfg` of an SRNN from its backbone's: preprocessing kept, the rest made its own.

    Args:
        config: the backbone's.
        ratios: the sizes of the levels relative to the image's; the smallest level gets the backbone's own size.
    """
    smallest = min(Fraction(*ratio) for ratio in ratios)
    channels, height, width = config["input_size"]
    first_conv = config.get("first_conv")
    names = [first_conv] if isinstance(first_conv, str) else first_conv or ()
    prefixed = tuple(f"backbone.{name}" for name in names)
    return {
        **{key: value for key, value in config.items() if key not in _BACKBONE_ONLY},
        "architecture": f"srnn_{config['architecture'].removeprefix('srnn_')}",
        "input_size": (channels, round(height / smallest), round(width / smallest)),
        "fixed_input_size": False,
        "pool_size": (1, 1),
        "first_conv": prefixed[0] if len(prefixed) == 1 else prefixed or None,
        "classifier": "fc",
    }


def prefix_feature_info(backbone: nn.Module) -> list[dict[str, Any]]:
    """A backbone's `feature_info` with module names as they are inside an SRNN."""
    info = getattr(backbone, "feature_info", [])
    return [{**entry, "module": f"backbone.{entry['module']}"} for entry in info if "module" in entry]


def prefix_group_matcher(matcher: dict[str, Any], prefix: str = "backbone") -> dict[str, Any]:
    """A backbone's `group_matcher` patterns, rewritten for its parameters' names inside another module."""

    def rewrite(spec: Any) -> Any:
        if isinstance(spec, str):
            unanchored = re.sub(r"(^|\||\()\^", r"\1", spec)
            return rf"^{prefix}\.(?:{unanchored})"
        return spec and [(rewrite(pattern), ordinal) for pattern, ordinal in spec]

    return {name: rewrite(spec) for name, spec in matcher.items()}


def unexpected_argument(error: TypeError) -> str | None:
    """The argument a call did not expect, read from Python's own message."""
    found = re.search(r"unexpected keyword argument(?:\(s\):)? \[?'(\w+)'", str(error))
    return found.group(1) if found else None
