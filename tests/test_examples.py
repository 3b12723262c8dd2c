"""The examples run as they are written."""

import copy
import re
import runpy
import sys
from configparser import ConfigParser

import pytest
import torch
import torch.distributed.fsdp

import srnn_zoo
from srnn_zoo.models import cells
from tests.cli.command import TORCHRUN, python
from tests.cli.command import run as command

from .conftest import ROOT, write_crops


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """What an example prints, run as a program in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        except SystemExit as stopped:
            if stopped.code:
                raise
        return capfd.readouterr().out

    return run


@pytest.fixture
def photos(tmp_path):
    """A dozen crops of a photograph of a cat, and of one of a cup."""
    for name in ("chelsea", "coffee"):
        write_crops(f"{name}.png", tmp_path / "photos" / name, range(12))
    return tmp_path / "photos"


@pytest.mark.slow
def test_the_demo_names_what_is_on_its_images_and_draws_it(run, tmp_path):
    output = run("demo.py")
    assert all(name in output for name in ("Egyptian cat", "espresso", "missile", "drilling platform"))
    assert (tmp_path / "demo.png").stat().st_size > 100_000


def test_a_cell_of_ones_own_runs(run, monkeypatch):
    monkeypatch.setattr(cells, "_CELLS", dict(cells._CELLS))
    assert run("own_cell.py").count("(") == 2


@pytest.mark.slow
def test_fine_tuning_learns_and_saves(run, photos, tmp_path):
    (photos / ".ipynb_checkpoints").mkdir()
    options = ("--sizes", "48", "64", "--epochs", "2", "--batch-size", "8", "--output", "trained")
    *epochs, saved = run("finetune.py", photos, *options).splitlines()
    assert saved == "saved: srnn-zoo predict IMAGE --model trained"
    accuracies = [float(line.split()[-2]) for line in epochs]
    assert len(accuracies) == 2
    assert max(accuracies) >= 75  # two classes
    model = srnn_zoo.SRNN.from_pretrained(tmp_path / "trained")
    assert model.label_names == ("chelsea", "coffee")


@pytest.mark.slow
def test_the_hugging_face_trainer_learns_and_saves_an_srnn(run, photos, tmp_path):
    output = run("hf_trainer.py", photos, "--size", "128", "--output", "trained")
    accuracies = [float(value) for value in re.findall(r"'eval_accuracy': '?([\d.]+)", output)]
    assert len(accuracies) == 3
    assert max(accuracies) >= 75  # two classes
    assert output.endswith("srnn_zoo, timm and transformers give the same logits\n")
    model = srnn_zoo.SRNN.from_pretrained(tmp_path / "trained")
    assert model.label_names == ("chelsea", "coffee")
    assert model.level_sizes() == [(64, 64), (128, 128)]
    assert not model.zero_shot


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.distributed.fsdp, "fully_shard"), reason="torch 2.6 made it public")
def test_weights_that_are_spread_over_two_processes_take_the_steps_of_the_whole_model(tmp_path):
    done = python(*TORCHRUN, ROOT / "examples" / "fsdp2.py", "--output", tmp_path / "trained")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"saved: srnn-zoo info {tmp_path / 'trained'}\n"
    spread = srnn_zoo.SRNN.from_pretrained(tmp_path / "trained").state_dict()
    torch.manual_seed(0)
    model = srnn_zoo.create_model("srnn_test_vit", num_classes=4, img_size=64)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, targets in runpy.run_path(str(ROOT / "examples" / "fsdp2.py"))["batches"](3, 8, 64):
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(spread, dict(model.state_dict()), rtol=0, atol=1e-6)
    for name in ("backbone.blocks.0.mlp.fc1.weight", "cell.gate_input.weight", "fc.weight"):
        assert (spread[name] - before[name]).abs().max() > 1e-3, name


@pytest.mark.slow
def test_two_actors_of_ray_write_the_rows_of_predict(run, photos, tmp_path):
    ray, pq = pytest.importorskip("ray"), pytest.importorskip("pyarrow.parquet")
    torch.manual_seed(0)
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=5, img_size=64)
    torch.nn.init.normal_(model.get_parameter("fc.weight"), std=2.0)
    model.save_pretrained(tmp_path / "net", label_names=list("abcde"))
    (photos / "chelsea" / "broken.png").write_bytes(b"no image")
    (photos / "coffee" / "empty.png").touch()
    options = ("--exit", "confidence:0.325")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run("ray_predict.py", photos, tmp_path / "net", tmp_path / "by_ray", *options)
    finally:
        ray.shutdown()
    command("predict", photos, "-m", tmp_path / "net", "-o", tmp_path / "answers.parquet", *options)
    by_ray, expected = pq.read_table(tmp_path / "by_ray").sort_by("path"), pq.read_table(tmp_path / "answers.parquet")
    assert by_ray.schema.types == expected.schema.types
    assert set(expected.column("stopped_at").to_pylist()) == {0, 1, None}
    assert expected.num_rows == 26
    for name in expected.column_names:  # other batches round probabilities in another way
        values = expected.column(name).to_pylist()
        is_number = name.startswith("probability")
        assert by_ray.column(name).to_pylist() == (pytest.approx(values, abs=1e-5) if is_number else values), name


def test_ray_is_not_started_with_a_rule_that_there_is_not(run, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit):
        run("ray_predict.py", "photos", "net", "rows", "--exit", "often")
    assert "error: --exit: " in capfd.readouterr().err


def test_an_actor_calls_an_image_as_predict_does(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    srnn_zoo.create_model("srnn_test_resnet", num_classes=2).save_pretrained("net")
    actor = runpy.run_path(str(ROOT / "examples" / "ray_predict.py"))["Answer"]
    answer = actor("net", "level:0", "cpu", "photos", str(tmp_path / "photos"))
    files = pyarrow.table({"path": [str(tmp_path / "photos" / "a" / "1.png")], "bytes": [b"no image"]})
    assert answer(files).column("path").to_pylist() == ["photos/a/1.png"]


@pytest.mark.parametrize("example", ["finetune.py", "hf_trainer.py", "ray_predict.py"])
def test_an_example_says_how_it_is_used(run, example):
    assert "FOLDER" in run(example, "--help")


def test_the_space_names_its_app_and_packages_that_have_the_extras(monkeypatch):
    space = ROOT / "examples" / "space"
    front = (space / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    about = dict(line.split(": ", 1) for line in front.splitlines())
    assert (about["sdk"], about["app_file"]) == ("gradio", "app.py")
    assert len(about["short_description"]) <= 60  # the Hub's limit
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    assert f"gradio>={about['sdk_version'].partition('.')[0]}" in extras["app"]
    first, second = (space / "requirements.txt").read_text().split()
    assert first == "srnn-zoo[app]"
    assert second in extras["demo"]
    served = []
    monkeypatch.setattr("srnn_zoo.evaluation.app.launch", lambda model, **options: served.append((model, options)))
    monkeypatch.delenv("MODEL", raising=False)
    runpy.run_path(str(space / "app.py"), run_name="__main__")
    [(model, options)] = served
    assert model.num_classes == 1000
    assert options["title"]
