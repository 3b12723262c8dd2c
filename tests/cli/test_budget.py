"""The commands that stop early: predict with a rule or a budget, calibrate, and pareto."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.models.cost import level_gmacs

from .test_predict import CAT, COFFEE, refused, run

COLOURS = {"blue": (20, 40, 200), "green": (20, 160, 60), "red": (200, 30, 30)}
NAMES = ["black", *COLOURS]
FAST = ("--workers", 0)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four colours at 32 + 64 pixels, untrained, but with answers that differ."""
    torch.manual_seed(1)
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=4, img_size=64).eval()
    torch.nn.init.normal_(model.fc.weight, std=2.0)  # pyright: ignore
    folder = tmp_path_factory.mktemp("models") / "colours"
    model.save_pretrained(folder, label_names=NAMES)
    return folder


@pytest.fixture
def model(saved_once: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    folder = tmp_path / "model"
    SRNN.from_pretrained(saved_once).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four noisy pictures for each of three colours; none of black."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(4):
            noise = torch.randint(-60, 60, (70, 80, 3), generator=generator)
            pixels = (torch.tensor(colour) + noise).clamp(0, 255).byte()
            Image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")
    return root


def costs_of(folder: Path) -> tuple[float, float]:
    """GMACs after the first level and after both."""
    net = SRNN.from_pretrained(folder)
    first, second = (level_gmacs(net, size) for size in net.level_sizes())
    return first, first + second


def calibrated(model: Path, pictures: Path, *aim: object) -> Path:
    assert run("calibrate", pictures, "--model", model, *aim, *FAST).code == 0
    return model


def test_predict_shows_where_every_picture_stopped_and_what_was_saved(model: Path, pictures: Path) -> None:
    first, both = costs_of(model)
    said = run("predict", pictures, "-m", model, "--exit", "level:0", "--topk", 2)
    assert said.code == 0
    blocks = re.split(r"\n(?=\S)", said.out.rstrip())
    assert len(blocks) == 12
    for block in blocks:
        title, *rows = block.splitlines()[1:]
        assert re.fullmatch(r"  32 x 32 +64 x 64  not read", title)
        assert [len(re.findall(r"[\d.]+ %", row)) for row in rows] == [1, 1]
    assert said.err.splitlines() == [
        "stopped at  32 x 32: 12 (100 %)  64 x 64: 0 (0 %)",
        f"{first:.3f} GMACs a picture, {100 * (1 - first / both):.1f} % less than the {both:.3f} of all levels",
    ]
    said = run("predict", pictures, "-m", model, "--exit", "confidence:1.1", "--topk", 2)
    assert "not read" not in said.out
    assert said.err.splitlines()[0] == "stopped at  32 x 32: 0 (0 %)  64 x 64: 12 (100 %)"
    assert f"{both:.3f} GMACs a picture, 0.0 % less" in said.err


def test_predict_answers_with_early_exit_are_those_of_the_levels_that_were_read(model: Path, pictures: Path) -> None:
    full = [json.loads(line) for line in run("predict", pictures, "-m", model, "--json").out.splitlines()]
    assert all(set(item) == {"path", "levels", "notes"} for item in full)
    first = sorted(item["levels"][0]["top"][0]["probability"] for item in full)
    threshold = (first[4] + first[5]) / 2
    exit = f"confidence:{threshold}"
    for batch_size in (1, 5, 12):
        said = run("predict", pictures, "-m", model, "--json", "--exit", exit, "--batch-size", batch_size)
        early = [json.loads(line) for line in said.out.splitlines()]
        assert [item["path"] for item in early] == [item["path"] for item in full]
        assert [item["stopped_at"] for item in early].count(0) == 7
        for item, whole in zip(early, full, strict=True):
            assert item["gmacs"] == pytest.approx(costs_of(model)[item["stopped_at"]])
            assert len(item["levels"]) == item["stopped_at"] + 1
            for level, expected in zip(item["levels"], whole["levels"], strict=False):
                assert level["size"] == expected["size"]
                for entry, other in zip(level["top"], expected["top"], strict=True):
                    assert entry["label"] == other["label"]
                    assert entry["probability"] == pytest.approx(other["probability"], abs=1e-4)


def test_levels_that_are_not_read_are_not_computed(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    backbone_features = SRNN.level_features

    def level_features(self: SRNN, level: torch.Tensor, *index: Any) -> torch.Tensor:
        read.append((len(level), level.shape[-1]))
        return backbone_features(self, level, *index)

    monkeypatch.setattr(SRNN, "level_features", level_features)
    run("predict", pictures, "-m", model, "--exit", "level:0", "--batch-size", 6)
    assert read == [(6, 32), (6, 32)]


def test_a_budget_of_a_model_that_was_never_calibrated_is_a_level_and_says_so(model: Path, pictures: Path) -> None:
    first, both = costs_of(model)
    said = run("predict", pictures, "-m", model, "--budget", (first + both) / 2, "--json")
    assert said.err.startswith("the model was never calibrated: every picture stops at 32 x 32, the largest level that")
    assert {json.loads(line)["stopped_at"] for line in said.out.splitlines()} == {0}
    reason = refused("predict", pictures, "-m", model, "--budget", first / 2)
    assert reason.startswith("srnn-zoo: --budget: the first level alone costs")
    assert "--exit: the model was never calibrated" in refused("predict", pictures, "-m", model, "--exit", "calibrated")


def test_calibrate_writes_thresholds_into_the_folder_and_predict_uses_them(model: Path, pictures: Path) -> None:
    first, both = costs_of(model)
    weights = (model / "model.safetensors").read_bytes()
    budget = 0.6 * first + 0.4 * both
    said = run("calibrate", pictures, "--model", model, "--budget", budget, *FAST)
    assert said.code == 0
    assert said.out.splitlines()[0] == "confidence, on 12 held-out pictures"
    assert re.search(r"32 x 32 +[\d.]+ +[\d.]+ %\n +64 x 64 +[\d.]+ %\n", said.out)
    assert said.err.splitlines() == [
        "warning: 12 images are few: their accuracy is known to ±28 points, and thresholds of 200 or more images would "
        "be surer",
        "warning: 1 of the model's 4 classes have no image in the calibration set; how early theirs should stop is not "
        "known, and accuracy and cost on them may differ from what is reported",
        f"saved to {model}",
    ]
    assert (model / "model.safetensors").read_bytes() == weights
    loaded = SRNN.from_pretrained(model)
    assert loaded.pretrained_cfg["label_names"] == NAMES
    stored = loaded.metadata["exit"]
    assert stored["sizes"] == [[32, 32], [64, 64]]
    assert stored["held_out"]["gmacs"] <= budget
    assert f"early exit  {stored['held_out']['top1']:6.2f} %  {stored['held_out']['gmacs']:8.3f} GMACs" in said.out

    both_ways = [("--exit", "calibrated"), ("--budget", budget)]
    answers = [run("predict", pictures, "-m", model, "--json", *option) for option in both_ways]
    for each in answers:
        spent = [json.loads(line)["gmacs"] for line in each.out.splitlines()]
        assert sum(spent) / len(spent) == pytest.approx(stored["held_out"]["gmacs"], abs=1e-6)  # the same pictures
        assert each.err.count("\n") == 2
    said = run("predict", pictures, "-m", model, "--budget", 100, "--json")
    assert said.err.startswith("the budget pays for every level: all are read\n")
    assert {json.loads(line)["stopped_at"] for line in said.out.splitlines()} == {1}
    for option in both_ways:
        reason = refused("predict", pictures, "-m", model, "--sizes", "48,96", *option)
        assert "was calibrated for levels of 32 x 32 + 64 x 64; its thresholds say nothing of levels of 48" in reason
    assert "not read" not in run("predict", pictures, "-m", model).out  # all levels, unless asked


def test_calibrate_to_an_accuracy_with_another_rule_sizes_and_folder(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    options = ("--target-accuracy", 5, "--rule", "margin", "--sizes", "32,48,64", "--output", tmp_path / "new")
    said = run("calibrate", pictures, "-m", model, *options, *FAST)
    assert said.code == 0
    assert said.out.startswith("margin, on 12")
    new = SRNN.from_pretrained(tmp_path / "new")
    assert new.metadata["exit"]["sizes"] == [[32, 32], [48, 48], [64, 64]]
    assert len(new.scales) == 3
    assert "exit" not in SRNN.from_pretrained(model).metadata
    assert run("predict", pictures, "-m", tmp_path / "new", "--exit", "calibrated").code == 0


def test_a_picture_that_cannot_be_read_is_listed_and_the_rest_calibrates(model: Path, pictures: Path) -> None:
    broken = pictures / "red" / "broken.jpg"
    broken.write_bytes(b"no picture")
    try:
        for command in (("calibrate", "--budget", 100), ("pareto",)):
            name, *options = command
            said = run(name, pictures, "-m", model, *options, *FAST)
            assert said.code == 1
            assert said.err.endswith(f"skipped 1 of 13 pictures:\n  {broken}: not an image that Pillow can read\n")
        assert SRNN.from_pretrained(model).metadata["exit"]["held_out"]["images"] == 12
    finally:
        broken.unlink()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((), "give either --budget or --target-accuracy"),
        (("--budget", 1, "--target-accuracy", 50), "give either --budget or --target-accuracy"),
        (("--budget", 1, "--sizes", "32,64"), "change the model: give --output FOLDER"),
        (("--budget", 1, "--variant", "vanilla"), "change the model: give --output FOLDER"),
        (("--budget", 1, "--rule", "margins"), "unknown rule 'margins'; did you mean 'margin'?"),
        (("--budget", 0), "the first level alone costs"),
        (("--budget", "nan"), "a budget of nan is too small"),
        (("--budget", "much"), "Invalid value for '--budget'"),
        (("--target-accuracy", 0.5), "is in per cent, above 1 and up to 100"),
        (("--target-accuracy", 100), "no thresholds reach 100 %: the most on these images is"),
        (("--budget", 1, "--workers", -1), "Invalid value for '--workers'"),
        (("--budget", 1, "--output", f"{__file__}/new"), "test_budget.py is a file"),
        (
            ("--budget", 1, "--output", "new", "--sizes", "64"),
            "one level cannot stop early; give --sizes of two or more",
        ),
    ],
)
def test_calibrate_refuses_and_changes_nothing(
    args: tuple[object, ...], reason: str, model: Path, pictures: Path
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert reason in refused("calibrate", pictures, "-m", model, *FAST, *args)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_a_name_or_a_hub_id_needs_an_output_folder(pictures: Path) -> None:
    for name in ("srnn_test_resnet", "owner/name", "hf-hub:owner/name", ""):
        reason = refused("calibrate", pictures, "-m", name, "--budget", 1)
        assert "is no folder of a saved model: give --output FOLDER" in reason


@pytest.mark.parametrize("command", [("calibrate", "--budget", 1), ("pareto",)])
def test_folders_that_do_not_fit_the_model_are_refused(
    command: tuple[object, ...], model: Path, pictures: Path, tmp_path: Path
) -> None:
    name, *options = command
    assert "nowhere'; give a folder of class folders" in refused(name, tmp_path / "nowhere", "-m", model, *options)
    (tmp_path / "data" / "gren").mkdir(parents=True)
    (tmp_path / "data" / "gren" / "1.png").write_bytes(b"")
    reason = refused(name, tmp_path / "data", "-m", model, *options)
    assert "unknown class 'gren'; did you mean 'green'?" in reason
    assert "no class folders" in refused(name, pictures / "red", "-m", model, *options)
    (tmp_path / "data" / "gren").rename(tmp_path / "data" / "green")
    reason = refused(name, tmp_path / "data", "-m", model, *options, *FAST)
    assert reason.startswith("srnn-zoo: the loader gave no image")
    assert reason.endswith("1.png: an empty file")
    (tmp_path / "data" / "green" / "1.png").unlink()
    assert "no images in its 1 class folders" in refused(name, tmp_path / "data", "-m", model, *options)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--exit", "confidenc:0.9"), "--exit: unknown exit rule 'confidenc'; did you mean 'confidence'?"),
        (("--exit", "calibrate"), "or calibrated, for what `srnn-zoo calibrate` has stored"),
        (("--exit", "confidence"), "exit rule confidence takes a number after a colon"),
        (("--exit", "confidence:-1"), "thresholds must be 0 or more"),
        (("--exit", "confidence:0.9,0.8"), "--exit: 2 levels need 1 thresholds"),
        (("--exit", "level:0", "--budget", "1"), "give --exit or --budget, not both"),
        (("--budget", "nan"), "a budget of nan is too small"),
    ],
)
def test_predict_refuses_rules_and_budgets_that_make_no_sense(
    args: tuple[str, ...], reason: str, model: Path, pictures: Path
) -> None:
    assert reason in refused("predict", pictures, "-m", model, *args)


