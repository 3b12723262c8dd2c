"""An exported folder, opened again: an SRNN whose backbone and cell run in onnxruntime, OpenVINO or `torch.export`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from srnn_zoo.export.export import FORMAT_VERSION, MANIFEST
from srnn_zoo.export.formats import check_format
from srnn_zoo.export.parts import Graph, open_graph
from srnn_zoo.export.run import read_manifest
from srnn_zoo.models.backbone import create_backbone
from srnn_zoo.models.cells import Cell
from srnn_zoo.models.reading import NoMapError
from srnn_zoo.models.sizes import Reads
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.scale_pyramid import ScalePyramid


def is_exported(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an exported model."""
    return (Path(folder) / MANIFEST).is_file()


def open_exported(
    folder: str | os.PathLike[str], *, sizes: Sequence[int] | None = None, threads: int | None = None
) -> ExportedSRNN:
    """The model that `SRNN.export` wrote, in evaluation mode.

    It answers as an SRNN does (`model(images)`, `steps`, `Anytime`, `predict`, `evaluate`, `calibrate`), to within
    rounding, through the runtime of its graphs. It cannot be trained or saved.

    Args:
        folder: with step graphs.
        sizes: sizes of the levels, smallest first, instead of those that it was exported for.
        threads: how many the runtime uses, by default as many as PyTorch; 0 leaves it to the runtime.

    Raises:
        FileNotFoundError: if the folder is no exported model, or lacks a file.
        ValueError: if a file was changed, if it was written by a newer srnn-zoo, or holds the whole graph alone.
        ImportError: for a runtime that is not installed.

    Examples:
        >>> model = open_exported("flowers-onnx")
        >>> logits, stopped_at, gmacs = Anytime(model, "confidence:0.9")(images)
    """
    about = read_manifest(folder)
    if about["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format {about['format_version']}, written by srnn-zoo {about['srnn_zoo_version']}; this one "
            f"reads format {FORMAT_VERSION}: pip install -U srnn-zoo"
        )
    if "steps" not in about["graphs"]:
        raise ValueError(f'{folder} has no step graphs, which give the answer after a level: export with kind="steps"')
    check_format(about["format"])
    zooms = about.get("zooms")
    about["zooms"] = zooms if zooms and max(zooms) > 1 else None
    if sizes is not None:
        about["scales"] = [size / max(sizes) for size in sizes]
        whole = ScalePyramid(sizes, zooms=about["zooms"]).image_size
        about["pretrained_cfg"]["input_size"] = [about["in_chans"], *whole]
    return ExportedSRNN(Path(folder), about, threads)


