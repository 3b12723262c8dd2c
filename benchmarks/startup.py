"""How long commands take that need no network: whole processes, in turn, in wall seconds and in CPU seconds.

The ratio is that of the CPU seconds to those of `import timm`, round by round; other work on the machine lengthens the
wall seconds. A light command may take half a second, `list` and `info` little more than `import timm`.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _common import ROOT, Row, alternate, parser, report

OURS = (sys.executable, "-m", "srnn_zoo.cli")
TIMM = "python -c 'import timm'"
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "srnn-zoo --version": (*OURS, "--version"),
    "srnn-zoo --help": (*OURS, "--help"),
    "srnn-zoo train --help": (*OURS, "train", "--help"),
    "srnn-zoo trian": (*OURS, "trian"),
    "srnn-zoo train": (*OURS, "train"),
    "srnn-zoo tr<TAB>": OURS,
    "python -c 'import srnn_zoo'": (sys.executable, "-c", "import srnn_zoo"),
    "python -c 'import torch'": (sys.executable, "-c", "import torch"),
    TIMM: (sys.executable, "-c", "import timm"),
    "srnn-zoo list": (*OURS, "list"),
    "srnn-zoo info srnn_resnet18": (*OURS, "info", "srnn_resnet18"),
    "hf --help": ("hf", "--help"),  # what other libraries that we use bring along
    "accelerate --help": ("accelerate", "--help"),
    "torchrun --help": ("torchrun", "--help"),
}
COMPLETE = {"_SRNN_ZOO_COMPLETE": "complete_bash", "COMP_WORDS": "srnn-zoo tr", "COMP_CWORD": "1"}


class Process:
    """A command that runs to its end in a process of its own.

    Attributes:
        wall_seconds: of every run.
    """

    def __init__(self, name: str, command: tuple[str, ...]) -> None:
        """Take a command of `COMMANDS`."""
        self.wall_seconds: list[float] = []
        self._command = command
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._environment = {**os.environ, "PYTHONPATH": path, **(COMPLETE if "TAB" in name else {})}

    def __call__(self) -> None:
        start = time.perf_counter()
        subprocess.run(self._command, env=self._environment, capture_output=True, check=False)
        self.wall_seconds.append(time.perf_counter() - start)


def main() -> None:
    options = parser(__doc__, "startup.csv", rounds=11)
    options.add_argument("--light", action="store_true", help="leave out what imports timm, except `import timm`")
    args = options.parse_args()
    beside = Path(sys.executable).parent
    processes: dict[str, Process] = {}
    for name, (program, *rest) in COMMANDS.items():
        heavy = name.startswith(("srnn-zoo list", "srnn-zoo info", "torchrun", "accelerate"))
        found = shutil.which(program) or shutil.which(beside / program)
        if found and not (args.light and heavy):
            processes[name] = Process(name, (found, *rest))
    turns = alternate(processes, args.rounds, clock=children_cpu_seconds)
    rows: list[Row] = []
    for name, process in processes.items():
        rows.append(
            {
                "command": name,
                "rounds": args.rounds,
                "wall_s": f"{statistics.median(process.wall_seconds[1:]):.3f}",
                "cpu_s": f"{turns.median(name):.3f}",
                **turns.ratio(name, TIMM).columns(),
            }
        )
    report(rows, args.csv)


def children_cpu_seconds() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
