"""`predict`, `list` and `info`: results on stdout, all else on stderr, exit codes 0, 1 and 2, and never a traceback."""

import errno
import json
import os
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.models import base_cnn

from .command import CAT, COFFEE, COMMAND, refused, run
from .conftest import NAMES

CATS = {"Egyptian cat", "tabby", "tabby, tabby cat", "tiger cat"}


def test_predict_names_the_cat_and_the_espresso_in_columns_or_in_one_json_object_a_line():
    said = run("predict", CAT, COFFEE)
    as_json = run("predict", CAT, COFFEE, "--json", "--topk", 3, "--sizes", "112,224")
    assert (said.code, said.err) == (as_json.code, as_json.err) == (0, "")
    blocks, lines = re.split(r"\n(?=\S)", said.out.rstrip()), as_json.out.splitlines()
    for block, line, path, names in zip(blocks, lines, (CAT, COFFEE), (CATS, {"espresso"}), strict=True):
        title, sizes, *ranks = block.splitlines()
        assert title == str(path)
        assert re.fullmatch("  224 x 224 +448 x 448", sizes)
        assert len(ranks) == 5
        leaders = re.findall(r"(\S.*?) +[\d.]+ %", ranks[0])
        assert len(leaders) == 2
        assert set(leaders) <= names
        item = json.loads(line)
        assert (item["path"], item["notes"], set(item)) == (str(path), [], {"path", "levels", "notes"})
        assert [level["size"] for level in item["levels"]] == [[112, 112], [224, 224]]
        for level in item["levels"]:
            assert set(level) == {"size", "top"}
            assert [set(entry) for entry in level["top"]] == [{"label", "probability"}] * 3
            first, second, third = (entry["probability"] for entry in level["top"])
            assert 1 >= first >= second >= third >= 0
        assert item["levels"][1]["top"][0]["label"] in names


def test_zooms_are_levels_of_one_size_and_say_where_they_look(tmp_path):
    plot = tmp_path / "plot.png"
    said = run("predict", CAT, COFFEE, "--zooms", "1,1.6", "--views", "attention", "--exit", "confidence:0.9")
    assert re.search("^  224 x 224 +224 x 224 zoom 1.6$", said.out, flags=re.MULTILINE)
    assert "stopped at  224 x 224: 1 (50 %)  224 x 224 zoom 1.6: 1 (50 %)" in said.err
    as_json = run("predict", CAT, "--json", "--sizes", "160,224", "--zooms", "2,1", "--plot", plot)
    levels = json.loads(as_json.out)["levels"]
    assert [(level["size"], level["view"]) for level in levels] == [
        ([160, 160], [0.25, 0.25, 0.75, 0.75]),
        ([224, 224], [0, 0, 1, 1]),
    ]
    assert Image.open(plot).width > 300
    rounded = json.loads(run("info", "srnn_test_vit", "--sizes", "100,160", "--json").out)
    assert [level["size"] for level in rounded["levels"]] == [[96, 96], [160, 160]]
    facts = json.loads(run("info", "srnn_resnet18", "--zooms", "1,2.5", "--json").out)
    assert (facts["zooms"], facts["views"], [level["size"] for level in facts["levels"]]) == (
        [1.0, 2.5],
        "center",
        [[224, 224]] * 2,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--zooms 1,0.5", r"--zooms: a zoom is 1, which shows the whole image, or more; got \(1.0, 0.5\)"),
        ("--zooms 1,big", "--zooms takes numbers such as 1,1.6; got '1,big'"),
        ("--zooms 1,2 --sizes 224", "--zooms: there must be one zoom for each of 1 levels; got 2"),
        ("--zooms 1,2 --views atention", "--views: unknown views 'atention'; did you mean 'attention'?"),
        ("--views attention", "give zooms such as"),
        ("--sizes 224,224", "--sizes: sizes must grow, smallest first; got"),
    ],
)
def test_zooms_and_views_that_make_no_levels_are_refused(options, message):
    assert re.search(message, refused("predict", CAT, *options.split()))


