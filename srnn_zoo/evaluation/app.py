"""A page in the browser to look at one image: its levels, what each says and where it looks, and where it stops."""

from __future__ import annotations

import html
import importlib
import importlib.resources
import itertools
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from srnn_zoo._errors import missing_extra
from srnn_zoo.datasets.classes import class_names
from srnn_zoo.datasets.images import ImageError, open_image
from srnn_zoo.inference.activation_maps import activation_maps
from srnn_zoo.inference.calibrate import check_calibrated
from srnn_zoo.inference.early_exit import stopping_levels
from srnn_zoo.inference.exits import exit_rule
from srnn_zoo.inference.prepare import for_inference
from srnn_zoo.models.reading import NoMapError
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.models.tasks import check_classifies
from srnn_zoo.transforms.presets import create_transform
from srnn_zoo.transforms.reading import first_step
from srnn_zoo.transforms.views import level_names

from .pictures import data_uri, levels_read, normalization, picture_of, with_map

RULES = ("confidence", "margin", "entropy")
SHOWN = 5  # classes of a level
WIDTH = 384  # pixels of a picture of a level
MAX_FILE_SIZE = "64mb"
_TEMPLATE = "app.html.jinja"
_EMPTY = '<p class="srnn-hint">Drop an image, and see what each level makes of it.</p>'
_reads = threading.Lock()  # one image at a time goes through the network, whoever asks


@dataclass(frozen=True, eq=False)
class Look:
    """One image as a model sees it, after every level.

    Attributes:
        name: of the image.
        titles: of the levels, smallest first.
        logits: after each level that has an answer, `(L, K)`.
        temperatures: what they are divided by.
        exit_temperatures: what they are divided by where a rule decides: those that `calibrate` stored, or the same.
        gmacs: what the image costs that is answered after each level, `(L,)`.
        names: of the classes.
        notes: what had to be done to read the image.
        pictures: the levels, each as the address of a picture.
        warm: the same with activation maps; empty where the model has none.
        first: the level of the first answer.
    """

    name: str
    titles: tuple[str, ...]
    logits: Tensor
    temperatures: tuple[float, ...]
    exit_temperatures: tuple[float, ...]
    gmacs: tuple[float, ...]
    names: Sequence[str] = field(repr=False)
    notes: tuple[str, ...]
    pictures: tuple[str, ...] = field(repr=False)
    warm: tuple[str, ...] = field(repr=False)
    first: int = 0

    @property
    def probabilities(self) -> Tensor:
        """Of the classes after each level, `(L, K)`."""
        return (self.logits / torch.tensor(self.temperatures)[:, None]).softmax(dim=1)

    def stops_at(self, rule: str | None) -> int:
        """The level at which an exit rule stops the image; without one, the last.

        Args:
            rule: such as `"confidence:0.9"`.
        """
        if rule is None or len(self.logits) == 1:
            return len(self.titles) - 1
        return int(stopping_levels(exit_rule(rule), self.logits[:, None], self.gmacs, self.exit_temperatures))


@torch.no_grad()
def look(model: SRNN, image: str | os.PathLike[str] | PIL.Image.Image, name: str = "") -> Look:
    """Send one image through every level of a model, and keep what a page about it shows.

    Args:
        model: in eval mode, for classes.
        image: a file, or a PIL image.
        name: what the image is called, by default as the file.

    Raises:
        ImageError: with one sentence, for a file that is missing, no image, damaged, or absurdly large.
        ValueError: for a model in training mode, without a classifier, or of another task than classification.
    """
    _check(model)
    read, to_levels = first_step(create_transform(model))
    if isinstance(image, PIL.Image.Image):
        name = name or "image"
        opened, notes = read(image)
    else:
        name = name or Path(image).name
        opened, notes = open_image(image, name, read)
    levels = to_levels(opened)
    inputs = model.as_input(levels[None] if isinstance(levels, Tensor) else [level[None] for level in levels])
    logits = torch.cat([step.logits for step in model.steps(inputs)]).float().cpu()
    seen = [picture_of(level, normalization(model)) for level in levels_read(model, inputs)]
    try:
        maps = activation_maps(model, inputs)
        warm = tuple(data_uri(with_map(picture, heat[0]), WIDTH) for picture, heat in zip(seen, maps, strict=True))
    except NoMapError:
        warm = ()
    sizes = model.level_sizes()
    first = len(sizes) - len(logits)
    temperatures = tuple(model.temperature(level) for level in range(first, len(sizes)))
    return Look(
        name,
        tuple(title.replace(" x ", " × ") for title in level_names(sizes, model.zooms)),
        logits,
        temperatures,
        tuple(_stored(model).get("temperatures") or temperatures),
        tuple(itertools.accumulate(model.level_gmacs(size) for size in sizes)),
        class_names(model),
        tuple(notes),
        tuple(data_uri(picture, WIDTH) for picture in seen),
        warm,
        first,
    )


