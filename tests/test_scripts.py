"""Other people's programs train, validate and export an SRNN, unmodified.

They are slow, and run where checkouts of them are: SRNN_ZOO_TIMM names one of huggingface/pytorch-image-models,
SRNN_ZOO_EXAMPLES one of pytorch/examples. `tests/cli/test_run.py` has small stand-ins for them.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import srnn_zoo
from tests.training.trainings import free_port

pytestmark = pytest.mark.slow

MODEL = "srnn_test_resnet"
CLASSES = 6  # the programs compute the top-5 accuracy
OPTIONS = ("--model", MODEL, "--num-classes", CLASSES, "--img-size", 64)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four images of each of six colours, in ImageFolder's layout; their names are unique."""
    folder = tmp_path_factory.mktemp("images")
    for split, label, number in itertools.product(("train", "val"), range(CLASSES), range(4)):
        file = folder / split / f"class{label}" / f"{split}{label}{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 72), (40 * label, 60 * number, 128)).save(file)
    return folder


def run(variable, script, *arguments, cwd=None):
    """Standard output of a checkout's program that `srnn_zoo.cli.run` started, in its own folder, and that ended well.

    Of timm's programs it is what they print last, as JSON.
    """
    if variable not in os.environ:
        pytest.skip(f"set {variable} to a checkout (git clone)")
    file = Path(os.environ[variable]).resolve() / script
    command = [sys.executable, "-m", "srnn_zoo.cli.run", *map(str, (file, *arguments))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd or file.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output, mark, found = done.stdout.partition("--result\n")
    return json.loads(found) if mark else output


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The checkpoint that timm's train.py leaves after an epoch."""
    folder = tmp_path_factory.mktemp("train")
    options = "--epochs 1 --batch-size 4 --workers 1 --device cpu --no-prefetcher --experiment one".split()
    found = run("SRNN_ZOO_TIMM", "train.py", "--data-dir", images, *OPTIONS, "--output", folder, *options)
    assert 0 <= found[-1]["validation"]["top1"] <= found[-1]["validation"]["top5"] <= 100
    return folder / "one" / "model_best.pth.tar"


@pytest.fixture(scope="module")
def same_model(trained):
    """The trained model, loaded by this package."""
    model = srnn_zoo.create_model(MODEL, num_classes=CLASSES)
    model.load_state_dict(torch.load(trained, weights_only=False)["state_dict"])  # timm's arguments are there as well
    return model.eval()


def test_timms_train_moves_every_weight_of_an_srnn(same_model):
    cell = same_model.cell.state_dict()
    assert not torch.equal(cell["recurrent.weight"], torch.eye(same_model.num_features))
    assert cell["gate_input.weight"].any()
    assert cell["gate_recurrent.weight"].any()


def test_timms_validate_gives_the_accuracy_of_the_training_and_inference_names_every_image(images, trained, tmp_path):
    options = ("--checkpoint", trained, *OPTIONS, *"-b 4 -j 1 --device cpu".split())
    found = run("SRNN_ZOO_TIMM", "validate.py", "--data-dir", images, "--split", "val", *options, "--no-prefetcher")
    assert found["model"] == MODEL
    summary = (trained.parent / "summary.csv").read_text().splitlines()
    row = dict(zip(summary[0].split(","), summary[-1].split(","), strict=True))
    assert found["top1"] == pytest.approx(float(row["eval_top1"]), abs=1e-3)
    answers = tmp_path / "answers.csv"
    options += ("--topk", 2, "--results-format", "csv", "--results-file", answers)
    run("SRNN_ZOO_TIMM", "inference.py", "--data-dir", images / "val", *options)
    assert all(image.name in answers.read_text() for image in images.glob("val/*/*.png"))


def test_timms_onnx_export_writes_a_graph_with_the_models_logits(trained, same_model, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    run("SRNN_ZOO_TIMM", "onnx_export.py", tmp_path / "srnn.onnx", "--checkpoint", trained, *OPTIONS)
    session = onnxruntime.InferenceSession(tmp_path / "srnn.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 64, 64)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), same_model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("distributed", [False, True], ids=["one process", "torch.multiprocessing.spawn"])
def test_pytorchs_imagenet_example_trains_an_srnn(images, tmp_path, distributed):
    options = "--epochs 1 -b 4 -j 1 -p 1 --no-accel --dist-backend gloo".split()
    if distributed:
        address = f"tcp://127.0.0.1:{free_port()}"
        options += ["--multiprocessing-distributed", "--world-size", "1", "--rank", "0", "--dist-url", address]
    output = run("SRNN_ZOO_EXAMPLES", "imagenet/main.py", images, "-a", MODEL, *options, cwd=tmp_path)
    assert " *   Acc@1 " in output
    saved = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert saved["arch"] == MODEL
    srnn_zoo.create_model(MODEL).load_state_dict(saved["state_dict"])
