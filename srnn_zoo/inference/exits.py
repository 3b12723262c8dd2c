"""Exit rules: after a level, which images are sure enough to stop; and the registry that knows them by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from srnn_zoo._errors import unknown_name
from srnn_zoo.models.temperatures import fit_temperatures

NEVER = 2.0  # a threshold above every score


class Decision(NamedTuple):
    """What a rule decides on: N images that have read a level and could read another one.

    In a batch of mixed heights the images with most levels come first.

    Attributes:
        level: index of the level, 0 for the smallest.
        logits: `(N, K)` after it.
        answers: the class after every level so far, `(N, level + 1)`.
        gmacs: what the levels so far have cost the whole batch, in billions of multiply-accumulates.
        next_gmacs: what the next level will cost, if all N images read it.
        elapsed: gives the seconds since the batch began, once the device has done what it was given.
        temperature: what the model divides these logits by where probabilities are made.
    """

    level: int
    logits: Tensor
    answers: Tensor
    gmacs: float
    next_gmacs: float
    elapsed: Callable[[], float]
    temperature: float = 1.0


ExitRule = Callable[[Decision], Tensor | bool]
"""Which images stop: a bool tensor `(N,)`, or one bool for all."""

RuleT = TypeVar("RuleT", bound="type[Any]")

_EXITS: dict[str, tuple[type[Any], float]] = {}  # the class of every rule, and the example for messages


def register_exit(name: str, example: float = 0.5) -> Callable[[RuleT], RuleT]:
    """Class decorator: makes an exit rule available by name, in `Anytime(model, "name:0.5")` and in the command.

    The class takes one value, and its objects are called with a `Decision`. The rules that subclass `ScoreRule` also
    take several thresholds (`name:0.9,0.8`), and `calibrate(rule=name)` finds these.

    Args:
        name: what stands before the colon.
        example: a value for messages; where it is an int, only whole numbers are accepted.

    Examples:
        >>> @register_exit("first", example=0.9)
        ... class First(ScoreRule):
        ...     def score(self, probabilities):
        ...         return probabilities[:, 0]
        >>> exit_rule("first:0.8")
        First(0.8)

    Raises:
        ValueError: if another class already holds the name.
    """

    def register(cls: RuleT) -> RuleT:
        holder, ours = (f"{c.__module__}.{c.__qualname__}" for c in (_EXITS.get(name, (cls,))[0], cls))
        if holder != ours:
            raise ValueError(f"exit rule {name!r} is already registered by {holder}; choose another name")
        if issubclass(cls, ScoreRule):
            cls.name = name
        _EXITS[name] = (cls, example)
        return cls

    return register


def list_exits(scored: bool = False) -> list[str]:
    """The registered exit rules, in the order they were registered.

    Args:
        scored: whether to list only those whose thresholds `calibrate` can find.
    """
    return [name for name, (rule, _) in _EXITS.items() if not scored or issubclass(rule, ScoreRule)]


def exit_rule(text: str) -> ExitRule:
    """A rule from its text: `confidence:0.9`, `margin:0.5`, `entropy:0.8`, `patience:2`, `level:0`, `deadline:50`.

    Several thresholds, one for every level but the last, have commas between: `confidence:0.9,0.8`.

    Raises:
        ValueError: for an unknown rule, with the closest names, and a value that is not a number or is out of range.
    """
    name, _, value = text.partition(":")
    if name not in _EXITS:
        raise ValueError(unknown_name("exit rule", name, _EXITS))
    rule, example = _EXITS[name]
    such_as = f"such as {name}:{example:g}"
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError(f"exit rule {name} takes a number after a colon, {such_as}") from None
    if issubclass(rule, ScoreRule):
        return rule(numbers if len(numbers) > 1 else numbers[0])
    if len(numbers) > 1 or not numbers[0] < float("inf"):
        raise ValueError(f"exit rule {name} takes one number, {such_as}; got {value!r}")
    if isinstance(example, int) and not numbers[0].is_integer():
        raise ValueError(f"exit rule {name} takes a whole number, {such_as}; got {value!r}")
    return rule(type(example)(numbers[0]))


def score_rule(name: str) -> type[ScoreRule]:
    """The class of a rule that has a score, by name.

    Raises:
        ValueError: for any other name, with the closest ones.
    """
    if name not in list_exits(scored=True):
        raise ValueError(unknown_name("rule", name, list_exits(scored=True)))
    return _EXITS[name][0]


def stored_rule(model: Any, thresholds: Sequence[float] | None = None) -> ScoreRule:
    """The rule that `calibrate` stored in an SRNN's metadata, with its thresholds or these.

    Raises:
        ValueError: if there is none, or if no class is registered for it.
    """
    stored: dict[str, Any] | None = model.metadata.get("exit")
    if not stored:
        raise ValueError('the model was never calibrated: give exit="confidence:0.9", or use srnn_zoo.calibrate')
    name, module = stored["rule"], stored.get("module", "")
    if module and name not in list_exits(scored=True):
        raise ValueError(
            f"the model was calibrated with rule {name!r} of module {module}: import it first "
            f"(on the command line --import {module})"
        )
    values = stored["thresholds"] if thresholds is None else thresholds
    return score_rule(name)(values, stored["temperatures"], **stored.get("fitted", {}))


def check_rule(rule: ExitRule, task: str) -> None:
    """Raise an error for a rule of classes where the model gives several labels at once, or numbers."""
    if task != "classification" and isinstance(rule, ScoreRule | Patience):
        name = type(rule).__name__.lower()
        raise ValueError(
            f"exit rule {name} looks at one class an image, and this model is for {task}: use level:0, deadline:50 or "
            "a function of your own"
        )


class ScoreRule:
    """Stop where a score in [0, 1] reaches the level's threshold; above 1 nothing stops, at 0 everything does.

    Images whose logits are not finite never stop.

    Args:
        threshold: for every level but the last, or one for all.
        temperatures: the logits of every level are divided by its own; by default by the model's (`SRNN.temperature`).

    Raises:
        ValueError: for thresholds that are negative or no numbers, and temperatures that are not positive.
    """

    name = ""

    def __init__(self, threshold: float | Sequence[float], temperatures: Sequence[float] | None = None) -> None:
        self.thresholds = tuple(map(float, threshold)) if isinstance(threshold, Sequence) else float(threshold)
        self.temperatures = None if temperatures is None else tuple(map(float, temperatures))
        values = self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)
        if not values or not all(value >= 0 for value in values):
            raise ValueError(f"thresholds must be 0 or more, above 1 to stop nothing; got {threshold!r}")
        if self.temperatures is not None and not all(0 < t < float("inf") for t in self.temperatures):
            raise ValueError(f"temperatures must be positive; got {temperatures!r}")

    def __call__(self, decision: Decision) -> Tensor:
        temperature = decision.temperature if self.temperatures is None else self.temperatures[decision.level]
        probabilities = (decision.logits.float() / temperature).softmax(dim=1)
        return self.score_after(decision.level, probabilities) >= self.threshold(decision.level)

    def threshold(self, level: int) -> float:
        """The threshold of a level."""
        return self.thresholds[level] if isinstance(self.thresholds, tuple) else self.thresholds

    def score(self, probabilities: Tensor) -> Tensor:
        """How sure probabilities `(N, K)` are, `(N,)` in [0, 1]; NaN never stops an image."""
        raise NotImplementedError

    def score_after(self, level: int, probabilities: Tensor) -> Tensor:
        """The score after a level; by default it does not depend on which."""
        return self.score(probabilities)

    @classmethod
    def fit(cls, logits: Tensor, targets: Tensor) -> ScoreRule:
        """A rule that stops nothing, with what it learns from held-out images; by default temperatures.

        Args:
            logits: of every level, `(L, N, K)`.
            targets: class indices `(N,)`.
        """
        return cls(NEVER, fit_temperatures(logits, targets))

    def fitted(self) -> dict[str, Any]:
        """What `fit` has learnt besides temperatures, in JSON's types: arguments of the constructor."""
        return {}

    def check(self, num_levels: int, mixed: bool = False) -> None:
        """Refuse a number of thresholds or temperatures that is not the levels'; of mixed heights, one that is less."""
        each = f"{num_levels - 1} thresholds, one for every level but the last, or one number for all"
        for values, wanted, needed in (
            (self.thresholds, num_levels - 1, each),
            (self.temperatures, num_levels, "as many temperatures"),
        ):
            if isinstance(values, tuple) and (len(values) < wanted or (len(values) > wanted and not mixed)):
                raise ValueError(f"{num_levels} levels need {needed}; got {len(values)}")

    def __repr__(self) -> str:
        temperatures = f", temperatures={self.temperatures}" if self.temperatures is not None else ""
        return f"{type(self).__name__}({self.thresholds}{temperatures})"


