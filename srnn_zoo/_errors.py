"""Errors, and error messages that more than one place gives."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeightsUnavailableError(RuntimeError):
    """Weights are neither on this machine nor available from the network now, or cannot be read."""


def unknown_name(kind: str, name: str, choices: Iterable[str], listing: str = "") -> str:
    """`unknown model 'x'; did you mean 'y'?`; or all choices, if none is close and they are few."""
    choices = sorted(choices)
    longer = [choice for choice in choices if name and choice.startswith(name)]
    close = longer[:3] or difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if close:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(repr(c) for c in close)}?"
    if len(choices) <= 20:
        return f"unknown {kind} {name!r}; choose one of {', '.join(choices)}"
    return f"unknown {kind} {name!r}; {listing or 'no name is close to it'}"


def missing_extra(package: str, extra: str, purpose: str) -> ImportError:
    """The error for an optional package that is not installed."""
    return ImportError(f'{purpose} needs {package}: pip install "srnn-zoo[{extra}]"')
