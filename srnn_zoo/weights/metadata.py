"""What is said of a model's weights: names of classes, metrics, recipe and the like; checked, and in JSON's types."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["check_label_names", "check_metadata", "plain"]


def plain(value: Any, name: str) -> Any:
    """A value in JSON's types: scalars of numpy and torch as Python's, paths as text, tuples as lists.

    Raises:
        ValueError: with the name of what JSON cannot hold.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 0:  # a scalar of numpy's or torch's
        value = value.tolist()
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{name} cannot be saved as JSON: {value!r} of type {type(value).__name__}")


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata in JSON's types, without what is None.

    Raises:
        ValueError: for a value that JSON cannot hold, or of another form than `SRNN.metadata` has.
    """
    checked = {key: plain(value, key) for key, value in metadata.items() if value is not None}
    metrics = checked.get("metrics", {})
    well_formed = isinstance(metrics, dict) and all(
        isinstance(figures, dict) and all(isinstance(value, int | float) for value in figures.values())
        for figures in metrics.values()
    )
    if not well_formed:
        raise ValueError(f'metrics are numbers by data set, {{"imagenet-1k": {{"top1": 71.5}}}}; got {metrics!r}')
    for key in ("base_model", "license"):
        if not isinstance(checked.get(key, ""), str):
            raise ValueError(f"{key} must be a text; got {checked[key]!r}")
    dataset = checked.get("dataset", [])
    names = [dataset] if isinstance(dataset, str) else dataset
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"dataset must be a name, or a list of names; got {dataset!r}")
    return checked


def check_label_names(names: Iterable[str], num_classes: int) -> list[str]:
    """The names of the classes as a list.

    Raises:
        ValueError: if they are not as many different texts as there are classes.
    """
    listed = [] if isinstance(names, str | Mapping) else [plain(name, "label_names") for name in names]
    if not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"label_names must be a list of texts, one a class, in their order; got {names!r}")
    if len(listed) != num_classes or len(set(listed)) != len(listed):
        raise ValueError(
            f"label_names must name each of the {num_classes} classes, all different; got {len(listed)} names, "
            f"{len(set(listed))} of them different"
        )
    return listed
