"""The commands that stop early: predict with a rule or a budget, calibrate, and pareto."""

import csv
import itertools
import json
import re
import shutil
import sys
from collections import Counter

import pytest
from PIL import Image

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.inference import exits
from srnn_zoo.models import cells

from .command import refused, run
from .conftest import NAMES

FAST = ("--workers", 0)
OWN = """
from srnn_zoo import Cell, register_cell, register_exit
from srnn_zoo.inference.exits import ScoreRule

@register_exit("first", example=0.9)
class First(ScoreRule):
    def score(self, probabilities):
        return probabilities[:, 0]

@register_cell("keep_last")
class KeepLast(Cell):
    def forward(self, features, state):
        return features
"""


def costs_of(folder):
    """GMACs after the first level and after both."""
    return [*itertools.accumulate(srnn_zoo.count_gmacs(SRNN.from_pretrained(folder)).levels)]


def parsed(said):
    assert said.code == 0, said
    return [json.loads(line) for line in said.out.splitlines()]


def test_predict_shows_where_every_image_stopped_and_what_was_saved(saved, images):
    full = parsed(run("predict", images, "-m", saved, "--json"))
    first = sorted(item["levels"][0]["top"][0]["probability"] for item in full)
    options = ("predict", images, "-m", saved, "--exit", f"confidence:{(first[4] + first[5]) / 2}", "--topk", 2)
    as_json, said = run(*options, "--json"), run(*options)
    assert (said.code, said.err) == (as_json.code, as_json.err)
    costs, blocks = costs_of(saved), re.split(r"\n(?=\S)", said.out.rstrip())
    for item, whole, block in zip(parsed(as_json), full, blocks, strict=True):
        last = item["stopped_at"]
        assert item["gmacs"] == pytest.approx(costs[last])
        assert [level["size"] for level in item["levels"]] == [[32, 32], [64, 64]][: last + 1]
        assert item["levels"][-1]["top"][0]["label"] == whole["levels"][last]["top"][0]["label"]
        title, *rows = block.splitlines()[1:]
        assert re.fullmatch(rf"  32 x 32 +64 x 64{'  not read' * (1 - last)}", title)
        assert [len(re.findall(r"[\d.]+ %", row)) for row in rows] == [last + 1] * 2
    mean = (7 * costs[0] + 5 * costs[1]) / 12
    assert said.err.splitlines() == [
        "stopped at  32 x 32: 7 (58 %)  64 x 64: 5 (42 %)",
        f"{mean:.3f} GMACs an image, {100 * (1 - mean / costs[1]):.1f} % less than the {costs[1]:.3f} of all levels",
    ]


def test_a_budget_is_a_level_until_calibrate_writes_thresholds_into_the_folder_that_predict_uses(saved, images):
    first, both = costs_of(saved)
    weights, predict = (saved / "model.safetensors").read_bytes(), ("predict", images, "-m", saved)
    budget = 0.6 * first + 0.4 * both
    said = run(*predict, "--json", "--budget", budget)
    assert said.err.startswith("the model was never calibrated: every image stops at 32 x 32, the largest level that")
    assert {item["stopped_at"] for item in parsed(said)} == {0}

    said = run("calibrate", images.parent, "--split", "test", "--model", saved, "--budget", budget, *FAST)
    assert said.out.startswith("confidence, on 12 held-out images\n")
    assert re.search(r"32 x 32 +[\d.]+ +[\d.]+ %\n +64 x 64 +[\d.]+ %\n", said.out)
    assert said.err.splitlines() == [
        "warning: 12 images are few: their accuracy is known to ±28 points, and thresholds of 200 or more images would "
        "be surer",
        "warning: 1 of the model's 4 classes have no image in the calibration set; how early theirs should stop is not "
        "known, and accuracy and cost on them may differ from what is reported",
        f"saved to {saved}",
    ]
    assert (saved / "model.safetensors").read_bytes() == weights
    loaded = SRNN.from_pretrained(saved)
    assert loaded.pretrained_cfg["label_names"] == list(NAMES)
    stored = loaded.metadata["exit"]["held_out"]
    assert stored["gmacs"] <= budget
    assert f"early exit  {stored['top1']:6.2f} %  {stored['gmacs']:8.3f} GMACs" in said.out

    for option in (("--exit", "calibrated"), ("--budget", budget)):
        said = run(*predict, "--json", *option)
        assert sum(item["gmacs"] for item in parsed(said)) / 12 == pytest.approx(stored["gmacs"], abs=1e-6)
        assert said.err.count("\n") == 2
        reason = refused(*predict, "--sizes", "48,96", *option)
        assert "was calibrated for levels of 32 x 32 + 64 x 64; its thresholds say nothing about levels of 48" in reason
    said = run(*predict, "--budget", 100)
    assert said.err.splitlines()[:2] == [
        "the budget pays for every level: all are read",
        "stopped at  32 x 32: 0 (0 %)  64 x 64: 12 (100 %)",
    ]
    assert f"{both:.3f} GMACs an image, 0.0 % less" in said.err
    assert said.out == run(*predict).out  # all levels, unless asked


