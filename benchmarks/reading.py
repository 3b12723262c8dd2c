"""What it costs to read an image file and make its levels, normalised, beside two pipelines of timm's or torchvision's.

The images are an ImageNet sample, and JPEG files of 12 megapixels, which are made of it on the fly. Times are those of
the processor in this process on one thread, decoding included: what other programs take is left out. The file is opened
once for both pipelines, as one would write it by hand. The ratio is the time of the other way over that of
`create_transform(model)`; it is printed step by step, too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm.data
import torch
from _common import Row, Turns, alternate, imagenet_sample, parser, report
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

import srnn_zoo
from srnn_zoo.datasets.images import find_images
from srnn_zoo.transforms.presets import image_transform

MODEL = "srnn_tf_efficientnet_lite0"
SIZES = (224, 448)
OURS = "create_transform"
TARGETS = {"ImageNet-size": 2.0, "12 megapixels": 4.0}
Transform = Callable[[Any], Any]


def main() -> None:
    options = parser(__doc__, "reading.csv", rounds=12)
    options.add_argument("--images", type=int, default=20, help="images of the sample (default: %(default)s)")
    options.add_argument("--large", type=int, default=3, help="images of 12 megapixels (default: %(default)s)")
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    model = srnn_zoo.create_model(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        rows: list[Row] = []
        for images, paths in image_sets(args.images, args.large, Path(folder)).items():
            ways = {name: partial(read_all, paths, read) for name, read in ways_of(model).items()}
            turns = alternate(ways, args.rounds, clock=time.process_time, title=images)
            rows += table_rows(images, turns, len(paths))
            print(f"{images}, ms an image:", ", ".join(f"{k} {v:.2f}" for k, v in profile(model, paths).items()))
    report(rows, args.csv)


def image_sets(count: int, large: int, folder: Path) -> dict[str, list[Path]]:
    """Files of both kinds, of different classes each."""
    sample = find_images([imagenet_sample()])
    return {
        "ImageNet-size": sample[:: max(1, len(sample) // count)][:count],
        "12 megapixels": enlarged(sample[:: max(1, len(sample) // large)][:large], folder),
    }


def enlarged(paths: Iterable[Path], folder: Path) -> list[Path]:
    """The same images as JPEG files of 4000 x 3000 pixels."""
    files = []
    for path in paths:
        with Image.open(path) as image:
            large = image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
        large.save(folder / f"{path.stem}.jpg", quality=90)
        files.append(folder / f"{path.stem}.jpg")
    return files


def read_all(paths: Sequence[Path], read: Callable[[Path], Any]) -> None:
    for path in paths:
        read(path)


def ways_of(model: srnn_zoo.SRNN) -> dict[str, Callable[[Path], Any]]:
    """Every way from a file to its normalised levels."""
    return {
        OURS: _lazily(srnn_zoo.create_transform(model)),
        "largest level alone": _lazily(image_transform(model)),
        "create_transform(exact=True)": _lazily(srnn_zoo.create_transform(model, exact=True)),
        "two of timm's": _in_rgb(timm_pipelines(model)),
        "two of torchvision's, PIL": _in_rgb(torchvision_pipelines(model)),
        "two of torchvision's v2, tensors": _in_rgb(torchvision_v2_pipelines(model)),
    }


def _lazily(transform: Transform) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        with Image.open(path) as image:
            return transform(image)

    return read


def _in_rgb(transforms: Sequence[Transform]) -> Callable[[Path], list[Any]]:
    """Several transforms of one RGB image."""

    def read(path: Path) -> list[Any]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        return [transform(image) for transform in transforms]

    return read


def timm_pipelines(model: Any) -> list[Transform]:
    config = timm.data.resolve_model_data_config(model)
    create: Callable[..., Any] = timm.data.create_transform
    return [create(**{**config, "input_size": (3, size, size)}) for size in SIZES]


def torchvision_pipelines(model: Any) -> list[Transform]:
    return [ImageClassification(crop_size=size, **_settings(model, size)) for size in SIZES]


def torchvision_v2_pipelines(model: Any) -> list[Transform]:
    def pipeline(size: int) -> Transform:
        how = _settings(model, size)
        return v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize(how["resize_size"], how["interpolation"], antialias=True),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(how["mean"], how["std"]),
            ]
        )

    return [pipeline(size) for size in SIZES]


def _settings(model: Any, size: int) -> dict[str, Any]:
    config = timm.data.resolve_model_data_config(model)
    resize_size = int(size / config["crop_pct"])
    mode = InterpolationMode(config["interpolation"])
    return {"resize_size": resize_size, "interpolation": mode, "mean": config["mean"], "std": config["std"]}


def table_rows(images: str, turns: Turns, count: int) -> list[Row]:
    """Every other way over ours, and ours over the largest level alone."""
    rows = []
    for way in turns.seconds:
        over, target = (OURS, TARGETS[images]) if way != OURS else ("largest level alone", 1.3)
        rows.append(
            {
                "images": images,
                "way": way,
                "ms_an_image": f"{1000 * turns.median(way) / count:.2f}",
                "over": over,
                **turns.ratio(way, over).columns(target),
            }
        )
    return rows


def profile(model: srnn_zoo.SRNN, paths: Sequence[Path], rounds: int = 5) -> dict[str, float]:
    """Mean milliseconds an image of every step of our transform; the first one decodes."""
    steps = srnn_zoo.create_transform(model).transforms
    found: dict[str, list[float]] = {type(step).__name__: [] for step in steps}
    for _ in range(rounds):
        for path in paths:
            with Image.open(path) as image:
                value: Any = image
                for step in steps:
                    start = time.process_time()
                    value = step(value)
                    found[type(step).__name__].append(1000 * (time.process_time() - start))
    return {name: sum(times) / len(times) for name, times in found.items()}


if __name__ == "__main__":
    main()
