"""Parts of `run.py` for models that need others: each takes the place of the function there whose name it begins with.

None of them may use anything that `run.py` does not import.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import run

Graph = Callable[..., Sequence[Any]]
"""Arrays to arrays."""


def open_graph(path: Path, threads: int | None = None) -> Graph:
    """A graph in any format, as a function from arrays to arrays; with as many threads as PyTorch by default."""
    threads = torch.get_num_threads() if threads is None else threads
    if path.suffix == ".xml":
        return open_graph_openvino(path, threads, openvino_core())
    return {".onnx": run.open_graph, ".pt2": open_graph_torch}[path.suffix](path, threads)


@functools.cache
def openvino_core() -> Any:
    """The one OpenVINO of this process, which lives as long.

    Each has a stack for signals. Of two that go in the order in which they came, the second puts the freed stack of the
    first back, and the next signal, such as of a child process that ends, kills the process without a word.
    """
    import openvino

    return openvino.Core()


def write_run(path: Path, format: str, preprocessing: Mapping[str, Any], task: str) -> None:
    """Write `run.py` with the parts that a model needs."""
    source = inspect.getsource(run)
    crop, resize = preprocessing["crop_mode"], preprocessing["interpolation"]
    kinds = {"open_graph": format, "frame": crop, "crop": crop, "resize": resize, "probabilities": task}
    for name, kind in kinds.items():
        if part := globals().get(f"{name}_{kind}"):
            source = _with_part(source, part, name)
    path.write_text(source, encoding="utf-8")


def _with_part(source: str, part: Callable[..., Any], name: str) -> str:
    """The source with another function in the place of the one of that name."""
    [old] = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    lines = source.splitlines(keepends=True)
    new = inspect.getsource(part).replace(f"def {part.__name__}(", f"def {name}(", 1)
    return "".join([*lines[: old.lineno - 1], new, *lines[old.end_lineno :]])


def open_graph_openvino(path, threads=0, core=None):
    """A graph as a function from arrays to arrays; with 0 threads the runtime chooses how many."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}  # a CPU that knows bfloat16 would compute with three digits
    options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    compiled = (core or openvino.Core()).compile_model(path, "CPU", options)
    return lambda *arrays: [np.array(array) for array in compiled(arrays).values()]


def open_graph_torch(path, threads=0):
    """A graph as a function from arrays to arrays; torch.set_num_threads says how many threads it uses."""
    import torch

    module = torch.export.load(path).module()

    def run(*arrays):
        with torch.no_grad():
            found = module(*map(torch.from_numpy, arrays))
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else (found,))]

    return run


def frame_squash(image, width, height):
    """The size `(width, height)` of a frame, whose shape the image gets."""
    return [width, height]


def crop_border(image, width, height, how):
    """The whole image, with borders in the shape of the largest level."""
    frame = [math.floor(length / how["crop_pct"]) for length in (width, height)]
    ratio = max(image.width / frame[0], image.height / frame[1])
    size = tuple(round(length / ratio) for length in image.size)
    image = image.resize(size, Image.Resampling[how["crop_interpolation"].upper()])
    rest = [own - wanted for own, wanted in zip(image.size, (width, height), strict=True)]
    framed = Image.new(image.mode, (width, height), tuple(round(255 * value) for value in how["mean"]))
    framed.paste(image, tuple(-round(length / 2) if length > 0 else -length // 2 for length in rest))
    return framed


def resize_gaussian(image, width, height, how):
    """An image in another size: blurred for the reduction, then sampled between two pixels."""
    pixels = np.asarray(image, np.float32)
    for target in (height, width):  # along the height, then along the width
        length, reduction = len(pixels), len(pixels) / target
        if reduction > 1:
            sigma = math.sqrt((reduction**2 - 1) / 3)
            offsets = np.arange(-math.ceil(4 * sigma), math.ceil(4 * sigma) + 1)
            kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
            near = (np.arange(length)[:, None] + offsets).clip(0, length - 1)
            pixels = np.stack([np.tensordot(kernel / kernel.sum(), pixels[at], 1) for at in near])
        at = ((np.arange(target) + 0.5) * reduction - 0.5).clip(0)
        first = at.astype(int)
        share = (at - first).reshape(-1, *[1] * (pixels.ndim - 1))
        pixels = (1 - share) * pixels[first] + share * pixels[(first + 1).clip(max=length - 1)]
        pixels = pixels.swapaxes(0, 1)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def probabilities_multi_label(logits):
    """Sigmoid: each class by itself."""
    return 1 / (1 + np.exp(-logits))
