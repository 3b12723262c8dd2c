"""The command itself: its commands register here, and whatever a user can put right is said in one line."""

from __future__ import annotations

import io
import sys
from typing import Annotated, NoReturn

import typer

__all__ = ["app", "fail", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Scale-recurrent networks over any timm backbone.",
)


def main() -> None:
    """Entry point of the command; whatever a user can put right is said in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the terminal's encoding does not
    try:
        app()
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except OSError as error:  # a full disk
        fail(str(error), code=1)


def _version(show: bool) -> None:
    if show:
        from srnn_zoo.weights.saved import package_version

        typer.echo(f"srnn-zoo {package_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def fail(message: str, code: int = 2) -> NoReturn:
    """Say why in one line on stderr, and exit."""
    typer.echo(f"srnn-zoo: {' '.join(message.splitlines())}", err=True)
    raise SystemExit(code)
