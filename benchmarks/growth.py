"""How time grows with levels, pixels, images in a batch and width: fitted exponents, and a plot.

Everything is timed in turn, in CPU seconds. An exponent is the slope of the logarithm of the time over the logarithm of
what grows, by least squares in every round; the median over the rounds stands with its 95 % interval. With an exponent
of 1, twice as much takes twice as long.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import ROOT, Ratio, Row, Turns, alternate, median_interval, parser, report
from torch import Tensor

import srnn_zoo
from srnn_zoo.models.cells import create_cell
from srnn_zoo.models.recurrence import scan

Ways = dict[float, Callable[[], object]]


def main() -> None:
    options = parser(__doc__, "growth.csv", rounds=9)
    options.add_argument("--plot", type=Path, default=ROOT / "docs" / "growth.png", help="file to draw to")
    options.add_argument("--model", default="srnn_resnet18", help="for all but the widths (default: %(default)s)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    model = srnn_zoo.create_model(args.model).eval()
    rows: list[Row] = []
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with torch.inference_mode():
        for name, ways in what_grows(model).items():
            turns = alternate(
                {str(x): way for x, way in ways.items()}, args.rounds, clock=time.process_time, title=name
            )
            exponent = fitted_exponent(list(ways), turns)
            times = [turns.median(str(x)) for x in ways]
            curves[f"{name}: {exponent.median:.2f}"] = (list(ways), times)
            rows.append(
                {
                    "what_grows": name,
                    "from": f"{min(ways):g}",
                    "to": f"{max(ways):g}",
                    "rounds": args.rounds,
                    "first_ms": f"{1000 * times[0]:.2f}",
                    "last_ms": f"{1000 * times[-1]:.2f}",
                    "exponent": f"{exponent.median:.2f}",
                    "exponent_95_percent": f"{exponent.low:.2f} to {exponent.high:.2f}",
                    "against_1": exponent.answer(),
                }
            )
    report(rows, args.csv)
    draw(curves, args.plot)


def what_grows(model: srnn_zoo.SRNN) -> dict[str, Ways]:
    """What is timed: for everything that grows, its amount and what is run with so much of it."""

    def reads(levels: list[Tensor]) -> Callable[[], object]:
        return lambda: model(levels)

    def pyramid(side: int, batch_size: int = 1) -> list[Tensor]:
        return [torch.randn(batch_size, 3, size, size) for size in (side // 2, side)]

    return {
        "levels of 128 pixels": {
            n: reads([torch.randn(1, 3, 128 + i, 128 + i) for i in range(n)]) for n in (1, 2, 4, 8)
        },
        "pixels, 56 + 112 to 224 + 448": {side**2: reads(pyramid(side)) for side in (112, 160, 224, 320, 448)},
        "batch at 32 + 64": {size: reads(pyramid(64, size)) for size in (1, 2, 4, 8, 16)},
        "width of a ViT": {width: of_width(width) for width in (96, 192, 384, 768)},
        "width of the cell": {width: cell_of_width(width) for width in (256, 512, 1024, 2048)},
    }


def of_width(width: int) -> Callable[[], object]:
    """A ViT of two blocks and this width, on one image of 64 + 128."""
    name = "srnn_vit_tiny_patch16_224"
    model = srnn_zoo.create_model(name, embed_dim=width, num_heads=width // 32, depth=2, img_size=128).eval()
    image = torch.randn(1, 3, 128, 128)
    return lambda: model(image)


def cell_of_width(width: int) -> Callable[[], object]:
    """A half-GRU of this width over two levels of 8 images."""
    cell = create_cell("half_gru", width).eval()
    features = torch.randn(8, width)
    return lambda: list(scan(cell, [features, features]))


def fitted_exponent(amounts: list[float], turns: Turns) -> Ratio:
    """The slope in log-log of every round, by least squares: median and interval."""
    x = [math.log(amount) for amount in amounts]
    rounds = zip(*turns.seconds.values(), strict=True)
    slopes = [statistics.linear_regression(x, [math.log(t) for t in times]).slope for times in rounds]
    return Ratio(statistics.median(slopes), *median_interval(slopes))


def draw(curves: dict[str, tuple[list[float], list[float]]], file: Path) -> None:
    """Time against amount, both over the first of each, in log-log, with the line of exponent 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, (amounts, times) in curves.items():
        axes.plot([a / amounts[0] for a in amounts], [t / times[0] for t in times], marker="o", label=name)
    axes.plot([1, 16], [1, 16], color="gray", linestyle=":", label="exponent 1")
    axes.set(xscale="log", yscale="log", xlabel="times as much", ylabel="times as long")
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_yticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    axes.minorticks_off()
    axes.legend(title="what grows: exponent", fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
