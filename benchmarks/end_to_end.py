"""From image files to answers, one at a time on one thread: an SRNN beside a hand-written ensemble of two scales.

EfficientNet-Lite0 with ImageNet weights at 224 + 448. The ensembles are the base CNN on the levels of two transforms
(timm's, torchvision's, torchvision's v2 on tensors), their logits averaged; the SRNN of that base CNN is the same
ensemble, made ready by `for_inference` as `predict` does, and stops early after 224 where it is sure. Images are as in
`reading.py`, times are those of the processor, and the ratio is the time of the other way over that of the SRNN. Images
of 12 megapixels are enlarged ones, so that their accuracy says something as well; images are of the classes' training
split.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _common import Row, Turns, alternate, parser, report
from PIL import Image
from reading import MODEL, Transform, image_sets, timm_pipelines, torchvision_pipelines, torchvision_v2_pipelines

import srnn_zoo
from srnn_zoo.datasets.classes import class_indices

SRNN = "SRNN"
EARLY = "SRNN, exit at confidence 0.5"
TARGETS = {"ImageNet-size": 1.2, "12 megapixels": 1.8}
Answer = Callable[[Path], int]


def main() -> None:
    options = parser(__doc__, "end_to_end.csv", rounds=8)
    options.add_argument("--images", type=int, default=20, help="images of the sample (default: %(default)s)")
    options.add_argument("--large", type=int, default=6, help="images of 12 megapixels (default: %(default)s)")
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    model = srnn_zoo.create_model(MODEL, pretrained=True).eval()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows: list[Row] = []
        for images, paths in image_sets(args.images, args.large, Path(folder)).items():
            rows += measure(model, images, paths, args.rounds)
    report(rows, args.csv)


def measure(model: srnn_zoo.SRNN, images: str, paths: Sequence[Path], rounds: int) -> list[Row]:
    """All ways on the same files in turn."""
    answers: dict[str, list[int]] = {}

    def all_of(name: str, answer: Answer) -> Callable[[], None]:
        return lambda: answers.__setitem__(name, [answer(path) for path in paths])

    turns = alternate(
        {name: all_of(name, answer) for name, answer in ways_of(model).items()},
        rounds,
        clock=time.process_time,
        title=images,
    )
    return [_row(model, images, way, turns, answers[way], paths) for way in turns.seconds]


def _row(
    model: srnn_zoo.SRNN, images: str, way: str, turns: Turns, answers: Sequence[int], paths: Sequence[Path]
) -> Row:
    indices = class_indices(model)
    right = sum(answer == indices[path.stem.partition("_")[0]] for answer, path in zip(answers, paths, strict=True))
    over, target = (EARLY, 2.5) if way != EARLY else (SRNN, 1.0)
    return {
        "images": images,
        "way": way,
        "right": f"{right} of {len(paths)}",
        "ms_an_image": f"{1000 * turns.median(way) / len(paths):.1f}",
        **{f"{key}_srnn": value for key, value in turns.ratio(way, SRNN).columns(TARGETS[images]).items()},
        **{f"{key}_early": value for key, value in turns.ratio(way, over).columns(target).items()},
    }


def ways_of(model: srnn_zoo.SRNN) -> dict[str, Answer]:
    """Every way from a file to the index of a class."""
    base = model.backbone
    ready = srnn_zoo.for_inference(model)
    confident = srnn_zoo.Anytime(ready, "confidence:0.5")

    def ensemble(transforms: Sequence[Transform]) -> Answer:
        def answer(path: Path) -> int:
            with Image.open(path) as file:
                image = file.convert("RGB")
            logits = [model.fc(base(transform(image)[None])) for transform in transforms]
            return int(torch.stack(logits).mean(0).argmax())

        return answer

    def of_srnn(path: Path) -> int:
        with Image.open(path) as image:
            levels = transform(image)
        return int(ready([level[None] for level in levels]).argmax())

    def of_early(path: Path) -> int:
        with Image.open(path) as image:
            levels = transform(image)
        return int(confident([level[None] for level in levels]).logits.argmax())

    transform = srnn_zoo.create_transform(model)
    return {
        SRNN: of_srnn,
        EARLY: of_early,
        "ensemble, timm's transforms": ensemble(timm_pipelines(model)),
        "ensemble, torchvision's transforms": ensemble(torchvision_pipelines(model)),
        "ensemble, torchvision's v2 transforms of tensors": ensemble(torchvision_v2_pipelines(model)),
    }


if __name__ == "__main__":
    main()
