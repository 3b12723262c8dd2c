"""`srnn-zoo export`, and the other commands on what it wrote."""

import functools
import json
import shutil

import pytest

from srnn_zoo.export import parts
from tests.cli.command import python, refused, run


@pytest.fixture(scope="module", autouse=True)
def opened_once():
    """Graphs stay open from one command to the next, as opening them takes a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "open_graph_torch", functools.cache(parts.open_graph_torch))
        yield


@pytest.fixture(scope="module")
def exported(place, tmp_path_factory):
    """A calibrated half-GRU in the torch format, and the folder that it was made of."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(place / "b", folder / "b")
    data = str(place / "data" / "test")
    assert run("calibrate", data, "--model", folder / "b", "--budget", "0.006", "--workers", "0").code == 0
    said = run("export", folder / "b", "-o", folder / "it", "--format", "torch", "--kind", "steps", "--images", data)
    assert (said.code, said.out) == (0, ""), said.err
    assert "encoder_1.pt2: answers as the model does, to " in said.err  # a last map of 1 x 1 has a graph of its own
    return folder


def output(*args):
    said = run(*args)
    assert said.code == 0, said.err
    return said.out


@pytest.mark.parametrize(
    "options",
    [
        ["--exit", "calibrated"],
        *(pytest.param(o, marks=pytest.mark.slow) for o in ([], ["--exit", "margin:0.4"], ["--budget", "0.008"])),
    ],
)
def test_predict_says_the_same(exported, place, images, options):
    ours, theirs = (output("predict", images, "--model", exported / name, "--json", *options) for name in ("b", "it"))
    for one, other in zip(ours.splitlines(), theirs.splitlines(), strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one["path"] == other["path"]
        assert one.get("stopped_at") == other.get("stopped_at")
        for level, same in zip(one["levels"], other["levels"], strict=True):
            assert [top["label"] for top in level["top"]] == [top["label"] for top in same["top"]]
            expected = [top["probability"] for top in level["top"]]
            assert [top["probability"] for top in same["top"]] == pytest.approx(expected, abs=1e-4)


def test_evaluate_says_the_same(exported, place):
    ours, theirs = (
        [row.split("|")[:5] for row in output("evaluate", place / "data" / "test", exported / name).splitlines()]
        for name in ("b", "it")
    )
    assert ours == theirs
    assert len(ours) > 5


@pytest.mark.slow
def test_a_whole_graph_alone_promises_no_program(place, tmp_path):
    said = run("export", place / "b", "-o", tmp_path / "it", "--format", "torch", "--kind", "whole")
    assert said.code == 0, said.err
    assert "run.py" not in said.err
    assert not (tmp_path / "it" / "run.py").exists()


@pytest.mark.slow
def test_the_command_starts_by_itself(exported):
    """In a process that has not imported timm before."""
    done = python("-m", "srnn_zoo.cli", "export", exported / "b", "-o", exported / "it")
    assert done.returncode == 2
    assert "holds an exported model already" in done.stderr


def test_refusals_are_one_line(exported, place):
    it, new = exported / "it", exported / "new"
    for args, message in [
        (("predict", place / "data", "-m", it, "-v", "gru"), "is an exported model: it has its variant"),
        (("export", place / "b", "-o", it), f"--output: {it} holds an exported model already"),
        (
            ("export", place / "b", "-o", new, "--format", "onxx"),
            "--format: unknown format 'onxx'; did you mean 'onnx'",
        ),
        (("export", it, "-o", new, "--format", "torch"), "this model is exported already"),
        (("calibrate", place / "data" / "test", "-m", it, "--budget", "0.006", "-o", new), "a copy for use"),
    ]:
        assert message in refused(*args)


@pytest.mark.slow
def test_int8_quantises_the_encoder_and_shows_the_accuracy_before_and_after(place, tmp_path):
    data = place / "data" / "test"
    before, after = output("export", place / "b", "-o", tmp_path / "it", "--int8", data).splitlines()
    assert before.startswith("top-1 after 32 x 32: ")
    assert "% in float32, " in after
    assert after.endswith(" % in 8 bits")
    size = (place / "b" / "model.safetensors").stat().st_size
    assert all((tmp_path / "it" / f"encoder_{level}.onnx").stat().st_size < 0.5 * size for level in (0, 1))
    assert json.loads((tmp_path / "it" / "export.json").read_text())["int8"] is True
    assert not list((tmp_path / "it").glob("*prepared*"))