def test_pareto_shows_writes_and_draws_every_kind_of_point(model: Path, pictures: Path, tmp_path: Path) -> None:
    table, plot = tmp_path / "pareto.csv", tmp_path / "pareto.png"
    said = run("pareto", pictures, "-m", model, "--output", table, "--plot", plot, *FAST)
    assert said.code == 0
    for name in ("early exit, confidence", "level 0", "level 1", "single scale 32 x 32", "single scale 64 x 64"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ %", said.out, re.MULTILINE)
    assert "logit ensemble" in said.out
    assert said.err.splitlines() == [
        "the thresholds were chosen on these very pictures, so that the curve promises too much: give "
        "--calibration-data, or calibrate the model first",
        f"written to {table}",
        f"drawn to {plot}",
    ]
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert {row["kind"] for row in rows} == {"curve", "level", "single scale", "ensemble"}
    with Image.open(plot) as image:
        assert image.width > 1000


def test_pareto_takes_thresholds_from_other_pictures_or_from_the_calibration(model: Path, pictures: Path) -> None:
    said = run("pareto", pictures, "-m", model, "--calibration-data", pictures, "--rule", "entropy", *FAST)
    assert (said.code, said.err) == (0, "")
    assert "early exit, entropy" in said.out
    calibrated(model, pictures, "--budget", 100, "--rule", "margin")
    said = run("pareto", pictures, "-m", model, *FAST)
    assert (said.code, said.err) == (0, "")
    assert "early exit, margin" in said.out
    reason = refused("pareto", pictures, "-m", model, "--sizes", "48,96", *FAST)
    assert "was calibrated for levels of 32 x 32 + 64 x 64" in reason
    assert "calibrated with rule 'margin'" in refused("pareto", pictures, "-m", model, "--rule", "entropy", *FAST)
    for option, place in (("--output", "no/where.csv"), ("--plot", "no/where.png")):
        assert f"{option}: no folder no to write to" in refused("pareto", pictures, "-m", model, option, place)


def test_a_plot_of_pictures_that_stopped_shows_what_was_not_read(tmp_path: Path) -> None:
    said = run("predict", CAT, COFFEE, "--sizes", "64,128", "--exit", "confidence:0.1", "--plot", tmp_path / "plot.svg")
    assert said.code == 0
    assert (tmp_path / "plot.svg").stat().st_size > 10_000


def test_a_variant_that_answers_once_cannot_stop_early() -> None:
    reason = refused("predict", COFFEE, "--sizes", "64,128", "--variant", "concat", "--exit", "level:0")
    assert "variant 'concat' answers after the last level only; it cannot stop early" in reason


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "calibrate",
            "DATA --model --budget --target-accuracy --rule --sizes --output --batch-size --workers --device",
        ),
        ("pareto", "DATA --model --calibration-data --output --plot --rule --sizes --batch-size --workers --device"),
        ("predict", "--exit --budget"),
    ],
)
def test_help_lists_the_options(command: str, words: str) -> None:
    said = run(command, "--help")
    assert said.code == 0
    assert all(word.lower() in said.out.lower() for word in words.split())


@pytest.mark.data
def test_on_photographs_half_the_cost_is_saved_and_thresholds_hold_on_others(
    imagenet_sample: list[Path], tmp_path: Path
) -> None:
    for split, photographs in (("val", imagenet_sample[:24]), ("test", imagenet_sample[24:48])):
        for path in photographs:
            (tmp_path / split / path.parent.name).mkdir(parents=True)
            (tmp_path / split / path.parent.name / path.name).symlink_to(path)
    small = srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True, img_size=224)
    small.save_pretrained(tmp_path / "model")
    first, both = costs_of(tmp_path / "model")
    half = (first + both) / 2
    calibrated(tmp_path / "model", tmp_path / "val", "--budget", half)
    said = run("predict", tmp_path / "test", "-m", tmp_path / "model", "--exit", "calibrated", "--json")
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert len(answers) == 24
    assert 3 < sum(item["stopped_at"] == 0 for item in answers) < 24
    assert sum(item["gmacs"] for item in answers) / 24 == pytest.approx(half, rel=0.4)


def test_spending_is_about_a_budget() -> None:
    said = refused("calibrate", ".", "-m", "x", "--target-accuracy", 50, "--spend")
    assert "--spend is about a budget: give --budget" in said
