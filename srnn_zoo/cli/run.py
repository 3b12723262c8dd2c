"""`python -m srnn_zoo.cli.run train.py …`: any program, with every SRNN name known to timm and torchvision."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import subprocess
import sys
from importlib.abc import InspectLoader, Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, NoReturn, cast

USAGE = """usage: python -m srnn_zoo.cli.run script.py [argument ...]
       python -m srnn_zoo.cli.run -m package.module [argument ...]

Starts a program as `python script.py` does, with every SRNN registered with timm and torchvision:

  python -m srnn_zoo.cli.run train.py --model srnn_resnet18 photos/
  torchrun --nproc_per_node 2 -m srnn_zoo.cli.run train.py --model srnn_resnet18 photos/"""

_VARIABLE = "SRNN_ZOO_RUN"  # the program, for child processes: they inherit the environment
_RESTART = "import sys; sys.path[0] = sys.argv.pop(1); sys.path.append(sys.argv.pop(1)); from srnn_zoo.cli import run; run.main()"


class Program(NamedTuple):
    """A program that can be executed.

    Attributes:
        code: what it says.
        file: its absolute path.
        package: what its relative imports start from; None for a script.
        loader: for `__loader__`.
    """

    code: CodeType
    file: str
    package: str | None
    loader: Loader


class ProgramSpec(ModuleSpec):
    """The `__spec__` of `__main__`: its name makes multiprocessing import this module, and so the program, in a child.

    Attributes:
        parent: the program's package and not this module's, for the program's relative imports.
    """

    def __init__(self, program: Program) -> None:
        super().__init__("srnn_zoo.cli.run", program.loader, origin=program.file)
        self._parent = program.package or ""

    @property
    def parent(self) -> str:
        return self._parent


def main() -> None:
    """Execute the program that the command line names, as `__main__`."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not arguments or arguments == ["-m"]:
        _stop(USAGE)
    if arguments[0] == "-m":
        target = arguments[1]
        program = _load_module(target)
        sys.argv = [program.file, *arguments[2:]]
    else:
        target = str(Path(arguments[0]).absolute())
        if not Path(target).is_file():
            _stop(f"srnn_zoo.cli.run: there is no script {arguments[0]}")
        _use_folder_of(target, arguments)
        program = _load_script(target)
        sys.argv = arguments
    os.environ[_VARIABLE] = target
    _execute(program, "__main__")


def main_of_child() -> None:
    """Execute the parent's program as `__mp_main__`, as multiprocessing does in the children that it spawns.

    Raises:
        RuntimeError: if the parent's program was not started by `srnn_zoo.cli.run`.
    """
    target = os.environ.get(_VARIABLE)
    if target is None:
        raise RuntimeError(f"{_VARIABLE} is not set; start the program with `python -m srnn_zoo.cli.run`")
    program = _load_script(target) if Path(target).is_absolute() else _load_module(target)
    sys.argv[0] = program.file  # runpy has put this module's file there
    _execute(program, "__mp_main__")


def _execute(program: Program, name: str) -> None:
    """Run the code in the namespace of the module of that name, which is left as `python script.py` makes it."""
    from srnn_zoo.models.torchvision import register

    register()
    namespace = sys.modules[name].__dict__
    namespace.clear()
    namespace.update(
        __name__=name,
        __file__=program.file,
        __cached__=None,
        __doc__=None,
        __package__=program.package,
        __loader__=program.loader,
        __spec__=ProgramSpec(program),
        __builtins__=builtins,
    )
    # multiprocessing does not import the __main__.py of a package in a child either: few ask for their own name
    if name == "__main__" or program.package is None or Path(program.file).name != "__main__.py":
        exec(program.code, namespace)


def _load_script(path: str) -> Program:
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)  # without this file's __future__ imports
    return Program(code, path, None, SourceFileLoader("__main__", path))


def _load_module(name: str) -> Program:
    spec = _find_module(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = _find_module(name)
    loader = None if spec is None else cast(InspectLoader, spec.loader)
    code = None if loader is None else loader.get_code(name)
    if spec is None or loader is None or code is None or spec.origin is None:
        _stop(f"srnn_zoo.cli.run: there is no module {name}", 1)
    return Program(code, spec.origin, spec.parent, loader)


def _find_module(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise  # from inside one of the packages


def _use_folder_of(script: str, arguments: list[str]) -> None:
    """Make imports look in the script's folder first, where `python script.py` looks.

    A folder may have packages of its own that are imported here already, as the folder of timm's train.py has a timm.
    Then all is started again with that folder first, so that the program and its children import the same ones.
    """
    if getattr(sys.flags, "safe_path", sys.flags.isolated):
        return
    folder = str(Path(script).resolve().parent)
    if str(Path(sys.path[0]).resolve()) == folder:
        return
    home = str(Path(__file__).resolve().parents[2])
    if _shadows_imported_modules(folder):
        options = sys.orig_argv[1 : -len(arguments)]  # Python's own, and then -m srnn_zoo.cli.run, in one word or two
        del options[-1 if options[-1].startswith("-m") else -2 :]
        command = [sys.executable, *options, "-c", _RESTART, folder, home, *arguments]
        sys.stdout.flush()
        if os.name == "nt":  # which has no exec that keeps the process
            raise SystemExit(subprocess.run(command, check=False).returncode)
        os.execv(command[0], command)
    if str(Path(sys.path[0]).resolve()) == home:  # a checkout, found only because it is the current folder
        sys.path.append(home)
    sys.path[0] = folder


def _shadows_imported_modules(folder: str) -> bool:
    for entry in Path(folder).iterdir():
        name = entry.name.partition(".")[0]
        module: Any = sys.modules.get(name)
        if name == "__main__" or getattr(module, "__file__", None) is None:
            continue
        spec = PathFinder.find_spec(name, [folder])
        if spec is not None and spec.has_location and not Path(module.__file__).samefile(cast(str, spec.origin)):
            return True
    return False


def _stop(message: str, status: int = 2) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(status)


# this file also runs under the names that the program will have; what works on them is this module under its own name
if __name__ == "__main__":
    from srnn_zoo.cli.run import main as _main

    _main()
elif __name__ == "__mp_main__":
    from srnn_zoo.cli.run import main_of_child as _main

    _main()
