"""The figure of the first screen: accuracy against cost on Grocery Store, from the tables of two comparisons.

Left, cells and classifiers on frozen features (`srnn-zoo compare`, compare_grocery_curves.csv); right, networks whose
last block was trained too (`finetuned.py`, finetuned_curves.csv). Of SRNNs and of cascades, the one is drawn that is
best on the validation images with all its levels; of single networks, all but test-time augmentation.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from _common import RESULTS, ROOT

from srnn_zoo.evaluation.plot import new_figure, save_figure
from srnn_zoo.training.run_folder import COLOURS, style_axes

TABLES = {"backbone frozen": "compare_grocery_curves.csv", "last block trained too": "finetuned_curves.csv"}
LOOKS: dict[str, dict[str, Any]] = {
    "SRNN": {"color": COLOURS[0], "linewidth": 2.4, "marker": "o", "markersize": 3, "zorder": 4},
    "cascade": {"color": COLOURS[1], "linestyle": (0, (5, 2)), "linewidth": 1.4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=ROOT / "docs" / "accuracy_cost.png")
    args = parser.parse_args()
    figure = new_figure(args.file, 9.6, 3.8)
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
    for group, look in LOOKS.items():
        of_group = [(name, found) for (kind, name), found in ways.items() if kind == group]
        name, found = max(of_group, key=lambda way: way[1][-1]["val_accuracy"])
        axis.plot([p["gmacs"] for p in found], [p["accuracy"] for p in found], label=f"{group}: {name}", **look)
    for (group, name), found in ways.items():
        if group != "single scale" or name.startswith("test-time"):
            continue
        [point] = found
        crop = name.startswith("tight crop")
        axis.plot(
            point["gmacs"],
            point["accuracy"],
            "D" if crop else "s",
            color="#555555",
            fillstyle="full" if crop else "none",
        )
        axis.annotate(name, (point["gmacs"], point["accuracy"]), xytext=(5, -3), textcoords="offset points", fontsize=7)
    axis.set_xlim(left=0)
    axis.legend(loc="lower right", fontsize=7)


if __name__ == "__main__":
    main()
