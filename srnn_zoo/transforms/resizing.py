"""How images are resized: torch's kernels, and the same as matrix products where a graph of other sizes is captured."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from srnn_zoo._errors import unknown_name

Interpolation: TypeAlias = str
"""A name in `INTERPOLATIONS`."""

Weights: TypeAlias = Callable[[int, int, Tensor], Tensor]
"""The weights `(out, in)` of a resize along one axis from `in` to `out` pixels, with a tensor's device and dtype."""


def resize(images: Tensor, size: list[int], interpolation: Interpolation = "bicubic") -> Tensor:
    """Resize float images `(B, C, H, W)` to `size = [h, w]`, as the interpolation of that name in `INTERPOLATIONS`."""
    x = images
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # there is no antialiased half kernel on CPU
    return INTERPOLATIONS[interpolation](x, size).to(images.dtype)


def check_interpolation(interpolation: str) -> str:
    """The name itself, or an error with the closest ones."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(unknown_name("interpolation", interpolation, INTERPOLATIONS))
    return interpolation


def is_captured(x: Any) -> bool:
    """Whether a graph is being made for images of other sizes too, and not an answer."""
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.7 has it
    return torch.jit.is_tracing() or isinstance(x, torch.fx.Proxy) or is_exporting()


def _antialiased(images: Tensor, size: list[int], mode: str) -> Tensor:
    if is_captured(images):  # the kernel is unknown to ExecuTorch, and to OpenVINO in an exported program
        return _as_matrices(images, size, mode=mode)
    return F.interpolate(images, size=size, mode=mode, align_corners=False, antialias=True)


def _gaussian(images: Tensor, size: list[int]) -> Tensor:
    """A level of a true Gaussian pyramid: a blur with σ² = (f² - 1) / 3 for a reduction by f, then sampling.

    That is the variance which Burt & Adelson's kernel (σ = 1 at every halving) has added up to after log2(f) halvings.
    """
    if is_captured(images):  # the width of a blur would be a constant of the graph
        return _separable(images, size, _blurring)
    x = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    x = _blur(x, images.shape[-1] / size[1])
    x = _blur(x.transpose(-2, -1), images.shape[-2] / size[0]).transpose(-2, -1)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=False)


def _blur(images: Tensor, reduction: float) -> Tensor:
    """Gaussian blur along the width for a reduction by that factor; edges are repeated."""
    if reduction <= 1:
        return images
    sigma = math.sqrt((reduction * reduction - 1) / 3)
    radius = math.ceil(4 * sigma)
    positions = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (positions / sigma) ** 2)
    weight = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    return F.conv2d(F.pad(images, [radius, radius, 0, 0], mode="replicate"), weight, groups=images.shape[1])


def _separable(images: Tensor, size: list[int], weights: Weights) -> Tensor:
    """Resize by one matrix product along the width and one along the height."""
    x = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    x = F.linear(x, weights(images.shape[-1], size[1], x))
    return F.linear(x.transpose(-2, -1), weights(images.shape[-2], size[0], x)).transpose(-2, -1)


def _antialiasing(length: int, target: int, like: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """What torch's antialiased kernels compute: a kernel as wide as the larger of an old and a new pixel."""
    pixels = (2 * torch.arange(length, device=like.device) + 1) * target  # positions in 1 / (2 length target), exact
    centres = (2 * torch.arange(target, device=like.device) + 1) * length
    distance = (pixels - centres[:, None]).abs().to(like.dtype) / 2
    weights = kernel(torch.minimum(distance / length, distance / target))
    return weights / weights.sum(1, keepdim=True)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, of distances from 0."""
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))


def _blurring(length: int, target: int, like: Tensor) -> Tensor:
    """What `_gaussian` computes: two blurred pixels, mixed, for each new one."""
    pixels = torch.arange(length, device=like.device)
    reduction = torch.ones(1, 1, device=like.device, dtype=like.dtype) * length / target
    sigma = ((reduction * reduction - 1).clamp(min=0) / 3).sqrt()
    radius = (4 * sigma).ceil()

    def gaussian(offset: Tensor) -> Tensor:
        offset = offset.abs().to(like.dtype)
        kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)) ** 2)  # without a blur, the pixel itself
        return torch.where(offset <= radius, kernel, torch.zeros_like(kernel))

    side = gaussian(torch.arange(1, 3 * length + 1, device=like.device)[None]).sum()  # the radius is at most 3 lengths

    def blurred(at: Tensor) -> Tensor:
        offset = pixels - at[:, None]
        kernel = gaussian(offset)
        before = side - torch.where(offset < 0, kernel, torch.zeros_like(kernel)).sum(1, keepdim=True)
        after = side - torch.where(offset > 0, kernel, torch.zeros_like(kernel)).sum(1, keepdim=True)
        return (kernel + before * (pixels == 0) + after * (pixels == length - 1)) / (1 + 2 * side)  # edges are repeated

    twice = ((2 * torch.arange(target, device=like.device) + 1) * length - target).clamp(min=0)  # in 1 / (2 target)
    first = torch.div(twice, 2 * target, rounding_mode="floor")
    share = ((twice - first * 2 * target).to(like.dtype) / (2 * target))[:, None]
    return (1 - share) * blurred(first) + share * blurred((first + 1).clamp(max=length - 1))


def _as_matrices(images: Tensor, size: list[int], *_: object, mode: str) -> Tensor:
    """What `F.interpolate(images, size, mode=mode, antialias=True)` computes, as two matrix products."""
    return _separable(images, size, partial(_antialiasing, kernel=_cubic if mode == "bicubic" else _triangle))


ANTIALIASED = ("bicubic", "bilinear")
"""Interpolations that torch, torchvision and Pillow know by these names."""

DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten._upsample_bicubic2d_aa.vec: partial(_as_matrices, mode="bicubic"),
    torch.ops.aten._upsample_bilinear2d_aa.vec: partial(_as_matrices, mode="bilinear"),
}
"""For `ExportedProgram.run_decompositions`: a backbone's own resizes (a ViT's position embedding) as matrices."""

INTERPOLATIONS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    **{mode: partial(_antialiased, mode=mode) for mode in ANTIALIASED},
    "gaussian": _gaussian,
}
"""How float images `(B, C, H, W)` are resized to `[h, w]`, by name: what is added here works everywhere."""
