"""Plots: written in many formats, with every name as it is; and the logs that learning curves are read from."""

import dataclasses
import html
import os
import re
from functools import partial
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from srnn_zoo.evaluation.plot import Curve, check_plot_file, plot_curves, plot_pareto, plot_predictions, read_curve
from srnn_zoo.inference.curve import Point
from srnn_zoo.inference.predict import Answer, Prediction

LABELS = ("espresso", "cup", "coffee mug")
SIZES = (32, 64, 96)
BLUE, ORANGE, GREEN, GREY = "#2a6fb0", "#d9772b", "#3a9467", "#8a8f99"
HOSTILE = ["$x$ and $y$", "50 $", r"$\frac{$", r"a_b^c_{d}\n", r"\$\%\& <b>", "{}"]
HOSTILE += ["_hidden", "日本 ☕ 🐈", "two\nlines", ""]
A_CURVE = [Curve("a", (0,), (50,))]
CURVE = [Point("confidence", "curve", 1 + cost, 60 + 8 * cost**0.5, (), (0.5,)) for cost in (0, 0.5, 1, 1.5, 2, 3, 4)]
OTHERS = [Point(f"level {n}", "level", 1 + n, 60.0 + n) for n in range(14)]  # more than there are colours
OTHERS += [Point(f"single scale {n} x {n}", "single scale", 1 + n, 60.0) for n in (1, 2)]
OTHERS += [Point("logit ensemble", "ensemble", 5.0, 76.0), Point("probability ensemble", "ensemble", 5.0, 75.5)]
HEADER = "epoch,lr,train_loss,val_loss,val_top1,val_top5,seconds"


def prediction(levels=1, labels=LABELS, path="cup.png", channels=3, answers=3):
    """A prediction over levels of 32, 64 and 96 pixels, with the last of its answers."""
    top = tuple((label, 1 / 2 ** (rank + 1)) for rank, label in enumerate(labels))
    images = tuple(torch.full((channels, size, size), 90, dtype=torch.uint8) for size in SIZES[:levels])
    said = tuple(Answer((size, size), top) for size in SIZES[:levels])
    return Prediction(path, said[-answers:], (), images)


WHOLE = prediction(3)
EARLY = WHOLE._replace(answers=WHOLE.answers[:1], stopped_at=0, gmacs=0.1)


def drawn_size(predictions, folder):
    """`(width, height)` of the drawing in pixels."""
    plot_predictions(predictions, folder / "plot.png")
    with Image.open(folder / "plot.png") as image:
        return image.size


