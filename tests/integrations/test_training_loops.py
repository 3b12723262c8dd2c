"""The training loops of other libraries in docs/integrations.md, as they stand there, on a few small photographs."""

import importlib
import re
import shutil

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import srnn_zoo
from srnn_zoo.datasets.loader import ImageLoader
from tests.conftest import ROOT, write_crops

pytestmark = pytest.mark.slow

CLASSES = {"cat": "chelsea.png", "coffee": "coffee.png", "motorcycle": "motorcycle_left.png"}


def block(heading):
    """The first block of Python under a heading, with images that are small enough for a test."""
    section = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    code = re.search(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert code, heading
    small, count = re.subn(r"(\"srnn_tf_efficientnet_lite0\")", r"\1, img_size=64", code[1])
    assert count == 1, heading
    return small


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name, file in CLASSES.items():
        write_crops(file, folder / "train" / name, range(6))
        write_crops(file, folder / "val" / name, range(6, 8))
    return folder


@pytest.fixture
def run(photographs, tmp_path, monkeypatch):
    """The names that a block leaves behind, run beside the folder `images`."""
    shutil.copytree(photographs, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def run(heading, module):
        pytest.importorskip(module)
        names = {"srnn_zoo": srnn_zoo}
        exec(block(heading), names)
        return names

    return run


@torch.inference_mode()
def accuracy(folder):
    """Of the saved model, on the validation images."""
    model = srnn_zoo.SRNN.from_pretrained(folder).eval()
    assert model.label_names == tuple(CLASSES)
    assert model.metadata.get("zero_shot") is None
    pairs = [(model(levels).argmax(dim=1), targets) for levels, targets in ImageLoader("images/val", model)]
    answers, targets = map(torch.cat, zip(*pairs, strict=True))
    return (answers == targets).float().mean().item()


def test_lightning_trains_on_levels_and_logs_the_accuracy_of_the_model_that_is_saved(run):
    names = run("Lightning", "lightning")
    logged = names["trainer"].callback_metrics["accuracy"].item()
    assert logged == pytest.approx(accuracy("flowers"), abs=0.12)  # of two batches, each rounded alike
    assert logged >= 0.75


def test_fastai_fine_tunes_and_predicts_by_name(run):
    names = run("fastai", "fastai")
    loss, measured = names["learn"].validate()
    assert measured >= 0.75
    assert accuracy("flowers") >= 0.75
    label, index, probabilities = names["learn"].predict("images/val/coffee/7.png")
    assert (label, int(index)) == ("coffee", 1)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert 0 < loss < 1.1  # of guessing


def test_fastai_takes_the_levels_of_pytorchs_loaders(run):
    core = pytest.importorskip("fastai.data.core")
    learner = importlib.import_module("fastai.learner")
    model = srnn_zoo.create_model("srnn_test_resnet", img_size=64, num_classes=3)
    loader = DataLoader(ImageFolder("images/train", srnn_zoo.create_transform(model)), batch_size=8)
    learn = learner.Learner(core.DataLoaders(loader, loader), model, loss_func=torch.nn.CrossEntropyLoss())
    before = learn.validate()[0]
    learn.fit(2, 0.01)
    assert learn.validate()[0] < before


def test_skorch_scores_like_the_model_that_is_saved(run):
    names = run("skorch", "skorch")
    net, val = names["net"], names["val"]
    assert net.score(val, val.targets) == pytest.approx(accuracy("flowers"))
    assert net.score(val, val.targets) >= 0.75
    assert net.predict_proba(val).sum(axis=1) == pytest.approx(1, abs=1e-5)
