"""A folder of pictures has the model's class indices, whatever folders are there; what cannot be read is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.datasets.folder import ModelFolder, class_indices

NAMES = ["apple", "banana", "cherry", "date"]


@pytest.fixture(scope="module")
def model() -> SRNN:
    """Four classes, named and one of them described."""
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=4, img_size=64).eval()
    model.pretrained_cfg["label_names"] = NAMES
    model.pretrained_cfg["label_descriptions"] = {"date": "date, the fruit"}
    return model


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """Two cherries, one of them damaged, and a banana in a folder of its own; no apples."""
    for number, name in enumerate(("cherry/1.png", "cherry/2.png", "banana/ripe/1.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70), (90 * number, 50, 50)).save(tmp_path / name)
    (tmp_path / "cherry" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "cherry" / "notes.txt").write_text("no picture either")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_indices_are_the_models_and_not_the_folders(model: SRNN, fruit: Path) -> None:
    folder = ModelFolder(fruit, model)
    found = [(path.relative_to(fruit).as_posix(), target) for path, target in folder.samples]
    assert found == [("banana/ripe/1.png", 1), ("cherry/1.png", 2), ("cherry/2.png", 2), ("cherry/broken.png", 2)]
    assert class_indices(model) == {"apple": 0, "banana": 1, "cherry": 2, "date": 3, "date, the fruit": 3}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_batches_hold_what_can_be_read_and_the_rest_is_reported(
    batch_size: int, workers: int, model: SRNN, fruit: Path
) -> None:
    folder = ModelFolder(fruit, model)
    loader = folder.loader(batch_size, workers)
    assert len(loader) == -(-4 // batch_size)
    for _ in range(2):  # a second pass does not report twice
        batches = list(loader)
        assert [target for _, targets in batches for target in targets.tolist()] == [1, 2, 2]
        [reason] = [skipped.reason for skipped in loader.skipped]
        assert reason == f"{fruit / 'cherry' / 'broken.png'}: not a picture that Pillow can read"
    levels, _ = batches[0]
    assert [level.shape[1:] for level in levels] == [(3, 32, 32), (3, 64, 64)]
    expected = srnn_zoo.create_transform(model)(Image.open(fruit / "banana" / "ripe" / "1.png"))
    for level, wanted in zip(levels, expected, strict=True):
        assert torch.equal(level[0], wanted)


def test_sizes_may_be_others(model: SRNN, fruit: Path) -> None:
    levels, _ = ModelFolder(fruit, model, sizes=[48, 96, 128])[0]
    assert [level.shape[-1] for level in levels] == [48, 96, 128]


def test_imagenet_models_know_wordnet_ids_and_names(tmp_path: Path) -> None:
    imagenet = srnn_zoo.create_model("srnn_test_resnet", img_size=64)
    indices = class_indices(imagenet)
    assert indices["n01440764"] == indices["tench, Tinca tinca"] == 0
    assert len(set(indices.values())) == 1000
    assert "crane" not in indices  # a bird, and a machine
    (tmp_path / "n01440765").mkdir()
    with pytest.raises(ValueError, match=r"unknown class 'n01440765'; did you mean .*'n01440764'"):
        ModelFolder(tmp_path, imagenet)


def test_what_is_no_class_of_the_model_is_refused_with_the_closest_names(model: SRNN, fruit: Path) -> None:
    (fruit / "aple").mkdir()
    reason = r"unknown class 'aple'; did you mean 'apple'\? \(1 of 3 folders in .* are no class of the model\)"
    with pytest.raises(ValueError, match=reason):
        ModelFolder(fruit, model)
    unnamed = srnn_zoo.create_model("srnn_test_resnet", num_classes=4)
    with pytest.raises(ValueError, match="unknown class 'aple'; choose one of class 0, class 1, class 2, class 3"):
        ModelFolder(fruit, unnamed)


def test_a_folder_without_classes_or_pictures_is_refused(model: SRNN, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        ModelFolder(tmp_path / "nowhere", model)
    with pytest.raises(ValueError, match=r"no class folders; expected .*CLASS.picture\.jpg"):
        ModelFolder(tmp_path, model)
    (tmp_path / "apple").mkdir()
    with pytest.raises(ValueError, match="no pictures in its 1 class folders"):
        ModelFolder(tmp_path, model)


@pytest.mark.data
def test_a_split_that_lacks_classes_keeps_the_indices_of_the_others(grocery: Path) -> None:
    names = sorted(path.name for path in (grocery / "train").iterdir())
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=len(names), img_size=64)
    model.pretrained_cfg["label_names"] = names
    folder = ModelFolder(grocery / "val", model)
    assert len(folder) == 296
    assert len({target for _, target in folder.samples}) == 60
    assert all(path.parent.name == names[target] for path, target in folder.samples)
