"""One page that shows where a model is wrong: figures of merit, calibration, stops, and the images to look at."""

from __future__ import annotations

import contextlib
import importlib
import importlib.resources
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srnn_zoo._errors import missing_extra
from srnn_zoo.datasets.classes import class_names
from srnn_zoo.inference.activation_maps import activation_maps
from srnn_zoo.inference.exits import ExitRule, ScoreRule
from srnn_zoo.models.reading import NoMapError
from srnn_zoo.training.run_folder import text_of
from srnn_zoo.transforms.views import level_names

from .by_level import GROUPS, ByLevel, Example
from .pictures import data_uri, levels_read, normalization, picture_of, with_map
from .report_figures import draw_accuracy, draw_confusion, draw_reliability, reliability
from .table import PARTIAL, Table, check_can_write, wilson

StrPath = str | os.PathLike[str]

TEMPLATE = "report.html.jinja"
MAX_CONFUSED = 20  # classes in the drawing of the confusion matrix
_PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}
_WORDS = {
    "mended": ("Mended by larger levels", "The first answer is wrong and the last is right."),
    "spoiled": ("Spoiled by larger levels", "The first answer is right and the last is wrong."),
    "worst": ("The surest mistakes", "Wrong after the first level and after the last, with the highest probability."),
}
_ONE_ANSWER = "Wrong, with the highest probability."


def check_report_file(file: StrPath) -> None:
    """Find out before the work whether a report can be written.

    Raises:
        ImportError: without scikit-learn, matplotlib or Jinja, with the `pip install` line.
        ValueError: for another suffix than .html, a folder that does not exist, or no permission.
    """
    for module, package in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise missing_extra(package, "report", "a report") from None
    path = Path(file)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"a report is a page: call it {path.with_suffix('.html').name!r}, not {path.name!r}")
    check_can_write(path)


