"""The forward of one network at two scales: ours against ttach's wrapper, S2's forward and a hand-written mean of two.

All get the large image as a tensor, make the small one themselves and run the same backbone on both; they are timed in
turn, in CPU seconds. Ours is `for_inference` of the model, as `predict` runs it. A ratio above 1 means that the rival
takes longer. ttach comes from pip; S2, which concatenates feature maps and has no classifier, from a checkout of
bfshi/scaling_on_scales that `--s2` names; it needs einops.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from _common import Row, alternate, parser, report
from torch.nn import functional as F

import srnn_zoo


def main() -> None:
    options = parser(__doc__, "rivals_forward.csv", rounds=12)
    options.add_argument("--model", default="tf_efficientnet_lite0", help="the base CNN (default: %(default)s)")
    options.add_argument("--size", type=int, default=448, help="the large image (default: %(default)s)")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images in a batch (default: 1 8)")
    options.add_argument("--s2", type=Path, help="a checkout of scaling_on_scales")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for batch_size in args.batch_sizes:
        images = torch.randn(batch_size, 3, args.size, args.size)
        model = srnn_zoo.create_model(f"srnn_{args.model}", img_size=args.size).eval()
        ways: dict[str, Forward] = {"ours": srnn_zoo.for_inference(model), "ours as made": model}
        ways |= rivals(args.model, args.s2)
        with torch.inference_mode():
            runs = {name: partial(way, images) for name, way in ways.items()}
            turns = alternate(runs, args.rounds, warm_up=2, clock=time.process_time, title=f"batch {batch_size}")
        rows += [
            {
                "model": args.model,
                "levels": f"{args.size // 2}+{args.size}",
                "batch_size": batch_size,
                "rounds": args.rounds,
                "way": name,
                "ms_per_image": f"{1000 * turns.median(name) / batch_size:.1f}",
                "ours_ms_per_image": f"{1000 * turns.median('ours') / batch_size:.1f}",
                **turns.ratio(name, over="ours").columns(),
            }
            for name in ways
            if name != "ours"
        ]
    report(rows, args.csv)


Forward = Callable[[torch.Tensor], torch.Tensor]


def rivals(name: str, s2: Path | None) -> dict[str, Forward]:
    """The other ways to run a base CNN at half of the size and at the whole, those that are installed."""
    base = timm.create_model(name).eval()

    def mean_of_two(images: torch.Tensor) -> torch.Tensor:
        small = F.interpolate(images, scale_factor=0.5, mode="bicubic", antialias=True)
        return (base(small) + base(images)) / 2

    found: dict[str, Forward] = {"hand-written mean of two": mean_of_two}
    try:
        ttach = importlib.import_module("ttach")
    except ImportError:
        print("ttach is not installed (pip install ttach); it is left out")
    else:
        transforms = ttach.Compose([ttach.Scale([0.5], interpolation="bicubic")])
        found["ttach"] = ttach.ClassificationTTAWrapper(base, transforms, merge_mode="mean")
    if s2 is not None:
        sys.path.insert(0, str(s2))
        s2wrapper = importlib.import_module("s2wrapper")
        found["S2, whole images"] = lambda images: s2wrapper.forward(
            base.forward_features, images, scales=[0.5, 1], max_split_size=images.shape[-1], output_shape="bchw"
        )
        found["S2, tiles of the small size"] = lambda images: s2wrapper.forward(
            base.forward_features, images, scales=[0.5, 1], max_split_size=images.shape[-1] // 2, output_shape="bchw"
        )
    return found


if __name__ == "__main__":
    main()
