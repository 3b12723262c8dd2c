"""Scores of a model in the files from which the Hub reads them, beside the model card's index."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

EVAL_FOLDER = ".eval_results"

_MARK = "# written by srnn-zoo, and written anew at every save\n"


def write_eval_results(folder: Path, metrics: Iterable[tuple[str, str, float]]) -> None:
    """Write `.eval_results/<owner>--<name>.yaml`, one file a data set, in place of those of an earlier save.

    The format is the Hub's (huggingface.co/docs/hub/eval-results). It has one score a data set, here top-1 accuracy,
    and knows data sets by their ids; what else there is stands in the model card alone. Files that somebody else wrote
    stay.

    Args:
        folder: of the model.
        metrics: data set, name of the metric, and the value in per cent.
    """
    import yaml  # huggingface_hub brings it

    place = folder / EVAL_FOLDER
    for file in place.glob("*.yaml"):
        if file.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
            file.unlink()
    for dataset, metric, value in metrics:
        if metric != "top1" or not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
            continue
        entry = {"dataset": {"id": dataset, "task_id": "default"}, "value": value, "notes": "top-1 accuracy, per cent"}
        name = dataset.replace("/", "--")
        place.mkdir(exist_ok=True)
        (place / f"{name}.yaml").write_text(_MARK + yaml.safe_dump([entry], sort_keys=False), encoding="utf-8")
    with contextlib.suppress(OSError):  # it is not there, or holds other files
        place.rmdir()
