"""The command for tests: in this process, or as a user runs it."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import skimage

from srnn_zoo import cli
from tests.conftest import ROOT

CAT, COFFEE = (Path(skimage.__file__).parent / "data" / name for name in ("chelsea.png", "coffee.png"))
COMMAND = (sys.executable, "-m", "srnn_zoo.cli")
TORCHRUN = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc_per_node 2".split()


class Said(NamedTuple):
    """What the command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def reason(self):
        """Stderr without its line breaks."""
        return " ".join(self.err.split())


def run(*args, encoding="utf-8", traceback=True, columns=200):
    """The command in this process; unless told otherwise, an unexpected error fails the test."""
    code = 0
    environment = {"COLUMNS": str(columns), **({"SRNN_ZOO_TRACEBACK": "1"} if traceback else {})}
    out = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.dict(os.environ, environment):
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    for stream in (out, err):
        stream.seek(0)
    return Said(code, out.read(), err.read())


def refused(*args):
    """The reason for which the command refuses to start."""
    said = run(*args)
    assert said.code == 2, said
    assert said.out == ""
    return said.reason


def python(*arguments, cwd=ROOT, timeout=180):
    """A new Python with these arguments; what it said, and its exit code."""
    command, environment = [sys.executable, *map(str, arguments)], {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {"env": os.environ | environment, "capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run(command, cwd=cwd, check=False, **options)
