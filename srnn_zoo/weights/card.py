"""What is said of a model's weights, checked and in JSON's types; and the model card that is made from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from srnn_zoo._errors import unknown_name

from .saved import CARD_FILE, CONFIG_FILE, CURVES_FILE, RECIPE_FILE

Task: TypeAlias = Literal["classification", "multi_label", "regression"]
TASKS: tuple[Task, ...] = get_args(Task)

_MOST_CLASSES = 200  # that a card lists

# a card with this line is written anew with every save; a card without it is left alone
MARK = "<!-- Written by srnn-zoo with every save. Delete this line to keep a text of your own. -->"


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata in JSON's types, without what is None; a ValueError if it has another form than `SRNN.metadata`."""
    checked = {key: plain(value, key) for key, value in metadata.items() if value is not None}
    metrics = checked.get("metrics", {})
    tables = metrics.values() if isinstance(metrics, dict) else [metrics]
    if not all(
        isinstance(table, dict) and all(isinstance(figure, int | float) for figure in table.values())
        for table in tables
    ):
        raise ValueError(f'metrics are numbers by data set, {{"imagenet-1k": {{"top1": 71.5}}}}; got {metrics!r}')
    for key in ("base_model", "license"):
        if not isinstance(checked.get(key, ""), str):
            raise ValueError(f"{key} must be a text; got {checked[key]!r}")
    if checked.get("task", "classification") not in TASKS:
        raise ValueError(unknown_name("task", str(checked["task"]), TASKS))
    dataset = checked.get("dataset", [])
    if not isinstance(dataset, str | list) or not all(isinstance(name, str) for name in dataset):
        raise ValueError(f"dataset must be a name, or a list of names; got {dataset!r}")
    return checked


def check_label_names(names: Iterable[str], num_classes: int) -> list[str]:
    """The names of the classes as a list; a ValueError if they are not as many different texts as classes."""
    listed = [] if isinstance(names, str | Mapping) else [plain(name, "label_names") for name in names]
    if not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"label_names must be a list of texts, one a class, in their order; got {names!r}")
    if len(listed) != num_classes or len(set(listed)) != len(listed):
        raise ValueError(
            f"label_names must name each of the {num_classes} classes, all different; got {len(listed)} names, "
            f"{len(set(listed))} of them different"
        )
    return listed


def plain(value: Any, name: str) -> Any:
    """A value in JSON's types; a ValueError gives the name of what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy's or torch's
        value = value.tolist()
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{name} cannot be saved as JSON: {value!r} of type {type(value).__name__}")


def is_generated(path: Path) -> bool:
    """Whether a card may be overwritten: it was written here, or does not exist."""
    return not path.is_file() or MARK in path.read_text(encoding="utf-8", errors="replace")


def renew_card(model: Any, folder: Path) -> None:
    """Write the card of a saved model anew, as its training curves are there now; a card that somebody wrote stays."""
    if is_generated(folder / CARD_FILE):
        write_card(model, folder, folder)


def write_card(model: Any, beside: Path, place: Path | str) -> None:
    """The model card, beside the config that it is made from, of a model in a folder or with a Hub id."""
    config = json.loads((beside / CONFIG_FILE).read_text(encoding="utf-8"))
    count = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(place, str):
        card = model_card(config, place, count)
    else:
        folder = place.resolve()
        of_run = folder.name in ("best", "last") and (folder.parent / RECIPE_FILE).is_file()  # called after the run
        name, path = (folder.parent.name, f"{folder.parent.name}/{folder.name}") if of_run else (folder.name, "")
        card = model_card(config, name, count, path=path, curves=CURVES_FILE * (folder / CURVES_FILE).is_file())
    (beside / CARD_FILE).write_text(card, encoding="utf-8", errors="backslashreplace")


def model_card(config: Mapping[str, Any], name: str, num_parameters: int, *, path: str = "", curves: str = "") -> str:
    """The card, with metadata for the Hub.

    Args:
        config: the model's `config.json`.
        name: its Hub id, `"owner/name"`, or what it is called.
        num_parameters: how many parameters the model has.
        path: the end of its folder's path, where that is not its name.
        curves: file beside the card that shows its training; empty for none.
    """
    place = name if "/" in name else f"path/to/{path or name}".replace('"', r"\"")
    net = config["model_args"].get("net")  # of a model that was made by SRNN.wrap
    text = _TEXT.format(
        mark=MARK,
        name=name.rpartition("/")[2],
        backbone=f"`{net}`" if net else f"timm's `{config['architecture'].removeprefix('srnn_')}`",
        net=", net=net" if net else "",
        facts="\n".join(_facts(config, num_parameters)),
        metrics="\n".join(_table(metrics_of(config))),
        curves=f"\n![Loss and accuracy of the training, epoch by epoch]({curves})\n" if curves else "",
        classes=_classes(config),
        place=place,
        address=f"hf-hub:{place}" if "/" in name else f"local-dir:{place}",
    )
    return f"---\n{_hub_metadata(config, name)}\n---\n\n{text}"


def _hub_metadata(config: Mapping[str, Any], name: str) -> str:
    """What the Hub reads of a card, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    metadata = config["srnn"]["metadata"]
    base, kind = metadata.get("base_model"), metadata.get("task", "classification")
    kind = "image-regression" if kind == "regression" else "image-classification"
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="accuracy" if metric == "top1" else metric,
            metric_name=metric,
            metric_value=value,
        )
        for dataset, metric, value in metrics_of(config)
    ]
    data = ModelCardData(
        license=metadata.get("license") or config["pretrained_cfg"].get("license"),
        library_name="srnn-zoo",
        tags=[kind, "timm", "srnn", "scale-recurrent"],
        pipeline_tag=kind if kind == "image-classification" else None,  # the Hub has none for numbers
        base_model=f"timm/{base}" if base and "/" not in base else base,  # timm's weights have its names on the Hub
        datasets=_datasets(config) or None,
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )
    return data.to_yaml()


