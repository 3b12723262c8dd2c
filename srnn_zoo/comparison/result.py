"""The table of a comparison, its curves, and the sentence that says which way to use at which budget."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .ways import Operating, Way

_CHEAPER = (1.25, 1.5, 2.0)  # times the cheapest way: budgets at which early exit is compared as well
_SURE = 0.05


class Difference(NamedTuple):
    """How much better one way is than another on the same images, in points of top-1 accuracy.

    Attributes:
        mean: over seeds and images.
        low: the lower end of the 95 % interval over the images.
        high: the upper end.
        p_value: of a paired t-test over the images; what an image gives is first averaged over the seeds.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def p(self) -> str:
        """The p-value in words."""
        return f"p = {self.p_value:.2g}" if self.p_value >= 1e-4 else "p < 0.0001"

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f}; {self.p})"


class Line(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the way.
        group: which kind it is.
        chosen: what was chosen for it.
        gmacs: mean cost of an image.
        val_accuracy: on the images that choose, in per cent.
        accuracy: on those that measure, in per cent, mean over the seeds.
        of_seeds: the same, seed by seed.
        srnn: the best SRNN within that cost, by the images that choose; empty for an SRNN, and where none is as cheap.
        srnn_gmacs: what it costs.
        difference: how much better it is than this way; None where there is none.
    """

    name: str
    group: str
    chosen: str
    gmacs: float
    val_accuracy: float
    accuracy: float
    of_seeds: tuple[float, ...]
    srnn: str = ""
    srnn_gmacs: float | None = None
    difference: Difference | None = None


class Pair(NamedTuple):
    """An SRNN and a rival within the same cost, and how much better the first is in points of top-1 accuracy.

    Attributes:
        srnn: its name.
        rival: its name.
        budget: what both may cost, in GMACs as the mean of an image.
        srnn_gmacs: what the SRNN costs.
        rival_gmacs: what the rival costs.
        srnn_accuracy: in per cent.
        rival_accuracy: in per cent.
        mean: as the other three, see `Difference`.
        low: its lower end.
        high: its upper end.
        p_value: of a paired t-test.
    """

    srnn: str
    rival: str
    budget: float
    srnn_gmacs: float
    rival_gmacs: float
    srnn_accuracy: float
    rival_accuracy: float
    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    Attributes:
        ways: all of them.
        lines: the rows of the table: every way with all that it has, and cascades and trained means within less too.
        sentence: which way to use at which budget, and how sure that is.
        caption: which images were read, and how the figures were made.
        skipped: one sentence for every image that could not be read.
        images: how many there are, these included.
    """

    ways: tuple[Way, ...]
    lines: tuple[Line, ...]
    sentence: str
    caption: str
    skipped: tuple[str, ...] = field(default=(), repr=False)
    images: int = 0

    @property
    def best_srnn(self) -> Way:
        """The SRNN that is best on the images that choose, with all its levels."""
        return max((way for way in self.ways if way.group == "SRNN"), key=lambda way: way.whole().val_accuracy)

    def to_markdown(self) -> str:
        """The table, its caption and the sentence."""
        titles = ["way", "chosen", "GMACs", "val %", "test %", "SRNN within that cost", "better by (95 %)"]
        rows = [titles, *(_texts(line) for line in self.lines)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
        rows.insert(1, ["-" * width for width in widths])
        lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
        return "\n".join([*lines, "", self.caption, "", self.sentence, ""])

    def to_csv(self) -> str:
        """The table with all digits, one row a line."""
        columns = [name for name in Line._fields if name != "difference"] + [*Difference._fields]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for line in self.lines:
            known = [*line[:6], " ".join(f"{value:.4f}" for value in line.of_seeds), line.srnn, line.srnn_gmacs]
            writer.writerow([*known, *(line.difference or ("",) * 4)])
        return text.getvalue()

    def curves(self) -> Iterator[tuple[Way, list[Operating]]]:
        """Every way with its points from the cheapest on; of early exit, at twenty budgets."""
        for way in self.ways:
            yield way, [point for point in map(way.at, way.budgets) if point is not None]

    def pairs(self) -> Iterator[Pair]:
        """Every SRNN beside every rival at the same budgets: nothing is chosen among them."""
        rivals = [way for way in self.ways if way.group != "SRNN"]
        for way in self.ways:
            if way.group != "SRNN":
                continue
            for budget in _budgets(way, self.ways):
                for rival in rivals:
                    ours, theirs = way.at(budget), rival.at(budget)
                    if ours is not None and theirs is not None:
                        costs = (ours.gmacs, theirs.gmacs)
                        found = difference(ours, theirs)
                        yield Pair(way.name, rival.name, budget, *costs, ours.accuracy, theirs.accuracy, *found)

    def save(self, folder: Path) -> None:
        """Write `table.csv`, `table.md`, `curves.csv` and `pairs.csv`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", "group", "gmacs", "val_accuracy", "accuracy"])
        for way, points in self.curves():
            writer.writerows([way.name, way.group, p.gmacs, p.val_accuracy, p.accuracy] for p in points)
        pairs = io.StringIO()
        writer = csv.writer(pairs, lineterminator="\n")
        writer.writerow(Pair._fields)
        writer.writerows(
            [value if isinstance(value, str) else f"{value:.5g}" for value in pair] for pair in self.pairs()
        )
        for name, content in (
            ("pairs.csv", pairs.getvalue()),
            ("table.csv", self.to_csv()),
            ("table.md", self.to_markdown()),
            ("curves.csv", text.getvalue()),
        ):
            (folder / name).write_text(content, encoding="utf-8", errors="backslashreplace")


def lines_of(ways: Sequence[Way]) -> Iterator[Line]:
    """The rows: every rival beside the best SRNN of its cost, and the SRNNs."""
    ours = [way for way in ways if way.group == "SRNN"]
    for way in ways:
        for budget in _budgets(way, ways):
            point = way.at(budget)
            if point is not None:
                name = way.name if budget == way.gmacs else f"{way.name}, within {budget:.3g}"
                yield _line(name, way, point, ours, budget)


def _budgets(way: Way, ways: Sequence[Way]) -> list[float]:
    """Of its rows: all that it costs, and where it stops early, less."""
    cheapest = min(way.answers[0].val.gmacs[0].item() for way in ways)
    cheaper = [times * cheapest for times in _CHEAPER] if way.stops_early else []
    return [*(budget for budget in cheaper if budget < way.gmacs), way.gmacs]


def advice(ways: Sequence[Way]) -> str:
    """Which way to use up to which cost, by the images that choose, and how sure the others say that this is."""
    cheapest = min(way.answers[0].val.gmacs[0].item() for way in ways)
    budgets = sorted({way.gmacs for way in ways} | {times * cheapest for times in _CHEAPER})
    better: list[tuple[float, Way, Operating]] = []
    for budget in budgets:
        best = best_at(ways, budget)
        if best is not None and (not better or best[1].val_accuracy > better[-1][2].val_accuracy):
            better.append((budget, *best))
    pairs = zip(better, [*better[1:], None], strict=True)
    ends = [step for step, following in pairs if following is None or following[1] is not step[1]]
    return " ".join(_advice(ways, way, budget, point) for budget, way, point in ends)


def best_at(ways: Sequence[Way], budget: float) -> tuple[Way, Operating] | None:
    """The way, and what it does, that is best on the images that choose for so many GMACs an image; the cheaper one
    where two are as good."""
    able = [(way, point) for way in ways if (point := way.at(budget)) is not None]
    return max(able, key=lambda each: (each[1].val_accuracy, -each[1].gmacs), default=None)


def difference(a: Operating, b: Operating) -> Difference:
    """How much better the first is, image by image."""
    from scipy.stats import ttest_1samp

    each = 100 * (a.right.double().mean(dim=0) - b.right.double().mean(dim=0))
    if not each.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    if (each == each[0]).all():  # a t-test has no answer; that all have one sign by chance
        return Difference(each[0].item(), -100.0, 100.0, min(1.0, 2 * 0.5 ** len(each)))
    test: Any = ttest_1samp(each.numpy(), 0.0)
    interval = test.confidence_interval(0.95)
    return Difference(each.mean().item(), float(interval.low), float(interval.high), float(test.pvalue))


def _line(name: str, way: Way, point: Operating, ours: Sequence[Way], budget: float) -> Line:
    of_seeds = tuple(100 * right.double().mean().item() for right in point.right)
    line = Line(name, way.group, way.chosen, point.gmacs, point.val_accuracy, point.accuracy, of_seeds)
    best = None if way.group == "SRNN" else best_at(ours, budget)
    if best is None:
        return line
    srnn, theirs = best
    return line._replace(srnn=srnn.name, srnn_gmacs=theirs.gmacs, difference=difference(theirs, point))


def _advice(ways: Sequence[Way], way: Way, budget: float, point: Operating) -> str:
    others = [other for other in ways if (other.group == "SRNN") != (way.group == "SRNN")]
    best = best_at(others, budget)
    early = " with early exit" if way.stops_early and point.gmacs < way.gmacs * 0.999 else ""
    says = f"For up to {budget:.3g} GMACs an image use {_called(way)}{early}: {point.accuracy:.1f} % right "
    says += f"at {point.gmacs:.3g}"
    ours = way.group == "SRNN"
    if best is None:
        return f"{says}; no {'rival' if ours else 'SRNN'} is as cheap."
    gap = difference(point, best[1])
    beside = f"the best {'rival' if ours else 'SRNN'} within that cost, {best[0].name} ({best[1].accuracy:.1f} %)"
    if gap.p_value >= _SURE:
        return f"{says}; {beside}, may be as good ({gap.p})."
    if gap.mean > 0:
        return f"{says}, {gap.mean:.1f} points more than {beside} ({gap.p})."
    chosen = f"{_called(way)}{early} was best on the images that choose"
    better = f"on those that measure {_called(best[0])} is {-gap.mean:.1f} points better ({gap.p})"
    return (
        f"For up to {budget:.3g} GMACs an image {chosen}, but {better}: {best[1].accuracy:.1f} against "
        f"{point.accuracy:.1f} %. Give more images that choose before you decide."
    )


def _called(way: Way) -> str:
    return f"{way.name} ({way.chosen})" if way.chosen else way.name


def _texts(line: Line) -> list[str]:
    name = f"**{line.name}**" if line.group == "SRNN" else line.name
    numbers = [f"{line.gmacs:.3f}", f"{line.val_accuracy:.1f}", f"{line.accuracy:.2f}"]
    srnn = "" if line.srnn_gmacs is None else f"{line.srnn} ({line.srnn_gmacs:.3f})"
    return [name, line.chosen, *numbers, srnn, "" if line.difference is None else str(line.difference)]
