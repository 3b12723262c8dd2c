"""The formats that a graph is written in."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from srnn_zoo._errors import missing_extra, unknown_name
from srnn_zoo.transforms.resizing import DECOMPOSITIONS

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""The names of the formats, and how their files end."""

_LAYERS = "pkg.torch.onnx.class_hierarchy"  # of a node: the classes of the modules that it comes from
_NEEDS = {"onnx": (("onnx", "onnxscript", "onnxruntime"), "export"), "openvino": (("openvino",), "openvino")}


def check_format(name: str) -> str:
    """The name itself, once all that it needs is installed.

    Raises:
        ValueError: for an unknown format, with the closest names.
        ImportError: for a missing package, with the line that installs it.
    """
    if name not in FORMATS:
        raise ValueError(unknown_name("format", name, FORMATS))
    packages, extra = _NEEDS.get(name, ((), ""))
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_extra(package, extra, f"export to {name}") from error
    return name


def write_graph(program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write a captured graph to a file; its ending says in which format.

    Args:
        program: the graph.
        path: ends as one of `FORMATS`.
        inputs: names of the inputs.
        outputs: names of the outputs.
    """
    if path.suffix == ".pt2":
        torch.export.save(program, path)
    elif path.suffix == ".xml":
        _write_openvino(program, path, inputs, outputs)
    else:
        with _quiet():
            written: Any = torch.onnx.export(
                program, input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
            )
            _pad_within_convolutions(written.model)
            written.save(str(path))


def _pad_within_convolutions(graph: Any) -> None:
    """TensorFlow's "same" padding as ONNX's attribute of a convolution, in place of an operation that copies its input.

    Its widths depend on the image's size, so that no runtime can do that by itself. The copies took 30 % of
    EfficientNet-Lite0's time at 448.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in graph.graph:
        pad = node.inputs[0].producer() if node.op_type == "Conv" else None
        if pad is not None and pad.op_type == "Pad" and "conv2d_same" in pad.metadata_props.get(_LAYERS, ""):
            node.replace_input_with(0, pad.inputs[0])
            del node.attributes["pads"]
            node.attributes["auto_pad"] = onnx_ir.AttrString("auto_pad", "SAME_UPPER")
    RemoveUnusedNodesPass()(graph)


def _write_openvino(program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    import openvino

    with _quiet():
        graph = openvino.convert_model(program.run_decompositions(DECOMPOSITIONS))
    for ports, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    openvino.save_model(graph, path, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what exporters print about their own work."""
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(earlier)
