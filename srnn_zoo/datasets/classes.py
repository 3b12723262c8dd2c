"""The names of a model's classes, and which index a name stands for; of the model only its config is read."""

from __future__ import annotations

from collections import Counter
from typing import Any


def class_names(model: Any) -> list[str]:
    """Names to show: from the model's config, ImageNet's where the classifier is of ImageNet, else `class 0`, …."""
    if labels := _saved_labels(model):
        descriptions = model.pretrained_cfg.get("label_descriptions") or {}
        return [descriptions.get(label, label) for label in labels]
    if imagenet := _imagenet_info(model):
        return list(imagenet.label_descriptions())
    return [f"class {index}" for index in range(model.num_classes)]


def class_indices(model: Any) -> dict[str, int]:
    """The index of every name that the folder of a class may have.

    A class goes by its label (`label_names` in the config, in a model of ImageNet's classes the WordNet id) and by its
    description (`class_names`). A name that several classes share stands for none.
    """
    imagenet = _imagenet_info(model)
    labels = _saved_labels(model) or (imagenet.label_names() if imagenet else [])
    indices: dict[str, int] = {}
    for names in (labels, class_names(model)):
        count = Counter(names)
        for index, name in enumerate(names):
            if count[name] == 1:
                indices.setdefault(name, index)
    return indices


def label_names(model: Any) -> list[str]:
    """The name that the folder of each class has (`class_indices`), in the order of the classes."""
    names = {index: name for name, index in reversed(class_indices(model).items())}  # the first of several
    return [names.get(index, f"class {index}") for index in range(model.num_classes)]


def _saved_labels(model: Any) -> list[str]:
    labels = model.pretrained_cfg.get("label_names") or ()
    return list(labels) if len(labels) == model.num_classes else []


def _imagenet_info(model: Any) -> Any:
    """timm's names of ImageNet's classes, for a classifier that was trained on them; the width alone says nothing."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    trained_on = model.metadata.get("dataset") or ()
    datasets = [trained_on] if isinstance(trained_on, str) else trained_on
    if not (model.zero_shot or any("imagenet" in name.lower() for name in datasets)):
        return None
    subset = infer_imagenet_subset(model)
    return ImageNetInfo(subset) if subset else None
