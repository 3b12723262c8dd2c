"""On a GPU: throughput against the bare backbone, the head's overhead, training, and how often early exit waits.

Everything is timed in turn until the GPU has finished; a ratio above 1 means that the SRNN takes longer. `--device cpu
--short` shows that the program runs where there is no GPU; its figures say nothing about one.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _common import Row, Turns, alternate, parser, report
from imagenet_hours import update

import srnn_zoo


def main() -> None:
    options = parser(__doc__, "gpu.csv", rounds=30)
    options.add_argument("--models", nargs="+", default=["resnet18", "resnet50"], help="base CNNs")
    options.add_argument("--batch-size", type=int, default=256, help="images in a batch (default: %(default)s)")
    options.add_argument("--train-batch-size", type=int, default=64, help="images in an update (default: %(default)s)")
    options.add_argument("--sizes", type=int, nargs=2, default=[224, 448], help="the levels (default: 224 448)")
    options.add_argument("--device", default="cuda", help="where the models run (default: %(default)s)")
    options.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    options.add_argument(
        "--short", action="store_true", help="tiny: 6 rounds, resnet18, 32 + 64, batch 2, no compiling"
    )
    args = options.parse_args()
    if args.short:
        args.rounds, args.models, args.sizes, args.no_compile = 6, ["resnet18"], [32, 64], True
        args.batch_size = args.train_batch_size = 2
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    elif not torch.cuda.is_available():
        raise SystemExit("no GPU is available here; --device cpu --short tries the program")
    rows: list[Row] = []
    for name in args.models:
        model = srnn_zoo.create_model(f"srnn_{name}", img_size=args.sizes[1]).eval().to(args.device)
        model = model.to(memory_format=torch.channels_last)
        rows += inference_rows(args, name, model)
        rows.append(training_row(args, name))
        rows.append(waits_row(args, name, model))
        report(rows, args.csv)  # after each, as a run may be cut


@torch.inference_mode()
def inference_rows(args: argparse.Namespace, name: str, model: srnn_zoo.SRNN) -> list[Row]:
    """SRNN against its backbone on the same levels: in float32, in bf16, and compiled."""
    levels = [images(args, args.batch_size, size) for size in args.sizes]
    backbones: dict[str, tuple[torch.dtype, Any, Any]] = {
        "float32": (torch.float32, model.backbone, model),
        "bf16": (torch.bfloat16, model.backbone, model),
    }
    if not args.no_compile:
        compiled = copy.deepcopy(model)
        compiled.compile()
        backbones["bf16, compiled"] = (torch.bfloat16, torch.compile(copy.deepcopy(model.backbone)), compiled)
    rows: list[Row] = []
    for kind, (dtype, backbone, whole) in backbones.items():

        def run(call: Callable[[], object], dtype: torch.dtype = dtype) -> None:
            with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
                call()

        ways = {
            "backbone": lambda r=run, b=backbone: r(lambda: [b(level) for level in levels]),
            "srnn": lambda r=run, m=whole: r(lambda: m(levels)),
        }
        turns = alternate(ways, args.rounds, warm_up=5, title=f"{name}, {kind}")
        rows.append(row(args, name, f"inference, {kind}", args.batch_size, turns, "backbone"))
    return rows


def training_row(args: argparse.Namespace, name: str) -> Row:
    """Updates of the SRNN in bf16 against updates of its base CNN on the small level."""
    import timm

    options = argparse.Namespace(batch_size=args.train_batch_size, precision="bf16")
    model = srnn_zoo.create_model(f"srnn_{name}", img_size=args.sizes[1])
    ways = {
        "base": update(options, timm.create_model(name), args.sizes[0], args.device),
        "srnn": update(options, model, args.sizes[1], args.device),
    }
    turns = alternate(ways, args.rounds, warm_up=5, title=f"{name}, training")
    return row(args, name, "training, bf16, over the small level", args.train_batch_size, turns, "base")


def row(args: argparse.Namespace, name: str, what: str, batch_size: int, turns: Turns, over: str) -> Row:
    return {
        "model": f"srnn_{name}",
        "device": torch.cuda.get_device_name() if args.device != "cpu" else "cpu",
        "levels": "+".join(map(str, args.sizes)),
        "what": what,
        "batch_size": batch_size,
        "rounds": args.rounds,
        "images_per_s": f"{batch_size / turns.median('srnn'):.1f}",
        **turns.ratio("srnn", over=over).columns(),
        "host_waits": "",
    }


def waits_row(args: argparse.Namespace, name: str, model: srnn_zoo.SRNN) -> Row:
    """`Anytime` against the model: how long it takes where no image stops early, and how often the host waits."""
    anytime = srnn_zoo.Anytime(model, "confidence:1.0")
    batch = images(args, args.batch_size, args.sizes[1])
    turns = alternate({"model": lambda: model(batch), "srnn": lambda: anytime(batch)}, args.rounds, warm_up=5)
    found = row(args, name, "early exit at which none stops", args.batch_size, turns, "model")
    return {**found, "host_waits": host_waits(args.device, lambda: anytime(batch))}


def host_waits(device: str, call: Callable[[], object]) -> int | str:
    """How often the host waits for the GPU in a call."""
    if device == "cpu":
        return ""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def images(args: argparse.Namespace, count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, device=args.device).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
