"""`SRNN.export`: a folder with the graphs of a model, and all that is needed to use them without srnn-zoo."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.export import ExportedProgram
from tqdm import tqdm

from srnn_zoo._errors import unknown_name
from srnn_zoo.datasets.classes import class_names
from srnn_zoo.datasets.images import open_image
from srnn_zoo.transforms.presets import create_transform, crop_interpolation
from srnn_zoo.transforms.reading import ImageAsRead
from srnn_zoo.weights.card import plain
from srnn_zoo.weights.files import file_sha256
from srnn_zoo.weights.saved import package_version

from .check import input_sizes, other_size, sample_images, worst_differences
from .formats import FORMATS, check_format, write_graph
from .graphs import capture_classifier, capture_encoder, capture_step, capture_whole, for_capture, reads
from .int8 import quantize
from .parts import write_run

MANIFEST = "export.json"
FORMAT_VERSION = 1  # of the manifest; raised when an older srnn-zoo would misread it
KINDS = ("both", "steps", "whole")
INPUTS = ("image", "levels")

# what of a model's `pretrained_cfg` says how images are read and what the classes are
_PREPROCESSING = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "fixed_input_size")
_KEPT = ("architecture", *_PREPROCESSING, "num_classes", "tag", "license", "label_names", "label_descriptions")

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: where it is.
        any_size: whether its graphs read images of any height and width; else only those of the model's levels.
        differences: for every graph the greatest absolute difference from the model's own answers.
    """

    folder: Path
    any_size: bool
    differences: dict[str, float]


