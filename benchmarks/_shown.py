"""Images whose objects are smaller or larger than in training, and what ways to answer do on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import Row, report
from PIL import Image, ImageOps, ImageStat

from srnn_zoo.comparison.result import difference
from srnn_zoo.comparison.ways import Operating, Way

TIMES = (1.0, 0.5, 2.0)


class Shown:
    """A split whose images are shown at another size, the canvas as before.

    Args:
        split: of images.
        times: how many times as large; half or twice.
        plain: whether the margin around smaller ones has their mean colour; else they are mirrored at their edges.
    """

    def __init__(self, split: Any, times: float, plain: bool = False) -> None:
        self._split, self._times, self._plain = split, times, plain
        self.transform, self.samples = None, split.samples

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self._split.transform = self._changed
        return self._split[index]

    def _changed(self, image: Image.Image) -> Any:
        width, height = image.size
        if self._times > 1:
            left, top = (round(side * (1 - 1 / self._times) / 2) for side in (width, height))
            image = image.crop((left, top, width - left, height - top))
        else:
            x, y = (round(side * (1 / self._times - 1) / 2) for side in (width, height))
            image = ImageOps.expand(image, (x, y), mean_colour(image)) if self._plain else mirrored(image, x, y)
        assert self.transform is not None
        return self.transform(image)


def mean_colour(image: Image.Image) -> tuple[int, ...]:
    return tuple(round(value) for value in ImageStat.Stat(image).mean)


def mirrored(image: Image.Image, x: int, y: int) -> Image.Image:
    """The image on a larger canvas, whose margins are its mirror images."""
    width, height = image.size
    canvas = Image.new("RGB", (width + 2 * x, height + 2 * y))
    for column, across in enumerate((ImageOps.mirror, None, ImageOps.mirror)):
        for row, down in enumerate((ImageOps.flip, None, ImageOps.flip)):
            tile = across(image) if across else image
            canvas.paste(down(tile) if down else tile, (x + (column - 1) * width, y + (row - 1) * height))
    return canvas


def report_shift(measured: Mapping[float, Mapping[str, Way]], file: Path) -> None:
    """Write what every way does at each size at which objects are shown, and every SRNN beside every rival.

    Args:
        measured: the ways by name, for each size.
        file: of the table; pairs and curves go to files beside it, whose names end in `_pairs` and `_curves`.
    """
    ways = measured[1.0]
    budget = 1.5 * min(way.answers[0].val.gmacs[0].item() for way in ways.values())  # of early exit
    rows: list[Row] = []
    for name, way in ways.items():
        row: Row = {"way": name, "chosen": way.chosen, "gmacs": round(way.gmacs, 3)}
        shown = {f"shown_at_{times:g}": found[name].whole() for times, found in measured.items()}
        shown["mean"] = _mean(list(shown.values()))
        rows.append(row | {title: round(point.accuracy, 2) for title, point in shown.items()})
    report(rows, file)
    ours, rivals = ([way for way in ways.values() if (way.group == "SRNN") is is_srnn] for is_srnn in (True, False))
    pairs = [
        row
        for srnn, rival, levels in itertools.product(ours, rivals, ("all", "early exit"))
        for row in _beside(measured, srnn.name, rival.name, None if levels == "all" else budget)
    ]
    report(pairs, file.with_name(f"{file.stem}_pairs.csv"))
    report(list(_curves(measured)), file.with_name(f"{file.stem}_curves.csv"))


def _curves(measured: Mapping[float, Mapping[str, Way]]) -> Iterator[Row]:
    """The points of every way as the mean over the sizes, in the columns of a comparison's curves."""
    for name, way in measured[1.0].items():
        for budget in way.budgets:
            points = [point for found in measured.values() if (point := found[name].at(budget)) is not None]
            mean = _mean(points)
            yield {
                "name": name,
                "group": way.group,
                "gmacs": round(mean.gmacs, 4),
                "val_accuracy": round(mean.val_accuracy, 2),
                "accuracy": round(mean.accuracy, 3),
            }


def _beside(measured: Mapping[float, Mapping[str, Way]], srnn: str, rival: str, budget: float | None) -> Iterator[Row]:
    """An SRNN and a rival at each size and over all of them: with all levels, or with early exit within a budget."""
    both = [
        [found[name].whole() if budget is None else found[name].at(budget) for found in measured.values()]
        for name in (srnn, rival)
    ]
    mine, theirs = ([point for point in points if point is not None] for points in both)
    if not mine or not theirs:
        return
    titles = [*(f"{times:g}" for times in measured), "mean"]
    for title, a, b in zip(titles, [*mine, _mean(mine)], [*theirs, _mean(theirs)], strict=True):
        gap = difference(a, b)
        yield {
            "srnn": srnn,
            "rival": rival,
            "levels": "all" if budget is None else "early exit",
            "shown_at": title,
            "srnn_gmacs": round(a.gmacs, 3),
            "rival_gmacs": round(b.gmacs, 3),
            "srnn_test": round(a.accuracy, 2),
            "rival_test": round(b.accuracy, 2),
            "difference": round(gap.mean, 2),
            "low": round(gap.low, 2),
            "high": round(gap.high, 2),
            "p_value": f"{gap.p_value:.2g}",
        }


def _mean(points: Sequence[Operating]) -> Operating:
    """Over the sizes at which the same images are shown."""
    gmacs = sum(point.gmacs for point in points) / len(points)
    return Operating(points[0].val_accuracy, gmacs, torch.stack([point.right.double() for point in points]).mean(0))
