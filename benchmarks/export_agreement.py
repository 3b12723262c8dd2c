"""How far exported graphs are from the model: every variant, kind of graph and runtime, on photographs.

Each is compared at two sizes and batches of 1 and 3, as every export is. The model is small, with random weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import skimage
import torch
from _common import RESULTS, Row, report
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
    parser.add_argument("--formats", default="onnx,openvino,torch", help="with commas between")
    args = parser.parse_args()
    rows: list[Row] = []
    for kind in tqdm(KINDS, unit="model"):
        torch.manual_seed(0)
        model = srnn_zoo.create_model(args.model, img_size=128, num_classes=100, **kind).eval()
        row: Row = {"model": next(iter(kind.values()))}
        for format in args.formats.split(","):
            with tempfile.TemporaryDirectory() as folder:
                differences = model.export(Path(folder) / "it", format=format, images=PHOTOGRAPHS).differences
            for graph in ("encoder", "step", "classifier", "whole"):
                found = [value for name, value in differences.items() if name.startswith(graph)]
                row[f"{format} {graph}"] = f"{max(found):.1e}"
        rows.append(row)
    report(rows, RESULTS / "export_agreement.csv")


if __name__ == "__main__":
    main()
