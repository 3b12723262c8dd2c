"""What is captured of a model: its backbone on a level, its cell and classifier, or all of it, each as one graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

Size = tuple[int, int]


class Part(nn.Module):
    """A part of a model that becomes a graph.

    Args:
        model: an SRNN.
        level: index of the level that it is for.
    """

    def __init__(self, model: Any, level: int = 0) -> None:
        super().__init__()
        self.model: Any = model
        self.level = level


class Encoder(Part):
    """C(x_s): a level `(B, C, H, W)` to its features `(B, D)`."""

    def forward(self, level: Tensor) -> Tensor:
        return self.model.level_features(level, self.level)


class StepGraph(Part):
    """A turn of the loop over scale: features `(B, D)` and a state to the state `(B, S)` and its logits `(B, K)`.

    A cell that answers after the last level only gives the state alone before it.
    """

    def forward(self, feature: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        state = self.model.cell(feature, state)
        if self.model.cell.anytime or self.level + 1 == len(self.model.scales):
            return state, self.model.state_logits(state, self.level)
        return (state,)


class Classifier(Part):
    """F(C(x_s)): features `(B, D)` of a level to what the base CNN alone says, `(B, K)`."""

    def forward(self, feature: Tensor) -> Tensor:
        return self.model.level_logits(feature, self.level)


class Whole(Part):
    """A model from its largest level, or from all of its levels, to logits `(B, K)`."""

    def forward(self, *images: Tensor) -> Tensor:
        return self.model(images[0] if len(images) == 1 else list(images))


def for_capture(model: nn.Module) -> Any:
    """A copy of a model in evaluation mode and float32 on the CPU, which is what graphs are made of."""
    return copy.deepcopy(model).cpu().float().eval()


def capture_encoder(model: Any, level: int, size: Size) -> tuple[ExportedProgram, bool]:
    """The graph of an encoder for any height and width, or for one size where the backbone allows no other.

    Returns:
        the graph, and whether it reads any size.
    """
    images = torch.randn(2, model.in_chans, *size)
    return _any_size_or_one(Encoder(model, level), [images], fixed=model.reads.tile is not None)


def capture_step(model: Any, level: int) -> ExportedProgram:
    """The graph of a turn of the loop after a level.

    Raises:
        ValueError: for a cell that cannot be captured.
    """
    features = torch.randn(2, model.num_features)
    state = model.cell.initial_state(features)
    with torch.no_grad():
        for _ in range(level):
            state = model.cell(features, state)
    try:
        return capture(StepGraph(model, level), (features, state), [{0: Dim.DYNAMIC}] * 2)
    except Exception as error:  # whatever a cell of the user's raises
        name = type(model.cell).__name__
        raise ValueError(
            f"the cell {name} cannot be captured in a graph: write it with operations on tensors alone, such as "
            f"torch.where instead of if ({_first_line(error)})"
        ) from error


def capture_classifier(model: Any, level: int) -> ExportedProgram:
    """The graph of the classifier of a level."""
    return capture(Classifier(model, level), [torch.randn(2, model.num_features)], [{0: Dim.DYNAMIC}])


def capture_whole(model: Any, sizes: Sequence[Size]) -> tuple[ExportedProgram, bool]:
    """The graph of a model: from the largest level, if there is one size, or from all levels."""
    levels = [torch.randn(2, model.in_chans, *size) for size in sizes]
    return _any_size_or_one(Whole(model), levels, fixed=model.reads.tile is not None)


def reads(program: ExportedProgram, in_chans: int, *sizes: Size) -> bool:
    """Whether a graph takes images of these sizes, one for each input: it may hold a condition for them."""
    try:
        program.module()(*(torch.zeros(2, in_chans, *size) for size in sizes))
    except (AssertionError, RuntimeError):
        return False
    return True


def capture(module: Part, inputs: Sequence[Tensor], dynamic: Sequence[dict[int, Any]]) -> ExportedProgram:
    """`torch.export.export` without gradients, with sizes that may vary as said."""
    with torch.no_grad(), _plain_padding(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {"images": tuple(dynamic)} if isinstance(module, Whole) else tuple(dynamic)
        return torch.export.export(module, tuple(inputs), dynamic_shapes=shapes)


def _any_size_or_one(module: Part, inputs: Sequence[Tensor], fixed: bool) -> tuple[ExportedProgram, bool]:
    """A graph for any height and width, else for these ones; the number of images may always vary."""
    every = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    failure: Exception | None = None
    for dynamic in [{0: Dim.DYNAMIC}] if fixed else [every, {0: Dim.DYNAMIC}]:
        try:
            return capture(module, inputs, [dynamic] * len(inputs)), dynamic is every
        except Exception as error:  # each backbone has its own reasons
            failure = error
    architecture = module.model.pretrained_cfg["architecture"]
    raise ValueError(
        f"{architecture} cannot be captured in a graph by torch.export: {_first_line(failure)}"
    ) from failure


def _first_line(error: BaseException | None) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _plain_padding() -> Iterator[None]:
    """TensorFlow's "same" padding in whole numbers.

    timm computes it by a division of floats. Of sizes that are unknown, each layer then makes an expression of the one
    before it, and those of one EfficientNet take minutes to simplify; these take a second.
    """
    with mock.patch("timm.layers.padding.get_same_padding", _same_padding):
        yield


def _same_padding(length: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    extent = (kernel_size - 1) * dilation + 1
    padding = ((length + stride - 1) // stride - 1) * stride + extent - length
    return padding if extent >= stride else torch.sym_max(padding, 0)