def drawn(plot, what, folder, **options):
    """All texts of a drawing as they are, and its SVG."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot(what, folder / "plot.svg", **options)
    svg = (folder / "plot.svg").read_text(encoding="utf-8")
    return [html.unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)], svg


def test_the_drawing_grows_with_levels_and_images(tmp_path):
    width, height = one = drawn_size([prediction(channels=1)], tmp_path)  # of grey levels
    assert 300 < width < height < 1000
    for drawing, levels, rows in (([prediction()] * 3, 1, 3), ([prediction(), prediction(2)], 2, 2), ([EARLY], 3, 1)):
        assert drawn_size(drawing, tmp_path) == pytest.approx((levels * one[0], rows * one[1]), abs=4)


def test_each_level_shows_its_size_classes_and_the_leader_in_colour_or_that_it_was_not_read(tmp_path):
    texts, svg = drawn(plot_predictions, [prediction(2, path="folder/my cup.png")], tmp_path)
    assert texts.count("my cup.png") == texts.count("32 × 32") == texts.count("64 × 64") == 1
    for text in (*LABELS, "50.0 %", "25.0 %", "12.5 %"):
        assert texts.count(text) == 2
    assert svg.count(f"fill: {BLUE}") == 2
    texts, _ = drawn(plot_predictions, [prediction(3, answers=1)], tmp_path)  # a variant that answers once
    assert [text for text in texts if "×" in text] == ["96 × 96"]
    texts, _ = drawn(plot_predictions, [EARLY, WHOLE._replace(stopped_at=2, gmacs=1.0)], tmp_path)
    sizes = ["32 × 32", "64 × 64, not read", "96 × 96, not read", "32 × 32", "64 × 64", "96 × 96"]
    assert [text for text in texts if "×" in text] == sizes
    assert texts.count("espresso") == 1 + 3


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.filterwarnings("error")
def test_names_of_all_kinds_are_drawn_as_they_are(text, tmp_path):
    labels, _ = drawn(plot_predictions, [prediction(labels=(text, "cup"), path=f"{text}.png")], tmp_path)
    curves, _ = drawn(plot_curves, [Curve(text, (0,), (50,))], tmp_path, lines={f"{text}line": 20.0})
    points, _ = drawn(plot_pareto, [Point(text, "level", 1, 50)], tmp_path, title=f"{text}title")
    if "\n" not in text:
        assert f"{text}line (20.00)" in curves
        assert f"{text}title" in points
        for texts in (labels, curves, points):
            assert not text or texts.count(text) == 1
        assert labels.count(f"{text}.png") == 1


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_long_names_and_many_classes_are_cut_and_a_file_name_that_is_no_text_is_drawn(tmp_path):
    long = prediction(labels=("espresso" * 100, "cup, or a mug"), path=f"{'photo' * 50}.png")
    assert drawn_size([long], tmp_path) == drawn_size([prediction()], tmp_path)
    texts, _ = drawn(plot_predictions, [long], tmp_path)
    assert all(len(text) < 60 for text in texts)
    assert any(re.fullmatch("(photo){5,}.*…", text) for text in texts)
    assert {("espresso" * 100)[:29] + "…", "cup"} <= set(texts)  # of several names the first
    many = tuple(f"class {number}" for number in range(1000))
    texts, _ = drawn(plot_predictions, [prediction(labels=many, path=os.fsdecode(b"caf\xe9.png"))], tmp_path)
    assert [text for text in texts if text.startswith("class")] == list(many[:8])
    assert texts.count("caf\N{REPLACEMENT CHARACTER}.png") == 1


def test_files_that_cannot_be_written_nothing_to_draw_and_lines_outside_are_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for plot, file, reason in (
        (check_plot_file, "plot", "cannot write 'plot'"),
        (check_plot_file, "plot.pgf", "cannot write 'plot.pgf'"),  # would need LaTeX
        (check_plot_file, "no such folder/plot.png", "no folder .*no such folder to write to"),
        (check_plot_file, "folder.png", "folder.png: it is a folder"),
        (partial(plot_curves, A_CURVE), "plot.xyz", "'plot.xyz': give it one of the suffixes .*jpg.*pdf.*png"),
        (partial(plot_predictions, []), "plot.png", "no predictions to draw"),
        (partial(plot_pareto, []), "plot.png", "no points to draw"),
        (partial(plot_curves, []), "plot.png", "no curves to draw"),
        (partial(plot_curves, A_CURVE, lines={"b": 101.0}), "plot.png", "'b' must be an error .*, 0 to 100; got 101"),
        (partial(plot_curves, A_CURVE, lines={"b": float("nan")}), "plot.png", "got nan"),
    ):
        with pytest.raises(ValueError, match=reason):
            plot(file=tmp_path / file)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_the_suffix_chooses_the_format_and_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix, start in {"PNG": b"\x89PNG", "jpg": b"\xff\xd8", "pdf": b"%PDF", "svg": b"<?xml"}.items():
        check_plot_file(f"plot.{suffix}")
        assert not Path(f"plot.{suffix}").exists()
        plot_predictions([prediction()], f"plot.{suffix}")
        assert Path(f"plot.{suffix}").read_bytes().startswith(start)
    (tmp_path / "mine.png").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    check_plot_file(tmp_path / "mine.png")  # may still be overwritten
    with pytest.raises(ValueError, match="no permission to write"):
        check_plot_file(tmp_path / "plot.png")


def test_every_point_of_a_curve_has_its_name_and_a_look_of_its_own(tmp_path):
    names = [point.name for point in OTHERS]
    texts, svg = drawn(plot_pareto, [*CURVE, *OTHERS], tmp_path)
    assert [text for text in texts if text in names] == names
    assert texts.count("early exit, confidence") == 1
    axes, _, legend = svg.partition('<g id="legend_1">')
    looks = {}  # of every line of the legend
    for mark, y, style in re.findall(r'<use xlink:href="#(m\w+)" x="[^"]*" y="([^"]*)" style="([^"]*)"', legend):
        looks[y] = looks.get(y, "") + mark + style
        assert re.search(rf'<use xlink:href="#{mark}" [^>]* style="{style}"', axes)
    assert len(set(looks.values())) == len(OTHERS) + 1
    optimistic = [dataclasses.replace(point, optimistic=True) for point in CURVE]
    assert "thresholds chosen on the same images" in drawn(plot_pareto, optimistic, tmp_path)[1]


def test_no_curve_is_left_out_however_many_cascades_there_are(tmp_path):
    names = [f"cascade {index}" for index in range(5)]
    cascades = [Point(name, "cascade", gmacs, 60 + gmacs) for name in names for gmacs in (1.0, 2.0)]
    texts, _ = drawn(plot_pareto, [*CURVE, *cascades], tmp_path)
    assert [text for text in texts if text in names] == names


def line(epoch, top1):
    return f"{epoch},0.001,2.5,2.25,{top1},90.5,12.25"


def write(folder, *lines):
    """A training run with this log."""
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    return folder


def test_a_log_is_read_as_errors_by_epoch_and_must_be_there(tmp_path):
    run = write(tmp_path / "half_gru", HEADER, line(0, 60), line(1, "71.25"), line(3, "1e2"))
    assert read_curve(run) == Curve("half_gru", (0, 1, 3), (40.0, 28.75, 0.0))
    assert read_curve(str(run), "half-GRU SRNN").name == "half-GRU SRNN"
    write(run, "note," + HEADER, "a," + line(1, 50))  # a column more
    assert read_curve(run).errors == (50.0,)
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'; give the folder of a training run"):
        read_curve(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is no training run: it has no log\.csv"):
        read_curve(tmp_path)


def test_logs_that_are_none_are_refused_with_the_line(tmp_path):
    for lines, reason in (
        ([], r"lacks the columns epoch, .*seconds; a log has epoch,lr"),
        ([HEADER], "has no epoch yet"),
        ([HEADER.replace("val_top1,", "")], "lacks the columns val_top1; a log has"),
        ([HEADER, line(0, 60), "1,0.001,2"], "line 3: 3 values for 7 columns; was the file cut short"),
        ([HEADER, line(0.5, 60)], "line 2: an epoch is a whole number; got '0.5'"),
        ([HEADER, line(1, 60), line(1, 61)], "line 3: epochs must rise; epoch 1 comes after 1"),
        ([HEADER, line(0, "")], "line 2: val_top1 must be an accuracy in per cent, 0 to 100; got ''"),
        ([HEADER, line(0, "nan")], "got 'nan'"),
        ([HEADER, line(0, 100.5)], "got '100.5'"),
        ([HEADER, '"' + line(0, 60)], "is damaged: unexpected end of data"),
        (["\udcff\udcfe"], r"log\.csv is damaged: 'utf-8'"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_curve(write(tmp_path, *lines))


def test_every_curve_and_line_is_drawn_at_its_errors_and_named(tmp_path):
    long = "half-GRU SRNN, from U = I/4, norm per level"
    curves = [Curve("vanilla SRNN", (0, 1, 3), (30, 28, 27)), Curve(long, (0, 1), (29.5, 26))]
    texts, svg = drawn(plot_curves, curves, tmp_path, lines={"logit ensemble": 28.26})
    for text in ("vanilla SRNN", long, "logit ensemble (28.26)", "epoch", "top-1 validation error (%)"):
        assert texts.count(text) == 1
    assert [f"stroke: {colour}" in svg for colour in (BLUE, ORANGE, GREY, GREEN)] == [True, True, True, False]
    paths = re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke-width: 1\.[48]', svg)
    first, second, across = ([float(number) for number in re.findall(r"[\d.]+", path)] for path in paths)
    assert first[4] - first[2] == pytest.approx(2 * (first[2] - first[0]), rel=1e-3)  # epochs 1 to 3 and 0 to 1
    top, one_less = first[1], (first[3] - first[1]) / 2  # where an error of 30 is, and how far below it one of 29
    assert one_less > 0
    errors = [30 - (y - top) / one_less for y in (*first[1::2], *second[1::2], *across[1::2])]
    assert errors == pytest.approx([30, 28, 27, 29.5, 26, 28.26, 28.26], abs=1e-3)


def test_few_epochs_are_points_as_well_and_many_runs_are_told_apart(tmp_path):
    for epochs, markers in ((1, 2), (20, 21), (21, 0)):  # one of them in the legend
        _, svg = drawn(plot_curves, [Curve("a", tuple(range(epochs)), (50.0,) * epochs)], tmp_path)
        assert len(re.findall(rf'<use [^>]*style="fill: {BLUE}', svg)) == markers
    _, svg = drawn(plot_curves, [Curve(f"run {n}", (0, 1), (50 - n, 40 - n)) for n in range(13)], tmp_path)
    styles = re.findall(r'style="(fill: none[^"]*stroke-width: 1\.8[^"]*)"', svg)
    assert len(set(styles)) == 13
