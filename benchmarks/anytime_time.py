"""What stopping early saves in time: `Anytime` at several shares of images that stop, against reading all levels.

The share is set by the exit's threshold, on random images; it is what counts for the time, not whether answers are
right. Ways are timed in turn, in CPU seconds if the device is one; a ratio above 1 means that reading all takes longer.
"""

from __future__ import annotations

import time

import torch
from _common import Row, alternate, parser, report

import srnn_zoo


def main() -> None:
    options = parser(__doc__, "anytime_time.csv", rounds=12)
    options.add_argument("--model", default="srnn_tf_efficientnet_lite0", help="name of a model (default: %(default)s)")
    options.add_argument("--size", type=int, default=448, help="the largest level (default: %(default)s)")
    options.add_argument("--batch-size", type=int, default=4, help="images in a batch (default: %(default)s)")
    options.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    model = srnn_zoo.create_model(args.model, img_size=args.size).eval().to(args.device)
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    with torch.inference_mode():
        first = next(iter(model.steps(images))).logits
        confidence = (first / model.temperature(0)).softmax(1).amax(1).sort().values
        # as many images stop as are more confident than the threshold
        thresholds = [1.0, (confidence[0] + confidence[-1]).item() / 2, 0.0]
        exits = [srnn_zoo.Anytime(model, f"confidence:{threshold:.9f}") for threshold in thresholds]
        stopped = [int((exit(images)[1] == 0).sum()) for exit in exits]
        ways = {"all levels": lambda: model(images)}
        ways |= {f"{n} of {len(images)} stop": lambda e=e: e(images) for n, e in zip(stopped, exits, strict=True)}
        turns = alternate(ways, args.rounds, clock=clock)
    rows: list[Row] = [
        {
            "model": args.model,
            "levels": f"{args.size // 2}+{args.size}",
            "batch_size": args.batch_size,
            "device": args.device,
            "rounds": args.rounds,
            "way": name,
            "all_levels_ms_per_image": f"{1000 * turns.median('all levels') / args.batch_size:.1f}",
            "ms_per_image": f"{1000 * turns.median(name) / args.batch_size:.1f}",
            **turns.ratio("all levels", over=name).columns(),
        }
        for name in list(ways)[1:]
    ]
    report(rows, args.csv)


if __name__ == "__main__":
    main()
