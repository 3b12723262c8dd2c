"""Every graph, opened again and compared with the model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srnn_zoo.transforms.presets import image_transform

from .graphs import Classifier, Encoder, Part, StepGraph, Whole
from .parts import open_graph

TOLERANCE = 1e-4  # times the greatest value that the model itself gives, or 1
BATCHES = (1, 3)

Size = tuple[int, int]


def worst_differences(
    model: Any, folder: Path, graphs: Mapping[str, Sequence[str]], input: str, any_size: bool, images: Sequence[Any]
) -> dict[str, float]:
    """For every graph the greatest absolute difference from the model, over batches of 1 and 3 and two sizes.

    Args:
        model: in evaluation mode, in float32 on the CPU.
        folder: where the graphs are.
        graphs: the files of `"encoders"` and `"steps"`, one for each level, and of the `"whole"`.
        input: what the whole graph reads, `"image"` or `"levels"`.
        any_size: whether the graphs read other sizes than the model's own.
        images: what the model's transform reads.

    Raises:
        ValueError: where one differs by more than `TOLERANCE`.
    """
    names = [name for listed in graphs.values() for name in dict.fromkeys(listed)]
    comparison = _Comparison(model, {name: open_graph(folder / name) for name in names})
    for size in [model.img_size, *([other_size(model)] if any_size else [])]:
        read = list(map(image_transform(model, size=model.whole_size(size)), islice(cycle(images), max(BATCHES))))
        for count in BATCHES:
            comparison.compare(torch.stack(read[:count]), graphs, input)
    return comparison.differences


class _Comparison:
    def __init__(self, model: Any, opened: Mapping[str, Any]) -> None:
        self.model, self.opened = model, opened
        self.differences = dict.fromkeys(opened, 0.0)

    @torch.no_grad()
    def compare(self, images: Tensor, graphs: Mapping[str, Sequence[str]], input: str) -> None:
        """Every graph, and the part of the model that it was made of, on the same images."""
        levels = self.model.levels(images)
        for name in graphs.get("whole", ()):
            self._note(name, Whole(self.model), levels if input == "levels" else [images])
        state = None
        kinds = (graphs.get(kind, ()) for kind in ("encoders", "steps", "classifiers"))
        for index, (encoder, step, classifier) in enumerate(zip(*kinds, strict=True)):
            (feature,) = self._note(encoder, Encoder(self.model, index), [levels[index]])
            self._note(classifier, Classifier(self.model, index), [feature])
            before = self.model.cell.initial_state(feature) if state is None else state
            state, *_ = self._note(step, StepGraph(self.model, index), [feature, before])

    def _note(self, name: str, part: Part, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the part answers, once the graph is found to answer the same."""
        found = part(*inputs)
        wanted = found if isinstance(found, tuple) else (found,)
        sizes = " and ".join(" x ".join(map(str, tensor.shape)) for tensor in inputs)
        try:
            given = self.opened[name](*(tensor.numpy() for tensor in inputs))
        except Exception as error:  # each runtime has its own
            raise ValueError(f"{name} cannot read inputs of {sizes}; nothing was exported ({error})") from error
        for one, other in zip(wanted, given, strict=True):
            difference = float(np.abs(one.numpy() - other).max(initial=0.0))
            limit = TOLERANCE * max(1.0, float(one.abs().max()) if one.numel() else 0.0)
            if not difference <= limit:  # NaN is no agreement either
                raise ValueError(
                    f"{name} does not answer as the model does: it differs by {difference:.2g} on inputs of {sizes}, "
                    f"where {limit:.2g} is allowed; nothing was exported"
                )
            self.differences[name] = max(self.differences[name], difference)
        return wanted


def sample_images() -> list[Image.Image]:
    """Three images of noise with the spectrum of photographs, where amplitudes fall as 1 / frequency."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(640), np.fft.fftfreq(480)))
    amplitude = 1 / np.maximum(frequency, 1 / 640)[..., None]
    images = []
    for _ in range(3):
        noise = np.fft.ifft2(
            np.fft.fft2(generator.normal(size=(480, 640, 3)), axes=(0, 1)) * amplitude, axes=(0, 1)
        ).real
        pixels = 128 + 64 * noise / noise.std()
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return images


def other_size(model: Any) -> Size:
    """A size of images that is not the model's own, and no square."""
    height, width = model.img_size
    return height + 2 * model.reads.multiple, width + width // 4 + 1


def input_sizes(model: Any, img_size: Size, input: str) -> list[Size]:
    """What the whole graph reads for images of that size: all levels; or the largest, or what levels are parts of."""
    return model.level_sizes(img_size) if input == "levels" else [model.whole_size(img_size)]