def test_labels_have_probabilities_of_their_own_and_numbers_come_as_they_are(images, saved, tmp_path):
    model = srnn_zoo.SRNN.from_pretrained(saved)
    for task, kind, first in (
        ("multi_label", "probability", r"\S+ +[\d.]+ %"),
        ("regression", "value", r"\S+ +-?[\d.e-]+$"),
    ):
        model.metadata["task"] = task
        model.save_pretrained(tmp_path / task)
        said, as_json = (
            run("predict", images / "red" / "0.png", "--model", tmp_path / task, *o) for o in ((), ["--json"])
        )
        assert re.search(first, said.out.splitlines()[2])
        top = json.loads(as_json.out)["levels"][1]["top"]
        assert len(top) == 4
        assert (sum(entry[kind] for entry in top) == pytest.approx(1)) is False
        of_model = (images, "--model", tmp_path / task)
        for command in (("evaluate", images, tmp_path / task), ("calibrate", *of_model, "--budget", 1)):
            told = refused(*command)
            assert f"is about one class an image, and this model is for {task}" in told
    assert "--plot draws probabilities" in refused("predict", images, "--model", tmp_path / task, "--plot", "a.png")


def test_odd_paths_come_back_as_valid_json_and_what_cannot_be_read_is_listed_at_the_end(place, tmp_path, monkeypatch):
    names = ["a b.png", "é 日本.png", "new\nline.png", "$x_{y}$.png", "-m.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"caf\xe9.png"))  # bytes that are no text
    for name in names:
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    said = run("predict", "--json", "-m", place / "a", "--", "broken.jpg", *names, "no match*.png")
    assert said.code == 1
    assert [json.loads(line)["path"] for line in said.out.splitlines()] == names
    assert said.err.splitlines() == [
        f"skipped 2 of {len(names) + 2} images:",
        "  broken.jpg: not an image that Pillow can read",
        "  no match*.png: no such file",
    ]
    said = run("predict", "é 日本.png", names[-1], "-m", place / "a", encoding="latin-1")
    assert said.out.splitlines()[0].endswith("\\u65e5\\u672c.png")
    assert run("predict", "broken.jpg", "-m", place / "a")[:2] == (1, "")


def test_exact_reads_files_as_pillow_does_in_predict_and_evaluate(place, tmp_path):
    (tmp_path / "red").mkdir()
    file = tmp_path / "red" / "1.jpg"  # large enough to be decoded smaller
    Image.open(COFFEE).resize((1200, 900)).save(file)
    model, found = srnn_zoo.SRNN.from_pretrained(place / "b").eval(), []
    for option in ((), ("--exact",)):
        levels = srnn_zoo.create_transform(model, exact=bool(option))(Image.open(file))
        with torch.inference_mode():
            best = model([level[None] for level in levels]).softmax(1).max().item()
        said = run("predict", file, "--model", place / "b", "--json", *option)
        assert json.loads(said.out)["levels"][1]["top"][0]["probability"] == pytest.approx(best, abs=1e-5)
        run("evaluate", tmp_path, place / "b", "--output", tmp_path / "out", *option)
        *_, probability, _ = (tmp_path / "out" / "predictions.csv").read_text().split(",")
        assert float(probability) == pytest.approx(best, abs=1e-5)
        found.append(best)
    assert abs(found[0] - found[1]) > 1e-4


def test_folders_are_read_as_often_as_they_are_named_and_all_that_there_is_to_say_is_shown(place, tmp_path):
    Image.open(COFFEE).convert("L").save(tmp_path / "grey.png")
    (tmp_path / "notes.txt").write_text("no image")
    said = run("predict", tmp_path, tmp_path, "-m", place / "once", "--topk", 10**9)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    title, sizes, *classes = lines[: len(lines) // 2]
    assert lines == [title, sizes, *classes] * 2
    assert title == f"{tmp_path / 'grey.png'}  (greyscale, converted to RGB)"
    assert sizes.split() == ["64", "x", "64"]  # the only level after which this variant answers
    assert len(classes) == len(NAMES)


def test_plot_draws_what_could_be_read_and_needs_matplotlib(place, tmp_path, broken, monkeypatch):
    plot = tmp_path / "plot.png"
    said = run("predict", COFFEE, broken, CAT, "-m", place / "a", "--exit", "confidence:0.3", "--plot", plot)
    assert said.code == 1
    assert f"drawn to {plot}" in said.err
    with Image.open(plot) as image:
        image.load()
        assert image.height > image.width > 500
    run("predict", broken, "-m", place / "a", "--plot", tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    reason = refused("predict", COFFEE, "--plot", "plot.png")
    assert 'drawing needs matplotlib: pip install "srnn-zoo[plot]"' in reason


def test_without_weights_or_network_one_line_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(base_cnn, "_cached_file", lambda *_: None)
    monkeypatch.setattr(base_cnn.PipFile, "find", lambda _: None)
    for model, help_with in (("srnn_resnet18", "hf download timm/"), ("srnn_tf_efficientnet_lite0", "brings them")):
        said = run("predict", COFFEE, "--model", model)
        assert (said.code, said.out) == (2, "")
        reason = r"srnn-zoo: the weights of \S+ are not on this machine and HF_HUB_OFFLINE is set.*\n"
        assert re.fullmatch(reason, said.err)
        assert help_with in said.err
        assert 'pip install "srnn-zoo[demo]"' in said.err


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (MemoryError(), 2, "out of memory; a smaller --batch-size or smaller --sizes may fit"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), 2, "out of memory; a smaller --batch-size"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, f"[Errno {errno.ENOSPC}] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'; with SRNN_ZOO_TRACEBACK=1 in the environment it shows where"),
    ],
)
def test_work_that_fails_ends_in_one_line(error, code, reason, place, monkeypatch):
    monkeypatch.setattr("typer.echo", Mock(side_effect=error))
    version = [] if isinstance(error, KeyboardInterrupt) else [("--version",)]  # typer ends it by itself
    for args in (("predict", COFFEE, "-m", place / "a"), ("list", "resnet18"), *version):
        if isinstance(error, KeyError):
            with pytest.raises(KeyError):
                run(*args)
        said = run(*args, traceback=False)
        assert (said.code, said.out) == (code, "")
        assert said.err.startswith(f"srnn-zoo: {reason}")
        assert len(said.err.splitlines()) == 1