class ExportedSRNN(SRNN):
    """An SRNN of exported graphs: see `open_exported`.

    Attributes:
        about: what `export.json` says.
    """

    def __init__(self, folder: Path, about: dict[str, Any], threads: int | None = None) -> None:
        super().__init__(
            ExportedBackbone(about),
            variant="vanilla",  # the exported cell takes its place
            scales=about["scales"],
            zooms=about["zooms"],
            activation="identity",
            interpolation=about["interpolation"],
            num_classes=0,
        )
        self.about = about
        opened: dict[str, Graph] = {
            name: open_graph(folder / name, threads)
            for kind in ("encoders", "steps", "classifiers")
            for name in dict.fromkeys(about["graphs"][kind])
        }
        self._encoders, self._classifiers, steps = (
            [opened[name] for name in about["graphs"][kind]] for kind in ("encoders", "classifiers", "steps")
        )
        self._sizes = [(height, width) for height, width in about["level_sizes"]]
        self.cell = ExportedCell(steps, about)
        self.variant, self.exits, self.norm = about["variant"], about["exits"], about["norm"]
        self.num_classes = about["num_classes"]
        tile = about["reads"]["tile"]
        self.reads = Reads(about["reads"]["multiple"], tile and (tile[0], tile[1]))
        self.pretrained_cfg = self.default_cfg = about["pretrained_cfg"]
        self.metadata = {**about["metadata"], "temperatures": about["temperatures"]}
        self.zero_shot = about["zero_shot"]
        self.eval()

    def level_features(self, level: Tensor, index: int | None = None, center: Tensor | None = None) -> Tensor:
        size = (level.shape[-2], level.shape[-1])
        if not self.about["any_size"] and size not in self._sizes:
            sizes = " and ".join(f"{h} x {w}" for h, w in self._sizes)
            raise ValueError(f"this model was exported for levels of {sizes} alone; got {size[0]} x {size[1]}")
        return _tensor(self._encoders[_within(index, self._encoders)](_array(level))[0])

    def position_features(self, level: Tensor, index: int | None = None) -> tuple[Tensor, Tensor]:
        raise NoMapError("an exported model gives no map of a level, only its features")

    def level_logits(self, features: Tensor, level: int | None = None) -> Tensor:
        return _tensor(self._classifiers[_within(level, self._classifiers)](_array(features))[0])

    def state_logits(self, state: Tensor, level: int | None = None) -> Tensor:
        return self.cell.output(state)

    def forward_head(self, x: Tensor, pre_logits: bool = False, level: int | None = None) -> Tensor:
        return x.mean(dim=(2, 3))

    def level_gmacs(self, size: tuple[int, int]) -> float:
        if size in self._sizes:
            return self.about["gmacs"][self._sizes.index(size)]
        if not timm.is_model(self.backbone.pretrained_cfg["architecture"]):  # a wrapped network
            raise ValueError(
                f"what a level of {size[0]} x {size[1]} costs is not known of this model: export it for that"
            )
        return super().level_gmacs(size)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        raise ValueError("an exported model is a copy for use: change and save the model that it was made of")

    def export(self, *_: Any, **__: Any) -> Any:
        raise ValueError("this model is exported already: export the model that it was made of")

    def train(self, mode: bool = True) -> SRNN:
        if mode:
            raise ValueError("an exported model cannot be trained: train the model that it was made of")
        return super().train(mode)


class ExportedBackbone(nn.Module):
    """Stands where an SRNN has its backbone, and knows what that costs."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        architecture = about["pretrained_cfg"]["architecture"].removeprefix("srnn_")
        self.num_classes, self.in_chans, self.head_hidden_size = 0, about["in_chans"], about["num_features"]
        self.pretrained_cfg = {**about["pretrained_cfg"], "architecture": architecture}
        self.files = {name: about["files"][name] for name in about["graphs"]["encoders"]}
        self.device_and_dtype = nn.Parameter(torch.empty(0), requires_grad=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """The backbone itself without values, which is all that can be copied: GMACs are counted on it."""
        with torch.device("meta"):
            return create_backbone(self.pretrained_cfg["architecture"], in_chans=self.in_chans)

    def extra_repr(self) -> str:
        return f"{self.files}"  # by which evaluations know whether two models share a backbone


class ExportedCell(Cell):
    """The step graphs. Their state `(B, K + 1 + S)` begins with the logits and the number of levels that were read."""

    def __init__(self, steps: list[Graph], about: dict[str, Any]) -> None:
        super().__init__(about["num_features"], "identity", len(steps))
        self.anytime = about["anytime"]
        self._steps, self._classes, self._width = steps, about["num_classes"], about["state_width"]

    def initial_state(self, features: Tensor) -> Tensor:
        return features.new_zeros(len(features), self._classes + 1 + self._width)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        count = state[:, self._classes : self._classes + 1]
        level = int(count[0, 0]) if len(count) else 0
        inner, *logits = self._steps[_within(level, self._steps)](
            _array(features), _array(state[:, self._classes + 1 :])
        )
        answers = _tensor(logits[0]) if logits else features.new_full((len(features), self._classes), torch.nan)
        return torch.cat([answers, count + 1, _tensor(inner)], dim=1)

    def output(self, state: Tensor) -> Tensor:
        """The logits, `(B, K)`: the classifier is part of the graph."""
        return state[:, : self._classes]


def _within(level: int | None, graphs: list[Graph]) -> int:
    """The place of a level's graph; levels beyond share the last one's."""
    return len(graphs) - 1 if level is None else min(level, len(graphs) - 1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
