"""The paper's experiment on ImageNet is one command; here it runs on a small folder in ImageNet's layout."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from timm.data import ImageNetInfo

from srnn_zoo import SRNN

from .conftest import ROOT

SMALL = {"GPUS": "2", "MODEL": "srnn_tf_efficientnet_lite0", "VARIANTS": "half_gru", "SIZES": "32,64"}
SMALL |= {"WORKERS": "0", "SETTINGS": "--set epochs=1 --cpu"}


@pytest.fixture
def imagenet(tmp_path):
    """One image of each of the thousand classes to train on, and one of each of the first fifty to validate."""
    for split, count in (("train", 1000), ("val", 50)):
        for number, name in enumerate(ImageNetInfo().label_names()[:count]):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            Image.effect_noise((80, 72), number % 97 + 1).convert("RGB").save(folder / f"{name}_1.JPEG")
    return tmp_path / "imagenet"


def experiment(*arguments, programs=Path(sys.executable).parent, **settings):
    path = os.pathsep.join([os.fspath(programs), os.environ["PATH"]])
    environment = {
        **os.environ,
        **SMALL,
        **settings,
        "PATH": path,
        "PYTHONPATH": os.fspath(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", str(ROOT / "examples" / "imagenet.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_one_command_trains_and_writes_table_1_and_figure_3(imagenet, lite0, tmp_path):
    output = tmp_path / "runs"
    done = experiment(imagenet, output)
    assert done.returncode == 0, done.stderr
    for table in ("zero-shot", "table"):
        with (output / table / "table.csv").open() as file:
            methods = [(row["method"], int(row["images"])) for row in csv.DictReader(file)]
        base = ["base CNN 32", "base CNN 64", "probability ensemble", "logit ensemble"]
        assert methods == [(name, 50) for name in [*base, "half_gru"]]
    assert (output / "curves.png").stat().st_size > 1000
    trained = SRNN.from_pretrained(output / "half_gru" / "last")
    for name in ("fc.weight", "cell.recurrent.weight"):  # the pretrained classifier is the paper's start
        moved = (trained.get_parameter(name) - lite0.get_parameter(name)).abs().max()
        assert 0 < moved < 0.1
    log = (output / "half_gru" / "log.csv").read_text()

    again = experiment(imagenet, output)
    assert again.returncode == 0, again.stderr
    assert "epoch 1/1" not in again.stderr  # nothing is trained twice
    assert (output / "half_gru" / "log.csv").read_text() == log


def test_rivals_are_compared_over_every_backbone_that_is_named(tmp_path):
    for name in ("imagenet/train", "imagenet/val", "bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("srnn-zoo", "torchrun"):  # stand-ins that write down what they are asked for
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/asked\n')
        (tmp_path / "bin" / name).chmod(0o755)
    rivals = {"RIVALS": "srnn_efficientnet_b0 srnn_test_resnet", "COMPARE": "--sizes 32,48 --seeds 3"}
    done = experiment(tmp_path / "imagenet", tmp_path / "runs", programs=tmp_path / "bin", **rivals)
    assert done.returncode == 0, done.stderr
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("srnn-zoo compare")]
    for line, name in zip(asked, rivals["RIVALS"].split(), strict=True):
        place = f"{tmp_path}/runs/rivals/{name}"
        assert line.startswith(f"srnn-zoo compare {tmp_path}/imagenet --output {place} --model {name} ")
        assert line.endswith(f"--plot {place}.png --sizes 32,48 --seeds 3")


def test_it_says_what_folder_it_needs(tmp_path):
    for arguments in ((), (tmp_path,)):
        done = experiment(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: examples/imagenet.sh IMAGENET [OUTPUT], where IMAGENET holds train/")
