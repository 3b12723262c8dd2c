"""Draw the pictures of docs/gallery.md, from scikit-image's photographs and results/: `python examples/gallery.py`."""

from __future__ import annotations

import csv
import io
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.evaluation.pictures import with_map
from srnn_zoo.evaluation.plot import new_figure
from srnn_zoo.inference.exits import Confidence
from srnn_zoo.inference.predict import Prediction, predict

ROOT = Path(__file__).parent.parent
MODEL = "srnn_tf_efficientnet_lite0"
NAMES = "chelsea.png coffee.png rocket.jpg astronaut.png motorcycle_left.png horse.png coins.png camera.png"
BLUE, ORANGE, INK = "#2a6fb0", "#d9722b", "#222222"


def main() -> None:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    output.mkdir(parents=True, exist_ok=True)
    whole = srnn_zoo.create_model(MODEL, pretrained=True).eval()
    zooming = srnn_zoo.create_model(MODEL, pretrained=True, zooms=(1.0, 1.6), views="attention").eval()
    draw_pyramid(answered(whole, folder / "chelsea.png", sizes=(112, 224, 448)), output / "pyramid.jpg")
    draw_zoom(answered(zooming, folder / "rocket.jpg"), output / "zoom.jpg")
    draw_stops(whole, [folder / name for name in NAMES.split()], output / "stops.jpg")
    draw_costs(ROOT / "results", output / "cost.png")


def answered(model: srnn_zoo.SRNN, file: Path, sizes: tuple[int, ...] | None = None) -> Prediction:
    """What a model says of one image, with the maps of what speaks for it."""
    found = next(iter(predict(model, file, topk=1, sizes=sizes, maps=True)))
    assert isinstance(found, Prediction), found
    return found


def draw_pyramid(found: Prediction, file: Path) -> None:
    """The levels of an image at their relative sizes, and below each what speaks for its answer."""
    figure = new_figure(file, 8, 6.6)
    maps = [None] * len(found.levels), found.maps
    for axis, of_row in zip(figure.subplots(2, 1), maps, strict=True):
        right = 0
        for level, answer, heat in zip(found.levels, found.answers, of_row, strict=True):
            image, (height, width) = picture(level), answer.size
            axis.imshow(image if heat is None else with_map(image, heat), extent=(right, right + width, 0, height))
            axis.text(
                right,
                height + 6,
                f"{height} × {width}" if heat is None else says(answer).replace(", ", "\n"),
                color=INK,
            )
            right += width + 40
        axis.set(xlim=(0, right - 40), ylim=(0, 510))
        axis.axis("off")
    write(figure, file)


def draw_zoom(found: Prediction, file: Path) -> None:
    """Where a level looks, and what it then shows."""
    from matplotlib.patches import Rectangle

    figure = new_figure(file, 8, 4.3)
    first, second = figure.subplots(1, 2)
    images = [with_map(picture(level), heat) for level, heat in zip(found.levels, found.maps, strict=True)]
    for axis, image, answer, title in zip((first, second), images, found.answers, ("whole", "zoom 1.6"), strict=True):
        show(axis, image, f"{title}: {says(answer)}")
    top, left, bottom, right = found.views[1]
    width, height = images[0].size
    corner, extent = (left * width, top * height), ((right - left) * width, (bottom - top) * height)
    for colour, thick in (("white", 5), (BLUE, 2.5)):
        first.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=colour, linewidth=thick))
    write(figure, file)


def draw_stops(model: srnn_zoo.SRNN, files: list[Path], file: Path) -> None:
    """Every image as the last level that was read of it, and the answer there."""
    figure = new_figure(file, 9, 5.2)
    found = predict(model, files, topk=1, exit=Confidence(0.5))
    for axis, prediction in zip(figure.subplots(2, 4).flat, found, strict=True):
        assert isinstance(prediction, Prediction), prediction
        stopped = prediction.stopped_at or 0
        level, answer = prediction.levels[stopped], prediction.answers[-1]
        show(axis, picture(level), f"stopped at {answer.size[0]}\n{says(answer)}", size=9)
        for side in axis.spines.values():
            side.set(visible=True, color=ORANGE if stopped else BLUE, linewidth=4)
    write(figure, file)


def draw_costs(results: Path, file: Path) -> None:
    """Accuracy against cost on Grocery Store: single scales, and SRNNs that stop early."""
    figure = new_figure(file, 8, 4.6)
    axis = figure.subplots()
    singles = [
        row for row in rows(results / "foveated_grocery.csv") if row["way"] in ("224", "336", "tight crop alone")
    ]
    points = [(float(row["gmacs"]), float(row["test_top1"])) for row in singles]
    axis.plot(*zip(*points, strict=True), "s", color="#777777", label="one network on one level")
    for row, point in zip(singles, points, strict=True):
        axis.annotate(row["way"], point, (0, 8), textcoords="offset points", ha="center", color="#555555", fontsize=9)
    curves = defaultdict(list)
    for row in rows(results / "exits_grocery.csv"):
        if row["rule"] == "confidence":
            curves[row["way"]].append((float(row["test_gmacs"]), float(row["test_top1"])))
    for colour, (way, curve) in zip((BLUE, ORANGE, "#5b8c5a"), curves.items(), strict=False):
        axis.plot(*zip(*sorted(curve), strict=True), "o-", color=colour, label=f"SRNN, early exit: {way}")
    axis.set_xlim(0.3, 1)
    axis.set(xlabel="GMACs an image", ylabel="top-1 accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    write(figure, file)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def picture(level: torch.Tensor) -> Image.Image:
    return Image.fromarray(level.permute(1, 2, 0).contiguous().numpy())


def says(answer: Any) -> str:
    name, probability = answer.top[0]
    return f"{name}, {100 * probability:.0f} %"


def show(axis: Any, image: Image.Image, title: str, size: int = 11) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=size, color=INK)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)


def write(figure: Any, file: Path) -> None:
    """A PNG of few colours for a drawing, and a JPEG for photographs: small files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    image = Image.open(buffer).convert("RGB")
    if file.suffix == ".png":
        image.quantize(64).save(file, optimize=True)
    else:
        image.save(file, quality=82, optimize=True)
    print(f"{file}: {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
