"""Labelled pictures: folders, tars and data sets of timm's, and whose names decide which class is which."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm.data
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from torchvision.datasets import ImageFolder

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.datasets.images import ImageError
from srnn_zoo.datasets.readers import Labelled, LabelledStream, label_names, open_labelled, target_indices

FRUIT = ("apple", "pear", "plum", "quince")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits; the second lacks a class, and has a broken picture."""
    for split, names in {"train": FRUIT, "val": ("pear", "quince")}.items():
        for number, name in enumerate(names):
            (tmp_path / "fruit" / split / name / "deeper").mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (20, 30), (60 * number, index, 0)).save(
                    tmp_path / "fruit" / split / name / ("deeper" if index else ".") / f"{index}.png"
                )
    (tmp_path / "fruit" / "val" / "pear" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "fruit"


@pytest.fixture
def named() -> SRNN:
    """A model of all four classes, not in alphabetical order."""
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=4)
    model.pretrained_cfg["label_names"] = FRUIT[::-1]
    return model


def read(data: Any, **options: Any) -> list[Labelled]:
    pictures = open_labelled(data, **options)
    if isinstance(pictures, LabelledStream):
        return list(pictures)
    return [pictures[index] for index in range(len(pictures))]


def check_fruit(pictures: list[Labelled], names: list[str]) -> None:
    """The readable pictures are of these classes, in order, and the broken one is an error that names it."""
    good = [picture for picture in pictures if not isinstance(picture.image, ImageError)]
    assert [next(c for c in FRUIT if f"{c}/" in picture.name) for picture in good] == names
    (broken,) = (picture for picture in pictures if isinstance(picture.image, ImageError))
    assert str(broken.image) == f"{broken.name}: not a picture that Pillow can read"


def test_a_folder_gives_its_pictures_by_class_at_any_depth(folder: Path) -> None:
    pictures = read(folder / "val")
    assert [Path(picture.name).name for picture in pictures] == ["0.png", "broken.jpg", "1.png", "0.png", "1.png"]
    assert [picture.target for picture in pictures] == [0, 0, 0, 1, 1]
    check_fruit(pictures, ["pear", "pear", "quince", "quince"])
    assert [picture.name for picture in read(folder, split="val")] == [picture.name for picture in pictures]


def test_classes_are_found_by_the_models_names_not_by_the_folders_order(folder: Path, named: SRNN) -> None:
    assert target_indices(named, open_labelled(folder / "train")) == [3, 2, 1, 0]
    assert target_indices(named, open_labelled(folder / "val")) == [2, 0]


def test_an_empty_class_folder_and_hidden_folders_do_not_count(folder: Path, named: SRNN) -> None:
    (folder / "val" / "unheard of").mkdir()
    (folder / "val" / ".cache").mkdir()
    (folder / "val" / ".cache" / "1.png").write_bytes(b"")
    assert target_indices(named, open_labelled(folder / "val")) == [2, 0]


def test_an_unknown_class_is_an_error_with_the_closest_name(folder: Path, named: SRNN) -> None:
    (folder / "val" / "pear").rename(folder / "val" / "pearl")
    with pytest.raises(ValueError, match="val: unknown class 'pearl'; did you mean 'pear'"):
        target_indices(named, open_labelled(folder / "val"))
    (folder / "val" / "quince").rename(folder / "val" / "zebra")
    with pytest.raises(ValueError, match=r"2 of the 2 classes are unknown"):
        target_indices(named, open_labelled(folder / "val"))


def test_a_folder_of_splits_asks_for_one(folder: Path, named: SRNN) -> None:
    with pytest.raises(ValueError, match=r"fruit holds the splits train, val: choose one"):
        target_indices(named, open_labelled(folder))
    with pytest.raises(ValueError, match="unknown split 'vall'; did you mean 'val'"):
        open_labelled(folder, split="vall")


def test_a_model_without_names_reads_no_folder(folder: Path) -> None:
    nameless = srnn_zoo.create_model("srnn_test_resnet", num_classes=4)
    assert label_names(nameless) == ["class 0", "class 1", "class 2", "class 3"]
    with pytest.raises(ValueError, match=r"does not name its 4 classes.*label_names"):
        target_indices(nameless, open_labelled(folder / "train"))


def test_an_imagenet_model_knows_wordnet_ids(tmp_path: Path) -> None:
    for name in ("n02123045", "n01440764"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / name / "1.png")
    model = srnn_zoo.create_model("srnn_test_resnet")
    assert target_indices(model, open_labelled(tmp_path)) == [0, 281]  # tench and tabby
    assert label_names(model)[281] == "n02123045"


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        ("", {}, "no class folders"),
        ("cat/", {}, "no pictures in its 1 class folders"),
        ("1.txt", {}, "no class folders"),
        ("cat/1.txt", {}, "no pictures in its 1 class folders"),
        ("cat/", {"split": "dog"}, "unknown split 'dog'; choose one of cat"),
        ("cat/", {"data_dir": "x"}, "data_dir goes with timm's names"),
    ],
)
def test_folders_without_pictures_are_errors(make: str, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / make).parent.mkdir(exist_ok=True)
    (tmp_path / make).mkdir(exist_ok=True) if make.endswith("/") or not make else (tmp_path / make).touch()
    with pytest.raises(ValueError, match=reason):
        open_labelled(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "options", "error", "reason"),
    [
        ("nowhere", {}, FileNotFoundError, r"no folder 'nowhere'; give a folder .* \(hfds/…"),
        ("torch/mnist", {}, ValueError, "torch/mnist needs a data_dir"),
        ("torch/minst", {"data_dir": "."}, ValueError, "cannot open 'torch/minst': Unknown torchvision dataset minst"),
        ("torch/mnist", {"data_dir": "nowhere"}, ValueError, "timm cannot open 'torch/mnist': Dataset not found"),
    ],
)
def test_names_that_cannot_be_opened_are_errors(
    name: str, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        open_labelled(name, **options)


def test_a_data_set_whose_package_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="tfds/food101 needs tensorflow_datasets: pip install tensorflow-datasets"):
        open_labelled("tfds/food101")


