"""`fit`: learns, measures, keeps what is best, and goes on after any interruption as if there had been none."""

from __future__ import annotations

import csv
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.training import Interrupted, Recipe, fit, open_data, recipe
from srnn_zoo.training.state import find_state, read_progress

from .conftest import ROOT, same_weights

TINY = Recipe(optimizer="adamw", lr=3e-3, epochs=3, batch_size=4, weight_decay=0.0, schedule="constant")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started here, so that sums come in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(num_classes: int = 4, **options: Any) -> SRNN:
    torch.manual_seed(0)
    return srnn_zoo.create_model("srnn_test_resnet", num_classes=num_classes, img_size=32, **options)


def images(count: int = 8, size: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 4)


class Hooked(Dataset[tuple[Tensor, int]]):
    """The images, with something that happens when the n-th is read."""

    def __init__(self, number: int, event: Callable[[], Any]) -> None:
        self.inner, self.number, self.event, self.read = images(), number, event, 0

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        changed = self.event() if self.read == self.number else None
        image, target = self.inner[index]
        return (image if changed is None else image * changed), target


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
        ({}, {"channels_last": False, "layer_decay": 0.7, "ema_decay": 0.5, "identity_decay": 0.1}),
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


def tiny_without_batch_norm() -> SRNN:
    torch.manual_seed(0)
    return srnn_zoo.create_model("srnn_test_convnext", num_classes=4, img_size=64)


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
    import dataclasses

    plain, averaged = tiny(), tiny()
    fit(plain, images(), images(), TINY, workers=0)
    fit(averaged, images(), images(), dataclasses.replace(TINY, ema_decay=0.9), tmp_path / "run", workers=0)
    assert same_weights(averaged, SRNN.from_pretrained(tmp_path / "run" / "last"))
    assert not same_weights(averaged, plain)


def test_patience_ends_a_run_that_gets_no_better() -> None:
    stuck = Recipe(lr=1e-12, epochs=50, batch_size=8, patience=3)
    history = fit(tiny(norm="frozen"), images(), images(), stuck, workers=0).history
    best = max(history, key=lambda row: (row["val_top1"], -row["val_loss"]))["epoch"]
    assert len(history) == best + 3


