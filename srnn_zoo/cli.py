"""The command `srnn-zoo`: predict, list, info."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .model import SRNN
    from .predict import Answer, Prediction, Skipped

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Scale-recurrent networks over any timm backbone.",
)

DEFAULT_MODEL = "srnn_tf_efficientnet_lite0"
MAX_PLOTTED = 12


def main() -> None:
    """Entry point of the command; whatever a user can put right is said in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the terminal's encoding does not
    try:
        app()
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    except OSError as error:  # a full disk
        _fail(str(error), code=1)


def _version(show: bool) -> None:
    if show:
        from ._version import __version__

        typer.echo(f"srnn-zoo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name of a model (`srnn-zoo list`), folder of a saved one, or Hub id.")
]
VariantOption = Annotated[
    str | None,
    typer.Option("--variant", "-v", help="What happens between two scales. [default: half_gru, or as saved]"),
]
SizesOption = Annotated[
    str | None, typer.Option("--sizes", help="Sizes of the levels in pixels, smallest first: 224,448.")
]


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Picture files, or folders of them.", show_default=False)],
    model: ModelOption = DEFAULT_MODEL,
    variant: VariantOption = None,
    sizes: SizesOption = None,
    topk: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures classified at a time.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; by default a GPU if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a picture and line.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw levels and answers to this file (.png, .pdf, …).")] = None,
) -> None:
    """Name what is on pictures: the best classes after every level.

    Pictures that cannot be read are passed over, listed at the end, and make the command exit with 1.
    """
    from tqdm import tqdm

    from .images import ImageError, find_images
    from .predict import Skipped
    from .predict import predict as predict_pictures

    if not all(images):
        _fail("a path is empty")
    try:
        paths = find_images(images)
    except ImageError as error:
        _fail(str(error))
    if plot is not None:
        _check_plot(plot, len(paths))
    level_sizes = _parse_sizes(sizes)
    network = _load(model, variant, level_sizes, device)
    results: Iterable[Prediction | Skipped] = predict_pictures(
        network, paths, sizes=level_sizes, topk=topk, batch_size=batch_size
    )
    skipped: list[Skipped] = []
    kept: list[Prediction] = []
    hide_bar = len(paths) <= batch_size or not sys.stderr.isatty()
    for result in tqdm(_readable(results), total=len(paths), unit="picture", disable=hide_bar, leave=False):
        if isinstance(result, Skipped):
            skipped.append(result)
            continue
        with tqdm.external_write_mode():
            typer.echo(json.dumps(_as_dict(result)) if as_json else _as_text(result))
        if plot is not None:
            kept.append(result)
    if plot is not None and kept:
        from .plot import plot_predictions

        plot_predictions(kept, plot)
        typer.echo(f"drawn to {plot}", err=True)
    if skipped:
        typer.echo(f"skipped {len(skipped)} of {len(paths)} pictures:", err=True)
        for item in skipped:
            typer.echo(f"  {item.reason}", err=True)
        raise typer.Exit(1)


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="A word, or a wildcard pattern such as 'srnn_resnet*'.")] = "",
    cells: Annotated[bool, typer.Option("--variants", help="List the variants instead.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="List the weights of SRNNs instead.")] = False,
) -> None:
    """List the models, the variants, or the weights."""
    from .cells import list_cells
    from .registry import list_models
    from .weights import list_pretrained

    if cells and (pattern or pretrained):
        _fail("--variants takes no pattern and goes without --pretrained")
    names = list_cells() if cells else list_pretrained(pattern) if pretrained else list_models(pattern)
    if not names:
        kind, option = ("weights", " --pretrained") if pretrained else ("model", "")
        _fail(f"no {kind} matches {pattern!r}; `srnn-zoo list{option}` gives all names")
    typer.echo("\n".join(names))


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Name of a model, or folder of a saved one.", show_default=False)],
    variant: VariantOption = None,
    sizes: SizesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model's parameters, GMACs of every level, input sizes and licence. Nothing is downloaded."""
    network = _create(name, variant, _parse_sizes(sizes), pretrained=False)
    try:
        facts = _facts(network)
    except ValueError as error:  # a backbone of one fixed size
        _fail(str(error))
    typer.echo(json.dumps(facts) if as_json else _facts_as_text(facts))


def _facts(model: SRNN) -> dict[str, Any]:
    from .flops import count_gmacs

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
    from .weights import find_weights

    architecture, tag = model.pretrained_cfg["architecture"], model.pretrained_cfg.get("tag") or ""
    entry = find_weights(f"{architecture}.{tag}")
    of_timm = entry.base if entry is not None else f"{architecture.removeprefix('srnn_')}.{tag}".rstrip(".")
    return model.metadata.get("base_model") or of_timm


def _facts_as_text(facts: dict[str, Any]) -> str:
    parameters = "  ".join(f"{part} {value:.2f} M" for part, value in facts["million_parameters"].items())
    levels = [f"{h} x {w}: {gmacs:.3f} GMACs" for (h, w), gmacs in (level.values() for level in facts["levels"])]
    rows = {
        "variant": f"{facts['variant']}, activation {facts['activation']}",
        "parameters": parameters,
        "levels": "  ".join(levels),
        "head": f"{facts['head_gmacs']:.4f} GMACs (cell and classifier)",
        "total": f"{facts['total_gmacs']:.3f} GMACs",
        "features": facts["features"],
        "classes": facts["classes"],
        "preprocessing": f"{facts['interpolation']}, mean {facts['mean']}, std {facts['std']}",
        "base model": facts["base_model"],
        "licence": f"{facts['licence']} (of these weights)",
    }
    return "\n".join([facts["model"], *(f"  {key:<15}{value}" for key, value in rows.items())])


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    return {
        "path": prediction.path,
        "levels": [
            {"size": list(answer.size), "top": [{"label": name, "probability": p} for name, p in answer.top]}
            for answer in prediction.answers
        ],
        "notes": list(prediction.notes),
    }


def _as_text(prediction: Prediction, width: int = 34) -> str:
    """The path, then one column a level with its best classes."""

    def cell(answer: Answer, rank: int) -> str:
        name, probability = answer.top[rank]
        return f"{name.split(',')[0][: width - 10]:<{width - 9}}{100 * probability:5.1f} %"

    notes = f"  ({'; '.join(prediction.notes)})" if prediction.notes else ""
    titles = [f"{a.size[0]} x {a.size[1]}" for a in prediction.answers]
    lines = ["  ".join(f"{title:<{width - 2}}" for title in titles)]
    for rank in range(len(prediction.answers[0].top)):
        lines.append("  ".join(cell(answer, rank) for answer in prediction.answers))
    return "\n".join([f"{prediction.path}{notes}", *(f"  {line}".rstrip() for line in lines)])


def _parse_sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    from .transforms import ScalePyramid

    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        _fail(f"--sizes takes whole numbers with commas between, such as 224,448; got {text!r}")
    try:
        ScalePyramid(sizes)
    except ValueError as error:
        _fail(f"--sizes: {error}")
    return sizes


def _load(name: str, variant: str | None, sizes: list[int] | None, device: str | None) -> SRNN:
    """A pretrained model in eval mode on its device."""
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen).tolist()  # before the work; "meta" exists, but has no values to give
    except (RuntimeError, AssertionError) as error:
        kind = type(error).__name__
        _fail(f"--device {chosen} is not to be had here ({kind}); cpu always is")
    return _create(name, variant, sizes, pretrained=True).eval().to(chosen)


