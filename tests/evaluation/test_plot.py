"""Drawings of predictions: written in many formats, whatever the labels, the file names and the number of levels."""

from __future__ import annotations

import dataclasses
import html
import itertools
import os
import re
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from srnn_zoo.evaluation.plot import check_plot_file, plot_pareto, plot_predictions
from srnn_zoo.inference.curve import Point
from srnn_zoo.inference.predict import Answer, Prediction

LABELS = ("espresso", "cup", "coffee mug")
SIZES = (32, 64, 96)
LEADER = "#2a6fb0"


def prediction(
    levels: int = 2, labels: tuple[str, ...] = LABELS, path: str = "cup.png", channels: int = 3, answers: int = 3
) -> Prediction:
    """A prediction over levels of 32, 64 and 96 pixels, with the last of its answers."""
    probabilities = [1 / 2 ** (rank + 1) for rank in range(len(labels))]
    top = tuple(zip(labels, probabilities, strict=True))
    images = tuple(torch.full((channels, size, size), 90, dtype=torch.uint8) for size in SIZES[:levels])
    said = tuple(Answer((size, size), top) for size in SIZES[:levels])
    return Prediction(path, said[-answers:], (), images)


def drawn_size(predictions: list[Prediction], folder: Path) -> tuple[int, int]:
    """`(width, height)` of the drawing in pixels, after all of it was decoded."""
    plot_predictions(predictions, folder / "plot.png")
    with Image.open(folder / "plot.png") as image:
        image.load()
        darkest, brightest = image.convert("L").getextrema()
        assert darkest < 100  # pyright: ignore
        assert brightest == 255
        return image.size


