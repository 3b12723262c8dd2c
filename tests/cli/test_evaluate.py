"""The commands `srnn-zoo evaluate` and `srnn-zoo curves`: models by name and folder, mistakes, and interruptions."""

import itertools
import shutil
import signal
from pathlib import Path

import pytest

from srnn_zoo import SRNN
from tests.evaluation.test_plot import HEADER, line, write

from .command import refused, run


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def methods(said):
    """The names of the rows that were printed."""
    return [row.split("|")[1].strip() for row in said.out.splitlines() if row.startswith("|")][2:]


BASE = ["base CNN 32", "base CNN 64", "probability ensemble", "logit ensemble"]


def test_rows_of_mirror_images_and_of_all_models_together_are_there_if_asked_for():
    said = run("evaluate", "data", "a", "b", "--split", "test", "--ensemble", "--flip")
    flipped = ["base CNN 64, flipped too", "probability ensemble, flipped too"]
    assert methods(said) == [*BASE, *flipped, "vanilla", "half_gru", "ensemble of vanilla, half_gru"]
    assert "an ensemble needs two models or more" in refused("evaluate", "data", "a", "--split", "test", "--ensemble")


@pytest.mark.usefixtures("broken")
def test_evaluate_prints_the_table_writes_it_and_lists_what_it_could_not_read(tmp_path):
    said = run("evaluate", "data", "a", "b", "--split", "test", "--output", tmp_path / "out")
    assert said.code == 1
    assert methods(said) == [*BASE, "vanilla", "half_gru"]
    broken = Path("data", "test", "red", "broken.jpg")
    assert said.err == f"skipped 1 of 13 images:\n  {broken}: not an image that Pillow can read\n"
    assert said.out == (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "12 images of data/test;" in said.out
    for file, lines in (("table.csv", 6), ("predictions.csv", 12)):
        assert len((tmp_path / "out" / file).read_text().splitlines()) == 1 + lines


@pytest.mark.usefixtures("broken")
def test_a_report_is_written_and_its_options_are_checked(tmp_path):
    report = tmp_path / "report.html"
    said = run("evaluate", "data/test", "b", "--report", report, "--exit", "confidence:0.5")
    assert (said.code, said.err.splitlines()[0]) == (1, f"report written to {report}")
    page = report.read_text(encoding="utf-8")
    assert "Rule: confidence:0.5" in page
    assert "broken.jpg: not an image that Pillow can read" in page
    given = ("evaluate", "data/test", "b")
    assert "give --report report.html too" in refused(*given, "--exit", "confidence:0.5")
    assert "--report: a report is a page" in refused(*given, "--report", tmp_path / "report.png")
    assert "--exit: unknown exit rule" in refused(*given, "--report", report, "--exit", "sure:1")
    assert "--exit: 2 levels need 1 thresholds" in refused(*given, "--report", report, "--exit", "margin:0.5,0.4")


def test_scores_are_saved_with_the_models_and_what_has_no_folder_is_refused(place, tmp_path):
    shutil.copytree(place / "a", tmp_path / "model")
    said = run("evaluate", Path("data", "test"), tmp_path / "model", "--save-as", "ada/colours")
    assert said.code == 0
    scores = SRNN.from_pretrained(tmp_path / "model").metadata["metrics"]
    assert list(scores) == ["ada/colours"]
    assert f" {100 - scores['ada/colours']['top1']:.2f} (" in said.out
    assert (tmp_path / "model" / ".eval_results" / "ada--colours.yaml").is_file()
    assert "is no folder of a saved one" in refused("evaluate", "data", "srnn_test_resnet", "--save-as", "ada/x")
    assert "leave out --save-as" in refused("evaluate", "data", "a", "--sizes", "32,48", "--save-as", "ada/x")


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


def test_ctrl_c_leaves_what_was_done_and_says_where(tmp_path, monkeypatch):
    fuse, calls = SRNN.fuse, itertools.count()

    def stop_at_the_fourth(*args):
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return fuse(*args)

    monkeypatch.setattr(SRNN, "fuse", stop_at_the_fourth)
    monkeypatch.setattr("srnn_zoo.cli.app._interrupts", [])
    partial = tmp_path / "out" / "predictions.csv.partial"
    said = run("evaluate", "data/test", "a", "--batch-size", 1, "--output", partial.parent)
    assert said == (130, "", f"srnn-zoo: interrupted; what was done is in {partial}\n")
    assert list(partial.parent.iterdir()) == [partial]
    assert [line.count(",") for line in partial.read_text().splitlines()] == [16] * 4  # no line is cut


def test_curves_draws_runs_with_lines(tmp_path):
    for name in ("other", "vanilla", "half_gru", "other/vanilla"):
        write(tmp_path / name, HEADER, line(0, 60), line(1, 70))
    runs = (tmp_path / "vanilla", f"half-GRU SRNN={tmp_path / 'half_gru'}", tmp_path / "other" / "vanilla")
    plot = tmp_path / "curves.svg"
    said = run("curves", *runs, "--line", "logit ensemble=28.26", "--line", "a=b=30", "--output", plot)
    assert (said.code, said.out, said.err) == (0, "", f"drawn to {plot}\n")
    assert plot.stat().st_size > 1000
