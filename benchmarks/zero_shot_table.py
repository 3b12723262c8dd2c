"""Top-1 on images of ImageNet classes before any training: single levels, ensembles and every zero-shot cell.

The backbone reads every level once; each method then runs its own model's cell and classifier on those features. On a
few images the whole model runs from the levels, and must give the same logits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from _common import RESULTS, Row, imagenet_sample, report
from timm.data import ImageNetInfo
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.datasets.images import open_image

MODELS = ("srnn_tf_efficientnet_lite0", "srnn_tf_efficientnet_lite1", "srnn_tf_efficientnet_lite2")
CHECKED_IMAGES = 8


class Method(NamedTuple):
    """A row of the table.

    Attributes:
        name: what it is called there.
        variant: the cell that computes it.
        levels: which of the levels it reads.
        is_mean_logit: whether it must equal the logit ensemble before training, logit by logit.
    """

    name: str
    variant: str
    levels: slice = slice(None)
    is_mean_logit: bool = False


METHODS = (
    Method("single scale, small", "vanilla", slice(0, 1)),  # vanilla with one level is the base CNN
    Method("single scale, large", "vanilla", slice(1, 2)),
    Method("mean_prob", "mean_prob"),
    Method("mean_logit", "mean_logit", is_mean_logit=True),
    Method("vanilla", "vanilla"),
    Method("half_gru", "half_gru", is_mean_logit=True),
    Method("gru", "gru"),
    Method("lstm", "lstm"),
    Method("mgu", "mgu"),
    Method("concat", "concat", is_mean_logit=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS, help="names of models (default: Lite0, 1 and 2)")
    parser.add_argument("--batch-size", type=int, default=8, help="images read at a time (default: %(default)s)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "zero_shot_imagenet_sample.csv", help="file to write")
    args = parser.parse_args()

    report([row for name in args.model for row in table(name, args.batch_size)], args.csv)


@torch.inference_mode()
def table(name: str, batch_size: int) -> list[Row]:
    """The rows of one model, at its own sizes of the levels."""
    models = {
        variant: srnn_zoo.create_model(name, pretrained=True, variant=variant).eval()
        for variant in dict.fromkeys(method.variant for method in METHODS)
    }
    model = models["mean_logit"]
    loader = DataLoader(images(model), batch_size)
    features, targets = read_features(model, loader)
    logits = {m.name: classify(models[m.variant], features[m.levels]) for m in METHODS}
    difference = check_whole_models(models, loader, logits)
    print(f"{name}: largest logit difference to whole models on {CHECKED_IMAGES} images: {difference:.1e}")
    sizes = [height for height, _ in model.level_sizes()]
    return [{"model": name, **table_row(method, sizes[method.levels], logits, targets)} for method in METHODS]


def images(model: srnn_zoo.SRNN) -> ImageFolder:
    """The sample's images as levels, with ImageNet's class indices."""
    index_of = {name: index for index, name in enumerate(ImageNetInfo().label_names())}
    folder = ImageFolder(
        str(imagenet_sample()),
        transform=srnn_zoo.create_transform(model, exact=True),
        loader=lambda path: open_image(path).image,
    )
    folder.target_transform = lambda target: index_of[folder.classes[target]]
    return folder


def read_features(model: srnn_zoo.SRNN, loader: DataLoader) -> tuple[list[Tensor], Tensor]:
    """C(x_s) of all images, `(N, D)` for every level, and their classes `(N,)`."""
    features: list[list[Tensor]] = [[] for _ in model.scales]
    targets: list[Tensor] = []
    for levels, target in tqdm(loader, unit="batch", disable=None):
        for seen, level in zip(features, levels, strict=True):
            seen.append(model.level_features(level))
        targets.append(target)
    return [torch.cat(seen) for seen in features], torch.cat(targets)


def classify(model: srnn_zoo.SRNN, features: list[Tensor]) -> Tensor:
    """A model's logits `(N, K)` from the features of the levels."""
    return model.forward_head(model.fuse(features))


def check_whole_models(models: dict[str, srnn_zoo.SRNN], loader: DataLoader, logits: dict[str, Tensor]) -> float:
    """The largest difference between `model(levels)` and the logits from stored features, on the first images.

    Raises:
        AssertionError: if they differ by more than arithmetic does.
    """
    items = [loader.dataset[index][0] for index in range(CHECKED_IMAGES)]
    levels = [torch.stack(level) for level in zip(*items, strict=True)]
    difference = 0.0
    for method in METHODS:
        whole = models[method.variant](levels[method.levels])
        stored = logits[method.name][:CHECKED_IMAGES]
        torch.testing.assert_close(stored, whole, rtol=1e-4, atol=1e-4)
        difference = max(difference, (stored - whole).abs().max().item())
    return difference


def table_row(method: Method, sizes: list[int], logits: dict[str, Tensor], targets: Tensor) -> Row:
    own, ensemble = logits[method.name], logits["mean_logit"]
    correct = int((own.argmax(dim=1) == targets).sum())
    return {
        "method": method.name,
        "levels": "+".join(str(size) for size in sizes),
        "correct": correct,
        "images": len(targets),
        "top1_percent": f"{100 * correct / len(targets):.1f}",
        "agrees_with_mean_logit": int((own.argmax(dim=1) == ensemble.argmax(dim=1)).sum()),
        "max_abs_logit_diff_to_mean_logit": f"{(own - ensemble).abs().max():.1e}" if method.is_mean_logit else "",
    }


if __name__ == "__main__":
    main()
