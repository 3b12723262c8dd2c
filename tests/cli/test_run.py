"""`python -m srnn_zoo.cli.run` starts a program as `python` does, and it and its children know every SRNN."""

import json
import runpy
import sys
from multiprocessing import spawn
from pathlib import Path

import pytest

from srnn_zoo.cli import run

from .command import TORCHRUN, python

SCRIPT = '''"""A program."""
import json, os, sys


def note(rank, who, starts_another=False):
    facts = {"name": __name__, "file": __file__, "package": __package__ or None, "doc": __doc__, "argv": sys.argv[1:],
             "path": sys.path[0], "same": note is sys.modules["__main__"].note}
    if "plain" not in sys.argv:
        import timm, torchvision
        facts["timm"] = timm.is_model("srnn_resnet18")
        facts["torchvision"] = callable(torchvision.models.__dict__.get("srnn_resnet18"))
    with open(f"{who}.json", "w") as file:
        json.dump(facts, file)
    if starts_another:
        import torch.multiprocessing
        torch.multiprocessing.spawn(note, ("grandchild",))


if __name__ == "__main__":
    note(0, "parent")
    os.makedirs("elsewhere")
    os.chdir("elsewhere")  # a child must find the program nevertheless
    start_method = sys.argv[-1]
    if start_method != "plain":
        import torch.multiprocessing
        sys.argv[:] = ["another name"]  # whatever a program does to its arguments
        arguments = ("../child", start_method == "forkserver")
        torch.multiprocessing.start_processes(note, arguments, start_method=start_method)
    sys.exit(7)
'''


def facts_of_program(folder, *command):
    """What a program and its children see, and its exit status."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "program.py").write_text(SCRIPT)
    done = python(*command, cwd=folder)
    assert done.returncode == 7, done.stderr
    return {path.stem: json.loads(path.read_text()) for path in folder.rglob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_program_sees_what_it_sees_under_plain_python_and_so_do_its_children(tmp_path, start_method):
    arguments = ["code/program.py", "--lr", "0.1"]
    plain = facts_of_program(tmp_path / "plain", *arguments, "plain")["parent"]
    facts = facts_of_program(tmp_path / "run", "-m", "srnn_zoo.cli.run", *arguments, start_method)
    file = str(tmp_path / "run" / "code" / "program.py")
    known = {"timm": True, "torchvision": True, "file": file, "path": str(Path(file).parent)}
    assert facts["parent"] == {**plain, **known, "argv": ["--lr", "0.1", start_method]}
    assert facts.keys() == {"parent", "child"} | ({"grandchild"} if start_method == "forkserver" else set())
    for child in facts.keys() - {"parent"}:
        assert facts[child]["name"] == "__mp_main__"
        assert facts[child]["same"]
        assert {key: facts[child][key] for key in known} == known


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Start a program in this process."""
    monkeypatch.setattr(spawn, "get_preparation_data", spawn.get_preparation_data)  # restored at the end
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRNN_ZOO_RUN", "")

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        run.main()

    return start


@pytest.mark.parametrize(("module", "file"), [("flowers.train", "train.py"), ("flowers", "__main__.py")])
def test_a_module_is_run_with_its_package_and_a_child_imports_it(start, module, file, tmp_path, monkeypatch):
    package = tmp_path / "flowers"
    package.mkdir()
    (package / "__init__.py").write_text("seen = []\n")
    text = "import sys\nfrom . import seen\nseen.append((__name__, __package__, [*sys.argv]))\n"
    (package / "train.py").write_text(f"{text}def say(): pass\n")
    (package / "__main__.py").write_text(text)
    start("-m", module, "7")
    assert sys.modules.pop("flowers").seen == [("__main__", "flowers", [str(package / file), "7"])]
    # what multiprocessing does in a process that it spawns
    name = f"{module}.__main__" if module == "flowers" else module
    prepared = run._preparation_data("child", lambda _: {"init_main_from_name": name})
    assert prepared == {"init_main_from_name": "srnn_zoo.cli.run"}
    monkeypatch.delitem(sys.modules, "srnn_zoo.cli.run")
    main = runpy.run_module("srnn_zoo.cli.run", run_name="__mp_main__", alter_sys=True)
    if module == "flowers":  # multiprocessing imports no __main__.py of a package
        assert "seen" not in main
    else:
        assert main["seen"][0][:2] == ("__mp_main__", "flowers")
        assert main["say"].__module__ == "__mp_main__"
    sys.modules.pop("flowers", None)


def test_an_error_is_reported_with_the_line_of_the_program(start, tmp_path):
    (tmp_path / "wrong.py").write_text("import sys\n\nraise LookupError('no such flower')\n")
    with pytest.raises(LookupError, match="no such flower") as caught:
        start("wrong.py")
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno) == (tmp_path / "wrong.py", 2)
    (tmp_path / "needy.py").write_text("import no_such_flower\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_flower"):
        start("-m", "needy")


@pytest.mark.slow
def test_torchrun_starts_a_program_by_it_on_several_processes(tmp_path):
    write = "print(sys.argv[1:], timm.is_model('srnn_resnet18'), file=open(os.environ['RANK'], 'w'))"
    (tmp_path / "train.py").write_text(f"import os, sys, timm\n{write}")
    done = python(*TORCHRUN, "-m", "srnn_zoo.cli.run", "train.py", "--lr", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["['--lr', '1'] True\n"] * 2


def test_what_cannot_be_run_is_said_in_a_sentence_and_help_says_how(start, tmp_path, capsys):
    (tmp_path / "checkout" / "timm").mkdir(parents=True)
    for file in ("timm/__init__.py", "train.py"):
        (tmp_path / "checkout" / file).touch()
    for arguments, message in (
        (["nowhere.py"], "srnn_zoo.cli.run: there is no script nowhere.py"),
        (["checkout/train.py"], r"checkout has a timm of its own: start train\.py from that folder"),
        (["-m", "nowhere"], "srnn_zoo.cli.run: No module named nowhere"),
        (["-m", "nowhere.at_all"], "srnn_zoo.cli.run: .*No module named 'nowhere'"),
        (["-m", "json"], r"srnn_zoo.cli.run: No module named json\.__main__; 'json' is a package and cannot be"),
        ([], "^usage: python -m srnn_zoo.cli.run script.py"),
        (["-m"], "^usage: python -m srnn_zoo.cli.run script.py"),
    ):
        with pytest.raises(SystemExit, match=message):
            start(*arguments)
    start("--help")
    assert capsys.readouterr().out == f"{run.USAGE}\n"
