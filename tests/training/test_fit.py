"""`fit`: learns, measures, and keeps what is best."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.training import Recipe, fit, open_data
from tests.conftest import ROOT, same_weights

from .trainings import TINY, free_port, images, tiny, tiny_without_batch_norm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("variant", srnn_zoo.list_cells())
def test_every_variant_overfits_one_batch(variant: str) -> None:
    batch = images()
    chosen = Recipe(optimizer="adamw", lr=3e-3, epochs=30, batch_size=8, weight_decay=0.0, schedule="constant")
    result = fit(tiny(variant=variant), batch, batch, chosen, workers=0)
    assert result.history[0]["train_loss"] > 1
    assert result.history[-1]["train_loss"] < 0.01


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {"loss": "anytime", "anytime_weights": (0.5, 1.0)}),
        ({"exits": "separate"}, {"loss": "anytime", "distillation": 0.3, "temperature": 2.0}),
        ({"norm": "per_level"}, {"random_heights": True}),
        ({"norm": "frozen"}, {"mixup": 0.2, "label_smoothing": 0.1}),
        ({}, {"cutmix": 0.1}),
        ({}, {"precision": "bf16", "grad_checkpointing": True, "grad_accum_steps": 2, "clip_grad": 1.0}),
        ({}, {"channels_last": False, "layer_decay": 0.7, "ema_decay": 0.5, "identity_decay": 0.1, "recurrence": 0.5}),
    ],
)
def test_every_part_of_a_recipe_learns(options: dict[str, Any], settings: dict[str, Any]) -> None:
    chosen = Recipe(optimizer="adamw", lr=3e-3, epochs=12, batch_size=8, schedule="constant", **settings)
    losses = [row["train_loss"] for row in fit(tiny(**options), images(size=64), images(size=64), chosen).history]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_exits_that_no_loss_reaches_are_refused() -> None:
    with pytest.raises(ValueError, match='exits="separate" needs loss="anytime" or random_heights'):
        fit(tiny(exits="separate"), images(), images(), TINY)


def test_accumulated_steps_learn_what_one_batch_does() -> None:
    models = []
    for steps in (1, 2, 4):
        model = tiny_without_batch_norm()
        chosen = Recipe(epochs=2, batch_size=8, lr=0.1, grad_accum_steps=steps)
        fit(model, images(size=64), images(size=64), chosen, workers=0)
        models.append(model)
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_folder_of_a_run_holds_what_others_read(class_folders: Path, tmp_path: Path) -> None:
    data = open_data(class_folders)
    model = tiny(num_classes=3)
    chosen = Recipe(optimizer="adamw", lr=3e-3, epochs=3, batch_size=8)
    result = fit(model, data.train, data.val, chosen, tmp_path / "run", workers=0, tensorboard=True, dataset="colours")
    folder = tmp_path / "run"
    assert Recipe.from_toml(folder / "recipe.toml") == chosen
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "seconds"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert all(float(row["val_top5"]) == 100 for row in rows)  # of three classes
    assert {path.name for path in folder.iterdir()} == {
        *("recipe.toml", "log.csv", "curves.png", "tensorboard", "best", "last", "state")
    }
    last = SRNN.from_pretrained(folder / "last")
    assert same_weights(last, model)
    assert list(last.pretrained_cfg["label_names"]) == ["blue", "green", "red"]
    assert last.metadata["metrics"] == {"colours (val)": {"top1": float(rows[-1]["val_top1"]), "top5": 100.0}}
    assert last.metadata["recipe"]["lr"] == 3e-3
    best = SRNN.from_pretrained(folder / "best")
    assert best.metadata["recipe"]["epoch"] == result.best["epoch"]
    assert result.best["val_top1"] == max(row["val_top1"] for row in result.history)


def test_accuracy_is_that_of_the_saved_model_counted_by_hand(tmp_path: Path) -> None:
    val = images(11)
    result = fit(tiny(), images(), val, TINY, tmp_path / "run", workers=0)
    model = SRNN.from_pretrained(tmp_path / "run" / "last").eval()
    with torch.no_grad():
        right = model(val.tensors[0]).argmax(1) == val.tensors[1]
    assert result.history[-1]["val_top1"] == pytest.approx(100 * right.float().mean().item())


def test_the_moving_average_is_what_is_measured_and_kept(tmp_path: Path) -> None:
    plain, averaged = tiny(), tiny()
    fit(plain, images(), images(), TINY, workers=0)
    fit(averaged, images(), images(), dataclasses.replace(TINY, ema_decay=0.9), tmp_path / "run", workers=0)
    assert same_weights(averaged, SRNN.from_pretrained(tmp_path / "run" / "last"))
    assert not same_weights(averaged, plain)


def test_training_forgets_the_thresholds_of_the_weights_before(tmp_path: Path) -> None:
    model = tiny()
    model.metadata["exit"] = {"rule": "confidence", "thresholds": [0.5], "temperatures": [1.0, 1.0]}
    fit(model, images(), images(), TINY, tmp_path / "run", workers=0)
    assert "exit" not in model.metadata
    assert "exit" not in SRNN.from_pretrained(tmp_path / "run" / "last").metadata


def test_patience_ends_a_run_that_gets_no_better() -> None:
    stuck = Recipe(lr=1e-12, epochs=50, batch_size=8, patience=3)
    history = fit(tiny(norm="frozen"), images(), images(), stuck, workers=0).history
    best = max(history, key=lambda row: (row["val_top1"], -row["val_loss"]))["epoch"]
    assert len(history) == best + 3


def test_damaged_pictures_are_skipped_and_listed_or_fatal(class_folders: Path, tmp_path: Path) -> None:
    victims = [class_folders / "train" / "red" / "3.png", class_folders / "val" / "blue" / "1.png"]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:200])
    data = open_data(class_folders)
    chosen = Recipe(epochs=2, batch_size=8)
    result = fit(tiny(num_classes=3), data.train, data.val, chosen, tmp_path / "run", workers=1)
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert lines == result.skipped
    assert [line.partition(":")[0] for line in lines] == [str(victim) for victim in victims]
    with pytest.raises(ValueError, match=r"red/3\.png: truncated or damaged"):
        fit(tiny(num_classes=3), data.train, data.val, chosen, workers=0, corrupt="fatal")


def test_data_that_do_not_fit_the_model_are_refused(class_folders: Path) -> None:
    data = open_data(class_folders)
    with pytest.raises(ValueError, match="the model has 4 classes, the training split 3: create it with num_classes=3"):
        fit(tiny(), data.train, data.val, TINY)
    with pytest.raises(ValueError, match="batch_size must be no more than the 8 training images; got 9"):
        fit(tiny(), images(), images(), Recipe(batch_size=9))
    with pytest.raises(ValueError, match='precision "fp16" needs a GPU'):
        fit(tiny(), images(), images(), Recipe(precision="fp16", batch_size=4), cpu=True)
    with pytest.raises(ValueError, match="a process reads 3 at a time"):
        fit(tiny(), images(), images(), Recipe(mixup=0.1, batch_size=3))


def test_one_split_trains_models_of_several_sizes(class_folders: Path) -> None:
    data = open_data(class_folders)
    for size in (32, 64):
        model = srnn_zoo.create_model("srnn_test_resnet", num_classes=3, img_size=size)
        model.register_forward_pre_hook(lambda module, args, size=size: _check_size(args[0], size))
        fit(model, data.train, data.val, Recipe(epochs=1, batch_size=8), workers=0)
    assert data.train.transform is None


def _check_size(images: Any, size: int) -> None:
    largest = images if isinstance(images, Tensor) else images[-1]
    assert largest.shape[-1] == size


def test_streams_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"hfids/flowers is a stream, .* give hfds/…, wds/… with its shards on disk"):
        open_data("hfids/flowers")


def test_folders_opened_one_by_one_are_refused_where_their_classes_differ(class_folders: Path) -> None:
    import shutil

    from torchvision.datasets import ImageFolder

    from srnn_zoo.training import image_transform

    shutil.rmtree(class_folders / "val" / "blue")
    model = tiny(num_classes=3)
    transform = image_transform(model)
    train, val = (ImageFolder(str(class_folders / split), transform) for split in ("train", "val"))
    with pytest.raises(ValueError, match="numbers its classes otherwise than the training split"):
        fit(model, train, val, Recipe(batch_size=8))
    result = fit(model, class_folders / "train", class_folders / "val", Recipe(epochs=1, batch_size=8), workers=0)
    assert len(result.history) == 1


def test_optional_packages_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("srnn_zoo.training.run_folder.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'TensorBoard log needs tensorboard: pip install "srnn-zoo\[train\]"'):
        fit(tiny(), images(), images(), TINY, tmp_path / "run", tensorboard=True)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'training needs accelerate: pip install "srnn-zoo\[train\]"'):
        fit(tiny(), images(), images(), TINY)


TWO = """
import json, sys
sys.path.insert(0, {root!r})
import torch
from tests.training.trainings import images, tiny_without_batch_norm
from srnn_zoo.training import Recipe, fit
torch.set_num_threads(1)
model = tiny_without_batch_norm()
result = fit(model, images(size=64), images(11, size=64), Recipe(**{recipe!r}), {output!r}, workers=1, cpu=True)
"""


def test_two_processes_learn_and_measure_as_one(tmp_path: Path) -> None:
    settings = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "weight_decay": 0.0, "schedule": "constant"}
    settings |= {"epochs": 1, "batch_size": 8}  # one step, by the gradient itself
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT), recipe=settings, output=str(tmp_path / "two")))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
        str(script),
    ]
    subprocess.run(
        launch, check=True, cwd=ROOT, capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    model = tiny_without_batch_norm()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    result = fit(model, images(size=64), images(11, size=64), Recipe(**settings), tmp_path / "one", workers=0)  # pyright: ignore
    two = SRNN.from_pretrained(tmp_path / "two" / "last").state_dict()
    moved = 0.0
    for name, value in model.state_dict().items():
        gradient, other = start[name] - value, start[name] - two[name]
        torch.testing.assert_close(other, gradient, rtol=0, atol=1e-6)
        moved = max(moved, gradient.abs().max().item())
    assert moved > 1e-3
    with (tmp_path / "two" / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    for name in ("val_top1", "val_top5", "train_loss", "val_loss"):
        assert float(row[name]) == pytest.approx(result.history[0][name], rel=1e-5), name
