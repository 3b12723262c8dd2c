"""The commands `srnn-zoo evaluate` and `srnn-zoo curves`: models by name and folder, mistakes, and interruptions."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.evaluation.test_plot import HEADER, line, write

from .command import COMMAND, run


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def methods(said):
    """The names of the rows that were printed."""
    return [row.split("|")[1].strip() for row in said.out.splitlines() if row.startswith("|")][2:]


BASE = ["base CNN 32", "base CNN 64", "probability ensemble", "logit ensemble"]


@pytest.mark.usefixtures("broken")
def test_evaluate_prints_the_table_writes_it_and_lists_what_it_could_not_read(tmp_path):
    said = run("evaluate", "data", "a", "b", "--split", "test", "--output", tmp_path / "out")
    assert said.code == 1
    assert methods(said) == [*BASE, "vanilla", "half_gru"]
    assert said.err.splitlines() == [
        "skipped 1 of 13 images:",
        f"  {Path('data/test/red/broken.jpg')}: not an image that Pillow can read",
    ]
    assert said.out == (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "12 images of data/test;" in said.out
    for file, lines in (("table.csv", 6), ("predictions.csv", 12)):
        with (tmp_path / "out" / file).open() as opened:
            assert len(list(csv.DictReader(opened))) == lines


def test_base_sizes_and_reference_are_chosen_and_models_of_one_variant_are_named_with_what_they_are():
    options = ("--base", "a", "--sizes", "32,48,64", "--reference", "half_gru, b")
    said = run("evaluate", Path("data", "test"), "b", "c", *options)
    assert methods(said) == ["base CNN 32", "base CNN 48", "base CNN 64", *BASE[2:], "half_gru, b", "half_gru, c"]
    assert "p against half_gru, b" in said.out
    assert "backbone and classifier of the model given as base" in said.out


@pytest.mark.data
def test_a_name_in_several_variants_is_zero_shot(imagenet_sample, tmp_path):
    for path in imagenet_sample[:3]:
        (tmp_path / path.parent.name).symlink_to(path.parent)
    options = ("--variants", "vanilla, half_gru", "--sizes", "112,224")
    said = run("evaluate", tmp_path, "srnn_tf_efficientnet_lite0", *options)
    assert (said.code, said.err) == (0, "")
    assert methods(said) == ["base CNN 112", "base CNN 224", *BASE[2:], "vanilla", "half_gru"]


def heed_ctrl_c():
    """A shell has its background jobs, and so these tests, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_as_a_process_ctrl_c_leaves_what_was_done_and_says_where(place, images, tmp_path):
    for index in range(500):
        for name in ("blue", "red"):
            (tmp_path / "many" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "many" / name / f"{index}.png").symlink_to(images / name / "0.png")
    command = [*COMMAND, "evaluate", tmp_path / "many", "a", "--batch-size", "1", "--output", tmp_path / "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    partial = tmp_path / "out" / "predictions.csv.partial"
    with subprocess.Popen([*map(str, command)], cwd=place, preexec_fn=heed_ctrl_c, **pipes) as process:
        deadline = time.monotonic() + 120
        while not (partial.exists() and partial.stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == f"srnn-zoo: interrupted; what was done is in {partial}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [partial.name]
    done = partial.read_text().splitlines()
    assert 1 < len(done) < 1000
    assert {line.count(",") for line in done} == {done[0].count(",")}  # no line is cut


def test_curves_draws_runs_with_lines(tmp_path):
    for name in ("other", "vanilla", "half_gru", "other/vanilla"):
        write(tmp_path / name, HEADER, line(0, 60), line(1, 70))
    runs = (tmp_path / "vanilla", f"half-GRU SRNN={tmp_path / 'half_gru'}", tmp_path / "other" / "vanilla")
    plot = tmp_path / "curves.svg"
    said = run("curves", *runs, "--line", "logit ensemble=28.26", "--line", "a=b=30", "--output", plot)
    assert (said.code, said.out, said.err) == (0, "", f"drawn to {plot}\n")
    assert plot.stat().st_size > 1000
