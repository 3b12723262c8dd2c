"""A model made ready to answer on a CPU: batch norm folded into convolutions, weights in channels-last order."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from srnn_zoo.models.backbone import probe
from srnn_zoo.models.norms import LevelNorm
from srnn_zoo.models.srnn import SRNN

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d, FrozenBatchNorm2d, FrozenBatchNormAct2d)
_TOLERANCE = 1e-5  # of the largest feature
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def for_inference(model: SRNN) -> SRNN:
    """A model made ready to answer on a CPU, for loops of your own; `predict`, `evaluate` and `collect` call it.

    The backbone becomes a copy in which batch norm is part of the convolution before it (Jacob et al., 2018, section
    3.2) and the convolutions' weights are in channels-last order. Cell, classifiers and all other weights are those of
    the model, which is not changed. Features differ by rounding alone: two images are tried before and after.
    Batch norm stays where levels have their own (`norm="per_level"`).

    A model comes back as it is where there is nothing to gain or something to lose: on another device than a CPU, in
    another dtype than float32, in training mode, compiled, with hooks, or over a backbone without batch norm, such as a
    ConvNeXt or a ViT (`results/cpu_network.csv` shows which networks gain).

    Args:
        model: an SRNN in eval mode. Train, change and save this one, then make it ready anew.

    Examples:
        >>> ready = for_inference(model.eval())
        >>> with torch.inference_mode():
        ...     for images in batches:
        ...         answers = ready(images).argmax(dim=1)
    """
    if not _gains(model):
        return model
    backbone = channels_last(folded(model.backbone))
    ready = copy.copy(model)
    ready._modules = {**model._modules, "backbone": backbone}
    ready._made_ready = True
    return ready


def _gains(model: SRNN) -> bool:
    if getattr(model, "_made_ready", False) or "backbone" not in model._modules:  # ready, or in a wrapper
        return False
    like = next(model.backbone.parameters(), None)
    if like is None or like.device.type != "cpu" or like.dtype != torch.float32:
        return False
    modules = list(model.modules())
    watched = any(m.training or m._compiled_call_impl or any(getattr(m, hooks) for hooks in _HOOKS) for m in modules)
    return not watched and any(type(module) in _BATCH_NORMS for module in model.backbone.modules())


def folded(backbone: nn.Module) -> nn.Module:
    """A copy that shares its weights, with batch norm in its convolutions where that changes nothing but rounding."""
    if any(isinstance(module, LevelNorm) for module in backbone.modules()):
        return twin(backbone)
    with torch.inference_mode(False), torch.no_grad():
        found = twin(backbone)
        for conv, norm, name in _pairs(found):
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            found.set_submodule(name, nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity())
        expected, features = probe(backbone, found)
        same = (features - expected).abs().max() <= _TOLERANCE * expected.abs().max()
    return found if same else twin(backbone)


def channels_last(backbone: nn.Module) -> nn.Module:
    """The same backbone with its convolutions' weights, in new tensors, in the order in which a CPU reads them faster.

    The first convolution's output has that order, too, and all that follow keep it.
    """
    with torch.inference_mode(False), torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d) and "weight" in module._parameters:  # else it is made of other parameters
                weight = module.weight.contiguous(memory_format=torch.channels_last)
                module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
    return backbone


def twin(module: nn.Module) -> nn.Module:
    """A copy that shares its weights."""
    return copy.deepcopy(module, {id(x): x for x in itertools.chain(module.parameters(), module.buffers())})


def _pairs(backbone: nn.Module) -> list[tuple[nn.Conv2d, Any, str]]:
    """Every convolution with the batch norm that reads its output, and that one's name; both run once an image.

    A run on two images tells which they are: any network can be run, while few can be traced.
    """
    outputs: list[tuple[Any, Any]] = []
    inputs: list[tuple[Any, nn.Module, str]] = []

    def start(*_: Any) -> None:
        outputs.clear()
        inputs.clear()

    hooks = [backbone.register_forward_pre_hook(start)]  # it may be run again, at a larger size
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d) and type(module) in _CONVOLUTIONS:
            hooks.append(module.register_forward_hook(lambda conv, _, out: outputs.append((out, conv))))
        elif type(module) in _BATCH_NORMS and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda norm, x, name=name: inputs.append((x[0], norm, name))))
    probe(backbone)
    for hook in hooks:
        hook.remove()
    pairs = [(conv, norm, name) for read, norm, name in inputs for output, conv in outputs if output is read]
    runs = Counter(module for _, module, *_ in (*outputs, *inputs))
    readers = Counter(conv for conv, *_ in pairs)
    return [pair for pair in pairs if runs[pair[0]] == runs[pair[1]] == readers[pair[0]] == 1]