def write_report(file: StrPath, table: Table, models: Sequence[ByLevel], source: str) -> None:
    """Write a page with all that it shows inside it: it needs no network, and no other file.

    Args:
        file: where to write; it appears only when it is complete.
        table: the rows of the evaluation.
        models: what each model said after every level; at least one image each.
        source: what the images are called.

    Raises:
        ImportError, ValueError: see `check_report_file`.
    """
    check_report_file(file)
    from jinja2 import Environment

    template = (
        importlib.resources.files("srnn_zoo.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        source=text_of(source),
        images=table.rows[0].images,
        rows=_rows(table),
        reference=table.reference,
        models=[_model(model) for model in models],
        skipped=[text_of(item.reason) for item in table.skipped],
        caption=text_of(table.caption).splitlines(),
    )
    partial = Path(os.fspath(file) + PARTIAL)
    partial.write_text(page, encoding="utf-8", errors="replace")
    partial.replace(file)


def _rows(table: Table) -> list[dict[str, Any]]:
    """Every row of the table, as texts."""
    found = []
    for row in table.rows:
        test = "" if row.name == table.reference else _p(table.compare(row.name, table.reference).p_value)
        low, high = row.top1_interval
        found.append(
            {
                "name": text_of(row.name),
                "accuracy": 100 - row.top1_error,
                "interval": _interval(100 - high, 100 - low),
                "p": test,
                "gmacs": f"{row.gmacs:.3f}",
                "speed": f"{row.images_per_second:.1f}",
            }
        )
    return found


def _model(model: ByLevel) -> dict[str, Any]:
    """The section of a model: all that the template shows."""
    targets, answers = model.targets, model.answers
    right = answers == targets
    names = [text_of(name.split(",")[0]) for name in class_names(model.model)]
    titles = [name.replace(" x ", " × ") for name in level_names(model.model.level_sizes(), model.model.zooms)]
    titles = titles[model.first :]
    levels = [_level(model, level, title) for level, title in enumerate(titles)]
    exit = _exit(model, titles)
    return {
        "name": text_of(model.name),
        "architecture": model.model.pretrained_cfg.get("architecture", ""),
        "variant": model.model.variant,
        "levels": levels,
        "changes": _changes(right),
        "exit": exit,
        "accuracy_figure": draw_accuracy(levels, exit),
        "reliability": [
            (level["title"], draw_reliability(*reliability(right[at], model.confidences[at])), level["ece"])
            for at, level in enumerate(levels)
        ],
        "classes": _classes(targets, answers, names),
        "confusion": _confusion(answers[-1], targets, names),
        "pairs": _pairs(answers[-1], targets, names),
        "groups": _groups(model, names, titles),
    }


def _level(model: ByLevel, level: int, title: str) -> dict[str, Any]:
    """The figures of merit of the answers after a level."""
    from sklearn.metrics import f1_score

    targets, answers = model.targets, model.answers[level]
    right = int((answers == targets).sum())
    low, high = wilson(right, len(targets))
    there = targets.unique().tolist()
    options: dict[str, Any] = {"labels": there, "average": "macro", "zero_division": 0}
    f1: Any = f1_score(targets.numpy(), answers.numpy(), **options)
    return {
        "title": title,
        "gmacs": model.gmacs[level],
        "right": right,
        "accuracy": 100 * right / len(targets),
        "low": 100 * low,
        "high": 100 * high,
        "interval": _interval(100 * low, 100 * high),
        "f1": 100 * float(f1),
        "log_loss": float(-model.truths[level].clamp(min=1e-12).log().mean()),
        "ece": 100 * reliability(answers == targets, model.confidences[level])[-1],
    }


def _changes(right: Tensor) -> list[dict[str, Any]]:
    """What becomes of images between the first answer and the last; nothing where there is one answer."""
    if len(right) < 2:
        return []
    first, last = right[0], right[-1]
    parts = (
        ("right", "right after the first level and the last", first & last),
        ("mended", "mended: wrong, then right", ~first & last),
        ("spoiled", "spoiled: right, then wrong", first & ~last),
        ("wrong", "wrong after both", ~first & ~last),
    )
    return [
        {"kind": kind, "title": title, "count": int(part.sum()), "share": 100 * float(part.double().mean())}
        for kind, title, part in parts
    ]


def _exit(model: ByLevel, titles: Sequence[str]) -> dict[str, Any] | None:
    """Where images stopped by the rule, and what that gives; None without a rule."""
    stopped_at = model.stopped_at
    if stopped_at is None:
        return None
    right = (model.answers == model.targets).gather(0, stopped_at[None])[0]
    low, high = wilson(int(right.sum()), len(right))
    mean = float(torch.tensor(model.gmacs, dtype=torch.float64)[stopped_at].mean())
    stops = []
    for level, title in enumerate(titles):
        there = stopped_at == level
        count = int(there.sum())
        accuracy = 100 * float(right[there].double().mean()) if count else math.nan
        stops.append({"title": title, "count": count, "share": 100 * count / len(right), "accuracy": accuracy})
    return {
        "rule": text_of(_rule_text(model.rule)),
        "accuracy": 100 * float(right.double().mean()),
        "low": 100 * low,
        "high": 100 * high,
        "interval": _interval(100 * low, 100 * high),
        "gmacs": mean,
        "saved": 100 * (1 - mean / model.gmacs[-1]),
        "stops": stops,
    }


def _classes(targets: Tensor, answers: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of every class that is there, the hardest first."""
    from sklearn.metrics import precision_recall_fscore_support

    there = targets.unique().tolist()
    options: dict[str, Any] = {"labels": there, "zero_division": 0}
    columns: Any = precision_recall_fscore_support(targets.numpy(), answers[-1].numpy(), **options)
    at_first: Any = precision_recall_fscore_support(targets.numpy(), answers[0].numpy(), **options)
    found = zip(there, columns[3], at_first[1], *columns[:3], strict=True)
    rows = [
        {
            "name": names[index],
            "images": int(count),
            "first": 100 * float(first),
            "recall": 100 * float(recall),
            "precision": 100 * float(precision),
            "f1": 100 * float(f1),
        }
        for index, count, first, precision, recall, f1 in found
    ]
    return sorted(rows, key=lambda row: (row["f1"], row["name"]))


def _confusion(answers: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix, drawn; where there are many classes, of those with most mistakes."""
    from sklearn.metrics import confusion_matrix

    there = torch.cat([targets, answers[answers >= 0]]).unique().tolist()
    matrix = torch.from_numpy(confusion_matrix(targets.numpy(), answers.numpy(), labels=there))
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    shown = wrong.argsort(descending=True, stable=True)[:MAX_CONFUSED].sort().values
    part = matrix[shown][:, shown]
    figure = draw_confusion(part, [names[int(there[index])] for index in shown.tolist()])
    return {"figure": figure, "shown": len(shown), "classes": len(there), "width": 190 + 26 * len(shown)}


def _pairs(answers: Tensor, targets: Tensor, names: Sequence[str], most: int = 12) -> list[dict[str, Any]]:
    """Which classes are most often taken for which."""
    wrong = (answers != targets) & (answers >= 0)
    pairs, counts = torch.stack([targets[wrong], answers[wrong]]).unique(dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most].tolist()
    support = targets.bincount(minlength=len(names))
    return [
        {
            "target": names[int(pairs[0, at])],
            "answer": names[int(pairs[1, at])],
            "count": int(counts[at]),
            "images": int(support[pairs[0, at]]),
        }
        for at in order
    ]


def _groups(model: ByLevel, names: Sequence[str], titles: Sequence[str]) -> list[dict[str, Any]]:
    """The contact sheets."""
    found = []
    for group in GROUPS:
        if cards := [_card(model, example, names, titles) for example in model.examples(group)]:
            title, words = _WORDS[group]
            words = words if len(titles) > 1 else _ONE_ANSWER
            if any(card["has_maps"] for card in cards):
                words += " Warm colours show what speaks for the level's answer."
            found.append({"title": title, "words": words, "cards": cards})
    return found


def _card(model: ByLevel, example: Example, names: Sequence[str], titles: Sequence[str]) -> dict[str, Any]:
    """An image: the largest level as it is, and every level with its map and its answer."""
    levels = levels_read(model.model, example.images)
    normalize = normalization(model.model)
    pictures = [picture_of(level, normalize) for level in levels]
    warm, has_maps = pictures, False
    with contextlib.suppress(NoMapError):
        maps = [heat[0] for heat in activation_maps(model.model, example.images)]
        warm, has_maps = [with_map(picture, heat) for picture, heat in zip(pictures, maps, strict=True)], True
    answered = zip(titles, warm[model.first :], example.answers, example.confidences, example.truths, strict=True)
    plain = pictures[0] if model.model.zooms else pictures[-1]  # with zooms, the level that shows most
    return {
        "name": text_of(Path(example.name).name),
        "path": text_of(example.name),
        "target": names[example.target],
        "image": data_uri(plain),
        "has_maps": has_maps,
        "levels": [
            {
                "title": title,
                "image": data_uri(picture),
                "answer": names[answer] if answer >= 0 else "not a number",
                "right": answer == example.target,
                "confidence": 100 * confidence,
                "truth": 100 * truth,
            }
            for title, picture, answer, confidence, truth in answered
        ],
    }


def _rule_text(rule: ExitRule | None) -> str:
    if not isinstance(rule, ScoreRule):
        return repr(rule)
    thresholds = rule.thresholds if isinstance(rule.thresholds, tuple) else (rule.thresholds,)
    return f"{rule.name}:{','.join(f'{threshold:.4g}' for threshold in thresholds)}"


def _interval(low: float, high: float) -> str:
    return f"{low:.1f}–{high:.1f}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"