def test_calibrate_and_pareto_take_another_rule_sizes_a_folder_and_a_split_of_a_named_data_set(saved, images, tmp_path):
    new, data = tmp_path / "new", tmp_path / "data"
    data.mkdir()
    (data / "val").symlink_to(images)
    options = ("-m", saved, "--target-accuracy", 5, "--rule", "margin", "--sizes", "32,48,64", "--output", new, *FAST)
    said = run("calibrate", "torch/image_folder", "--split", "val", "--data-dir", data, *options)
    assert said == run("calibrate", images, *options)
    assert said.out.startswith("margin, on 12")
    assert SRNN.from_pretrained(new).level_sizes() == [(32, 32), (48, 48), (64, 64)]
    assert "exit" not in SRNN.from_pretrained(saved).metadata
    assert run("predict", images, "-m", new, "--exit", "calibrated").code == 0
    held_out = ("--calibration-data", images.parent, "--calibration-split", "test", "--rule", "entropy")
    for options, rule in (((), "margin"), (held_out, "entropy")):
        said = run("pareto", data, "--split", "val", "-m", new, *options, *FAST)
        assert (said.code, said.err) == (0, "")
        assert f"early exit, {rule}" in said.out
    reason = refused("pareto", images, "-m", new, "--sizes", "48,96", *FAST)
    assert "was calibrated for levels of 32 x 32 + 48 x 48 + 64 x 64" in reason


