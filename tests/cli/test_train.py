"""`srnn-zoo train`: from a folder of images to a saved model, and from any mistake to one sentence."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from srnn_zoo import SRNN
from srnn_zoo.training import Recipe, image_transform, open_split
from tests.conftest import ROOT, same_weights
from tests.training.trainings import free_port

from .command import COMMAND, refused, run

CLASSES = ("Banana", "Kiwi", "Aubergine", "Carrots", "Red-Beet")
TINY = ("--model", "srnn_test_resnet", "--no-pretrained", "--sizes", "32,64", "--workers", "0", "--set", "batch_size=8")


@pytest.fixture
def groceries(grocery, tmp_path):
    """Twelve images of each of five classes to train on, and six of each to validate."""
    for split, source, count in (("train", "train", 12), ("val", "test", 6)):
        for name in CLASSES:
            folder = tmp_path / "groceries" / split / name
            folder.mkdir(parents=True)
            images = sorted((grocery / source / name).iterdir())
            for image in images[:: max(1, len(images) // count)][:count]:
                (folder / image.name).symlink_to(image.resolve())
    return tmp_path / "groceries"


@pytest.mark.data
def test_a_folder_of_images_becomes_a_model_that_knows_them(groceries, tmp_path):
    said = run(
        *("train", groceries, "-o", tmp_path / "run", "--sizes", "48,96", "--epochs", 3, "--cpu", "--workers", 1),
        *("--set", "batch_size=6", "--set", "lr_backbone=0.5", "--set", "ema_decay=0"),
    )
    assert said.code == 0, said.err
    assert said.out.startswith("best epoch ")
    model = SRNN.from_pretrained(tmp_path / "run" / "best").eval()
    assert sorted(model.pretrained_cfg["label_names"]) == sorted(CLASSES)
    top1 = model.metadata["metrics"]["groceries (val)"]["top1"]
    assert top1 >= 70  # chance is 20
    val = open_split(groceries / "val", classes=list(model.pretrained_cfg["label_names"]))
    val.transform = image_transform(model)
    images, targets = next(iter(torch.utils.data.DataLoader(val, batch_size=len(val))))
    with torch.no_grad():
        right = model(images).argmax(1) == targets
    assert 100 * right.float().mean().item() == pytest.approx(top1)
    predicted = run("predict", groceries / "val" / "Banana", "--model", tmp_path / "run" / "best", "--topk", 1)
    assert predicted.code == 0
    assert "Banana" in predicted.out


def test_the_recipe_is_that_of_the_options(class_folders, tmp_path):
    options = ("--recipe", "paper", "--set", "lr=0.5", "--epochs", 2, *TINY, "--variant", "vanilla")
    assert run("train", class_folders, "-o", tmp_path / "run", *options).code == 0
    written = Recipe.from_toml(tmp_path / "run" / "recipe.toml")
    assert (written.lr, written.epochs, written.batch_size, written.decay_epochs) == (0.5, 2, 8, 30)
    assert SRNN.from_pretrained(tmp_path / "run" / "last").variant == "vanilla"
    again = ("--recipe", tmp_path / "run" / "recipe.toml", *TINY, "--variant", "vanilla")
    assert run("train", class_folders, "-o", tmp_path / "again", *again).code == 0
    first, second = (SRNN.from_pretrained(tmp_path / name / "last") for name in ("run", "again"))
    assert same_weights(first, second)


def test_exits_and_norms_are_chosen_by_options(class_folders, tmp_path):
    levels = ("--exits", "separate", "--norm", "per_level", "--set", "loss=anytime", "--epochs", 1)
    assert run("train", class_folders, "-o", tmp_path / "run", *levels, *TINY).code == 0
    model = SRNN.from_pretrained(tmp_path / "run" / "last")
    assert (model.exits, model.norm) == ("separate", "per_level")
    for wrong, reason in {
        ("--exits", "seperate"): "did you mean 'separate'",
        ("--norm", "per-level"): "per_level",
        ("--data-dir", "."): "data_dir goes with the name of a data set",
    }.items():
        assert reason in refused("train", class_folders, "-o", tmp_path / "new", *wrong, *TINY)


def test_a_trained_model_keeps_its_classifier_only_for_the_very_same_classes(class_folders, tmp_path):
    assert run("train", class_folders, "-o", tmp_path / "run", "--epochs", 1, *TINY).code == 0
    best = SRNN.from_pretrained(tmp_path / "run" / "best")
    still = ("--model", tmp_path / "run" / "best", "--workers", 0, "--epochs", 1, "--set", "batch_size=8")
    still += ("--set", "lr=1e-12", "--set", "warmup_epochs=0")
    assert run("train", class_folders, "-o", tmp_path / "same", *still).code == 0
    same = SRNN.from_pretrained(tmp_path / "same" / "last")
    torch.testing.assert_close(same.fc.weight, best.fc.weight)
    for split in ("train", "val"):
        (class_folders / split / "red").rename(class_folders / split / "pink")
    assert run("train", class_folders, "-o", tmp_path / "other", *still).code == 0
    other = SRNN.from_pretrained(tmp_path / "other" / "last")
    torch.testing.assert_close(other.cell.state_dict(), best.cell.state_dict())
    assert not torch.equal(other.get_parameter("fc.weight"), best.get_parameter("fc.weight"))


def test_mistakes_are_refused_in_one_sentence(class_folders, tmp_path):
    for arguments, reason in {
        (class_folders, "-r", "papr"): "unknown recipe 'papr'; did you mean 'paper'?",
        (class_folders, "-r", "nowhere.toml"): "no recipe nowhere.toml",
        (class_folders, "--set", "lrr=1"): "did you mean 'lr'",
        (tmp_path / "nowhere",): "nowhere'; give a folder of class folders",
        (class_folders, "-m", "srnn_resnet19"): "unknown model 'srnn_resnet19'",
        (class_folders, *TINY, "--corrupt", "maybe"): "--corrupt is skip or fatal; got 'maybe'",
        (class_folders, *TINY, "--resume"): "holds no run to resume",
        (class_folders, *TINY, "--set", "batch_size=32"): "choose 24 or less",
        (class_folders, "--sizes", "64,32"): "sizes must grow",
    }.items():
        assert reason in refused("train", *arguments, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_images_are_counted_at_the_end_or_fatal(class_folders, tmp_path):
    (class_folders / "train" / "red" / "2.png").write_bytes(b"")
    said = run("train", class_folders, "-o", tmp_path / "run", "--epochs", 1, *TINY)
    assert said.code == 0
    assert "skipped 1 images that cannot be read, listed in" in said.out
    said = run("train", class_folders, "-o", tmp_path / "fatal", "--epochs", 1, *TINY, "--corrupt", "fatal")
    assert said.code == 1
    assert "red/2.png: an empty file" in said.reason


def test_a_signal_to_all_processes_saves_and_says_how_to_resume(class_folders, tmp_path):
    arguments = ["train", str(class_folders), "-o", str(tmp_path / "run"), *TINY]
    arguments += ["--workers", "2", "--epochs", "400", "--cpu"]
    epochs = 0
    for number, code, resume in ((signal.SIGINT, 130, []), (signal.SIGTERM, 143, ["--resume"])):
        process = subprocess.Popen(
            [*COMMAND, *arguments, *resume], cwd=ROOT, text=True, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 300
            while _epochs(tmp_path / "run") <= epochs:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(process.pid, number)
            _, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.returncode == code, err
        last = err.strip().splitlines()[-1]
        assert f"stopped by {number.name} at epoch" in last
        assert f"resume to go on: srnn-zoo {' '.join(arguments)} --resume" in last
        assert "Traceback" not in err
        epochs = _epochs(tmp_path / "run")
    assert "lr 0.5, was 0.003" in run(*arguments, "--resume", "--set", "lr=0.5").reason


def _epochs(folder):
    """How many are in the log of a run, which may not be there yet."""
    log = folder / "log.csv"
    return len(log.read_text().splitlines()) - 1 if log.exists() else 0


@pytest.mark.slow
def test_torchrun_and_accelerate_launch_start_it_unchanged(class_folders, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    port = str(free_port())
    for name, launcher in {
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "-m"],
        "accelerate": ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--cpu", "-m"],
    }.items():
        command = [sys.executable, "-m", *launcher, "srnn_zoo.cli", "train", str(class_folders), *TINY, "--cpu"]
        command += ["-o", str(tmp_path / name), "--epochs", "1"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("best epoch 1") == 1
        assert SRNN.from_pretrained(tmp_path / name / "best").num_classes == 3