def test_a_tar_gives_the_same_pictures_and_its_broken_ones_are_not_replaced(folder: Path, named: SRNN) -> None:
    with tarfile.open(folder / "val.tar", "w") as tar:
        for path in sorted((folder / "val").glob("*/*.*")):
            tar.add(path, path.relative_to(folder / "val"))
    pictures = open_labelled(folder / "val.tar")
    assert not isinstance(pictures, LabelledStream)
    assert target_indices(named, pictures) == [2, 0]
    check_fruit([pictures[index] for index in range(len(pictures))], ["pear", "quince"])
    assert len(pictures) == 3
    (folder / "broken.tar").write_bytes((folder / "val.tar").read_bytes()[:700])
    (folder / "text.tar").write_text("no archive")
    for name in ("broken.tar", "text.tar"):
        with pytest.raises(ValueError, match=rf"timm cannot open '.*{name}'"):
            open_labelled(folder / name)
    with pytest.raises(ValueError, match="one split already"):
        open_labelled(folder / "val.tar", split="val")


@pytest.mark.parametrize("make", [ImageFolder, ImageDataset])
def test_open_data_sets_are_read_past_their_own_handling_of_broken_pictures(
    make: Any, folder: Path, named: SRNN
) -> None:
    for path in (folder / "val").glob("*/deeper/*"):  # timm takes the leaf folder for the class
        path.rename(path.parent.parent / path.name)
        path.parent.rmdir()
    dataset = make(str(folder / "val"))
    pictures = read(dataset)
    assert len(pictures) == 5
    check_fruit(pictures, ["pear", "pear", "quince", "quince"])
    assert target_indices(named, open_labelled(dataset)) == [2, 0]
    with pytest.raises(ValueError, match="open already"):
        open_labelled(dataset, split="val")
    dataset.transform = np.asarray
    with pytest.raises(ValueError, match="without a transform"):
        open_labelled(dataset)


def test_timms_names_are_opened_with_the_data_sets_own_order(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 3, 28, 28) + digits.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 3) + bytes([7, 0, 9]))
    pictures = open_labelled("torch/mnist", data_dir=tmp_path)
    found = [pictures[index] for index in range(3)]  # pyright: ignore
    assert [(picture.name, picture.target) for picture in found] == [
        ("torch/mnist[0]", 7),
        ("torch/mnist[1]", 0),
        ("torch/mnist[2]", 9),
    ]
    assert np.array_equal(np.asarray(found[1].image), digits[1])
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=10)
    assert target_indices(model, pictures) == list(range(10))
    model.pretrained_cfg["label_names"] = [f"{name} fruit" for name in range(10)]
    with pytest.raises(ValueError, match="unknown class '0 - zero'"):  # it has names, and they are others
        target_indices(model, pictures)
    with pytest.raises(ValueError, match="does not name its 4 classes"):
        target_indices(srnn_zoo.create_model("srnn_test_resnet", num_classes=4), pictures)


class Reader:
    """A stream of three pictures, as timm's readers of shards are."""

    def __init__(self, targets: list[Any]) -> None:
        self.targets = targets

    def __iter__(self) -> Iterator[tuple[Image.Image, Any]]:
        return ((Image.new("RGB", (20, 20), (index, 0, 0)), target) for index, target in enumerate(self.targets))


def test_a_stream_is_read_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def create_dataset(name: str, root: str, split: str) -> IterableImageDataset:
        asked.append((name, root, split))
        return IterableImageDataset(root, reader=Reader([2, 0, 1]))  # pyright: ignore

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    pictures = open_labelled("wds/fruit", data_dir=tmp_path, split="test")
    assert asked == [("wds/fruit", str(tmp_path), "test")]
    assert isinstance(pictures, LabelledStream)
    assert [(p.name, p.target) for p in pictures] == [("wds/fruit[0]", 2), ("wds/fruit[1]", 0), ("wds/fruit[2]", 1)]


@pytest.mark.parametrize("target", [None, [0, 1], 0.5, "pear"])
def test_targets_that_are_no_class_are_errors(target: Any) -> None:
    with pytest.raises(TypeError, match=r"IterableImageDataset\[0\]: the target must be the index of one class"):
        read(IterableImageDataset(".", reader=Reader([target])))  # pyright: ignore
    with pytest.raises(TypeError, match="not a picture: make the data set without a transform"):
        read([(np.zeros((2, 2)), 0)])