def test_list_takes_a_word_a_wildcard_or_nothing():
    everything = srnn_zoo.list_models()
    assert len(everything) > 500
    for options, names in (
        ([], everything),
        (["resnet18"], [name for name in everything if "resnet18" in name]),
        (["srnn_resnet1*"], [name for name in everything if name.startswith("srnn_resnet1")]),
        (["--variants"], srnn_zoo.list_cells()),
        (["--pretrained"], srnn_zoo.list_pretrained()),
    ):
        assert run("list", *options).out.splitlines() == names


def test_info_shows_gmacs_parameters_and_licence():
    said = run("info", "srnn_resnet18")
    assert (said.code, said.err) == (0, "")
    for fact in ("224 x 224: 1.814 GMACs  448 x 448: 7.254 GMACs", "half_gru, activation relu", "apache-2.0"):
        assert fact in said.out
    facts = json.loads(run("info", "srnn_resnet18", "--json", "--variant", "vanilla", "--sizes", "112,224,448").out)
    assert (facts["base_model"], facts["variant"]) == ("resnet18.a1_in1k", "vanilla")
    assert [level["size"] for level in facts["levels"]] == [[112, 112], [224, 224], [448, 448]]
    assert [level["gmacs"] for level in facts["levels"]][1:] == pytest.approx([1.81, 7.25], abs=0.005)
    parts = facts["million_parameters"]
    assert parts["backbone"] + parts["cell"] + parts["classifier"] == pytest.approx(parts["total"], abs=0.002)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--help", "predict calibrate pareto train evaluate curves list info --version"),
        ("predict --help", "IMAGES --model --variant --sizes --batch-size --device --json --plot --exit --import"),
        ("predict --help", "─Model─ ─Output─ ─Machine─ ─Stopping half_gru, saved)]"),
        ("train --help", "─Model─ ─Training─ ─Images─ ─Machine─ half_gru, saved)]"),
        ("calibrate --help", "DATA --model --split --data-dir --budget --target-accuracy --rule --spend --import"),
        ("pareto --help", "DATA --model --split --calibration-data --output --plot --rule --sizes --import"),
        ("evaluate --help", "DATA MODELS --variants --base --split --sizes --reference --workers --output --import"),
        ("curves --help", "RUNS --output --line NAME=FOLDER"),
        ("list --help", "--variants --pretrained"),
        ("info --help", "--variant --sizes --json --import"),
        ("--version", f"srnn-zoo {srnn_zoo.__version__}"),
    ],
)
def test_help_and_version_fit_80_columns_and_help_groups_the_options_and_cuts_no_default(args, words):
    said = run(*args.split(), columns=80)
    assert (said.code, said.err) == (0, "")
    text = said.out.lower().replace("─ ", "─").replace(" ─", "─")
    assert all(word.lower() in text for word in words.split())
    assert max(map(len, said.out.splitlines())) <= 80
    assert "…  │" not in said.out  # what was cut


@pytest.mark.slow
def test_as_a_process_a_reader_that_leaves_early_causes_no_noise(place, images):
    command = [*COMMAND, "predict", "red/0.png", *["red/1.png"] * 8, "--batch-size", "1", "-m", str(place / "a")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=images, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout.readline() == "red/0.png\n"
        process.stdout.close()
        assert process.stderr.read() == ""