def test_rules_and_cells_of_ones_own_are_imported_from_the_current_folder(saved, images, tmp_path, monkeypatch):
    (tmp_path / "my_own.py").write_text(OWN)
    (tmp_path / "my_fault.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(exits, "_EXITS", {**exits._EXITS})
    monkeypatch.setattr(cells, "_CELLS", {**cells._CELLS})
    own = ("--import", "my_own")
    assert run("predict", images, "-m", saved, *own, "--exit", "first:0.5").code == 0
    assert run("calibrate", images, "-m", saved, *own, "--budget", 100, "--rule", "first", *FAST).code == 0
    assert SRNN.from_pretrained(saved).metadata["exit"]["module"] == "my_own"
    assert run("predict", images, "-m", saved, *own, "--exit", "calibrated").code == 0
    assert "early exit, first" in run("pareto", images, "-m", saved, *own, *FAST).out
    assert "keep_last" in run("info", "srnn_test_resnet", "--variant", "keep_last", *own).out
    del sys.modules["my_own"], exits._EXITS["first"], cells._CELLS["keep_last"]
    reason = refused("predict", images, "-m", saved, "--exit", "calibrated")
    assert "rule 'first' of module my_own: import it first (on the command line --import my_own)" in reason
    reason = refused("predict", images, "-m", saved, "--import", "my_fault")
    assert reason == "srnn-zoo: --import: cannot import 'my_fault' (ZeroDivisionError: division by zero)"


def test_images_that_cannot_be_read_are_listed_and_folders_that_do_not_fit_are_refused(saved, images, broken, tmp_path):
    commands = [(*command, "-m", saved, *FAST) for command in (("calibrate", "--budget", 100), ("pareto",))]
    data = tmp_path / "data"
    shutil.copytree(images / "green", data / "gren")
    for command in commands:
        said = run(*command, images)
        assert said.code == 1
        assert said.err.endswith(f"skipped 1 of 13 images:\n  {broken}: not an image that Pillow can read\n")
        assert "unknown class 'gren'; did you mean 'green'?" in refused(*command, data)
    assert SRNN.from_pretrained(saved).metadata["exit"]["held_out"]["images"] == 12
    for path in (data / "gren").rename(data / "green").iterdir():
        path.write_bytes(b"")
    for command in commands:
        assert re.fullmatch("srnn-zoo: the loader gave no image.*0.png: an empty file", refused(*command, data))


def test_pareto_shows_writes_and_draws_every_kind_of_point(saved, images, tmp_path):
    table, plot = tmp_path / "pareto.csv", tmp_path / "pareto.png"
    said = run("pareto", images, "-m", saved, "--output", table, "--plot", plot, *FAST)
    for name in ("early exit, confidence", "level 0", "level 1", "single scale 32 x 32", "logit ensemble"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ %", said.out, re.MULTILINE)
    assert said.err.splitlines() == [
        "the thresholds were chosen on these same images, so the curve promises too much: give "
        "--calibration-data, or calibrate the model first",
        f"written to {table}",
        f"drawn to {plot}",
    ]
    kinds = {line.split(",")[1] for line in table.read_text().splitlines()[1:]}
    assert kinds == {"curve", "level", "single scale", "ensemble"}
    with Image.open(plot) as image:
        assert image.width > 1000


def test_pareto_shows_other_models_alone_together_and_in_turn(saved, place, images, tmp_path):
    table, plot = tmp_path / "pareto.csv", tmp_path / "pareto.png"
    one, two = place / "a", place / "c"
    beside = ("--beside", one, "--beside", two)
    said = run("pareto", images, "-m", saved, *beside, "--output", table, "--plot", plot, *FAST)
    both = f"{one}, {two}"
    for name in (one, two, f"ensemble of {both}", f"cascade {both}: last answers", f"cascade {both}: all answer"):
        assert re.search(rf"^{re.escape(str(name))} +[\d.]+ +[\d.]+ %", said.out, re.MULTILINE), said
    with table.open() as file:
        kinds = Counter(row["kind"] for row in csv.DictReader(file))
    assert (kinds["model"], kinds["ensemble"]) == (2, 3)
    assert kinds["cascade"] >= 2
    run("calibrate", images, "-m", saved, "--budget", 100, *FAST)
    said = run("pareto", images, "-m", saved, *beside, *FAST)
    assert said.err == "the thresholds of cascades were chosen on these same images: give --calibration-data\n"
    assert not run("pareto", images, "-m", saved, *beside, "--calibration-data", images, *FAST).err
    srnn_zoo.create_model("srnn_test_resnet", num_classes=3).save_pretrained(tmp_path / "other")
    assert "other classes than the model" in refused("pareto", images, "-m", saved, "--beside", tmp_path / "other")
    assert f"{one} is named twice" in refused("pareto", images, "-m", saved, "--beside", one, "--beside", one)
    turned = SRNN.from_pretrained(one)
    turned.save_pretrained(tmp_path / "turned", label_names=NAMES[::-1])
    reason = refused("pareto", images, "-m", saved, "--beside", tmp_path / "turned")
    assert reason.endswith("turned has the model's classes in another order")
    turned.metadata["task"] = "multi_label"
    turned.save_pretrained(tmp_path / "several")
    reason = refused("pareto", images, "-m", saved, "--beside", tmp_path / "several")
    assert reason.endswith("several: pareto is about one class an image, and this model is for multi_label")


@pytest.mark.data
@pytest.mark.slow
def test_on_images_of_imagenet_half_the_cost_is_saved_and_thresholds_hold_on_others(imagenet_sample, tmp_path):
    for number, path in enumerate(imagenet_sample[:48]):
        folder = tmp_path / ("val" if number < 24 else "test") / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
    net = tmp_path / "net"
    srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True, img_size=224).save_pretrained(net)
    half = sum(costs_of(net)) / 2
    assert run("calibrate", tmp_path / "val", "-m", net, "--budget", half, *FAST).code == 0
    answers = parsed(run("predict", tmp_path / "test", "-m", net, "--exit", "calibrated", "--json"))
    assert 3 < sum(item["stopped_at"] == 0 for item in answers) < 24
    assert sum(item["gmacs"] for item in answers) / 24 == pytest.approx(half, rel=0.4)
