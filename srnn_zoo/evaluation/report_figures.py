"""The drawings of a report, as SVG to stand in a page: they take its font, and are sharp at any width."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from srnn_zoo.training.run_folder import COLOURS, INK, PALE, QUIET, style_axes

BINS = 10  # of confidences, equally wide


def reliability(right: Tensor, confidences: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """How often answers are right, by how sure they are.

    Args:
        right: bool `(N,)`.
        confidences: the probabilities of the answers, `(N,)` in [0, 1].

    Returns:
        for every bin that has an image the mean confidence, the share that is right and the number of images; and the
        expected calibration error in [0, 1] (Guo et al., 2017): the mean distance of the first two, by images.
    """
    from sklearn.calibration import calibration_curve

    sure = confidences.double().clamp(0, 1).numpy()
    shares, means = calibration_curve(right.int().numpy(), sure, n_bins=BINS, pos_label=1)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], sure), minlength=BINS)
    counts = counts[counts > 0]
    return means, shares, counts, float(np.average(np.abs(means - shares), weights=counts))


def draw_reliability(means: np.ndarray, shares: np.ndarray, counts: np.ndarray, _: float = 0.0) -> str:
    """A reliability diagram: share of right answers against mean confidence; larger points have more images."""
    figure = _figure(3.5, 3.3)
    axis = figure.add_subplot()
    style_axes(axis, "probability of the answer in %", "right in %")
    axis.plot([0, 100], [0, 100], color=PALE, linewidth=1.2, linestyle=(0, (4, 3)))
    sizes = 18 + 160 * counts / counts.max()
    axis.vlines(100 * means, 100 * means, 100 * shares, color="#e3b7a0", linewidth=2.5)
    axis.plot(100 * means, 100 * shares, color=COLOURS[0], linewidth=1.4)
    axis.scatter(100 * means, 100 * shares, s=sizes, color=COLOURS[0], edgecolor="white", linewidth=0.8, zorder=3)
    axis.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    return _svg(figure)


def draw_accuracy(levels: Sequence[dict[str, Any]], exit: dict[str, Any] | None) -> str:
    """Accuracy with its interval against cost: after every level, and with an exit rule."""
    figure = _figure(4.6, 3.1)
    axis = figure.add_subplot()
    style_axes(axis, "GMACs an image", "right in %")
    points = [(level, "stopping at " + level["title"], COLOURS[0], "o") for level in levels]
    if exit:
        points.append((exit, "with the exit rule", COLOURS[1], "D"))
    axis.plot([level["gmacs"] for level in levels], [level["accuracy"] for level in levels], color=PALE, zorder=1)
    for point, label, colour, marker in points:
        error = [[point["accuracy"] - point["low"]], [point["high"] - point["accuracy"]]]
        look: dict[str, Any] = {"color": colour, "marker": marker, "capsize": 3, "markersize": 7, "linewidth": 1.4}
        axis.errorbar(point["gmacs"], point["accuracy"], yerr=error, **look)
        above = point is exit
        at, shift, side = (point["high"], 6, "bottom") if above else (point["low"], -6, "top")
        place: dict[str, Any] = {"xytext": (0, shift), "textcoords": "offset points", "ha": "center", "va": side}
        axis.annotate(label, (point["gmacs"], at), color=INK, fontsize=8.5, **place)
    lowest, highest = min(point["low"] for point, *_ in points), max(point["high"] for point, *_ in points)
    room = max(highest - lowest, 2)
    axis.set_ylim(lowest - 0.28 * room, highest + 0.2 * room)
    width = max(point["gmacs"] for point, *_ in points)
    axis.set_xlim(0, 1.28 * width)
    return _svg(figure)


def draw_confusion(matrix: Tensor, names: Sequence[str]) -> str:
    """A confusion matrix `(K, K)`: classes down, answers across, coloured by the share of the class's images."""
    count = len(names)
    side = 0.36 * count
    figure = _figure(side + 2.0, side + 2.0)
    axis = figure.add_subplot()
    shares = matrix.double() / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in matrix.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.55 else INK if row == column else COLOURS[3]
        axis.text(column, row, str(int(matrix[row, column])), color=colour, ha="center", va="center", fontsize=8)
    short = [name if len(name) <= 22 else f"{name[:21]}…" for name in names]
    axis.set_xticks(range(count), short, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axis.set_yticks(range(count), short, parse_math=False)
    axis.set_xlabel("answer", color=INK)
    axis.set_ylabel("class", color=INK)
    axis.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#eef0f3", linewidth=1)
    axis.tick_params(which="both", length=0, colors=QUIET, labelcolor=INK)
    axis.spines[:].set_visible(False)
    return _svg(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def _svg(figure: Any) -> str:
    """The figure as an element of a page."""
    import matplotlib
    from markupsafe import Markup

    file = io.StringIO()
    options: Any = {"svg.fonttype": "none", "font.size": 9, "axes.facecolor": "none"}
    with matplotlib.rc_context(options):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return Markup(text[text.index("<svg") :])
