"""`python -m srnn_zoo.cli.run` starts a program as `python` does, and it and its children know every SRNN."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srnn_zoo.cli import run

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SCRIPT = '''"""A program."""
import json, multiprocessing, os, sys

names = sorted({*globals()} - {"__annotations__"})  # which some versions of Python make in advance


def note(who):
    facts = {"name": __name__, "file": __file__, "package": __package__, "doc": __doc__, "globals": names,
             "argv": sys.argv, "path": sys.path[0], "same": note is sys.modules["__main__"].note}
    if "plain" not in sys.argv:
        import timm, torchvision
        facts["timm"] = timm.is_model("srnn_resnet18")
        facts["torchvision"] = callable(torchvision.models.__dict__.get("srnn_resnet18"))
    with open(f"{who}.json", "w") as file:
        json.dump(facts, file)


def by_torch(rank, who):
    note(who)


def with_a_child_of_its_own(who):
    note(who)
    child = multiprocessing.get_context("spawn").Process(target=note, args=("grandchild",))
    child.start()
    child.join()


if __name__ == "__main__":
    note("parent")
    if "plain" not in sys.argv:
        import torch.multiprocessing
        os.makedirs("elsewhere")
        os.chdir("elsewhere")  # a child must find the program nevertheless
        torch.multiprocessing.spawn(by_torch, args=("../spawn",), nprocs=1)
        os.chdir("..")
        arguments, sys.argv[:] = sys.argv[:], ["another name"]  # and whatever a program does to its arguments
        child = multiprocessing.get_context("forkserver").Process(target=with_a_child_of_its_own, args=("forkserver",))
        child.start()
        child.join()
    sys.exit(7)
'''


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program and its children see, and what it sees under plain `python`."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "code").mkdir()
    (folder / "code" / "program.py").write_text(SCRIPT)
    found: dict[str, Any] = {}
    plain = python("code/program.py", "--lr", "0.1", "plain", cwd=folder)
    found["plain"] = {**json.loads((folder / "parent.json").read_text()), "status": plain.returncode}
    done = python("-m", "srnn_zoo.cli.run", "code/program.py", "--lr", "0.1", cwd=folder)
    for path in folder.glob("*.json"):
        found[path.stem] = json.loads(path.read_text())
    found["parent"]["status"] = done.returncode
    assert {"spawn", "forkserver", "grandchild"} <= found.keys(), done.stderr
    return found


def test_a_program_sees_what_it_sees_under_plain_python(facts: dict[str, Any]) -> None:
    assert facts["plain"]["argv"].pop() == "plain"
    assert facts["parent"] == {**facts["plain"], "timm": True, "torchvision": True}
    assert facts["parent"]["status"] == 7
    assert facts["parent"]["path"].endswith("code")


@pytest.mark.parametrize("child", ["spawn", "forkserver", "grandchild"])
def test_children_of_a_program_know_every_srnn_and_its_functions(facts: dict[str, Any], child: str) -> None:
    assert facts[child]["name"] == "__mp_main__"
    assert facts[child]["timm"]
    assert facts[child]["torchvision"]
    assert facts[child]["file"] == facts["parent"]["file"]
    assert facts[child]["same"]


def test_an_error_is_reported_with_the_line_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("import sys\n\nraise LookupError('no such flower')\n")
    done = python("-m", "srnn_zoo.cli.run", "wrong.py", cwd=tmp_path)
    assert done.returncode == 1
    assert f'File "{tmp_path / "wrong.py"}", line 3, in <module>' in done.stderr
    assert done.stderr.endswith("LookupError: no such flower\n")


def test_control_c_ends_a_program_as_it_ends_python(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "srnn_zoo.cli.run", "long.py"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def heed_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets its background jobs ignore them

    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, preexec_fn=heed_interrupts, **pipes) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == b"ready\n"
        p.send_signal(signal.SIGINT)
        _, error = p.communicate(timeout=30)
    assert p.returncode == -signal.SIGINT
    assert error.endswith(b"KeyboardInterrupt\n")


def test_a_module_is_run_with_its_package_and_children_find_it(tmp_path: Path) -> None:
    package = tmp_path / "flowers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "names.py").write_text("ROSE = 'rose'\n")
    (package / "train.py").write_text(
        "import multiprocessing, sys, timm\n"
        "from .names import ROSE\n"
        "def say(): print(ROSE, __name__, __package__, sys.argv, timm.is_model('srnn_resnet18'), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    say()\n"
        "    child = multiprocessing.get_context('spawn').Process(target=say)\n"
        "    child.start(); child.join()\n"
    )
    done = python("-W", "error::ImportWarning", "-m", "srnn_zoo.cli.run", "-m", "flowers.train", "7", cwd=tmp_path)
    argv = [str(package / "train.py"), "7"]
    assert done.stdout.splitlines() == [f"rose {name} flowers {argv} True" for name in ("__main__", "__mp_main__")], (
        done.stderr
    )


def test_a_package_in_the_scripts_folder_goes_before_an_installed_one(tmp_path: Path) -> None:
    installed = importlib.util.find_spec("typing_extensions")
    assert installed is not None
    assert installed.origin is not None
    folder = tmp_path / "code"
    folder.mkdir()
    shutil.copy(installed.origin, folder)
    (folder / "which.py").write_text(
        "import sys, typing_extensions\n"
        "print(typing_extensions.__file__, sys.argv[1:], sys.path[0], sys.flags.utf8_mode, __name__)\n"
    )
    done = python("-X", "utf8", "-m", "srnn_zoo.cli.run", "code/which.py", "-m", "b", cwd=tmp_path)
    assert done.stdout == f"{folder / 'typing_extensions.py'} ['-m', 'b'] {folder} 1 __main__\n", done.stderr


def test_torchrun_starts_a_program_by_it_on_several_processes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import os, sys, timm, torch\n"
        "import torch.distributed as dist\n"
        "torch.manual_seed(0)\n"
        "dist.init_process_group('gloo')\n"
        "model = timm.create_model('srnn_test_resnet', num_classes=2)\n"
        "ddp = torch.nn.parallel.DistributedDataParallel(model)\n"
        "x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(dist.get_rank()))\n"
        "ddp(x).square().sum().backward()\n"
        "norm = model.fc.weight.grad.norm()\n"
        "norms = [torch.zeros(()) for _ in range(2)]\n"
        "dist.all_gather(norms, norm)\n"
        "open(f'{dist.get_rank()}.txt', 'w').write(f'{sys.argv[1:]} {norms[0] == norms[1]} {norm > 0}')\n"
        "dist.barrier()\n"  # one that leaves while the other's gloo threads still work takes it down
        "del ddp\n"
        "dist.destroy_process_group()\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", "2"]
    done = python(*launcher, "-m", "srnn_zoo.cli.run", "train.py", "--lr", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["['--lr', '1'] True True"] * 2


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nowhere.py"], 2, "srnn_zoo.cli.run: there is no script nowhere.py\n"),
        (["-m", "nowhere"], 1, "srnn_zoo.cli.run: there is no module nowhere\n"),
        (["-m", "nowhere.at_all"], 1, "srnn_zoo.cli.run: there is no module nowhere.at_all\n"),
        (["-m", "json"], 1, "srnn_zoo.cli.run: there is no module json.__main__\n"),
        ([], 2, f"{run.USAGE}\n"),
        (["-m"], 2, f"{run.USAGE}\n"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    sentence: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert stopped.value.code == status
    assert capsys.readouterr().err == sentence


def test_help_says_how_it_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--help"])
    run.main()
    assert capsys.readouterr().out == f"{run.USAGE}\n"


def test_a_child_whose_parent_was_started_otherwise_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRNN_ZOO_RUN", raising=False)
    with pytest.raises(RuntimeError, match=r"start the program with `python -m srnn_zoo\.cli\.run`"):
        run.main_of_child()
