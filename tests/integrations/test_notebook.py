"""The notebook runs from top to bottom, as on Colab, and is kept without outputs."""

import json
import re
import shutil

import pytest

from tests.cli.command import python
from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "srnn_zoo.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs_and_says_what_the_text_beside_it_does(tmp_path):
    for package in ("nbconvert", "ipykernel"):
        pytest.importorskip(package)
    shutil.copy(NOTEBOOK, tmp_path / "in.ipynb")
    execute = "-m nbconvert --to notebook --execute --output out.ipynb --ExecutePreprocessor.timeout=300 in.ipynb"
    done = python(*execute.split(), cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    for words in ("Egyptian cat 38%", "espresso 95%"):
        assert words in said, said
    stopped = dict(re.findall(r"^(\S+) +stopped at level (\d)", said, flags=re.MULTILINE))
    assert stopped == {"chelsea.png": "1", "coffee.png": "0", "rocket.jpg": "1"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    rows = (tmp_path / "answers.csv").read_text().splitlines()
    assert rows[0] == "image,class,probability,stopped at,GMACs"
    assert [row.split(",")[1] for row in rows[1:]] == ["cat", "cat", "coffee", "coffee", "motorcycle", "motorcycle"]
    assert (tmp_path / "flowers" / "model.safetensors").is_file()
