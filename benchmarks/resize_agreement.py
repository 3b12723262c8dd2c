"""How far the ways to make a level differ, on real images, in grey levels of 255.

Pillow images are the reference for uint8 and float tensors. A model's transform as it is by default is compared with
`exact=True`, which decodes in full and resizes with Pillow; files that it decodes smaller have rows of their own, at
small levels, as few images of the sample are large. It is the reference for the levels that a model builds from one
normalised tensor on its own device.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from _common import RESULTS, Row, imagenet_sample, report
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.datasets.images import find_images, open_image
from srnn_zoo.transforms.reading import part_of
from srnn_zoo.transforms.resizing import Interpolation

SIZES = (224, 448)
SMALL_SIZES = (28, 56)  # for which most images are decoded at 1/2 or 1/4
MODEL = "srnn_tf_efficientnet_lite0"  # gives the transform its crop, mean and std; its weights are not used
INTERPOLATIONS: tuple[Interpolation, ...] = ("bicubic", "bilinear")
ARITHMETIC = 1e-3  # grey levels; equal values differ by less in float32


class Comparison(NamedTuple):
    """What is compared with what: the first four columns of the table."""

    compared: str
    reference: str
    interpolation: Interpolation
    level: int


Pair = tuple[Comparison, Tensor, Tensor]  # what, the compared level and the reference


class Difference:
    """Absolute differences, gathered image by image: largest, mean, and how many are above 0 and above 1."""

    def __init__(self) -> None:
        self.largest = self.total = 0.0
        self.values = self.differing = self.above_one = 0

    def add(self, compared: Tensor, reference: Tensor) -> None:
        difference = (compared - reference).abs()
        self.largest = max(self.largest, difference.max().item())
        self.total += difference.sum(dtype=torch.float64).item()
        self.values += difference.numel()
        self.differing += int((difference > ARITHMETIC).sum())
        self.above_one += int((difference > 1 + ARITHMETIC).sum())

    def as_row(self) -> Row:
        return {
            "max_abs_diff": f"{self.largest:.2f}",
            "mean_abs_diff": f"{self.total / self.values:.4f}",
            "differing_percent": f"{100 * self.differing / self.values:.3f}",
            "above_one_percent": f"{100 * self.above_one / self.values:.6f}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50, help="images to resize (default: %(default)s)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "resize_agreement.csv", help="file to write")
    args = parser.parse_args()

    paths = find_images([imagenet_sample()])[: args.images]
    differences: defaultdict[Comparison, Difference] = defaultdict(Difference)
    models = {name: srnn_zoo.create_model(MODEL, interpolation=name) for name in INTERPOLATIONS}
    for path in tqdm(paths, unit="image", disable=None):
        image = open_image(path).image
        for name in INTERPOLATIONS:
            on_device = on_device_pairs(image, name, models[name])
            pairs = (*transform_pairs(image, name), *reading_pairs(path, name, models[name]), *on_device)
            for comparison, compared, reference in pairs:
                differences[comparison].add(compared, reference)
    report([{**key._asdict(), **differences[key].as_row()} for key in sorted(differences)], args.csv)


def transform_pairs(image: Image.Image, interpolation: Interpolation) -> Iterator[Pair]:
    """Levels of `ScalePyramid` from tensors, each with Pillow's, as float grey levels."""
    pyramid = srnn_zoo.ScalePyramid(SIZES, interpolation)
    uint8 = F.pil_to_tensor(image)
    levels = zip(SIZES, pyramid(image), pyramid(uint8), pyramid(F.to_dtype(uint8, scale=True)), strict=True)
    for size, by_pillow, from_uint8, from_float in levels:
        candidates = {"uint8 tensor": from_uint8.float(), **as_is_and_as_8_bits("float tensor", 255 * from_float)}
        for name, compared in candidates.items():
            yield Comparison(name, "Pillow", interpolation, size), compared, F.pil_to_tensor(by_pillow).float()


def reading_pairs(path: Path, interpolation: Interpolation, model: srnn_zoo.SRNN) -> Iterator[Pair]:
    """Levels of a file by the transform as it is by default, with those of `exact=True`, in grey levels."""
    for sizes in (SIZES, SMALL_SIZES):
        fast, exact = (srnn_zoo.create_transform(model, sizes=sizes, exact=exact) for exact in (False, True))
        with Image.open(path) as image:
            scale = part_of(fast.transforms[0].crop, image.height, image.width).scale()
            levels = zip(sizes, grey_levels(fast(image), model), grey_levels(exact(image), model), strict=True)
        if (scale > 1) == (sizes == SMALL_SIZES):
            name = "create_transform, decoded smaller" if scale > 1 else "create_transform"
            for size, ours, pillows in levels:
                yield Comparison(name, "exact=True", interpolation, size), ours, pillows


def grey_levels(levels: Sequence[Tensor], model: srnn_zoo.SRNN) -> list[Tensor]:
    """Normalised levels as 8-bit values; rounding undoes what normalisation loses."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return [(255 * (level * std + mean)).round() for level in levels]


def on_device_pairs(image: Image.Image, interpolation: Interpolation, model: srnn_zoo.SRNN) -> Iterator[Pair]:
    """The small level built from the normalised large one, with the transform's own, as float grey levels."""
    transform = srnn_zoo.create_transform(model, sizes=SIZES)
    small, large = cast("list[Tensor]", transform(image))
    built = srnn_zoo.Pyramid.from_images(large[None], model.scales, interpolation)[0][0]
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    (reference,) = grey_levels([small], model)
    candidates = as_is_and_as_8_bits("on device", 255 * (built * std + mean))
    for name, compared in candidates.items():
        yield Comparison(name, "transform", interpolation, SIZES[0]), compared, reference


def as_is_and_as_8_bits(name: str, level: Tensor) -> dict[str, Tensor]:
    """A float level in grey levels, unclamped, and clamped and rounded."""
    return {f"{name}, unclamped": level, f"{name}, clamped and rounded": level.clamp(0, 255).round()}


if __name__ == "__main__":
    main()
