"""Training: images a second against timm at equal pixels, and memory with and without gradient checkpointing.

An SRNN on levels of S / 2 and S reads as many pixels as its base CNN on one level of 1.118 S. Both train in turn, with
SGD: on tensors that are there already (`update`), and from image files, read and augmented in this process (`epoch`):
by this package's training loader, which makes the largest level alone, and by timm's `create_loader`. Those are the
parts that timm's train.py is made of. Seconds are those of the CPU if the device is one. A ratio above 1 means that
timm's takes longer. Memory is the growth of a process of its own at its peak, in one update.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from _common import Row, alternate, imagenet_sample, parser, report
from memory import status
from PIL import Image
from timm.data import create_loader
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

import srnn_zoo
from srnn_zoo.training.loader import TrainBatches, train_loader
from srnn_zoo.training.losses import TrainingForward
from srnn_zoo.training.optimizer import create_optimizer
from srnn_zoo.training.recipe import recipe
from srnn_zoo.transforms.presets import image_transform


def main() -> None:
    options = parser(__doc__, "training.csv", rounds=8)
    options.add_argument("--model", default="resnet18", help="the base CNN (default: %(default)s)")
    options.add_argument("--size", type=int, default=224, help="the largest level (default: %(default)s)")
    options.add_argument("--batch-size", type=int, default=8, help="images in an update (default: %(default)s)")
    options.add_argument("--images", type=int, default=32, help="images of an epoch (default: %(default)s)")
    options.add_argument("--device", default="cpu", help="where the models train (default: %(default)s)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    args.equal = round(args.size * math.sqrt(1.25))
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    updates = {"ours": update(args, srnn(args)), "timm": update(args, timm.create_model(args.model))}
    loaders = {"ours": our_loader(args), "timm": timm_loader(args)}
    tensors = {name: random_batch(args, size) for name, size in (("ours", args.size), ("timm", args.equal))}
    whats: dict[str, Callable[[str], object]] = {
        "update": lambda name: updates[name](*tensors[name]),
        "epoch": lambda name: [updates[name](images, targets) for images, targets in loaders[name]],
    }
    rows: list[Row] = []
    for what, run in whats.items():
        images = args.images if what == "epoch" else args.batch_size
        turns = alternate({name: partial(run, name) for name in updates}, args.rounds, clock=clock, title=what)
        rows.append(
            {
                "what": what,
                "model": args.model,
                "levels": f"{args.size // 2}+{args.size}",
                "timm_size": args.equal,
                "batch_size": args.batch_size,
                "device": args.device,
                "rounds": args.rounds,
                "ours_images_per_s": f"{images / turns.median('ours'):.2f}",
                "timm_images_per_s": f"{images / turns.median('timm'):.2f}",
                **turns.ratio("timm", over="ours").columns(),
            }
        )
    report(rows, args.csv)
    if sys.platform == "linux" and args.device == "cpu":
        memory = [memory_row(args, checkpointing) for checkpointing in (False, True)]
        report(memory, args.csv.with_stem(f"{args.csv.stem}_memory"))


def srnn(args: argparse.Namespace) -> srnn_zoo.SRNN:
    return srnn_zoo.create_model(f"srnn_{args.model}", img_size=args.size)


def update(args: argparse.Namespace, net: Any) -> Callable[[Any, Any], None]:
    """One update of a network by a batch: the trainer's own for an SRNN, a plain one for its base CNN."""
    paper = recipe("paper")
    net = net.to(args.device).train()
    if isinstance(net, srnn_zoo.SRNN):
        optimizer, forward = create_optimizer(net, paper), TrainingForward(net, paper)
    else:
        optimizer, forward = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=1e-4, nesterov=True), net

    def step(images: Any, targets: Any) -> None:
        F.cross_entropy(forward(images.to(args.device)), targets.to(args.device)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_batch(args: argparse.Namespace, size: int) -> tuple[Any, Any]:
    return torch.randn(args.batch_size, 3, size, size), torch.randint(1000, (args.batch_size,))


def our_loader(args: argparse.Namespace) -> Iterable[Any]:
    """The training loader of this package; its batches without the list of what could not be read."""
    images = dataset(args, image_transform(srnn(args), train=True))
    loader = train_loader(images, TrainBatches(len(images), args.batch_size, 1, 0, 1, 0), 0, pin_memory=False)

    class Pairs:
        def __iter__(self) -> Any:
            return (batch[:2] for batch in loader)

    return Pairs()


def timm_loader(args: argparse.Namespace) -> Iterable[Any]:
    return create_loader(
        dataset(args, None),  # create_loader sets the transform
        (3, args.equal, args.equal),
        args.batch_size,
        is_training=True,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
        interpolation="bicubic",
    )


def dataset(args: argparse.Namespace, transform: Any) -> Any:
    """The first images of the ImageNet sample."""
    folder = ImageFolder(imagenet_sample(), transform, loader=Image.open if transform else rgb)
    folder.samples = folder.samples[:: max(1, len(folder) // args.images)][: args.images]
    return folder


def rgb(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def memory_row(args: argparse.Namespace, checkpointing: bool) -> Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak, seconds = pool.submit(peak_of_update, args, checkpointing).result()
    return {
        "model": args.model,
        "levels": f"{args.size // 2}+{args.size}",
        "batch_size": args.batch_size,
        "grad_checkpointing": checkpointing,
        "peak_mib": f"{peak:.0f}",
        "cpu_s": f"{seconds:.2f}",
    }


def peak_of_update(args: argparse.Namespace, checkpointing: bool) -> tuple[float, float]:
    """The growth of this process at its peak in one update, in MiB, after another update; and its CPU seconds."""
    torch.set_num_threads(1)
    model = srnn(args)
    model.set_grad_checkpointing(checkpointing)
    step, small, batch = update(args, model), random_batch(args, 64), random_batch(args, args.size)
    step(*small)  # loads everything lazy
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = status("VmRSS"), time.process_time()
    step(*batch)
    return status("VmHWM") - before, time.process_time() - start


if __name__ == "__main__":
    main()