def drawn_texts(predictions: list[Prediction], folder: Path) -> list[str]:
    """All texts of the drawing, as they are."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_predictions(predictions, folder / "plot.svg")
    svg = (folder / "plot.svg").read_text(encoding="utf-8")
    return [html.unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)]


def test_the_drawing_grows_with_levels_and_pictures(tmp_path: Path) -> None:
    sizes = {n: drawn_size([prediction(levels=n)], tmp_path) for n in (1, 2, 3)}
    for n, (width, height) in sizes.items():
        assert (width, height) == pytest.approx((n * sizes[1][0], sizes[1][1]), abs=2)
        assert 300 < height < 1000
        assert 300 < width < 500 * n
    width, height = drawn_size([prediction()] * 3, tmp_path)
    assert (width, height) == pytest.approx((sizes[2][0], 3 * sizes[2][1]), abs=4)
    assert drawn_size([prediction(levels=1), prediction(levels=3)], tmp_path)[0] == sizes[3][0]


@pytest.mark.parametrize(
    ("suffix", "start"),
    [("png", b"\x89PNG"), ("PNG", b"\x89PNG"), ("jpg", b"\xff\xd8"), ("pdf", b"%PDF"), ("svg", b"<?xml")],
)
def test_the_suffix_chooses_the_format(suffix: str, start: bytes, tmp_path: Path) -> None:
    plot_predictions([prediction()], str(tmp_path / f"plot.{suffix}"))
    assert (tmp_path / f"plot.{suffix}").read_bytes().startswith(start)


def test_each_level_shows_its_size_and_its_classes_and_the_leader_in_colour(tmp_path: Path) -> None:
    texts = drawn_texts([prediction(path="folder/my cup.png")], tmp_path)
    assert texts.count("my cup.png") == 1
    for size in ("32 × 32", "64 × 64"):
        assert texts.count(size) == 1
    for text in (*LABELS, "50.0 %", "25.0 %", "12.5 %"):
        assert texts.count(text) == 2
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").count(f"fill: {LEADER}") == 2


def test_a_variant_that_answers_once_shows_its_largest_level(tmp_path: Path) -> None:
    texts = drawn_texts([prediction(levels=3, answers=1)], tmp_path)
    assert [text for text in texts if "×" in text] == ["96 × 96"]


def test_grey_levels_are_drawn(tmp_path: Path) -> None:
    assert drawn_size([prediction(channels=1)], tmp_path) == drawn_size([prediction()], tmp_path)


HOSTILE = [
    "$x$ and $y$",
    "50 $",
    r"$\frac{$",
    r"a_b^c_{d}\n",
    r"\$\%\& <b>",
    "{}",
    "日本 ☕ 🐈",
    "two\nlines",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_labels_and_file_names_are_drawn_as_they_are(text: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn_size([prediction(labels=(text, "cup"), path=f"{text}.png")], tmp_path)
        texts = drawn_texts([prediction(labels=(text, "cup"), path=f"{text}.png")], tmp_path)
    if text and "\n" not in text:
        assert texts.count(text) == 2
        assert texts.count(f"{text}.png") == 1


def test_long_labels_and_file_names_are_cut_and_leave_the_drawing_its_size(tmp_path: Path) -> None:
    long = prediction(labels=("espresso" * 100, "cup, or a mug"), path=f"{'photo' * 50}.png")
    assert drawn_size([long], tmp_path) == drawn_size([prediction()], tmp_path)
    texts = drawn_texts([long], tmp_path)
    assert all(len(text) < 60 for text in texts)
    assert any(re.fullmatch("(photo){5,}.*…", text) for text in texts)
    assert ("espresso" * 100)[:29] + "…" in texts
    assert "cup" in texts  # the first of its names


def test_of_many_classes_the_first_eight_are_drawn(tmp_path: Path) -> None:
    labels = tuple(f"class {number}" for number in range(1000))
    texts = drawn_texts([prediction(labels=labels, levels=1)], tmp_path)
    assert [text for text in texts if text.startswith("class")] == [f"class {number}" for number in range(8)]


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_file_name_that_is_no_text_is_drawn(tmp_path: Path) -> None:
    texts = drawn_texts([prediction(path=os.fsdecode(b"caf\xe9.png"))], tmp_path)
    assert texts.count("caf\N{REPLACEMENT CHARACTER}.png") == 1


def test_without_predictions_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no predictions"):
        plot_predictions([], tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("plot.xyz", "cannot write 'plot.xyz': give it one of the suffixes .*jpg.*pdf.*png"),
        ("plot", "cannot write 'plot'"),
        ("", "cannot write"),
        ("plot.pgf", "cannot write 'plot.pgf'"),  # would need LaTeX
        ("no such folder/plot.png", "no folder .*no such folder to write to"),
        ("folder.png", "folder.png: it is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(file: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=reason):
        check_plot_file(tmp_path / file)


def test_a_folder_without_write_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    with pytest.raises(ValueError, match="no permission to write"):
        check_plot_file(tmp_path / "plot.png")
    (tmp_path / "mine.png").touch()
    check_plot_file(tmp_path / "mine.png")  # may be overwritten all the same


def test_a_good_file_is_not_touched_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("plot.png", Path("plot.PDF"), tmp_path / "plot.svg"):
        check_plot_file(file)
    assert not list(tmp_path.iterdir())


def test_a_level_that_was_not_read_is_shown_as_such(tmp_path: Path) -> None:
    whole = prediction(levels=3)
    early = whole._replace(answers=whole.answers[:1], exit=0, gmacs=0.1)
    texts = drawn_texts([early, whole._replace(exit=2, gmacs=1.0)], tmp_path)
    assert [text for text in texts if "×" in text] == [
        "32 × 32",
        "64 × 64, not read",
        "96 × 96, not read",
        "32 × 32",
        "64 × 64",
        "96 × 96",
    ]
    assert texts.count("espresso") == 1 + 3
    assert drawn_size([early], tmp_path) == drawn_size([whole], tmp_path)


CURVE = [Point("confidence", "curve", 1 + cost, 60 + 8 * cost**0.5, (), (0.5,)) for cost in (0, 0.5, 1, 1.5, 2, 3, 4)]
OTHERS = [
    Point("level 0", "level", 1.0, 60.0),
    Point("single scale 224 x 224", "single scale", 1.0, 60.0),
    Point("single scale 448 x 448", "single scale", 4.0, 70.0),
    Point("level 1", "level", 5.0, 76.0),
    Point("logit ensemble", "ensemble", 5.0, 76.0),
    Point("probability ensemble", "ensemble", 5.0, 75.5),
]


def test_every_point_of_a_curve_has_its_name_and_no_names_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[Bbox] = []
    save = Figure.savefig

    def savefig(figure: Figure, *args: object, **options: object) -> None:
        figure.draw_without_rendering()
        boxes.extend(text.get_window_extent() for text in figure.axes[0].texts)
        save(figure, *args, **options)  # pyright: ignore

    monkeypatch.setattr(Figure, "savefig", savefig)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_pareto([*CURVE, *OTHERS], tmp_path / "plot.svg", title="50 $ flowers_$x")
    svg = html.unescape((tmp_path / "plot.svg").read_text(encoding="utf-8"))
    for name in (*(point.name.replace(" x ", " × ") for point in OTHERS), "early exit, confidence", "50 $ flowers_$x"):
        assert svg.count(f">{name}<") == 1
    assert len(boxes) == 5  # points that lie on each other share one
    for a, b in itertools.combinations(boxes, 2):
        assert Bbox.intersection(a, b) is None
    optimistic = [dataclasses.replace(point, optimistic=True) for point in CURVE]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_pareto([*optimistic, *OTHERS], tmp_path / "plot.svg")
    assert "thresholds chosen on the same images" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_a_curve_of_one_point_or_none_is_drawn_and_no_points_are_refused(tmp_path: Path) -> None:
    plot_pareto(CURVE[:1], tmp_path / "plot.png")
    plot_pareto(OTHERS, tmp_path / "plot.pdf")
    assert (tmp_path / "plot.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="no points"):
        plot_pareto([], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