KILLED = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.test_engine import augmented
torch.set_num_threads(1)
augmented({data!r}, {output!r}, state_seconds=0)
"""


def augmented(data: Path | str, output: Path | str, **options: Any) -> SRNN:
    """A run with augmentation, workers, an average and a decay to the identity."""
    splits, model = open_data(data), tiny(num_classes=3)
    chosen = recipe("finetune", epochs=3, batch_size=4, grad_accum_steps=2, mixup=0.1, auto_augment="rand-m5-mstd0.5")
    fit(model, splits.train, splits.val, chosen, output, workers=2, cpu=True, **options)
    return model


def test_a_run_that_was_killed_ends_with_the_very_weights_of_one_that_was_not(
    class_folders: Path, tmp_path: Path
) -> None:
    whole = augmented(class_folders, tmp_path / "whole")
    run = tmp_path / "killed"
    code = KILLED.format(root=str(ROOT), data=str(class_folders), output=str(run))
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, cwd=ROOT)
    wanted = int(torch.randint(3, 17, (), generator=torch.Generator().manual_seed(time.time_ns())))
    try:
        while not (state := find_state(run / "state")) or int(state.name) < wanted:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    state = find_state(run / "state")
    assert state is not None
    here = read_progress(state)
    assert here["epoch"] < 3
    resumed = augmented(class_folders, run, resume=True)
    assert same_weights(resumed, whole), f"killed at epoch {here['epoch']}, update {here['update']}"
    assert same_weights(SRNN.from_pretrained(run / "best"), SRNN.from_pretrained(tmp_path / "whole" / "best"))


def test_a_state_that_was_cut_short_is_never_picked_up(tmp_path: Path) -> None:
    whole = tiny()
    fit(whole, images(), images(), TINY, tmp_path / "whole", workers=0)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(tiny(), Hooked(13, lambda: os.kill(os.getpid(), signal.SIGTERM)), images(), TINY, run, workers=0)
    good = find_state(run / "state")
    assert good is not None
    for number, damage in enumerate(("model.safetensors", "complete.json", "optimizer.bin"), int(good.name) + 1):
        cut = run / "state" / f"{number:08d}"
        cut.mkdir()
        for file in good.iterdir():
            content = file.read_bytes()
            (cut / file.name).write_bytes(content[: len(content) // 2] if file.name == damage else content)
    (cut / "optimizer.bin").unlink()
    assert find_state(run / "state") == good
    resumed = tiny()
    fit(resumed, images(), images(), TINY, run, resume=True, workers=0)
    assert same_weights(resumed, whole)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_the_run_goes_on_as_if_there_had_been_none(name: str, tmp_path: Path) -> None:
    whole = tiny()
    fit(whole, images(), images(), TINY, workers=0)
    number = getattr(signal, name)
    train = Hooked(10, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"stopped by {name} at epoch 2, batch 1: the state is saved in") as error:
        fit(tiny(), train, images(), TINY, tmp_path / "run", workers=0)
    assert error.value.signum == number
    resumed = tiny()
    fit(resumed, images(), images(), TINY, tmp_path / "run", resume=True, workers=0)
    assert same_weights(resumed, whole)


def test_a_signal_during_validation_loses_no_epoch(tmp_path: Path) -> None:
    whole = tiny()
    fit(whole, images(), images(), TINY, workers=0)
    val = Hooked(11, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the second epoch's
    with pytest.raises(Interrupted, match="epoch 2, batch 2"):
        fit(tiny(), images(), val, TINY, tmp_path / "run", workers=0)
    resumed = tiny()
    result = fit(resumed, images(), images(), TINY, tmp_path / "run", resume=True, workers=0)
    assert same_weights(resumed, whole)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    model, again = tiny(), tiny()
    result = fit(model, images(), images(), TINY, tmp_path / "run", workers=0)
    assert fit(again, images(), images(), TINY, tmp_path / "run", resume=True, workers=0) == result
    assert same_weights(model, again)


def test_a_run_is_not_resumed_with_another_recipe_model_or_data(tmp_path: Path) -> None:
    import dataclasses

    fit(tiny(), images(), images(), TINY, tmp_path / "run", workers=0)
    other = dataclasses.replace(TINY, lr=0.5, schedule="step")
    with pytest.raises(ValueError, match=r"lr 0.5, was 0.003; schedule step, was constant; .*recipe\.toml"):
        fit(tiny(), images(), images(), other, tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="variant vanilla, was half_gru"):
        fit(tiny(variant="vanilla"), images(), images(), TINY, tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="training images 12, was 8"):
        fit(tiny(), images(12), images(), TINY, tmp_path / "run", resume=True)


def test_a_run_takes_no_other_runs_place_and_resumes_from_nothing_only_by_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run holds no run to resume"):
        fit(tiny(), images(), images(), TINY, tmp_path / "run", resume=True)
    fit(tiny(), images(), images(), TINY, tmp_path / "run", workers=0)
    with pytest.raises(FileExistsError, match="run holds another run: resume it, or choose another folder"):
        fit(tiny(), images(), images(), TINY, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    train = Hooked(14, lambda: float("inf"))
    reason = r"the loss is nan at epoch 2, batch 2; .*last holds the model of epoch 1: choose a lower lr"
    with pytest.raises(FloatingPointError, match=reason):
        fit(tiny(), train, images(), TINY, tmp_path / "run", workers=0, state_seconds=0)
    kept = find_state(tmp_path / "run" / "state")
    assert kept is not None
    assert (read_progress(kept)["epoch"], read_progress(kept)["update"]) == (1, 1)
    assert all(p.isfinite().all() for p in SRNN.from_pretrained(tmp_path / "run" / "last").parameters())
    whole, resumed = tiny(), tiny()
    fit(whole, images(), images(), TINY, workers=0)
    fit(resumed, images(), images(), TINY, tmp_path / "run", resume=True, workers=0)
    assert same_weights(resumed, whole)


def test_weights_that_a_step_broke_take_no_good_states_place(tmp_path: Path) -> None:
    model = tiny()
    model.get_parameter("fc.weight").register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(
        FloatingPointError, match="the weights are not finite after epoch 1, batch 1: choose a lower lr"
    ):
        fit(model, images(), images(), TINY, tmp_path / "run", workers=0, state_seconds=0)
    kept = find_state(tmp_path / "run" / "state")
    assert kept is not None
    assert read_progress(kept)["update"] == 0


def test_a_full_disk_ends_the_run_and_the_state_before_it_survives(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with an error then, as on a full disk
    train = Hooked(10, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard)))
    run = tmp_path / "run"
    try:
        with pytest.raises(OSError, match=r"cannot write the state of this run to .*state: "):
            fit(tiny(), train, images(), TINY, run, workers=0, state_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert [path.name for path in (run / "state").iterdir()] == [
        path.name for path in [find_state(run / "state")] if path
    ]
    whole, resumed = tiny(), tiny()
    fit(whole, images(), images(), TINY, workers=0)
    fit(resumed, images(), images(), TINY, run, resume=True, workers=0)
    assert same_weights(resumed, whole)


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
    with pytest.raises(ValueError, match=r"wds/flowers is a stream, .* give hfds/… or a folder, or train with timm"):
        open_data("wds/flowers")


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
    monkeypatch.setattr("srnn_zoo.training.output.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'TensorBoard log needs tensorboard: pip install "srnn-zoo\[train\]"'):
        fit(tiny(), images(), images(), TINY, tmp_path / "run", tensorboard=True)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'training needs accelerate: pip install "srnn-zoo\[train\]"'):
        fit(tiny(), images(), images(), TINY)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


TWO = """
import json, sys
sys.path.insert(0, {root!r})
import torch
from tests.test_engine import images, tiny_without_batch_norm
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
