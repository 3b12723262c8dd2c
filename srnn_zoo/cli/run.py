"""`python -m srnn_zoo.cli.run train.py …`: any program, with every SRNN name known to timm and torchvision."""

from __future__ import annotations

import os
import runpy
import sys
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import timm

from srnn_zoo.models.torchvision import register

USAGE = """usage: python -m srnn_zoo.cli.run script.py [argument ...]
       python -m srnn_zoo.cli.run -m package.module [argument ...]

Starts a program as `python script.py` does, with every SRNN registered with timm and torchvision:

  python -m srnn_zoo.cli.run train.py --model srnn_resnet18 images/
  torchrun --nproc_per_node 2 -m srnn_zoo.cli.run train.py --model srnn_resnet18 images/"""

_PROGRAM = "SRNN_ZOO_RUN"  # environment variable: what a process that multiprocessing spawns must import


def main() -> None:
    """Run the program that the command line names."""
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(USAGE)
        return
    is_module = sys.argv[1:2] == ["-m"]
    sys.argv = sys.argv[2 if is_module else 1 :]
    if not sys.argv:
        sys.exit(USAGE)
    program = sys.argv[0] if is_module else _script(sys.argv[0])
    try:
        run(program, "__main__")
    except ImportError as error:
        if not is_module or error.name is not None:  # one of the program's own
            raise
        sys.exit(f"srnn_zoo.cli.run: {error}")


def run(program: str, name: str) -> dict[str, Any]:
    """Run a script (an absolute path) or a module as the module `name`; what it spawns will know every SRNN too."""
    register()
    spawn.get_preparation_data = _preparation_data
    if Path(program).is_absolute():
        return runpy.run_path(program, run_name=name)
    return runpy.run_module(program, run_name=name, alter_sys=True)


def _script(name: str) -> str:
    """The absolute path of a script; its folder becomes the first to import from."""
    script = Path(name).resolve()
    if not script.is_file():
        sys.exit(f"srnn_zoo.cli.run: there is no script {name}")
    own_timm = script.parent / "timm" / "__init__.py"
    if own_timm.is_file() and not own_timm.samefile(timm.__file__):
        sys.exit(f"srnn_zoo.cli.run: {script.parent} has a timm of its own: start {script.name} from that folder")
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, str(script.parent))
    return str(script)


def _preparation_data(name: str, original: Any = spawn.get_preparation_data) -> dict[str, Any]:
    """What multiprocessing tells a child: to import this module as its main one, and by it the program."""
    data = original(name)
    os.environ[_PROGRAM] = data.pop("init_main_from_path", None) or data["init_main_from_name"]
    return {**data, "init_main_from_name": "srnn_zoo.cli.run"}


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in a process that multiprocessing has spawned
    # it imports no __main__.py of a package, as few of them ask for their own name
    if os.environ[_PROGRAM].endswith(".__main__"):
        register()
    else:
        globals().update(run(os.environ[_PROGRAM], "__mp_main__"))
