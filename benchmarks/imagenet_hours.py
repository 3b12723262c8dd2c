"""How long training on ImageNet takes: what an update of a scale-recurrent network costs, in updates of its base CNN.

Both are trained in turns by the paper's recipe on random images in memory: the base CNN on the smallest level, as
timm's own benchmark does, and the SRNN on the largest, from which it builds the others. The hours follow from the
images a second of the SRNN on this device, or, with --base-rate, from those of the base CNN on another device, divided
by the ratio measured here. They count the device's work alone. Reading must keep up: one core's rate is measured on
imagenet-sample. Several devices are assumed to share the work evenly.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from _common import RESULTS, imagenet_sample, report
from torch.nn import functional as F
from tqdm import trange

import srnn_zoo
from srnn_zoo.datasets.images import find_images, open_image
from srnn_zoo.training import recipe
from srnn_zoo.training.losses import TrainingForward
from srnn_zoo.training.optimizer import create_optimizer
from srnn_zoo.transforms.presets import image_transform

IMAGES = 1_281_167  # of ImageNet-1k's training split
VAL_IMAGES = 50_000
FORWARD_PART = 1 / 3  # of the work of an update, by multiply-accumulates: a backward pass is two forward ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a timm model (default: %(default)s)")
    parser.add_argument("--variant", default="half_gru", help="(default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448], help="of the levels (default: 224 448)")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="updates of each (default: %(default)s)")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no", help="(default: %(default)s)")
    parser.add_argument("--base-rate", type=float, help="images a second of the base CNN on another device")
    parser.add_argument("--base-device", default="", help="the name of that device, for the table")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8], help="(default: 1 8)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "imagenet_hours.csv", help="file to write")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base_rate, rate = rates(args, device)
    ratio = base_rate / rate
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    if args.base_rate:
        base_rate, rate, name = args.base_rate, args.base_rate / ratio, args.base_device
    paper = recipe("paper")
    work = paper.epochs * (IMAGES + FORWARD_PART * VAL_IMAGES)
    reading = reading_rate(args)
    report(
        [
            {
                "model": f"srnn_{args.model}",
                "variant": args.variant,
                "levels": "+".join(map(str, args.sizes)),
                "epochs": paper.epochs,
                "device": name,
                "devices": devices,
                "base_images_per_s": f"{base_rate:.0f}",
                "srnn_update_over_base_update": f"{ratio:.2f}",
                "images_per_s": f"{devices * rate:.0f}",
                "hours": f"{work / (devices * rate) / 3600:.1f}",
                "read_images_per_s_and_core": f"{reading:.0f}",
                "cores_that_read": math.ceil(devices * rate / reading),
            }
            for devices in args.devices
        ],
        args.csv,
    )


def rates(args: argparse.Namespace, device: str) -> tuple[float, float]:
    """Images a second of the base CNN on the smallest level, and of the SRNN on all, in turns; medians."""
    base = timm.create_model(args.model)
    scales = [size / args.sizes[-1] for size in args.sizes]
    model = srnn_zoo.create_model(f"srnn_{args.model}", variant=args.variant, scales=scales, img_size=args.sizes[-1])
    updates = [update(args, base, args.sizes[0], device), update(args, model, args.sizes[-1], device)]
    seconds: list[list[float]] = [[], []]
    for _ in trange(args.steps + 2, desc="updates", disable=None):
        for which, step in enumerate(updates):
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[which].append(time.perf_counter() - start)
    of_base, of_srnn = (args.batch_size / statistics.median(times[2:]) for times in seconds)  # two to warm up
    return of_base, of_srnn


def update(args: argparse.Namespace, net: Any, size: int, device: str) -> Callable[[], None]:
    """One update of a network on images of this size, as the trainer makes it."""
    paper = recipe("paper")
    images = torch.randn(args.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(1000, (args.batch_size,), device=device)
    net = net.to(device, memory_format=torch.channels_last).train()
    if isinstance(net, srnn_zoo.SRNN):
        optimizer, forward = create_optimizer(net, paper), TrainingForward(net, paper)
    else:
        forward = net
        optimizer = torch.optim.SGD(
            net.parameters(), paper.lr, paper.momentum, weight_decay=paper.weight_decay, nesterov=True
        )
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.precision]
    scaler = torch.amp.GradScaler(device, enabled=args.precision == "fp16")

    def step() -> None:
        with torch.autocast(device, dtype, enabled=args.precision != "no"):
            loss = F.cross_entropy(forward(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def reading_rate(args: argparse.Namespace) -> float:
    """Images that one core reads and augments in a second, up to the largest level."""
    model = srnn_zoo.create_model(f"srnn_{args.model}", img_size=args.sizes[-1])
    transform = image_transform(model, train=True, **recipe("paper").augmentation())
    files = find_images([imagenet_sample()])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    for path in itertools.islice(files, 200):
        transform(open_image(path).image)
    seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    return min(200, len(files)) / seconds


if __name__ == "__main__":
    main()
