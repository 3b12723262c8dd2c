"""`srnn-zoo list` and `srnn-zoo info`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import app, loading

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="A word, or a wildcard pattern such as 'srnn_resnet*'.")] = "",
    cells: Annotated[bool, typer.Option("--variants", help="List the variants instead.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="List the weights of SRNNs instead.")] = False,
) -> None:
    """List the models, the variants, or the weights."""
    from srnn_zoo.models.cells import list_cells
    from srnn_zoo.models.create import list_models
    from srnn_zoo.models.entries import list_pretrained

    if cells and (pattern or pretrained):
        app.fail("--variants takes no pattern and goes without --pretrained")
    names = list_cells() if cells else list_pretrained(pattern) if pretrained else list_models(pattern)
    if not names:
        kind, option = ("weights match", " --pretrained") if pretrained else ("model matches", "")
        app.fail(f"no {kind} {pattern!r}; `srnn-zoo list{option}` gives all names")
    typer.echo("\n".join(names))


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Name of a model, or folder of a saved one.", show_default=False)],
    variant: app.VariantOption = None,
    sizes: app.SizesOption = None,
    zooms: app.ZoomsOption = None,
    views: app.ViewsOption = None,
    as_json: app.JsonOption = False,
    modules: app.ImportOption = None,
) -> None:
    """Show a model's parameters, GMACs of every level, input sizes and licence. Nothing is downloaded."""
    levels = loading.level_options(sizes, zooms, views)
    facts = _facts(loading.create(name, variant, levels, pretrained=False, device="meta"))
    typer.echo(json.dumps(facts) if as_json else _facts_as_text(facts))


def _facts(model: SRNN) -> dict[str, Any]:
    from srnn_zoo.models.cost import count_gmacs

    def millions(module: Any) -> float:
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 3)

    cost = count_gmacs(model)
    config = model.pretrained_cfg
    parts = {"backbone": model.backbone, "cell": model.cell, "classifier": model.fc, "total": model}
    return {
        "model": config["architecture"],
        "variant": model.variant,
        "activation": model.cell.activation,
        "levels": [
            {"size": list(size), "gmacs": round(gmacs, 3)}
            for size, gmacs in zip(model.level_sizes(), cost.levels, strict=True)
        ],
        **({} if model.zooms is None else {"zooms": list(model.zooms), "views": str(model.views)}),
        "reads": str(model.reads),
        "head_gmacs": round(cost.head, 4),
        "total_gmacs": round(cost.total, 3),
        "million_parameters": {part: millions(module) for part, module in parts.items()},
        "features": model.num_features,
        "classes": model.num_classes,
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "base_model": _base_model(model),
        "licence": config.get("license") or "not stated by timm",
    }


def _base_model(model: SRNN) -> str:
    """Whose weights a model starts from; for a name alone, what `pretrained=True` would take."""
    from srnn_zoo.models.entries import find_weights

    architecture, tag = model.pretrained_cfg["architecture"], model.pretrained_cfg.get("tag") or ""
    entry = find_weights(f"{architecture}.{tag}")
    of_timm = entry.base if entry is not None else f"{architecture.removeprefix('srnn_')}.{tag}".rstrip(".")
    wrapped = getattr(model.backbone, "arguments", {}).get("net")  # of `SRNN.wrap`
    return model.metadata.get("base_model") or wrapped or of_timm


def _facts_as_text(facts: dict[str, Any]) -> str:
    parameters = "  ".join(f"{part} {value:.2f} M" for part, value in facts["million_parameters"].items())
    from srnn_zoo.transforms.views import level_names

    names = level_names([level["size"] for level in facts["levels"]], facts.get("zooms"))
    levels = [f"{name}: {level['gmacs']:.3f} GMACs" for name, level in zip(names, facts["levels"], strict=True)]
    rows = {
        "variant": f"{facts['variant']}, activation {facts['activation']}",
        "parameters": parameters,
        "levels": "  ".join(levels),
        **({"views": facts["views"]} if "views" in facts else {}),
        "reads": facts["reads"],
        "head": f"{facts['head_gmacs']:.4f} GMACs (cell and classifier)",
        "total": f"{facts['total_gmacs']:.3f} GMACs",
        "features": facts["features"],
        "classes": facts["classes"],
        "preprocessing": f"{facts['interpolation']}, mean {facts['mean']}, std {facts['std']}",
        "base model": facts["base_model"],
        "licence": f"{facts['licence']} (of these weights)",
    }
    return "\n".join([facts["model"], *(f"  {key:<15}{value}" for key, value in rows.items())])
