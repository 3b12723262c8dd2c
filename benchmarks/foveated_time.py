"""What a level that zooms in costs in time: 224 and a part of the image, against 224 and the whole image at 336.

Ways are timed in turn on one batch, the pyramid made on the device included, in CPU seconds if the device is one. A
ratio above 1 means that 224 + 336 takes longer.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from _common import Row, alternate, parser, report

import srnn_zoo

WAYS: dict[str, dict[str, Any]] = {
    "224 + 336": {"scales": (2 / 3, 1.0), "img_size": 336},
    "224 + zoom at the middle": {"zooms": (1.0, 1.6)},
    "224 + zoom by attention": {"zooms": (1.0, 1.6), "views": "attention"},
    "224 alone": {"scales": (1.0,), "img_size": 224},
}


def main() -> None:
    options = parser(__doc__, "foveated_time.csv", rounds=20)
    options.add_argument("--model", default="srnn_tf_efficientnet_lite0", help="name of a model (default: %(default)s)")
    options.add_argument("--variant", default="vanilla_scalar", help="of the cell (default: %(default)s)")
    options.add_argument("--batch-size", type=int, default=1, help="images in a batch (default: %(default)s)")
    options.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    models = {
        name: srnn_zoo.create_model(args.model, variant=args.variant, **how).eval().to(args.device)
        for name, how in WAYS.items()
    }
    images = {name: torch.randn(args.batch_size, 3, *model.img_size).to(args.device) for name, model in models.items()}
    with torch.inference_mode():
        ways = {name: lambda n=name: models[n](images[n]) for name in WAYS}
        turns = alternate(ways, args.rounds, clock=clock)
    plain, *others = WAYS
    rows: list[Row] = [
        {
            "model": args.model,
            "batch_size": args.batch_size,
            "device": args.device,
            "rounds": args.rounds,
            "way": name,
            "plain_gmacs": f"{sum(srnn_zoo.count_gmacs(models[plain]).levels):.3f}",
            "gmacs": f"{sum(srnn_zoo.count_gmacs(models[name]).levels):.3f}",
            "plain_ms_per_image": f"{1000 * turns.median(plain) / args.batch_size:.1f}",
            "ms_per_image": f"{1000 * turns.median(name) / args.batch_size:.1f}",
            **turns.ratio(plain, over=name).columns(),
        }
        for name in others
    ]
    report(rows, args.csv)


if __name__ == "__main__":
    main()