def _create(name: str, variant: str | None, sizes: list[int] | None, *, pretrained: bool) -> SRNN:
    from .registry import create_model

    options: dict[str, Any] = {} if variant is None else {"variant": variant}
    if sizes is not None:
        options |= {"scales": [size / sizes[-1] for size in sizes], "img_size": sizes[-1]}
    if name and ":" not in name and Path(name).is_dir():
        name = f"local-dir:{name}"
        pretrained = True  # nothing needs downloading
    elif ":" not in name and "/" in name:
        name = f"hf-hub:{name}"
    try:
        return create_model(name, pretrained=pretrained, **options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:  # timm's own are RuntimeErrors
        _fail(str(error))


def _readable(results: Iterable[Prediction | Skipped]) -> Iterator[Prediction | Skipped]:
    """The results, or one line where levels of such sizes fit neither the backbone nor the memory."""
    import torch

    try:
        yield from results
    except ValueError as error:
        _fail(str(error))
    except (MemoryError, torch.OutOfMemoryError):
        _fail("out of memory; a smaller --batch-size or smaller --sizes may fit")


def _check_plot(file: Path, pictures: int) -> None:
    """Fail before the work, not after it."""
    from .plot import check_plot_file

    if pictures > MAX_PLOTTED:
        _fail(f"--plot draws up to {MAX_PLOTTED} pictures; got {pictures}")
    try:
        check_plot_file(file)
    except (ImportError, OSError, ValueError) as error:
        _fail(f"--plot: {error}")


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"srnn-zoo: {' '.join(message.splitlines())}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
