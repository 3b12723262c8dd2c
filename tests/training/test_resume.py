"""Interruptions: a run that was killed, stopped, or broken goes on as if there had been none."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from srnn_zoo import SRNN
from srnn_zoo.training import Interrupted, fit
from srnn_zoo.training.state import find_state, read_progress
from tests.conftest import ROOT, same_weights

from .trainings import TINY, Hooked, augmented, images, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

KILLED = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.training.trainings import augmented
torch.set_num_threads(1)
augmented({data!r}, {output!r}, state_seconds=0)
"""


def test_a_run_that_was_killed_ends_with_the_very_weights_of_one_that_was_not(
    class_folders: Path, tmp_path: Path
) -> None:
    whole = augmented(class_folders, tmp_path / "whole")
    run = tmp_path / "killed"
    code = KILLED.format(root=str(ROOT), data=str(class_folders), output=str(run))
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, cwd=ROOT)
    wanted = int(torch.randint(3, 17, (), generator=torch.Generator().manual_seed(time.time_ns())))
    deadline = time.monotonic() + 120
    try:
        while not (state := find_state(run / "state")) or int(state.name) < wanted:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
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
