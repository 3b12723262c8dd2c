"""Whether a model answers the same when files are decoded and resized fast, as by default, and exactly as Pillow does.

The same model on the same files twice: `create_transform(model)` and `create_transform(model, exact=True)`. Files of 12
megapixels are enlarged ones of the sample; the row with levels of 32 + 64 has files that are decoded smaller although
they were not enlarged. `differ` counts the images with another answer, of which some were right before and some after.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, Row, grocery, imagenet_sample, report
from PIL import Image
from reading import MODEL, enlarged
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.datasets.classes import class_indices
from srnn_zoo.datasets.images import find_images

BATCH = 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--grocery", metavar="MODEL", help="a model trained on Grocery: a folder that `train` wrote")
    options.add_argument("--large", type=int, default=100, help="images of 12 megapixels (default: %(default)s)")
    options.add_argument("--every", type=int, default=1, help="take every n-th image of Grocery (default: all)")
    options.add_argument("--csv", type=Path, default=RESULTS / "reading_answers.csv", help="file to write")
    args = options.parse_args()

    torch.set_num_threads(1)
    sample = find_images([imagenet_sample()])
    zero_shot = srnn_zoo.create_model(MODEL, pretrained=True).eval()
    rows = [
        row("ImageNet sample", zero_shot, [224, 448], sample),
        row("ImageNet sample", zero_shot, [32, 64], sample),
    ]
    with tempfile.TemporaryDirectory() as folder:
        enlarged(sample[:: max(1, len(sample) // args.large)][: args.large], Path(folder))
        rows.append(row("the same, 12 megapixels", zero_shot, [224, 448], find_images([folder])))
    if args.grocery:
        trained = srnn_zoo.SRNN.from_pretrained(args.grocery).eval()
        files = find_images([grocery() / "test"])[:: args.every]
        rows.append(row("Grocery, test", trained, [height for height, _ in trained.level_sizes()], files))
    report(rows, args.csv)


@torch.inference_mode()
def row(images: str, model: srnn_zoo.SRNN, sizes: list[int], paths: Sequence[Path]) -> Row:
    fast, exact = (srnn_zoo.create_transform(model, sizes=sizes, exact=exact) for exact in (False, True))
    indices = class_indices(model)
    right = torch.zeros(2, dtype=torch.long)
    gained = lost = differ = 0
    furthest = 0.0
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    for files in tqdm(batches, desc=f"{images}, {sizes}", unit="batch", disable=None):
        targets = torch.tensor([_target(path, indices) for path in files])
        ours, pillows = (model(_levels(files, transform)).softmax(1) for transform in (fast, exact))
        hits = torch.stack([ours.argmax(1) == targets, pillows.argmax(1) == targets])
        right += hits.sum(1)
        gained += int((hits[0] & ~hits[1]).sum())
        lost += int((hits[1] & ~hits[0]).sum())
        differ += int((ours.argmax(1) != pillows.argmax(1)).sum())
        furthest = max(furthest, float((ours - pillows).abs().max()))
    return {
        "images": images,
        "levels": "+".join(map(str, sizes)),
        "count": len(paths),
        "top1_fast": f"{100 * right[0].item() / len(paths):.2f}",
        "top1_exact": f"{100 * right[1].item() / len(paths):.2f}",
        "differ": differ,
        "right_only_fast": gained,
        "right_only_exact": lost,
        "mcnemar_p": f"{binomtest(gained, gained + lost).pvalue if gained + lost else 1.0:.2f}",
        "max_abs_probability_diff": f"{furthest:.3f}",
    }


def _target(path: Path, indices: dict[str, int]) -> int:
    """The class of a file is its folder's name, or of an enlarged one the first word of its own."""
    return indices[path.parent.name] if path.parent.name in indices else indices[path.stem.partition("_")[0]]


def _levels(files: Iterable[Path], transform: Any) -> list[Tensor]:
    return [torch.stack(level) for level in zip(*_read(files, transform), strict=True)]


def _read(files: Iterable[Path], transform: Any) -> Iterator[list[Tensor]]:
    for file in files:
        with Image.open(file) as image:
            yield transform(image)


if __name__ == "__main__":
    main()
