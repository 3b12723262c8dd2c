"""The notebook runs from top to bottom, as on Colab, and is kept without outputs."""

import json
import re

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "srnn_zoo.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs_and_says_what_the_text_beside_it_does(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    preprocessors = pytest.importorskip("nbconvert.preprocessors")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    preprocessors.ExecutePreprocessor(timeout=300).preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    for words in ("Egyptian cat 38%", "espresso 95%"):
        assert words in said, said
    stopped = dict(re.findall(r"^(\S+) +stopped at level (\d)", said, flags=re.MULTILINE))
    assert stopped == {"chelsea.png": "1", "coffee.png": "0", "rocket.jpg": "1"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    rows = (tmp_path / "answers.csv").read_text().splitlines()
    assert rows[0] == "image,class,probability,stopped at,GMACs"
    assert [row.split(",")[1] for row in rows[1:]] == ["cat", "cat", "coffee", "coffee", "motorcycle", "motorcycle"]
    assert (tmp_path / "flowers" / "model.safetensors").is_file()
