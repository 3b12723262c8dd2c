"""Training curves: what is read from a log, what is refused, and what is drawn."""

from __future__ import annotations

import html
import re
import warnings
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from srnn_zoo.evaluation.plot import Curve, plot_curves, read_curve

HEADER = "epoch,lr,train_loss,val_loss,val_top1,val_top5,seconds"


def line(epoch: object, top1: object) -> str:
    return f"{epoch},0.001,2.5,2.25,{top1},90.5,12.25"


def write(folder: Path, *lines: str, end: str = "\n") -> Path:
    """A training run with this log."""
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines) + end, encoding="utf-8")
    return folder


def drawn_texts(curves: list[Curve], folder: Path, **options: dict[str, float]) -> list[str]:
    """All texts of the drawing, as they are."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_curves(curves, folder / "plot.svg", **options)  # pyright: ignore
    svg = (folder / "plot.svg").read_text(encoding="utf-8")
    return [html.unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)]


def test_a_log_is_read_as_errors_by_epoch(tmp_path: Path) -> None:
    run = write(tmp_path / "half_gru", HEADER, line(0, 60), line(1, "71.25"), line(3, "1e2"))
    assert read_curve(run) == Curve("half_gru", (0, 1, 3), (40.0, 28.75, 0.0))
    assert read_curve(str(run), "half-GRU SRNN").name == "half-GRU SRNN"
    write(run, "note," + HEADER, "a," + line(1, 50))  # a column more
    assert read_curve(run).errors == (50.0,)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], r"lacks the columns epoch, .*seconds; a log has epoch,lr"),
        ([HEADER], "has no epoch yet"),
        ([HEADER.replace("val_top1,", "")], "lacks the columns val_top1; a log has"),
        ([line(0, 60)], "lacks the columns epoch"),
        ([HEADER, line(0, 60), "1,0.001,2"], "line 3: 3 values for 7 columns; was the file cut short"),
        ([HEADER, line(0, 60) + ",9"], "line 2: 8 values for 7 columns"),
        ([HEADER, line(0, 60), "", line(1, 60)], "line 3: 0 values for 7 columns"),
        ([HEADER, line(0.5, 60)], "line 2: an epoch is a whole number; got '0.5'"),
        ([HEADER, line(1, 60), line(1, 61)], "line 3: epochs must rise; epoch 1 comes after 1"),
        ([HEADER, line(0, "")], "line 2: val_top1 must be an accuracy in per cent, 0 to 100; got ''"),
        ([HEADER, line(0, "nan")], "got 'nan'"),
        ([HEADER, line(0, 100.5)], "got '100.5'"),
        ([HEADER, line(0, "inf")], "got 'inf'"),
        ([HEADER, '"' + line(0, 60)], "is damaged: unexpected end of data"),
    ],
)
def test_logs_that_are_none_are_refused_with_the_line(lines: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        read_curve(write(tmp_path / "run", *lines, end=""))


def test_missing_and_unreadable_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'; give the folder of a training run"):
        read_curve(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is no training run: it has no log\.csv"):
        read_curve(tmp_path)
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"log\.csv is damaged: 'utf-8'"):
        read_curve(tmp_path)


def test_every_curve_and_line_is_drawn_and_named(tmp_path: Path) -> None:
    curves = [Curve("vanilla SRNN", (0, 1, 2), (30, 28, 27)), Curve("half-GRU SRNN", (0, 1), (29.5, 26))]
    texts = drawn_texts(curves, tmp_path, lines={"logit ensemble": 28.26})
    for text in ("vanilla SRNN", "half-GRU SRNN", "logit ensemble (28.26)", "epoch", "top-1 validation error (%)"):
        assert texts.count(text) == 1
    svg = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    for colour in ("#2a6fb0", "#d9772b", "#8a8f99"):
        assert f"stroke: {colour}" in svg
    assert "stroke: #3a9467" not in svg


def test_points_are_drawn_at_their_errors(tmp_path: Path) -> None:
    plot_curves([Curve("a", (1, 2, 3, 4), (40, 10, 10, 10))], tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        blue = [
            (x, y)
            for x in range(image.width)
            for y in range(image.height)
            if image.getpixel((x, y))[:3] == (0x2A, 0x6F, 0xB0)  # pyright: ignore
        ]
        left = min(y for x, y in blue if x < image.width * 0.12)
        right = [y for x, y in blue if image.width * 0.5 < x < image.width * 0.7 and y > image.height * 0.5]
    assert left < image.height * 0.15  # high error at the start
    assert min(right) > image.height * 0.7


@pytest.mark.parametrize("name", ["_hidden", "$x$", r"$\frac{$", "50 $", "日本 ☕", "", "a" * 40])
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = drawn_texts([Curve(name, (0,), (50,))], tmp_path, lines={f"{name}line": 20.0})
    assert f"{name}line (20.00)" in texts
    assert not name or name in texts


def test_few_epochs_are_points_as_well_and_one_is_nothing_else(tmp_path: Path) -> None:
    for epochs, points in ((1, 1), (20, 20), (21, 0)):
        plot_curves([Curve("a", tuple(range(epochs)), (50.0,) * epochs)], tmp_path / "plot.svg")
        svg = (tmp_path / "plot.svg").read_text(encoding="utf-8")
        markers = re.findall(r'<use [^>]*style="fill: #2a6fb0', svg)
        assert len(markers) == (points + 1 if points else 0)  # and the one in the legend


def test_many_runs_are_told_apart(tmp_path: Path) -> None:
    plot_curves([Curve(f"run {n}", (0, 1), (50 - n, 40 - n)) for n in range(13)], tmp_path / "plot.svg")
    svg = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    styles = re.findall(r'style="(fill: none[^"]*stroke-width: 1\.8[^"]*)"', svg)
    assert len(set(styles)) == 13


@pytest.mark.parametrize(
    ("curves", "options", "reason"),
    [
        ([], {}, "no curves to draw"),
        (
            [Curve("a", (0,), (50,))],
            {"lines": {"b": 101.0}},
            "line 'b' must be an error in per cent, 0 to 100; got 101",
        ),
        ([Curve("a", (0,), (50,))], {"lines": {"b": float("nan")}}, "got nan"),
    ],
)
def test_nothing_to_draw_and_lines_outside_are_refused(
    curves: list[Curve], options: dict[str, dict[str, float]], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        plot_curves(curves, tmp_path / "plot.png", **options)  # pyright: ignore
    with pytest.raises(ValueError, match="cannot write"):
        plot_curves([Curve("a", (0,), (50,))], tmp_path / "plot.xyz")
