"""The examples run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srnn_zoo

from .conftest import ROOT


def run(*arguments: str | Path, cwd: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / arguments[0]), *map(str, arguments[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads than free cores wait for one another
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_names_what_is_on_its_pictures_and_draws_it(tmp_path: Path) -> None:
    output = run("demo.py", cwd=tmp_path)
    assert all(name in output for name in ("Egyptian cat", "espresso", "tripod"))
    assert (tmp_path / "demo.png").stat().st_size > 100_000


def test_a_cell_of_ones_own_runs(tmp_path: Path) -> None:
    assert run("own_cell.py", cwd=tmp_path).count("(") == 2


@pytest.fixture
def photos(grocery: Path, tmp_path: Path) -> Path:
    """Photographs of two classes."""
    for folder in sorted((grocery / "train").iterdir())[::60]:  # two that look unlike
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for picture in sorted(folder.glob("*.jpg"))[:12]:
            (tmp_path / "photos" / folder.name / picture.name).symlink_to(picture.resolve())
    return tmp_path / "photos"


@pytest.mark.data
def test_fine_tuning_on_photographs_learns_and_saves(photos: Path, tmp_path: Path) -> None:
    output = run("finetune.py", photos, "--sizes", "64", "96", "--epochs", "5", "--batch-size", "8", cwd=tmp_path)
    accuracies = [float(line.split()[-2]) for line in output.splitlines()]
    assert len(accuracies) == 5
    assert max(accuracies) >= 75  # two classes
    assert torch.load(tmp_path / "srnn.pth", weights_only=True)["fc.weight"].shape == (2, 1280)


@pytest.mark.data
def test_the_hugging_face_trainer_learns_and_saves_an_srnn(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    output = run("hf_trainer.py", photos, "--size", "128", "--output", "trained", cwd=tmp_path)
    accuracies = [float(value) for value in re.findall(r"'eval_accuracy': '?([\d.]+)", output)]
    assert len(accuracies) == 3
    assert max(accuracies) >= 75  # two classes
    assert output.endswith("srnn_zoo, timm and transformers give the same logits\n")
    model = srnn_zoo.SRNN.from_pretrained(tmp_path / "trained")
    assert model.pretrained_cfg["label_names"] == [folder.name for folder in sorted(photos.iterdir())]
    assert model.level_sizes() == [(64, 64), (128, 128)]
    assert not model.zero_shot


@pytest.mark.parametrize("example", ["finetune.py", "hf_trainer.py"])
def test_an_example_says_how_it_is_used(example: str, tmp_path: Path) -> None:
    if example == "hf_trainer.py":
        pytest.importorskip("transformers")
    assert "FOLDER" in run(example, "--help", cwd=tmp_path)
