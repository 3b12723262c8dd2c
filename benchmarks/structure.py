"""How the package is built: files, lines, imports that run up, circles, and how far four ordinary calls walk.

Give it one checkout or several, to compare them: `git worktree add ../before REVISION`, then
`python benchmarks/structure.py ../before .`. Every figure is of the checkout's own code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

FLOORS = (("_errors",), ("transforms", "weights"), ("datasets", "models"), ("inference", "training"))
FLOORS += (("evaluation",), ("cli",), ("__init__",))

# what a user calls; `work` is a folder with images and a saved model
CALLS = {
    "predict IMAGE --exit": "command('predict', cat, '--exit', 'confidence:0.5')",
    "create_model(pretrained=True)": "srnn_zoo.create_model('srnn_tf_efficientnet_lite0', pretrained=True)",
    "from_pretrained(FOLDER)": "srnn_zoo.SRNN.from_pretrained(work + '/saved')",
    "train FOLDER": "command('train', work + '/images', '--output', work + '/run', '--model', 'srnn_test_resnet', "
    "'--no-pretrained', '--sizes', '32,64', '--epochs', '1', '--set', 'batch_size=2', '--workers', '0', '--cpu')",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path()], help="folders that hold srnn_zoo/")
    parser.add_argument("--measure", choices=("imports", *CALLS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured = imports() if arguments.measure == "imports" else walk(CALLS[arguments.measure])
        print(json.dumps(measured))
        return
    figures = [measure(folder) for folder in arguments.checkouts]
    names = list(dict.fromkeys(name for column in figures for name in column))
    titles = [folder.absolute().name for folder in arguments.checkouts]
    columns = list(zip(titles, figures, strict=True))
    rows = [{"figure": name, **{title: column.get(name, "") for title, column in columns}} for name in names]
    from _common import RESULTS, report

    report(rows, RESULTS / "structure.csv")


def measure(checkout: Path) -> dict[str, Any]:
    """All figures of a checkout."""
    package = checkout / "srnn_zoo"
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(package.rglob("*.py"))}
    at_root = {path.stem for path in lines if path.parent == package}
    folders = sorted({path.parent.name for path in lines if path.parent != package})
    found: dict[str, Any] = {"files at the root": len(at_root), "folders": len(folders)}
    found["lines"] = sum(lines.values())
    found["lines at the root"] = sum(count for path, count in lines.items() if path.parent == package)
    for name in folders:
        found[f"lines in {name}/"] = sum(count for path, count in lines.items() if path.parent.name == name)
    tests = checkout / "tests"
    found["lines of tests"] = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tests.rglob("*.py"))
    found |= _in_checkout(checkout, "imports")
    for name in CALLS:
        files, calls = _in_checkout(checkout, name)
        found[f"{name}: files entered"] = files
        found[f"{name}: calls between files"] = calls
    return found


def _in_checkout(checkout: Path, what: str) -> Any:
    """A measurement in a process of its own that imports the checkout's package."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", what]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} in {checkout} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def imports() -> dict[str, int]:
    """Imports between files, those inside functions and for type checking included."""
    import grimp
    import networkx

    graph = grimp.build_graph("srnn_zoo", cache_dir=None)
    arrows = networkx.DiGraph()
    for module in graph.modules:
        arrows.add_edges_from((module, other) for other in graph.find_modules_directly_imported_by(module))
    circles = [circle for circle in networkx.strongly_connected_components(arrows) if len(circle) > 1]
    parents = [module for module in graph.modules if graph.find_children(module)]
    closing = {arrow for module in parents for arrow in graph.nominate_cycle_breakers(module)}
    up = {(a, b) for a, b in arrows.edges if _floor(a) < _floor(b)}
    return {
        "imports between files": arrows.number_of_edges(),
        "imports that run up or close a circle": len(closing | up),
        "circles": len(circles),
        "files in circles": sum(map(len, circles)),
    }


def _floor(module: str) -> int:
    """The floor of a module, 0 for those of the flat layout that have none."""
    name = module.partition(".")[2].partition(".")[0] or "__init__"
    return next((number for number, floor in enumerate(FLOORS) if name in floor), 0)


def walk(call: str) -> tuple[int, int]:
    """Files of the package that a call enters, and the different calls from a function of one to one of another."""
    import srnn_zoo

    for module in pkgutil.walk_packages(srnn_zoo.__path__, "srnn_zoo."):  # what an import does is not the call's work
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    root = str(Path(srnn_zoo.__file__).parent)
    entered: set[str] = set()
    between: set[Any] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name == "<module>" or not code.co_filename.startswith(root):
            return
        entered.add(code.co_filename)
        caller = frame.f_back  # the nearest of the package: torch and typer stand between
        while caller is not None and not caller.f_code.co_filename.startswith(root):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != code.co_filename:
            between.add((caller.f_code, code))

    names = {"srnn_zoo": srnn_zoo, "command": _command, "work": str(Path.cwd()), "cat": _prepare()}
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        exec(call, names)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return len(entered), len(between)


def _prepare() -> str:
    """Images to train on and a saved model in the current folder; returns the file of a cat."""
    import skimage
    from PIL import Image

    import srnn_zoo

    for split in ("train", "val"):
        for number, colour in enumerate(("red", "blue")):
            folder = Path("images", split, colour)
            folder.mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (80, 80 + 8 * number + index), colour).save(folder / f"{index}.png")
    srnn_zoo.create_model("srnn_test_resnet", num_classes=2).save_pretrained("saved")
    return str(Path(skimage.__file__).parent / "data" / "chelsea.png")


def _command(*arguments: str) -> None:
    import srnn_zoo.cli

    sys.argv = ["srnn-zoo", *arguments]
    try:
        srnn_zoo.cli.main()
    except SystemExit as stopped:
        if stopped.code:
            raise


if __name__ == "__main__":
    main()