def metrics_of(config: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Data set, name and value of every figure that a config has."""
    metrics = config["srnn"]["metadata"].get("metrics", {})
    return [(dataset, metric, value) for dataset, figures in metrics.items() for metric, value in figures.items()]


def _datasets(config: Mapping[str, Any]) -> list[str]:
    datasets = config["srnn"]["metadata"].get("dataset") or []
    return [datasets] if isinstance(datasets, str) else datasets


def _facts(config: Mapping[str, Any], num_parameters: int) -> list[str]:
    args, about = config["model_args"], config["srnn"]
    zooms = [f" zoom {zoom:g}" if zoom > 1 else "" for zoom in args.get("zooms") or [1] * len(about["level_sizes"])]
    sizes = ", ".join(f"{h} x {w}{zoom}" for (h, w), zoom in zip(about["level_sizes"], zooms, strict=True))
    base, recipe = about["metadata"].get("base_model"), about["metadata"].get("recipe")
    facts = {
        "Variant": f"`{args['variant']}`, activation {args['activation']}",
        "Levels": f"{sizes} ({args['interpolation']})",
        "Task": about["metadata"].get("task"),
        "Classes": config["num_classes"],
        "Parameters": f"{num_parameters / 1e6:.1f} M",
        "State": about["zero_shot"] and "zero-shot: the paper's initialisation, never trained as an SRNN",
        "Base model": base and f"`{base}`",
        "Data": ", ".join(_datasets(config)),
        "Recipe": ", ".join(f"{key} {value}" for key, value in recipe.items()) if isinstance(recipe, dict) else recipe,
    }
    return [f"- **{name}:** {_one_line(value)}" for name, value in facts.items() if value]


def _table(metrics: list[tuple[str, str, float]]) -> list[str]:
    rows = [f"| {_one_line(dataset)} | {_one_line(metric)} | {value:g} |" for dataset, metric, value in metrics]
    return ["", "| data | metric | value |", "| --- | --- | --- |", *rows, ""] if rows else []


def _classes(config: Mapping[str, Any]) -> str:
    """A section with the names of the classes in their order; empty where they have none."""
    labels = config.get("label_names") or ()
    if len(labels) != config["num_classes"]:
        return ""
    descriptions = config["pretrained_cfg"].get("label_descriptions") or {}
    names = ["`{}`".format(" ".join(descriptions.get(label, label).split()).replace("`", "'")) for label in labels]
    rest = f", and {len(names) - _MOST_CLASSES} more in `config.json`" if len(names) > _MOST_CLASSES else ""
    return f"\n## Classes\n\n{', '.join(names[:_MOST_CLASSES])}{rest}\n"


def _one_line(value: Any) -> str:
    """Text that breaks neither a list nor a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


_TEXT = """{mark}

# {name}

A scale-recurrent network (SRNN; D.-Q. Zhang, 2018) over {backbone}, for [srnn-zoo]: one CNN reads every \
level of an image pyramid, and a small recurrent cell carries what it saw from the coarse levels to the fine ones. \
Inference can stop at any level.

{facts}
{metrics}{curves}
## Use

```python
import srnn_zoo  # pip install srnn-zoo

model = srnn_zoo.SRNN.from_pretrained("{place}"{net}).eval()
levels = srnn_zoo.create_transform(model)(image)
logits = model([level[None] for level in levels])
```

After `import srnn_zoo`, `timm.create_model("{address}", pretrained=True{net})` makes the same model.
{classes}
## Cite

D.-Q. Zhang, *Image Recognition Using Scale Recurrent Neural Networks*, 2018.

[srnn-zoo]: https://pypi.org/project/srnn-zoo/
"""
