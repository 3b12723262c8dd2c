"""The package as it is shipped: its wheel, its metadata, and what the repository may hold."""

import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import entry_points, requires, version

import pytest

import srnn_zoo
from srnn_zoo.models import factories

from .conftest import ROOT


@pytest.mark.slow
def test_the_wheel_and_the_source_archive_hold_the_package_its_types_and_its_licence(tmp_path):
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    modules = {f"srnn_zoo/{p.relative_to(ROOT / 'srnn_zoo').as_posix()}" for p in (ROOT / "srnn_zoo").rglob("*.py")}
    info = f"srnn_zoo-{srnn_zoo.__version__}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")}
    pages = {f"srnn_zoo/evaluation/{name}" for name in ("app.css", "app.html.jinja", "report.html.jinja")}
    others = {"srnn_zoo/py.typed", "srnn_zoo/__init__.pyi", *pages}
    assert names == modules | metadata | others | {f"{info}/licenses/LICENSE"}
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = "setup.cfg pyproject.toml README.md LICENSE srnn_zoo/models/cells.py srnn_zoo/py.typed"
    assert set(wanted.split()) <= names


def test_version_command_and_extras_are_those_of_the_metadata():
    assert version("srnn-zoo") == srnn_zoo.__version__
    assert [e.value for e in entry_points(group="console_scripts", name="srnn-zoo")] == ["srnn_zoo.cli:main"]
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert {"demo", "plot", "docs", "test", "dev"} <= set(config["options.extras_require"])
    assert any(r.startswith("timm>=") for r in requires("srnn-zoo") or [])


def test_every_public_name_is_imported_when_it_is_used():
    assert {name for name in vars(factories) if name.startswith("srnn_")} <= {*srnn_zoo.__all__}
    for name in srnn_zoo.__all__:
        value = getattr(srnn_zoo, name)
        assert getattr(value, "__name__", name) in (name, f"srnn_zoo.{name}")


@pytest.mark.parametrize(
    "imported",
    [
        "srnn_zoo.cli",
        pytest.param("srnn_zoo.weights.files", marks=pytest.mark.slow),
        pytest.param("srnn_zoo.models.cells", marks=pytest.mark.slow),
        pytest.param("srnn_zoo.training", marks=pytest.mark.slow),
    ],
)
def test_timm_knows_the_names_whatever_is_imported_first_and_the_command_waits_for_nothing(imported):
    lines = [
        "import sys",
        f"import {imported}",
        "light = not {'torch', 'timm', 'numpy'} & sys.modules.keys()",
        "import timm",
        "print(light, type(timm.create_model('srnn_test_resnet')).__name__)",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output == f"{imported == 'srnn_zoo.cli'} SRNN\n"


def tracked_files():
    try:
        output = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in output.split("\0") if name and (ROOT / name).is_file()]


def test_the_repository_holds_no_machines_path_and_no_large_file():
    home = str(ROOT.parent) + "/"
    for path in tracked_files():
        assert path.stat().st_size <= 2_000_000, path
        if path.suffix not in (".png", ".jpg", ".safetensors"):
            assert home not in path.read_text(encoding="utf-8"), path


def test_every_module_opens_with_one_sentence_and_stays_readable():
    for path in [path for path in tracked_files() if path.suffix == ".py"]:
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path
        assert text.count("\n") <= 400, path
