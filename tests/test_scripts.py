"""Other people's programs train, validate and export an SRNN, unmodified.

They are slow, and run where checkouts of them are: SRNN_ZOO_TIMM names one of huggingface/pytorch-image-models,
SRNN_ZOO_EXAMPLES one of pytorch/examples. `tests/cli/test_run.py` has small stand-ins for them.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srnn_zoo

pytestmark = pytest.mark.slow

MODEL = "srnn_test_resnet"
CLASSES = 6  # the programs compute the top-5 accuracy


def checkout(variable):
    folder = os.environ.get(variable)
    if folder is None:
        pytest.skip(f"set {variable} to a checkout (git clone)")
    return Path(folder).resolve()


@pytest.fixture(scope="module")
def timm_scripts():
    return checkout("SRNN_ZOO_TIMM")


@pytest.fixture(scope="module")
def imagenet_example():
    return checkout("SRNN_ZOO_EXAMPLES") / "imagenet" / "main.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of six colours, in ImageFolder's layout; their names are unique."""
    from torchvision.transforms.functional import to_pil_image

    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            (folder / split / f"class{label}").mkdir(parents=True)
            colour = torch.rand(3, 1, 1, generator=generator)
            for number in range(4):
                image = (colour + 0.2 * torch.rand(3, 72, 96, generator=generator)).clamp(0, 1)
                to_pil_image(image).save(folder / split / f"class{label}" / f"{split}{label}{number}.png")
    return folder


def run(script, *arguments, cwd=None):
    """Standard output of a program that `srnn_zoo.cli.run` started, in its own folder, and that ended well."""
    command = [sys.executable, "-m", "srnn_zoo.cli.run", str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd or script.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result(output):
    """What timm's scripts print last, as JSON."""
    found = json.loads(output.partition("--result\n")[2])
    return found[-1]["validation"] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def trained(timm_scripts, images, tmp_path_factory):
    """The checkpoint that timm's train.py leaves after an epoch."""
    folder = tmp_path_factory.mktemp("train")
    options = "--epochs 1 --batch-size 4 --workers 1 --device cpu --no-prefetcher --img-size 64 --experiment one"
    output = run(
        timm_scripts / "train.py",
        *("--data-dir", images, "--model", MODEL, "--num-classes", str(CLASSES), "--output", folder, *options.split()),
    )
    assert 0 <= result(output)["top1"] <= result(output)["top5"] <= 100
    return folder / "one" / "model_best.pth.tar"


@pytest.fixture(scope="module")
def same_model(trained):
    """The trained model, loaded by this package."""
    model = srnn_zoo.create_model(MODEL, num_classes=CLASSES)
    model.load_state_dict(torch.load(trained, weights_only=False)["state_dict"])  # timm's arguments are there as well
    return model.eval()


def options(trained):
    return ["--model", MODEL, "--num-classes", str(CLASSES), "--checkpoint", trained, "--img-size", "64"]


def test_timms_train_moves_every_weight_of_an_srnn(same_model):
    cell = same_model.cell.state_dict()
    assert not torch.equal(cell["recurrent.weight"], torch.eye(same_model.num_features))
    assert cell["gate_input.weight"].any()
    assert cell["gate_recurrent.weight"].any()


def test_timms_validate_gives_the_accuracy_of_the_training(timm_scripts, images, trained):
    arguments = ["--data-dir", images, "--split", "val", *options(trained)]
    output = run(timm_scripts / "validate.py", *arguments, *"-b 4 -j 1 --device cpu --no-prefetcher".split())
    assert result(output)["model"] == MODEL
    summary = (trained.parent / "summary.csv").read_text().splitlines()
    row = dict(zip(summary[0].split(","), summary[-1].split(","), strict=True))
    assert result(output)["top1"] == pytest.approx(float(row["eval_top1"]), abs=1e-3)


def test_timms_inference_names_every_image(timm_scripts, images, trained, tmp_path):
    arguments = ["--data-dir", images / "val", *options(trained), "--results-file", tmp_path / "answers.csv"]
    run(timm_scripts / "inference.py", *arguments, *"-b 4 -j 1 --device cpu --topk 2 --results-format csv".split())
    answers = (tmp_path / "answers.csv").read_text()
    assert all(image.name in answers for image in images.glob("val/*/*.png"))


def test_timms_onnx_export_writes_a_graph_with_the_models_logits(timm_scripts, trained, same_model, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    run(timm_scripts / "onnx_export.py", tmp_path / "srnn.onnx", *options(trained))
    session = onnxruntime.InferenceSession(tmp_path / "srnn.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 64, 64)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), same_model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("distributed", [False, True], ids=["one process", "torch.multiprocessing.spawn"])
def test_pytorchs_imagenet_example_trains_an_srnn(imagenet_example, images, tmp_path, distributed):
    options = "--epochs 1 -b 4 -j 1 -p 1 --no-accel --dist-backend gloo".split()
    if distributed:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        options += ["--multiprocessing-distributed", "--world-size", "1", "--rank", "0", "--dist-url", address]
    output = run(imagenet_example, images, "-a", MODEL, *options, cwd=tmp_path)
    assert " *   Acc@1 " in output
    saved = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert saved["arch"] == MODEL
    srnn_zoo.create_model(MODEL).load_state_dict(saved["state_dict"])
