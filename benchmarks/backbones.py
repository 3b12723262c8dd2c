"""Every architecture of timm as an SRNN: how it reads levels, its φ and its cost. Nothing is computed or downloaded.

Each model is made on the meta device, where tensors have shapes and no values. It reads two levels of its own sizes,
which are counted, and an image of an odd size and shape. The table is written row by row: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from pathlib import Path

import timm
import torch
from _common import RESULTS, Row, environment
from tqdm import tqdm

import srnn_zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="which of timm's architectures (default: all)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "backbones.csv", help="file to go on with and to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    done = list(csv.DictReader(args.csv.open(encoding="utf-8"))) if args.csv.exists() else []
    names = timm.list_models(args.pattern, exclude_filters="srnn_*")
    left = [name for name in names if name not in {row["architecture"] for row in done}]
    with args.csv.open("a", newline="", encoding="utf-8") as file:
        for name in tqdm(left, unit="architecture"):
            row = measure(name)
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            if not done:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            done.append(row)
    failed = [row["architecture"] for row in done if row["failure"]]
    tiled = sum(row["reads"].startswith("tiles") for row in done)
    rounded = sum(row["reads"].startswith("multiples") for row in done)
    print(f"{len(done) - len(failed)} of {len(done)} read levels of any size: {tiled} in tiles, {rounded} rounded")
    print(*(f"failed: {name}" for name in failed), environment(), sep="\n")


def measure(architecture: str) -> Row:
    """The row of an architecture; where it fails, with the reason and empty figures."""
    figures: Row = dict.fromkeys(
        ("reads", "width", "activation", "million_parameters", "levels", "gmacs_small", "gmacs_large"), ""
    )
    try:
        return {"architecture": architecture, **figures, **_measure(architecture), "failure": ""}
    except Exception as error:  # whatever a backbone raises
        reason = " ".join(str(error).split())[:200]
        return {"architecture": architecture, **figures, "failure": f"{type(error).__name__}: {reason}"}


@torch.no_grad()
def _measure(architecture: str) -> Row:
    with torch.device("meta"):
        model = srnn_zoo.create_model(f"srnn_{architecture}", variant="vanilla", num_classes=10).eval()
        height, width = model.img_size
        shape = model(torch.empty(2, model.in_chans, height + 37, width + 21)).shape
    if shape != (2, 10):
        raise ValueError(f"logits of shape {tuple(shape)}")
    small, large = srnn_zoo.count_gmacs(model).levels
    return {
        "reads": str(model.reads),
        "width": model.num_features,
        "activation": model.cell.activation,
        "million_parameters": f"{sum(parameter.numel() for parameter in model.backbone.parameters()) / 1e6:.2f}",
        "levels": " + ".join(f"{h}x{w}" for h, w in model.level_sizes()),
        "gmacs_small": f"{small:.3f}",
        "gmacs_large": f"{large:.3f}",
    }


if __name__ == "__main__":
    main()