class ExportMixin:
    """What writes an SRNN as graphs for other runtimes."""

    def export(
        self,
        directory: StrPath,
        *,
        format: Literal["onnx", "openvino", "torch"] = "onnx",
        kind: Literal["both", "steps", "whole"] = "both",
        input: Literal["image", "levels"] = "image",
        images: Iterable[Any] | None = None,
        int8: Iterable[Any] | None = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> Export:
        """Write a folder of graphs, each compared with the model, and a program `run.py` that uses them without torch.

        The *step graphs* stop early: `encoder` turns a level `(B, C, H, W)` into its features `(B, D)`, and `step`
        turns features and a state `(B, S)` into the next state and its logits `(B, K)`; `classifier` gives what the
        base CNN alone says of features. Levels that have batch norms or classifiers of their own have graphs of their
        own. `whole` is one graph from images to logits.
        `srnn_zoo.open_exported` and the command open the folder again. `export.json` says the rest: the names of the
        classes, the preprocessing, the sizes of the levels, thresholds and temperatures.

        Graphs take any number of images, and images of any height and width where the backbone can be captured so.
        They compute in float32.

        Args:
            directory: the folder; it must be new or empty, or hold an earlier export that `overwrite` replaces. It is
                filled once all graphs have been written and compared.
            format: `"onnx"`, `"openvino"`, or `"torch"` for `torch.export`.
            kind: `"steps"`, `"whole"`, or both.
            input: what the whole graph reads: the largest `"image"`, or all `"levels"`.
            images: photographs for the comparison (paths or PIL images); by default noise with a photograph's spectrum.
            int8: photographs, 100 or more, whose range of values decides how the encoder is quantised to 8 bits, by
                onnxruntime's static quantisation; for `"onnx"` and `"steps"` only. By default nothing is quantised.
            overwrite: replace what is there.
            progress: whether to show a progress bar.

        Raises:
            ValueError: for an unknown format, kind or input, a model without a classifier, a cell or backbone that
                cannot be captured, and graphs whose answers differ from the model's.
            ImportError: for a package that is missing, with the line that installs it.
            FileExistsError: where something else is in the folder.

        Examples:
            >>> model.export("flowers-onnx").differences
            {'encoder.onnx': 1.9e-06, 'step.onnx': 9.5e-07, 'whole.onnx': 1.4e-06}
        """
        check_format(format)
        for what, name, names in (("kind", kind, KINDS), ("input", input, INPUTS)):
            if name not in names:
                raise ValueError(unknown_name(what, name, names))
        if int8 is not None and (format, kind) != ("onnx", "steps"):
            raise ValueError('int8 quantises the encoder: give format="onnx" and kind="steps"')
        model = cast(Any, self)
        if model.num_classes == 0:
            raise ValueError("the model has no classifier (num_classes=0), and so no answer to export")
        if model.views != "center" and (kind, input) != ("whole", "image"):
            raise ValueError(
                f"views {model.views!r} follow from the level before, so that there are no graphs of single levels: "
                'give kind="whole"'
            )
        if model.cell.reads == "maps" and kind != "whole":
            raise ValueError(
                f"variant {model.variant!r} hands a map from level to level, so that there are no graphs of single "
                'levels: give kind="whole"'
            )
        place = check_place(Path(directory), overwrite)
        pictures = sample_images() if images is None else list(map(_opened, images))
        if not pictures:
            raise ValueError("a comparison needs at least one image; got none")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as name:
            work = _Work(for_capture(model), Path(name) / place.name, format, progress)
            work.folder.mkdir()
            if kind != "whole":
                work.write_steps()
            if kind != "steps":
                work.write_whole(input)
            differences = worst_differences(work.model, work.folder, work.graphs, input, work.any_size, pictures)
            if int8 is not None:
                transform = create_transform(work.model)
                quantize(work.folder, work.graphs["encoders"], [transform(_opened(image)) for image in int8])
            _write_manifest(model, work, input, differences, quantized=int8 is not None)
            _put(work.folder, place)
        return Export(place, work.any_size, differences)


@dataclass
class _Work:
    """A model that is being exported: which graphs there are so far, as lists of files, one for each level."""

    model: Any
    folder: Path
    format: str
    progress: bool
    any_size: bool = True
    graphs: dict[str, list[str]] = field(default_factory=dict)

    def write_steps(self) -> None:
        """The graphs of the cell first: one that cannot be captured is found out at once."""
        model, levels = self.model, range(len(self.model.scales))
        state_grows = model.cell.initial_state(torch.zeros(1, model.num_features)).shape[1] == 0
        own = model.exits == "separate" or state_grows or not model.cell.anytime
        self._write("step", len(levels), own, lambda level: capture_step(model, level), ("feature", "state"))
        own = model.exits == "separate"
        self._write("classifier", len(levels), own, lambda level: capture_classifier(model, level), ("feature",))
        sizes = model.level_sizes()

        def encoder(level: int) -> ExportedProgram:
            program, any_size = capture_encoder(model, level, sizes[level])
            self.any_size &= any_size
            return program

        last = encoder(levels[-1])
        # a last map of 1 x 1 has a graph of its own
        self.any_size &= all(reads(last, model.in_chans, size) for size in sizes)
        own = model.norm == "per_level" or not self.any_size
        self._write("encoder", len(levels), own, lambda level: encoder(level) if own else last, ("level",))

    def write_whole(self, input: str) -> None:
        """The graph of the whole model."""
        sizes = input_sizes(self.model, self.model.img_size, input)
        program, any_size = capture_whole(self.model, sizes)
        # on a small level a last map of 1 x 1 becomes part of the graph
        others = input_sizes(self.model, other_size(self.model), input)
        self.any_size &= any_size and reads(program, self.model.in_chans, *others)
        names = [f"level_{level}" for level in range(len(sizes))] if input == "levels" else ["image"]
        self._write("whole", 1, False, lambda _: program, names)

    def _write(
        self, what: str, levels: int, own: bool, capture: Callable[[int], ExportedProgram], inputs: Sequence[str]
    ) -> None:
        """Write one graph for all levels, or one for each."""
        ending = FORMATS[self.format]
        names = [f"{what}_{level}{ending}" if own else f"{what}{ending}" for level in range(levels)]
        outputs = {"step": ("new_state", "logits"), "encoder": ("feature",)}.get(what, ("logits",))
        for level, name in enumerate(
            tqdm(dict.fromkeys(names), unit="graph", desc=what, disable=None if self.progress else True)
        ):
            program = capture(level)
            count = len(program.graph_signature.user_outputs)
            write_graph(program, self.folder / name, inputs, outputs[:count])
        self.graphs[what if what == "whole" else f"{what}s"] = names


def _opened(image: Any) -> Any:
    return open_image(image).image if isinstance(image, str | os.PathLike) else image


def check_place(place: Path, overwrite: bool) -> Path:
    """The folder, if it may be written."""
    is_export = (place / MANIFEST).is_file()
    if place.exists() and not (place.is_dir() and not any(place.iterdir())) and not (overwrite and is_export):
        if is_export:
            raise FileExistsError(f"{place} holds an exported model already: choose another folder, or overwrite it")
        raise FileExistsError(f"{place} is there already, and is no exported model: choose another folder")
    return place.absolute()


def _put(written: Path, place: Path) -> None:
    """Move a finished folder to its place; what was there is removed last."""
    if place.exists():
        place.rename(written.parent / "earlier")
    shutil.move(written, place)


def _write_manifest(model: Any, work: _Work, input: str, differences: dict[str, float], quantized: bool) -> None:
    """`export.json` and `run.py`."""
    preprocessing = _preprocessing(model)
    if work.graphs.get("steps") and preprocessing["mode"] and model.task != "regression":
        write_run(work.folder / "run.py", work.format, preprocessing, model.task)
    config = {key: model.pretrained_cfg[key] for key in _KEPT if model.pretrained_cfg.get(key) is not None}
    sizes = model.level_sizes()
    like = torch.zeros(1, model.num_features)
    about = {
        "format_version": FORMAT_VERSION,
        "srnn_zoo_version": package_version(),
        "format": work.format,
        "graphs": work.graphs,
        "input": input,
        "any_size": work.any_size,
        "int8": quantized,
        "differences": differences,
        "variant": model.variant,
        "scales": model.scales,
        "interpolation": model.interpolation,
        "exits": model.exits,
        "norm": model.norm,
        "anytime": work.model.cell.anytime,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "in_chans": model.in_chans,
        "state_width": work.model.cell.initial_state(work.model.cell.as_read(like)).shape[1],
        "reads": {"multiple": model.reads.multiple, "tile": model.reads.tile},
        "level_sizes": sizes,
        "image_size": model.whole_size(),
        "zooms": model.zooms or [1] * len(sizes),
        "views": model.views,
        "gmacs": [model.level_gmacs(size) for size in sizes],
        "temperatures": [model.temperature(level) for level in range(len(sizes))],
        "zero_shot": model.zero_shot,
        "class_names": class_names(model),
        "preprocessing": preprocessing,
        "pretrained_cfg": config,
        "metadata": model.metadata,
        "files": {file.name: file_sha256(file) for file in sorted(work.folder.iterdir())},
    }
    text = json.dumps(plain(about, "the model's facts"), indent=1)
    (work.folder / MANIFEST).write_text(text, encoding="utf-8")


def _preprocessing(model: Any) -> dict[str, Any]:
    """How `run.py` reads an image file: the model's evaluation transform in timm's words."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    return {
        **{key: config[key] for key in ("mean", "std", "crop_pct", "crop_mode")},
        "crop_interpolation": crop_interpolation(model.interpolation),
        "interpolation": model.interpolation,
        "mode": ImageAsRead(model.in_chans).mode,
    }
