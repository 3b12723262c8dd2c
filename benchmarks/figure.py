"""The figure of the first screen: accuracy against cost on Grocery Store, from the tables of `finetuned.py`.

Left, test images as they are (finetuned_curves.csv); right, the mean over the same images shown at half their size, as
they are, and at twice their size (scale_shift_finetuned_curves.csv). Nothing is chosen: SRNNs of one variant, cascades
and trained means over every pyramid are drawn, and all single networks except those far below.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from _common import RESULTS, ROOT

from srnn_zoo.evaluation.plot import new_figure, save_figure
from srnn_zoo.training.run_folder import COLOURS, style_axes

TABLES = {
    "objects as large as in training": "finetuned_curves.csv",
    "objects half, as and twice as large (mean)": "scale_shift_finetuned_curves.csv",
}
VARIANT = "vanilla_scalar"
LOOKS: dict[str, dict[str, Any]] = {
    f"{VARIANT} {{}}": {"linewidth": 2.4, "zorder": 4, "label": "SRNN"},
    "cascade {}, all answer": {"linestyle": (0, (5, 2)), "linewidth": 1.2, "label": "cascade"},
    "trained mean {}": {"linestyle": (0, (1, 1.5)), "linewidth": 1.6, "label": "trained mean"},
}
NEAR = 0.4  # points of accuracy
LOWEST = 65  # per cent; what is worse is in the tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=ROOT / "docs" / "accuracy_cost.png")
    args = parser.parse_args()
    figure = new_figure(args.file, 11, 4.6)
    for axis, (title, table) in zip(figure.subplots(1, 2), TABLES.items(), strict=True):
        draw(axis, points(RESULTS / table), title)
    save_figure(figure, args.file)


def points(path: Path) -> dict[tuple[str, str], list[dict[str, float]]]:
    """The points of every way, by group and name, cheapest first."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            numbers = {name: float(row[name]) for name in ("gmacs", "val_accuracy", "accuracy")}
            found.setdefault((row["group"], row["name"]), []).append(numbers)
    return found


def draw(axis: Any, ways: dict[tuple[str, str], list[dict[str, float]]], title: str) -> None:
    """One panel."""
    style_axes(axis, "mean cost of an image in GMACs", "top-1 accuracy in %")
    axis.set_title(title)
    named = {name: found for (_, name), found in ways.items()}
    pyramids = [name.removeprefix(f"{VARIANT} ") for name in named if name.startswith(VARIANT)]
    for pyramid, colour in zip(pyramids, COLOURS, strict=False):
        for name, look in LOOKS.items():
            found = named[name.format(pyramid)]
            costs, accuracies = [p["gmacs"] for p in found], [p["accuracy"] for p in found]
            axis.plot(costs, accuracies, color=colour, **{**look, "label": f"{look['label']} {pyramid}"})
    alone = singles(ways)
    for place, names in alone.items():
        axis.plot(*place, "s", color="#777777", markersize=5)
        left = place[0] == min(x for x, _ in alone)  # where no curve passes
        offset, side = ((-6, -3), "right") if left else ((6, -3), "left")
        axis.annotate(", ".join(names), place, offset, textcoords="offset points", fontsize=7, ha=side)
    axis.set_xlim(left=0)
    axis.legend(loc="lower left" if "mean" in title else "lower right", fontsize=6.5, frameon=False)


def singles(ways: dict[tuple[str, str], list[dict[str, float]]]) -> dict[tuple[float, float], list[str]]:
    """The names of single networks by their place; what is nearly as good at the same cost shares one."""
    found: dict[tuple[float, float], list[str]] = {}
    for (group, name), points in ways.items():
        cost, accuracy = points[0]["gmacs"], points[0]["accuracy"]
        if group == "single scale" and accuracy > LOWEST and not name.startswith("test-time"):
            near = (place for place in found if place[0] == cost and abs(place[1] - accuracy) < NEAR)
            found.setdefault(next(near, (cost, accuracy)), []).append(name)
    return found


if __name__ == "__main__":
    main()
