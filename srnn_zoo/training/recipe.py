"""Recipes: how a model is trained, as plain data that checks itself and travels as TOML; three have a name."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from srnn_zoo._errors import missing_extra, unknown_name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. `dataclasses.replace(recipe, lr=0.01)` makes another one.

    Args:
        optimizer: a name from `timm.optim.list_optimizers()`.
        lr: the base learning rate.
        lr_backbone: factor of the base learning rate for the backbone.
        lr_cell: the same for the cell.
        lr_classifier: the same for the classifiers.
        layer_decay: factor by which the backbone's learning rates fall from layer to layer, last to first; 1 for none.
        momentum: of optimizers that have one.
        nesterov: Nesterov's momentum, for SGD.
        weight_decay: towards zero.
        decay_1d: whether biases and the parameters of normalisation layers decay as well.
        recurrence: r: training starts from U = r I where U is the identity, as in a new model. At 1 the state adds up
            what all levels saw; the smaller r, the more the larger levels count.
        identity_decay: every step adds `lr * identity_decay * (r I - U)` to U, with the cell's learning rate; U has no
            weight decay then. 0 for none.
        schedule: of the learning rate: `"step"`, `"cosine"` or `"constant"`; it moves with every update.
        decay_epochs: of `"step"`: epochs after which the learning rate falls.
        decay_rate: of `"step"`: the factor by which it falls.
        min_lr: where `"cosine"` ends.
        warmup_epochs: of linear warm-up at the start, part of `epochs`.
        warmup_lr: where it starts.
        epochs: passes over the training images.
        batch_size: images in one update, over all processes and accumulation steps.
        grad_accum_steps: pieces in which a process reads its share of a batch.
        clip_grad: the greatest norm of the gradient; 0 for no limit.
        label_smoothing: in [0, 1); not for numbers.
        mixup: its alpha; 0 for none.
        cutmix: its alpha; 0 for none. With both, a batch has one or the other.
        crop_scale: smallest and largest share of an image's area that a random crop takes.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: strength of brightness, contrast and saturation jitter; 0 for none.
        auto_augment: timm's name of a policy such as `"rand-m9-mstd0.5"`, in place of colour jitter; empty for none.
        interpolation: of the crop, `"bicubic"` or `"bilinear"`; empty for the model's own.
        ema_decay: of the moving average of the weights; the average is then measured and kept. 0 for none.
        precision: `"no"`, `"bf16"` or `"fp16"` for mixed precision.
        channels_last: the memory format, faster for convolutions on CPU and GPU.
        grad_checkpointing: compute the backbone's activations twice rather than keep them.
        seed: of every random number.
        patience: stop after this many epochs without a better one (by validation accuracy); 0 for never.
        loss: `"last"`: of the last level, as in the paper; `"anytime"`: of every level that has an answer
            (`AnytimeLoss`).
        anytime_weights: one for every level; none for equal ones.
        distillation: of the last level's answers into the earlier ones, by the anytime loss, in [0, 1].
        temperature: of the distillation.
        random_heights: train on pyramids cut at a random level.
        freeze_backbone: fit only the cell and the classifiers, on features that are computed once; settings that
            cannot be honoured then are refused.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a value outside its range, or settings that exclude each other.

    Examples:
        >>> recipe("finetune", epochs=5).lr_classifier
        1.0
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    lr_backbone: float = 1.0
    lr_cell: float = 1.0
    lr_classifier: float = 1.0
    layer_decay: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay_1d: bool = False
    recurrence: float = 1.0
    identity_decay: float = 0.0
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    decay_epochs: float = 30.0
    decay_rate: float = 0.1
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    epochs: int = 10
    batch_size: int = 32
    grad_accum_steps: int = 1
    clip_grad: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    auto_augment: str = ""
    interpolation: Literal["", "bicubic", "bilinear"] = ""
    ema_decay: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    grad_checkpointing: bool = False
    seed: int = 0
    patience: int = 0
    loss: Literal["last", "anytime"] = "last"
    anytime_weights: tuple[float, ...] = ()
    distillation: float = 0.0
    temperature: float = 1.0
    random_heights: bool = False
    freeze_backbone: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _of_type(kind, name, getattr(self, name)))
        _check_ranges(self)
        _check_together(self)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Recipe:
        """The recipe in a TOML file; what it does not name is as by default.

        Raises:
            FileNotFoundError: if there is no such file.
            TypeError, ValueError: for a file that is no TOML, an unknown name, or a value that a recipe cannot have.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no recipe {path}")
        try:
            settings = _toml().loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # of the TOML or the encoding
            raise ValueError(f"{path} is no recipe: {error}") from error
        try:
            return cls(**_known_settings(settings))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from error

    def to_toml(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe, all of it, so that another version's defaults do not change it."""
        lines = [f"{name} = {_as_toml(value)}\n" for name, value in dataclasses.asdict(self).items()]
        Path(path).write_text("".join(lines), encoding="utf-8")

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """A recipe with other values, given as texts such as `lr=0.01` or `crop_scale=[0.5, 1]`.

        Raises:
            TypeError, ValueError: for what is no setting, an unknown name, or a value that a recipe cannot have.
        """
        values: dict[str, Any] = {}
        for text in settings:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"a setting is name=value, such as lr=0.01; got {text!r}")
            try:
                values[name.strip()] = _toml().loads(f"value = {value}")["value"]
            except ValueError:  # a word, which TOML wants in quotes
                values[name.strip()] = value.strip()
        return dataclasses.replace(self, **_known_settings(values))

    def augmentation(self) -> dict[str, Any]:
        """The arguments of `srnn_zoo.create_transform` for training images."""
        chosen = {"interpolation": self.interpolation, "auto_augment": self.auto_augment}
        return {
            "scale": self.crop_scale,
            "hflip": self.hflip,
            "vflip": self.vflip,
            "color_jitter": self.color_jitter or None,
            **{name: value for name, value in chosen.items() if value},
        }


