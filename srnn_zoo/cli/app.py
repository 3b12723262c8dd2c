"""The command itself, and what its commands share: how they end, and their options."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from srnn_zoo._memory import keep_freed_memory

if TYPE_CHECKING:
    pass

CommandT = TypeVar("CommandT", bound=Callable[..., None])

TRACEBACK = "SRNN_ZOO_TRACEBACK"  # an environment variable: shows where an unexpected error comes from
DEFAULT_MODEL = "srnn_tf_efficientnet_lite0"
WORKERS = min(4, os.cpu_count() or 1)

UsageError: Any = typer.BadParameter.__base__  # click's, or typer's own copy of it

_app = typer.Typer(
    pretty_exceptions_enable=False,
    help="Scale-recurrent networks over any timm backbone.",
)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command: a path may hold what the terminal's encoding does not."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    earlier = signal.signal(signal.SIGINT, _interrupt)
    try:
        with plain_words():
            words = list(sys.argv[1:] if args is None else args)
            code = _app(words or ["--help"], prog_name="srnn-zoo", standalone_mode=False)
    finally:
        signal.signal(signal.SIGINT, earlier)
    if code:
        raise SystemExit(code)


def _interrupt(*_: Any) -> NoReturn:
    """Ctrl-C, remembered: modules that are being loaded make other errors of it."""
    _interrupts.append(True)
    raise KeyboardInterrupt


_interrupts: list[bool] = []


def command(name: str | None = None) -> Callable[[CommandT], CommandT]:
    """Decorator: makes a function a command, in `plain_words`."""

    def register(function: CommandT) -> CommandT:
        _app.command(name)(plain_words()(function))
        return function

    return register


@contextmanager
def plain_words() -> Iterator[None]:
    """Every error in the body ends the program in one line, and its warnings are lines too.

    The exit code is 2 for what the user can put right, 1 for work that failed, and 130 after Ctrl-C.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        except BrokenPipeError:  # the reader left early, which is no error
            raise
        except KeyboardInterrupt:
            fail("interrupted", code=130)
        except Exception as error:
            fail(*(("interrupted", 130) if _interrupts else _reason(error)))


@contextmanager
def about(option: str) -> Iterator[None]:
    """Errors in the body are about this option: its name stands before the reason."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        fail(f"{option}: {error}")


def fail(message: str, code: int = 2) -> NoReturn:
    """Say why in one line on stderr, and exit."""
    say(f"srnn-zoo: {message}")
    raise SystemExit(code)


def say(message: str) -> None:
    """One line on stderr, above a progress bar."""
    line = " ".join(message.splitlines())
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:  # no bar can be there, and a typing error need not wait for tqdm
        print(line, file=sys.stderr)


def report_skipped(reasons: Sequence[str], total: int, more: int = 0) -> None:
    """List what could not be read, and exit with 1 then; of more images there is no room for the reasons."""
    if not reasons:
        return
    say(f"skipped {len(reasons) + more} of {total} images:")
    for reason in reasons:
        say(f"  {reason}")
    if more:
        say(f"  and {more} more")
    raise SystemExit(1)


def check_plot(option: str, file: Path | None) -> None:
    """Fail before the work, not after it."""
    if file is not None:
        from srnn_zoo.evaluation.plot import check_plot_file

        with about(option):
            check_plot_file(file)


def _reason(error: Any) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, UsageError):
        message = error.format_message()
        return f"{message}{'' if message.endswith(('.', '?')) else '.'} See `{error.ctx.command_path} --help`.", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return "out of memory; a smaller --batch-size or smaller --sizes may fit", 2
    if isinstance(error, ValueError | TypeError | ImportError | FileNotFoundError | FileExistsError):
        return str(error), 2
    if isinstance(error, OSError | FloatingPointError):  # a full disk, a loss that is not finite
        return str(error), 1
    if TRACEBACK in os.environ:
        raise error
    return f"unexpected {type(error).__name__}: {error}; with {TRACEBACK}=1 in the environment it shows where", 1


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):  # others are for developers
        say(f"warning: {message}")


def _import(context: typer.Context, names: list[str] | None) -> None:
    """Import modules of the user, from the current folder too, so that what they register is known."""
    if context.resilient_parsing:  # a shell asks how a line may go on
        return
    if names and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names or ():
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever the user's own code raises
            fail(f"--import: cannot import {name!r} ({type(error).__name__}: {error})")


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"srnn-zoo {version('srnn-zoo')}")
        raise typer.Exit


@_app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# the groups of options in a command's help
DATA, MODEL, RECIPE, OUTPUT, MACHINE = "Images", "Model", "Training", "Output", "Machine"

DataArgument = Annotated[
    str,
    typer.Argument(
        help="Folder of class folders (DATA/CLASS/image.jpg), .tar of one, a run's split.json, or timm's hfds/food101.",
        show_default=False,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Subfolder of DATA, or timm's split, such as test.", rich_help_panel=DATA),
]
DataDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the files of timm's data sets are.", rich_help_panel=DATA)
]
ValFractionOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=DATA,
        help="Hold out this share of each class's images, such as 0.2, where there is no validation split.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Name of a model (`srnn-zoo list`), folder of a saved one, or Hub id.",
    ),
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        "--variant",
        "-v",
        metavar="NAME",
        rich_help_panel=MODEL,
        help="What happens between two scales.",
        show_default="half_gru, or as saved",
    ),
]
ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        rich_help_panel=MODEL,
        callback=_import,
        help="Module with cells or exit rules of your own. Repeatable.",
    ),
]
SizesOption = Annotated[
    str | None,
    typer.Option(
        "--sizes",
        metavar="SIZES",
        rich_help_panel=MODEL,
        help="Sizes of the levels in pixels, smallest first: 224,448.",
    ),
]
ZoomsOption = Annotated[
    str | None,
    typer.Option(
        "--zooms",
        metavar="ZOOMS",
        rich_help_panel=MODEL,
        help="What levels show: 1,1.6 is all of an image, then a part 1.6 times as large.",
    ),
]
ViewsOption = Annotated[
    str | None,
    typer.Option(
        "--views",
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Where a zoom looks: center, or attention, where the level before saw its answer.",
        show_default="center",
    ),
]
ExactOption = Annotated[
    bool,
    typer.Option("--exact", rich_help_panel=MODEL, help="Decode and resize as Pillow does: slower, to the grey level."),
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel=MACHINE, help="Images read at a time.")
]
WorkersOption = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", rich_help_panel=MACHINE, help="Processes that read images; 0 for none beside this one."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", rich_help_panel=MACHINE, help="Such as cpu or cuda:0; by default a GPU if there is one."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON: one object a line.")]
PlotOption = Annotated[
    Path | None, typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Draw to this file (.png, .pdf, …).")
]