@register_exit("confidence", example=0.9)
class Confidence(ScoreRule):
    """The probability of the answer."""

    def score(self, probabilities: Tensor) -> Tensor:
        return probabilities.amax(dim=1)


@register_exit("margin", example=0.5)
class Margin(ScoreRule):
    """How far the answer's probability is above the next one's; 1 where there is one class only."""

    def score(self, probabilities: Tensor) -> Tensor:
        first, second = pad(probabilities, (0, 1)).topk(2, dim=1).values.unbind(dim=1)
        return first - second


@register_exit("entropy", example=0.8)
class Entropy(ScoreRule):
    """1 - H / log K: 1 where the model is certain, 0 where all classes are equally likely."""

    def score(self, probabilities: Tensor) -> Tensor:
        return 1 - torch.special.entr(probabilities).sum(dim=1) / math.log(max(probabilities.shape[1], 2))


@register_exit("patience", example=2)
class Patience:
    """Stop where the last `count` levels, 2 or more, gave the same answer."""

    def __init__(self, count: int = 2) -> None:
        if count < 2:
            raise ValueError(f"patience compares 2 levels or more; got {count}")
        self.count = int(count)

    def __call__(self, decision: Decision) -> Tensor:
        recent = decision.answers[:, -self.count :]
        return (recent == recent[:, -1:]).all(dim=1) & (recent.shape[1] == self.count)


@register_exit("level", example=0)
class FixedLevel:
    """Stop after a level, 0 for the smallest, whatever the answer."""

    def __init__(self, level: int) -> None:
        if level < 0:
            raise ValueError(f"levels count from 0, the smallest; got {level}")
        self.level = int(level)

    def __call__(self, decision: Decision) -> bool:
        return decision.level >= self.level


@register_exit("deadline", example=50.0)
class Deadline:
    """Stop a batch when the next level would end too late, in milliseconds, at the speed of the levels so far.

    The first level is always read.
    """

    def __init__(self, milliseconds: float) -> None:
        if not milliseconds > 0:
            raise ValueError(f"a deadline is a positive number of milliseconds; got {milliseconds}")
        self.seconds = float(milliseconds) / 1000

    def __call__(self, decision: Decision) -> bool:
        return decision.elapsed() * (1 + decision.next_gmacs / decision.gmacs) > self.seconds
