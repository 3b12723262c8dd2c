"""Interruptions: a run that was killed, stopped, or broken goes on as if there had been none."""

import copy
import dataclasses
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from srnn_zoo import SRNN
from srnn_zoo.datasets.holdout import Holdout
from srnn_zoo.training import Interrupted, Recipe, fit, open_data, recipe
from srnn_zoo.training.state import find_state, read_progress
from tests.conftest import ROOT, same_weights

from .trainings import TINY, Hooked, augmented, events, images, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


@functools.cache
def whole():
    """A model after a run that was not interrupted."""
    model = tiny()
    fit(model, images(), images(), TINY, workers=0)
    return model


def resume(run, **options):
    """Go on with a run, which ends with the very weights of one that was not interrupted."""
    model = tiny()
    result = fit(model, images(), images(), TINY, run, resume=True, workers=0, **options)
    assert same_weights(model, whole())
    return result


def kept(run):
    """How far the state that is kept has come."""
    progress = read_progress(find_state(run / "state"))
    return progress["epoch"], progress["update"]


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_very_weights_of_one_that_was_not(class_folders, tmp_path):
    whole, run = augmented(class_folders, tmp_path / "whole"), tmp_path / "killed"
    call = f"augmented({str(class_folders)!r}, {str(run)!r}, state_seconds=0)"
    command = [sys.executable, "-c", f"from tests.training.trainings import augmented\n{call}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, start_new_session=True, cwd=ROOT, env=environment)
    wanted = int(torch.randint(3, 13, (), generator=torch.Generator().manual_seed(time.time_ns())))
    deadline = time.monotonic() + 120
    try:
        while not (state := find_state(run / "state")) or int(state.name) < wanted:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    epoch, update = kept(run)
    assert epoch < 2
    resumed = augmented(class_folders, run, resume=True)
    assert same_weights(resumed, whole), f"killed at epoch {epoch}, update {update}"
    assert same_weights(SRNN.from_pretrained(run / "best"), SRNN.from_pretrained(tmp_path / "whole" / "best"))


@pytest.mark.parametrize(
    ("name", "split", "read", "place"),
    [
        pytest.param("SIGINT", 0, 10, "epoch 2, batch 1", id="interrupted"),
        pytest.param("SIGTERM", 0, 13, "epoch 2, batch 2", id="terminated"),
        pytest.param("SIGTERM", 1, 11, "epoch 2, batch 2", id="in validation"),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_as_if_there_had_been_none(name, split, read, place, tmp_path):
    number, run, splits = getattr(signal, name), tmp_path / "run", [images(), images()]
    splits[split] = Hooked(read, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match=f"stopped by {name} at {place}: the state is saved in") as error:
        fit(tiny(), *splits, TINY, run, workers=0, tensorboard=True)
    assert error.value.signum == number
    result = resume(run, tensorboard=True)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert events(run) == [(row["epoch"], pytest.approx(row["val_loss"])) for row in result.history]
    assert resume(run) == result  # a finished run


def test_a_state_that_was_cut_short_is_never_picked_up(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(tiny(), Hooked(13, lambda: signal.raise_signal(signal.SIGTERM)), images(), TINY, run, workers=0)
    good = find_state(run / "state")
    for number, name in enumerate(("model.safetensors", "complete.json", "optimizer.bin"), int(good.name) + 1):
        file = shutil.copytree(good, run / "state" / f"{number:08d}") / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    file.unlink()  # of the newest there is no half either
    assert find_state(run / "state") == good
    resume(run)


@pytest.mark.parametrize("kind", ["run", "probe"])
def test_a_run_is_resumed_only_as_itself_and_takes_no_other_runs_place(kind, tmp_path):
    settings = {"epochs": 1, "lr": 0.003, "schedule": "constant"}
    run, short = tmp_path / "run", recipe("probe", **settings) if kind == "probe" else Recipe(**settings, batch_size=8)
    with pytest.raises(FileNotFoundError, match=f"run holds no {kind} to resume"):
        fit(tiny(), images(), images(), short, run, resume=True)
    assert not run.exists()
    fit(tiny(), images(), images(), short, run, workers=0)
    other, resumed = dataclasses.replace(short, lr=0.5, schedule="step", recurrence=0.5), {"resume": True}
    named, changes = images(8), r"lr 0.5, was 0.003; .*schedule step, was constant; .*recipe\.toml"
    named.classes = ["a", "b", "c", "d"]
    for model, train, chosen, options, reason in (
        (tiny(), images(), other, resumed, changes),
        (tiny(variant="vanilla"), images(), short, resumed, "variant vanilla, was half_gru"),
        (tiny(), images(12), short, resumed, "training images 12, was 8"),
        (tiny(), named, other, resumed, "other classes"),
        (tiny(), named, other, {}, "run holds another run: resume it with --resume "),
    ):
        model.zero_shot, model.metadata = True, {"exit": {"rule": "margin"}}
        before = copy.deepcopy(model)
        with pytest.raises((ValueError, FileExistsError), match=reason):
            fit(model, train, images(), chosen, run, **options)
        assert same_weights(model, before)  # what is refused changes nothing
        found, expected = ((x.zero_shot, x.metadata, x.pretrained_cfg) for x in (model, before))
        assert found == expected


def test_more_epochs_are_added_to_a_run_whose_schedule_then_follows_the_longer_one(tmp_path):
    chosen, run = dataclasses.replace(TINY, schedule="cosine", epochs=2), tmp_path / "run"
    longer = dataclasses.replace(chosen, epochs=5)
    first = fit(tiny(), images(), images(), chosen, run, workers=0)
    expected = fit(tiny(), images(), images(), longer, workers=0).history
    for _ in range(2):  # then it is finished
        result = fit(tiny(), images(), images(), longer, run, resume=True, workers=0)
        assert result.history[:2] == first.history
        assert [row["lr"] for row in result.history[2:]] == [row["lr"] for row in expected[2:]]
    assert Recipe.from_toml(run / "recipe.toml").epochs == 5
    for changed, reason in (
        ({"epochs": 4}, "epochs 4, was 5;"),
        ({"epochs": 6, "lr": 0.5}, "data: lr 0.5, was 0.003;"),
    ):
        with pytest.raises(ValueError, match=reason):
            fit(tiny(), images(), images(), dataclasses.replace(longer, **changed), run, resume=True)


def test_with_a_constant_learning_rate_added_epochs_make_the_very_weights_of_the_longer_run(tmp_path):
    fit(tiny(), images(), images(), dataclasses.replace(TINY, epochs=2), tmp_path / "run", workers=0)
    resume(tmp_path / "run")


def test_a_probe_with_more_epochs_is_the_probe_that_had_them_from_the_start(tmp_path):
    short, long = (recipe("probe", epochs=epochs, batch_size=4) for epochs in (1, 4))
    fit(tiny(), images(), images(), short, tmp_path / "run", workers=0)
    resumed, whole = tiny(), tiny()
    fit(resumed, images(), images(), long, tmp_path / "run", resume=True, workers=0)
    fit(whole, images(), images(), long, workers=0)
    assert same_weights(resumed, whole)
    assert Recipe.from_toml(tmp_path / "run" / "recipe.toml") == long
    with pytest.raises(ValueError, match="epochs 1, was 4"):
        fit(tiny(), images(), images(), short, tmp_path / "run", resume=True, workers=0)


@pytest.mark.parametrize("name", ["finetune", "probe"])
def test_a_run_records_how_its_folder_was_split_and_is_resumed_with_that_split_only(name, class_folders, tmp_path):
    chosen, folder = recipe(name, epochs=1, batch_size=6), class_folders / "train"

    def run(resume, **options):
        data = open_data(folder, **options)
        return fit(tiny(3), data.train, data.val, chosen, tmp_path / "run", resume=resume, workers=0)

    first = run(False, val_fraction=0.25, seed=5)
    assert Holdout.load(tmp_path / "run" / "split.json") == open_data(folder, val_fraction=0.25, seed=5).val.holdout
    assert run(True, val_fraction=0.25, seed=5).best["val_loss"] == first.best["val_loss"]
    with pytest.raises(ValueError, match=r"of the images with seed 5; got 0\.25 with seed 6: give the same"):
        run(True, val_fraction=0.25, seed=6)
    with pytest.raises(ValueError, match=r"training images 24, was 18; val_fraction None, was 0\.25"):
        run(True, val=class_folders / "val")
    (folder / "red" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"image red/3\.png is gone; put it back as it was, or begin a new run"):
        run(True, val_fraction=0.25, seed=5)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path):
    run, model = tmp_path / "run", tiny()
    reason = r"the loss is nan at epoch 2, batch 2; .*last holds the model of epoch 1: choose a lower lr"
    with pytest.raises(FloatingPointError, match=reason):
        fit(model, Hooked(14, lambda: float("inf")), images(), TINY, run, workers=0, state_seconds=0)
    assert kept(run) == (1, 1)
    assert all(p.isfinite().all() for p in model.parameters())  # it has not reached the optimiser
    assert all(p.isfinite().all() for p in SRNN.from_pretrained(run / "last").parameters())
    resume(run)


def test_weights_that_a_step_broke_take_no_good_states_place(tmp_path):
    model = tiny()
    model.fc.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="weights are not finite after epoch 1, batch 1: choose a lower lr"):
        fit(model, images(), images(), TINY, tmp_path, workers=0, state_seconds=0)
    assert kept(tmp_path) == (0, 0)


def test_a_full_disk_ends_the_run_and_the_state_before_it_survives(tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with an error then, as on a full disk
    run, train = tmp_path / "run", Hooked(10, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard)))
    try:
        with pytest.raises(OSError, match=r"cannot write the state of this run to .*state: "):
            fit(tiny(), train, images(), TINY, run, workers=0, state_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list((run / "state").iterdir()) == [find_state(run / "state")]
    resume(run)
