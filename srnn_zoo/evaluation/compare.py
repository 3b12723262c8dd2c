"""Evaluation: the paper's Table 1 (section 4.1) for any models on any labelled images, every level read once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from srnn_zoo._errors import unknown_name
from srnn_zoo.datasets.loader import batches_of, load_batches
from srnn_zoo.datasets.readers import LabelledImages, open_labelled
from srnn_zoo.inference.exits import ExitRule
from srnn_zoo.inference.processes import Processes
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.models.tasks import check_classifies

from .answering import Answering
from .by_level import ByLevel, rule_for
from .methods import LOGIT_ENSEMBLE, PROBABILITY_ENSEMBLE, base_methods, ensemble_method, passes, srnn_method
from .table import Row, Table, check_folder, predictions_file


def evaluate(
    models: SRNN | Sequence[SRNN] | Mapping[str, SRNN],
    data: str | os.PathLike[str] | Dataset[Any],
    *,
    base: SRNN | None = None,
    split: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    reference: str | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    exact: bool = False,
    ensemble: bool = False,
    flip: bool = False,
    output: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    exit: str | ExitRule | None = None,
    progress: bool = False,
    processes: Processes | None = None,
) -> Table:
    """Compare models with single scales and with the ensembles of scales, as in the paper's Table 1.

    The rows are F(C(x_s)) for every level; with two levels or more the ensembles of their probabilities and of their
    logits; then the models. Backbone, preprocessing and levels that rows share are run once.

    Args:
        models: in eval mode; with the names of their rows, or without them named by their variants.
        data: what `srnn_zoo.datasets.readers.open_labelled` opens. Classes are found by the models' own names of them.
        base: whose C and F give the single scales and the ensembles; by default the first model.
        split, data_dir: see `open_labelled`.
        reference: name of the row that the others are tested against; by default the better ensemble, the logits' if
            both are as good, or with one level the single scale.
        batch_size: images at a time.
        workers: processes that read images; by default none on a CPU, where a thread reads the next batch while one is
            computed, once the speed has been measured on the first 20.
        exact: decode and resize as Pillow does, as for `srnn_zoo.create_transform`.
        ensemble: whether to add a row for all models together, the mean of their probabilities. They must have the same
            classes in the same order.
        flip: whether to add rows of test-time augmentation: the base CNN on image and mirror image, at the last level
            and at all levels. This reads all levels twice.
        output: a folder for `table.csv`, `table.md` and `predictions.csv`.
        report: a file for a page that shows where the models are wrong (`evaluation.report`), such as `report.html`.
        exit: with a report, when its images stop: a text such as `"confidence:0.9"`, a rule, or `"calibrated"` for what
            `calibrate` stored with each model.
        progress: whether to show a progress bar on a terminal.
        processes: that share the images; all of them get the table, and the first writes the files.

    Raises:
        ValueError: for no model, models in training mode, without classifier, of another task or of one name, an
            unknown reference, a class that a model does not know, no image that can be read, a stream that
            processes cannot share, a report that cannot be written, an exit rule that does not fit, or one without a
            report; and as `open_labelled`.
        ImportError: for a report without the packages of the extra `report`.

    Examples:
        >>> zero_shot = [create_model("srnn_resnet18", pretrained=True, variant=v).eval() for v in ("vanilla", "gru")]
        >>> table = evaluate(zero_shot, "imagenet/val")
        >>> print(table.to_markdown())
        >>> table.compare("vanilla", "gru").p_value
    """
    named = _named(models)
    base = base or next(iter(named.values()))
    for name, model in [*named.items(), ("base", base)]:
        _check_model(name, model)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {batch_size}")
    if workers is None:
        workers = 0 if next(base.parameters()).device.type == "cpu" else min(8, os.cpu_count() or 1)
    source, transforms = passes([base, *named.values()], exact)
    methods = base_methods(base, source[base], flip)
    methods += [srnn_method(name, model, source[model]) for name, model in named.items()]
    methods += [ensemble_method(named, source)] if ensemble else []
    names = [method.name for method in methods]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two rows would be called {repeated[0]!r}: give the model another name")
    if reference is not None and reference not in names:
        raise ValueError(unknown_name("row", reference, names))
    watched = _watched(named, report, exit)
    processes = processes or Processes(alone=True)
    images = processes.first_then_all(lambda: open_labelled(data, split=split, data_dir=data_dir))
    batches = batches_of(images, batch_size) if processes.count > 1 else []
    load = partial(load_batches, images, transforms, batch_size, workers)
    answering = processes.first_then_all(lambda: Answering(methods, images, watched, load))
    writes = processes.is_first
    folder = check_folder(output) if output is not None and writes else None
    total = len(images) if isinstance(images, LabelledImages) else None
    with (
        contextlib.nullcontext() if folder is None else predictions_file(folder, names) as writer,
        tqdm(total=total, unit="image", leave=False, disable=None if progress and writes else True) as bar,
    ):
        skipped = answering.answer_all(batches, processes, writer, bar)
    rows = answering.rows(processes)
    if reference is None:  # the better ensemble, the logits' where both are as good; with one level the single scale
        ensembles = [row for row in rows if row.name in (PROBABILITY_ENSEMBLE, LOGIT_ENSEMBLE)] or rows[:1]
        reference = min(reversed(ensembles), key=lambda row: row.top1_error).name
    caption = _caption(rows, images.source, base, named, reference, batch_size, processes.count)
    table = Table(rows, reference, caption, tuple(skipped))
    if folder is not None:
        table.save(folder)
    if report is not None and writes:
        from .report import write_report

        write_report(report, table, list(watched.values()), images.source)
    return table


def _watched(
    named: Mapping[str, SRNN], report: str | os.PathLike[str] | None, exit: str | ExitRule | None
) -> dict[str, ByLevel]:
    """What a report needs to know of each model; nothing without a report."""
    if report is None:
        if exit is not None:
            raise ValueError("an exit rule is for the report: say where that goes")
        return {}
    from .report import check_report_file

    check_report_file(report)
    rules = {name: None if exit is None else rule_for(model, exit) for name, model in named.items()}
    return {name: ByLevel(name, model, rules[name]) for name, model in named.items()}


def _named(models: SRNN | Sequence[SRNN] | Mapping[str, SRNN]) -> dict[str, SRNN]:
    """The models by the names of their rows."""
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        listed = [models] if isinstance(models, SRNN) else list(models)
        variants = [_check_type("a model", model).variant for model in listed]
        if repeated := [variant for variant in variants if variants.count(variant) > 1]:
            raise ValueError(f"two models are of variant {repeated[0]!r}: give a dict of names and models")
        named = dict(zip(variants, listed, strict=True))
    if not named:
        raise ValueError("an evaluation needs at least one model; got none")
    return named


def _check_type(name: str, model: Any) -> SRNN:
    if not isinstance(model, SRNN):
        raise TypeError(f"{name} must be an SRNN (srnn_zoo.create_model); got {type(model).__name__}")
    return model


def _check_model(name: str, model: SRNN) -> None:
    if _check_type(name, model).training:
        raise ValueError(f"{name}: the model is in training mode; call model.eval() first")
    if model.num_classes == 0:
        raise ValueError(f"{name}: the model has no classifier (num_classes=0)")
    check_classifies(model, f"{name}: evaluation")


def _caption(
    rows: Sequence[Row],
    source: str,
    base: SRNN,
    named: Mapping[str, SRNN],
    reference: str,
    batch_size: int,
    processes: int,
) -> str:
    """What a reader of the table alone must know."""
    device = next(base.parameters()).device.type
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' if count > 1 else ''}" if device == "cpu" else ""
    threads += f", one of {processes} processes" if processes > 1 else ""
    owner = next((f"row `{name}`" for name, model in named.items() if model is base), "the model given as base")
    lines = [
        f"{rows[0].images} images of {source}; errors in per cent with 95 % intervals (Wilson).",
        f"base CNN and ensembles: backbone and classifier of {owner} ({base.pretrained_cfg['architecture']}).",
        f"p: McNemar's exact test against `{reference}`, with the images that only one of the two gets right.",
        "GMACs: multiply-accumulates for one image, all levels, cell and classifier.",
        f"images/s: the same on {device}{threads}, batches of {batch_size}, reading and resizing not counted.",
    ]
    lines += [
        f"`{row.name}` had logits that were not finite on {row.not_finite} images, which count as wrong."
        for row in rows
        if row.not_finite
    ]
    return "\n".join(lines)
