"""How far exported graphs are from the model: every variant, kind of graph and runtime, on photographs.

Each is compared at two sizes and batches of 1 and 3, as every export is. By default the model is small, with random
weights; `--pretrained` takes a model with its weights and writes a table of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import skimage
import torch
from _common import RESULTS, Row, report
from PIL import Image
from tqdm import tqdm

import srnn_zoo

PHOTOGRAPHS = [Path(skimage.__file__).parent / "data" / f"{name}.png" for name in ("astronaut", "chelsea", "coffee")]
KINDS: list[dict[str, Any]] = [
    *({"variant": name} for name in srnn_zoo.list_cells()),
    {"exits": "separate"},
    {"norm": "per_level"},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_test_resnet")
    parser.add_argument("--pretrained", action="store_true", help="its weights, classes and sizes; half_gru alone")
    parser.add_argument("--formats", default="onnx,openvino,torch", help="with commas between")
    args = parser.parse_args()
    rows: list[Row] = []
    kinds = [kind for kind in KINDS if kind.get("variant") == "half_gru"] if args.pretrained else KINDS
    for kind in tqdm(kinds, unit="model"):
        torch.manual_seed(0)
        options: dict[str, Any] = {"pretrained": True} if args.pretrained else {"img_size": 128, "num_classes": 100}
        model = srnn_zoo.create_model(args.model, **options, **kind).eval()
        row: Row = {"model": next(iter(kind.values())), "largest logit": f"{largest_logit(model):.2g}"}
        for format in args.formats.split(","):
            with tempfile.TemporaryDirectory() as folder:
                differences = model.export(Path(folder) / "it", format=format, images=PHOTOGRAPHS).differences
            for graph in ("encoder", "step", "classifier", "whole"):
                found = [value for name, value in differences.items() if name.startswith(graph)]
                row[f"{format} {graph}"] = f"{max(found):.1e}"
        rows.append(row)
    report(rows, RESULTS / f"export_agreement{'_pretrained' if args.pretrained else ''}.csv")


@torch.inference_mode()
def largest_logit(model: srnn_zoo.SRNN) -> float:
    """The largest absolute one on the photographs."""
    transform: Any = srnn_zoo.create_transform(model)
    images = [transform(Image.open(path)) for path in PHOTOGRAPHS]
    return max(model([level[None] for level in levels]).abs().max().item() for levels in images)


if __name__ == "__main__":
    main()
