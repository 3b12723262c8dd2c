"""The model card of a saved SRNN: what it is, how well it does, and three lines that use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from srnn_zoo.models.srnn import SRNN

__all__ = ["is_generated", "model_card"]

# a card with this line is written anew with every save; without it, it is left alone
MARK = "<!-- Written by srnn-zoo with every save. Delete this line to keep a text of your own. -->"


def is_generated(path: Path) -> bool:
    """Whether a card may be overwritten: it was written here, or does not exist."""
    return not path.is_file() or MARK in path.read_text(encoding="utf-8", errors="replace")


def model_card(model: SRNN, metadata: Mapping[str, Any], name: str) -> ModelCard:
    """The card of a model.

    Args:
        model: that is saved.
        metadata: what is known of its weights (`SRNN.metadata`).
        name: its Hub id, `"owner/name"`, or the name of its folder.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=_license(model, metadata),
        library_name="srnn-zoo",
        tags=["image-classification", "timm", "srnn", "scale-recurrent"],
        pipeline_tag="image-classification",
        base_model=_base_model(metadata),
        datasets=_names(metadata.get("dataset")),
        model_name=name.rpartition("/")[2],
        eval_results=_eval_results(metadata),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{MARK}\n\n{_body(model, metadata, name)}")


def _license(model: SRNN, metadata: Mapping[str, Any]) -> str | None:
    of_base_model = model.pretrained_cfg.get("license") if metadata.get("base_model") else None
    return metadata.get("license") or of_base_model


def _base_model(metadata: Mapping[str, Any]) -> str | None:
    """As a Hub id: timm's weights are there under timm's names."""
    base = metadata.get("base_model")
    return f"timm/{base}" if base and "/" not in base else base


def _names(value: Any) -> list[str] | None:
    if not value:
        return None
    return [value] if isinstance(value, str) else [str(name) for name in value]


def _eval_results(metadata: Mapping[str, Any]) -> Any:
    from huggingface_hub import EvalResult

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="accuracy" if name == "top1" else name,
            metric_name=name,
            metric_value=value,
        )
        for dataset, figures in metadata.get("metrics", {}).items()
        for name, value in figures.items()
    ]
    return results or None


def _body(model: SRNN, metadata: Mapping[str, Any], name: str) -> str:
    backbone = model.pretrained_cfg["architecture"].removeprefix("srnn_")
    parts = [
        f"# {name.rpartition('/')[2]}\n",
        f"A scale-recurrent network (SRNN; D.-Q. Zhang, 2018) over timm's `{backbone}`, for [srnn-zoo]: one CNN reads "
        "every level of an image pyramid, and a small recurrent cell carries what it saw from the coarse levels to the "
        "fine ones. Inference can stop at any level.\n",
        _facts(model, metadata),
        _metrics_table(metadata),
        _usage(name),
        _CITATION,
    ]
    return "\n".join(part for part in parts if part)


def _facts(model: SRNN, metadata: Mapping[str, Any]) -> str:
    levels = ", ".join(f"{height} x {width}" for height, width in model.level_sizes())
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    facts = {
        "Variant": f"`{model.variant}`, activation {model.cell.activation}",
        "Levels": f"{levels} ({model.interpolation})",
        "Classes": model.num_classes,
        "Parameters": f"{count:.1f} M",
        "State": "zero-shot: the paper's initialisation, never trained as an SRNN" if model.zero_shot else "",
        "Base model": f"`{metadata['base_model']}`" if metadata.get("base_model") else "",
        "Data": ", ".join(_names(metadata.get("dataset")) or ()),
        "Recipe": _recipe(metadata.get("recipe")),
    }
    return "\n".join(f"- **{name}:** {_one_line(value)}" for name, value in facts.items() if value) + "\n"


def _one_line(value: Any) -> str:
    """Text that breaks neither a list nor a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _recipe(recipe: Any) -> str:
    if isinstance(recipe, Mapping):
        return ", ".join(f"{key} {value}" for key, value in recipe.items())
    return str(recipe or "")


def _metrics_table(metadata: Mapping[str, Any]) -> str:
    rows = [
        f"| {_one_line(dataset)} | {_one_line(name)} | {value:g} |"
        for dataset, figures in metadata.get("metrics", {}).items()
        for name, value in figures.items()
    ]
    return "\n".join(["| data | metric | value |", "| --- | --- | --- |", *rows]) + "\n" if rows else ""


def _usage(name: str) -> str:
    is_hub_id = "/" in name
    place = name if is_hub_id else f"path/to/{name}".replace('"', r"\"")
    address = f"hf-hub:{place}" if is_hub_id else f"local-dir:{place}"
    return f"""## Use

```python
import srnn_zoo  # pip install srnn-zoo

model = srnn_zoo.SRNN.from_pretrained("{place}").eval()
levels = srnn_zoo.create_transform(model)(image)
logits = model([level[None] for level in levels])
```

After `import srnn_zoo`, `timm.create_model("{address}", pretrained=True)` makes the same model.
"""


_CITATION = """## Cite

D.-Q. Zhang, *Image Recognition Using Scale Recurrent Neural Networks*, 2018.

[srnn-zoo]: https://pypi.org/project/srnn-zoo/
"""