def recipe(name: str, **settings: Any) -> Recipe:
    """A recipe by name: `"paper"` (section 4 of the paper), `"finetune"` (a good start for few data) or `"probe"`.

    Args:
        name: of `PRESETS`.
        **settings: other values of its fields.

    Raises:
        ValueError: for an unknown recipe or field, with the closest names, and for a value outside its range.
        TypeError: for a value of another type.
    """
    if name not in PRESETS:
        raise ValueError(unknown_name("recipe", name, PRESETS))
    return dataclasses.replace(PRESETS[name], **_known_settings(settings))


def _known_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, or the error with the names closest to one that no recipe has."""
    names = [field.name for field in fields(Recipe)]
    for name in settings:
        if name not in names:
            raise ValueError(unknown_name("setting of a recipe", name, names, "see help(srnn_zoo.training.Recipe)"))
    return settings


def _toml() -> Any:
    """tomllib, or where Python has none yet the package it comes from."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise missing_extra("tomli", "train", "reading TOML with Python 3.10") from error
    return tomllib


def _as_toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)  # numbers, texts, true and false are written alike


def _of_type(kind: Any, name: str, value: Any) -> Any:
    """The value as the field has it, or the error that says what it takes."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(unknown_name(name, str(value), get_args(kind)))
        return value
    if get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_of_type(float, f"each of {name}", item) for item in value)
    elif kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value) and value == kind(value):
            return kind(value)
    elif isinstance(value, kind):
        return value
    expected = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    raise TypeError(f"{name} must be {expected.get(kind, 'a list of numbers')}; got {value!r}")


_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("epochs batch_size grad_accum_steps", lambda value: value >= 1, "1 or more"),
    ("lr layer_decay decay_epochs decay_rate temperature", lambda value: value > 0, "more than 0"),
    ("layer_decay decay_rate hflip vflip distillation", lambda value: value <= 1, "1 at the most"),
    ("momentum label_smoothing ema_decay", lambda value: value < 1, "less than 1"),
)


def _check_ranges(recipe: Recipe) -> None:
    numbers = {name: value for name, value in vars(recipe).items() if isinstance(value, int | float)}
    for names, holds, wanted in (*_RULES, (" ".join(numbers), lambda value: value >= 0, "0 or more")):
        for name in names.split():
            if not holds(numbers[name]):
                raise ValueError(f"{name} must be {wanted}; got {numbers[name]:g}")


def _check_together(recipe: Recipe) -> None:
    if len(recipe.crop_scale) != 2 or not 0 < recipe.crop_scale[0] <= recipe.crop_scale[1] <= 1:
        raise ValueError(f"crop_scale must be two shares that grow, in (0, 1]; got {list(recipe.crop_scale)}")
    if any(weight < 0 for weight in recipe.anytime_weights) or (
        recipe.anytime_weights and sum(recipe.anytime_weights) == 0
    ):
        raise ValueError(f"anytime_weights must be 0 or more, one of them positive; got {list(recipe.anytime_weights)}")
    if recipe.batch_size % recipe.grad_accum_steps:
        raise ValueError(
            f"batch_size must be a multiple of grad_accum_steps; got {recipe.batch_size} and {recipe.grad_accum_steps}"
        )
    if recipe.warmup_epochs > recipe.epochs:
        raise ValueError(f"warmup_epochs must be no more than epochs; got {recipe.warmup_epochs:g} and {recipe.epochs}")
    if recipe.random_heights and recipe.anytime_weights and recipe.anytime_weights[0] == 0:
        raise ValueError(
            "anytime_weights must begin with a positive weight where random_heights may end every image of a batch at "
            f"the first level; got {list(recipe.anytime_weights)}"
        )
    if recipe.loss == "last" and (recipe.anytime_weights or recipe.distillation):
        raise ValueError('anytime_weights and distillation belong to loss="anytime"; got loss="last"')
    from timm.optim import list_optimizers

    if recipe.optimizer not in (names := cast("list[str]", list_optimizers())):
        raise ValueError(unknown_name("optimizer", recipe.optimizer, names, "timm.optim.list_optimizers() has all"))


# section 4 of the paper, with what it does not say from PyTorch's ImageNet example, which it builds on; SGD and its
# momentum, the steps of the learning rate, the weight decay and the jitter of colours are the defaults of a recipe
_PAPER = Recipe(lr=0.001, schedule="step", epochs=65, batch_size=256, decay_1d=True, interpolation="bicubic")

_FINETUNE = Recipe(
    optimizer="adamw",
    lr=3e-3,
    lr_backbone=0.3,
    lr_cell=0.1,
    lr_classifier=1.0,
    weight_decay=0.05,
    recurrence=0.25,
    identity_decay=0.05,
    schedule="cosine",
    warmup_epochs=1.0,
    epochs=20,
    batch_size=32,
    clip_grad=1.0,
    label_smoothing=0.1,
    crop_scale=(0.5, 1.0),
    color_jitter=0.0,
    ema_decay=0.995,
    loss="anytime",
)

_PROBE = Recipe(
    optimizer="adamw",
    lr=1e-2,
    lr_cell=0.02,
    weight_decay=0.05,
    decay_1d=True,
    recurrence=0.25,
    identity_decay=0.05,
    schedule="cosine",
    epochs=40,
    batch_size=256,
    loss="anytime",
    freeze_backbone=True,
)

PRESETS: dict[str, Recipe] = {"paper": _PAPER, "finetune": _FINETUNE, "probe": _PROBE}