def render(found: Look, rule: str | None = None, maps: bool = True) -> str:
    """What is shown of an image, as HTML.

    Args:
        found: from `look`.
        rule: when the image stops, such as `"confidence:0.9"`; by default all levels are read.
        maps: whether to show where each level looks.
    """
    stop = found.stops_at(rule)
    answers = found.probabilities
    pictures = found.warm if maps and found.warm else found.pictures
    leader = int(answers[stop - found.first].argmax())
    levels = []
    for level, (title, picture) in enumerate(zip(found.titles, pictures, strict=True)):
        top: list[dict[str, Any]] = []
        if level >= found.first:
            values, classes = answers[level - found.first].topk(min(SHOWN, answers.shape[1]))
            for value, index in zip(values.tolist(), classes.tolist(), strict=True):
                name = found.names[int(index)].split(",")[0]
                top.append({"name": name, "percent": 100 * value, "leads": index == leader})
        cost = found.gmacs[level]
        levels.append({"title": title, "picture": picture, "top": top, "gmacs": cost, "read": level <= stop})
    return _template().render(
        name=found.name,
        notes=found.notes,
        answer=found.names[leader].split(",")[0],
        percent=100 * float(answers[stop - found.first, leader]),
        stop=stop,
        levels=levels,
        gmacs=found.gmacs[stop],
        all_gmacs=found.gmacs[-1],
        saved=100 * (1 - found.gmacs[stop] / found.gmacs[-1]),
        no_maps=maps and not found.warm,
    )


def create_app(model: SRNN, title: str = "") -> Any:
    """The page as Gradio's `Blocks`; `launch` serves it.

    Args:
        model: in eval mode, for classes.
        title: the heading, by default the model's name.

    Raises:
        ImportError: without Gradio, with the `pip install` line.
        ValueError: as for `look`.
    """
    gradio = _gradio()
    _check(model)
    network = for_inference(model)
    rule, threshold = _start(model)
    can_stop = bool(model.cell.anytime and len(model.scales) > 1)

    def read(file: str | None, *options: Any) -> tuple[Look | None, str]:
        if file is None:
            return None, _EMPTY
        try:
            with _reads:
                found = look(network, file)
        except ImageError as error:
            return None, _message(str(error))
        except Exception:  # the page goes on, for this visitor and for the others
            logging.getLogger(__name__).exception("%s could not be answered", file)
            return None, _message(f"{Path(file).name}: something went wrong; the log of the page says what")
        return found, show(found, *options)

    def show(found: Look | None, early: bool, name: str, value: float, maps: bool) -> str:
        chosen = _rule_text(model, name, value) if early and can_stop else None
        return _EMPTY if found is None else render(found, chosen, maps)

    heading = title or model.pretrained_cfg.get("architecture", "SRNN")
    with gradio.Blocks(title=heading, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        found = gradio.State()
        gradio.Markdown(
            f"# {heading}\nAn image is read at several sizes, smallest first. It can stop as soon as it is sure."
        )
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                image = gradio.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image")
                image.preprocess = _path_of  # Gradio would open the file itself, and of a broken one say "Error" alone
                early = gradio.Checkbox(can_stop, label="Stop early", visible=can_stop)
                value = gradio.Slider(0, 1, threshold, step=0.01, label="Threshold", visible=can_stop)
                kind = gradio.Radio(list(RULES), value=rule, label="Sure by", visible=can_stop)
                maps = gradio.Checkbox(True, label="Show what speaks for each answer")
            with gradio.Column(scale=3, min_width=300):
                shown = gradio.HTML(_EMPTY, elem_id="srnn")
        options = [early, kind, value, maps]
        image.change(read, [image, *options], [found, shown], api_name="look")
        for control in options:
            control.change(show, [found, *options], shown, show_progress="hidden", api_visibility="private",
                           trigger_mode="always_last")  # fmt: skip
    return page


def launch(model: SRNN, title: str = "", **options: Any) -> Any:
    """Serve the page; arguments as for `create_app`, and those of Gradio's `launch`, such as `server_port`.

    Raises:
        ImportError, ValueError: as `create_app`.
        OSError: if the port is taken.
    """
    page = create_app(model, title)
    themes = _gradio().themes
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from the network
    look = {"theme": themes.Default(primary_hue=themes.colors.blue, **fonts), "css": _resource("app.css")}
    return page.launch(**{"max_file_size": MAX_FILE_SIZE, "footer_links": [], **look, **options})


def _check(model: SRNN) -> None:
    check_classifies(model, "the app")
    if model.num_classes == 0:
        raise ValueError("the model has no classifier (num_classes=0)")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")


def _stored(model: SRNN) -> dict[str, Any]:
    """What `calibrate` stored, where it is for these levels and one of the page's rules; else nothing."""
    stored = model.metadata.get("exit") or {}
    if stored.get("rule") not in RULES:
        return {}
    try:
        check_calibrated(model, model.level_sizes())
    except ValueError:  # for other levels
        return {}
    return stored


def _start(model: SRNN) -> tuple[str, float]:
    """The rule and the threshold that the page starts with: the model's own, where it has them."""
    if (stored := _stored(model)) and stored["thresholds"]:
        return stored["rule"], round(min(max(stored["thresholds"][0], 0.0), 1.0), 2)
    return "confidence", 0.8


def _rule_text(model: SRNN, rule: str, threshold: float) -> str:
    """The rule of the controls; where they stand as they started, a calibrated model's own, exactly."""
    stored = _stored(model)
    if stored.get("thresholds") and (rule, threshold) == _start(model):
        return f"{rule}:{','.join(map(repr, stored['thresholds']))}"
    return f"{rule}:{threshold}"


def _path_of(upload: Any) -> str | None:
    return None if upload is None else upload.path


def _gradio() -> Any:
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise missing_extra("gradio", "app", "the app") from None


def _resource(name: str) -> str:
    return importlib.resources.files("srnn_zoo.evaluation").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    try:
        from jinja2 import Environment
    except ImportError:
        raise missing_extra("jinja2", "app", "the app") from None
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_resource(_TEMPLATE))


def _message(text: str) -> str:
    return f'<div class="srnn-message" role="alert">{html.escape(text)}</div>'
