"""Labelled images: folders, tars, data sets of timm's and open ones, and whose names decide which class is which."""

import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm.data
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from torchvision.datasets import ImageFolder

import srnn_zoo
from srnn_zoo.datasets import readers
from srnn_zoo.datasets.classes import class_indices, class_names, label_names
from srnn_zoo.datasets.images import Skipped
from srnn_zoo.datasets.readers import LabelledFiles, LabelledStream, open_labelled, register_reader, target_indices

from .conftest import FRUIT


@pytest.fixture(scope="module")
def imagenet():
    return srnn_zoo.create_model("srnn_test_resnet", img_size=64)


def read(data, **options):
    images = open_labelled(data, **options)
    return list(images) if isinstance(images, LabelledStream) else [images[index] for index in range(len(images))]


def check_fruit(images, names):
    """The readable images are of these classes, in order, and the broken one is skipped with a reason that names it."""
    good = [image for image in images if not isinstance(image.image, Skipped)]
    assert [next(c for c in FRUIT if f"{c}/" in image.name) for image in good] == names
    (broken,) = (image for image in images if isinstance(image.image, Skipped))
    assert broken.image == Skipped(broken.name, f"{broken.name}: not an image that Pillow can read")


def test_class_names_come_from_the_config_then_imagenet_then_numbers(imagenet):
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=2, img_size=64)
    assert class_names(model) == ["class 0", "class 1"]
    model.pretrained_cfg["label_names"] = ("n01", "n02")
    assert class_names(model) == ["n01", "n02"]
    model.pretrained_cfg["label_descriptions"] = {"n02": "oat milk, from oats"}
    assert class_names(model) == ["n01", "oat milk, from oats"]
    assert class_indices(model) == {"n01": 0, "n02": 1, "oat milk, from oats": 1}
    assert label_names(model) == ["n01", "n02"]
    model.reset_classifier(3)  # the names were of the old classifier
    assert class_names(model) == ["class 0", "class 1", "class 2"]
    names = class_names(imagenet)
    assert len(names) == 1000
    assert names[281].startswith("tabby")
    assert names[967] == "espresso"


def test_imagenet_models_know_wordnet_ids_and_names(imagenet, tmp_path):
    indices = class_indices(imagenet)
    assert indices["n01440764"] == indices["tench, Tinca tinca"] == 0
    assert len(set(indices.values())) == 1000
    assert "crane" not in indices  # a bird, and a machine
    for name in ("n02123045", "n01440764"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / name / "1.png")
    assert target_indices(imagenet, open_labelled(tmp_path)) == [0, 281]  # tench and tabby
    assert label_names(imagenet)[281] == "n02123045"
    (tmp_path / "n01440764").rename(tmp_path / "n01440765")
    with pytest.raises(ValueError, match=r"unknown class 'n01440765'; did you mean .*'n01440764'"):
        target_indices(imagenet, open_labelled(tmp_path))


def test_a_folder_gives_its_images_by_class_at_any_depth(folder):
    images = read(folder / "val")
    assert [Path(image.name).name for image in images] == ["0.png", "broken.jpg", "1.png", "0.png", "1.png"]
    assert [image.target for image in images] == [0, 0, 0, 1, 1]
    check_fruit(images, ["pear", "pear", "quince", "quince"])
    assert [image.name for image in read(folder, split="val")] == [image.name for image in images]


def test_classes_are_found_by_the_models_names_not_by_the_folders_order(folder, named):
    assert target_indices(named, open_labelled(folder / "train")) == [3, 2, 1, 0]
    assert target_indices(named, open_labelled(folder / "val")) == [2, 0]
    (folder / "val" / "unheard of").mkdir()  # an empty class folder and hidden folders do not count
    (folder / "val" / ".cache").mkdir()
    (folder / "val" / ".cache" / "1.png").write_bytes(b"")
    assert target_indices(named, open_labelled(folder / "val")) == [2, 0]


def test_an_unknown_class_is_an_error_with_the_closest_name(folder, named, make_model):
    (folder / "val" / "pear").rename(folder / "val" / "pearl")
    with pytest.raises(ValueError, match="val: unknown class 'pearl'; did you mean 'pear'"):
        target_indices(named, open_labelled(folder / "val"))
    (folder / "val" / "quince").rename(folder / "val" / "zebra")
    with pytest.raises(ValueError, match=r"2 of the 2 classes are unknown"):
        target_indices(named, open_labelled(folder / "val"))
    with pytest.raises(ValueError, match=r"fruit holds the splits train, val: choose one"):
        target_indices(named, open_labelled(folder))
    nameless = make_model()
    assert label_names(nameless) == ["class 0", "class 1", "class 2", "class 3"]
    with pytest.raises(ValueError, match=r"does not name its 4 classes.*label_names"):
        target_indices(nameless, open_labelled(folder / "train"))


def test_folders_without_images_are_errors(tmp_path):
    (tmp_path / "1.txt").touch()
    with pytest.raises(ValueError, match=r"no class folders; expected .*CLASS.image\.jpg"):
        open_labelled(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.txt").touch()
    for options, reason in (
        ({}, "no images in its 1 class folders"),
        ({"split": "cats"}, "unknown split 'cats'; did you mean 'cat'"),
        ({"data_dir": "x"}, r"data_dir goes with the name of a data set \(hfds/…"),
    ):
        with pytest.raises(ValueError, match=reason):
            open_labelled(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "options", "error", "reason"),
    [
        ("nowhere", {}, FileNotFoundError, r"no folder 'nowhere'; give a folder .* \(hfds/…"),
        ("/nowhere", {}, FileNotFoundError, r"no folder '/nowhere'"),
        (".tar", {}, FileNotFoundError, r"no folder '\.tar'"),
        ("torch/mnist", {}, ValueError, "torch/mnist needs a data_dir"),
        ("torch/minst", {"data_dir": "."}, ValueError, "cannot open 'torch/minst': Unknown torchvision dataset minst"),
        ("torch/mnist", {"data_dir": "nowhere"}, ValueError, "timm cannot open 'torch/mnist': Dataset not found"),
    ],
)
def test_names_that_cannot_be_opened_are_errors(name, options, error, reason):
    with pytest.raises(error, match=reason):
        open_labelled(name, **options)


def test_a_data_set_whose_package_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="tfds/food101 needs tensorflow_datasets: pip install tensorflow-datasets"):
        open_labelled("tfds/food101")


def test_a_registered_reader_opens_names_and_files(folder, named, monkeypatch):
    monkeypatch.setattr(readers, "_READERS", dict(readers._READERS))
    asked = []

    @register_reader("csv/", ".csv")
    def read_csv(name, split, data_dir):
        asked.append((name, split, data_dir))
        return LabelledFiles([(str(folder / "val" / "pear" / "0.png"), 1)], name, ["quince", "pear"])

    (image,) = read("CSV/fruit", split="test", data_dir=folder)
    assert (image.name, image.target) == (str(folder / "val" / "pear" / "0.png"), 1)
    (folder / "fruit.csv").touch()
    assert target_indices(named, open_labelled(folder / "fruit.csv")) == [0, 2]
    assert asked == [("CSV/fruit", "test", str(folder)), (str(folder / "fruit.csv"), None, None)]
    with pytest.raises(FileNotFoundError, match=r"\(hfds/….*, csv/…\)"):
        open_labelled("nowhere")


def test_a_tar_gives_the_same_images_and_its_broken_ones_are_not_replaced(folder, named):
    with tarfile.open(folder / "val.tar", "w") as tar:
        for path in sorted((folder / "val").glob("*/*.*")):
            tar.add(path, path.relative_to(folder / "val"))
    images = read(folder / "val.tar")
    assert target_indices(named, open_labelled(folder / "val.tar")) == [2, 0]
    check_fruit(images, ["pear", "quince"])
    assert len(images) == 3
    (folder / "broken.tar").write_bytes((folder / "val.tar").read_bytes()[:700])
    (folder / "text.tar").write_text("no archive")
    for name in ("broken.tar", "text.tar"):
        with pytest.raises(ValueError, match=rf"timm cannot open '.*{name}'"):
            open_labelled(folder / name)
    with pytest.raises(ValueError, match="one split already"):
        open_labelled(folder / "val.tar", split="val")


@pytest.mark.parametrize("make", [ImageFolder, ImageDataset])
def test_open_data_sets_are_read_past_their_own_handling_of_broken_images(make, folder, named):
    for path in (folder / "val").glob("*/deeper/*"):  # timm takes the leaf folder for the class
        path.rename(path.parent.parent / path.name)
        path.parent.rmdir()
    dataset = make(str(folder / "val"))
    images = read(dataset)
    assert len(images) == 5
    check_fruit(images, ["pear", "pear", "quince", "quince"])
    assert target_indices(named, open_labelled(dataset)) == [2, 0]
    with pytest.raises(ValueError, match="open already"):
        open_labelled(dataset, split="val")
    dataset.transform = np.asarray
    with pytest.raises(ValueError, match="without a transform"):
        open_labelled(dataset)


def test_timms_names_are_opened_with_the_data_sets_own_order(tmp_path, make_model):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 3, 28, 28) + digits.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 3) + bytes([7, 0, 9]))
    images = open_labelled("torch/mnist", data_dir=tmp_path)
    found = read("torch/mnist", data_dir=tmp_path)
    assert [(image.name, image.target) for image in found] == [
        (f"torch/mnist[{i}]", k) for i, k in enumerate([7, 0, 9])
    ]
    assert np.array_equal(np.asarray(found[1].image), digits[1])
    assert target_indices(make_model(num_classes=10), images) == list(range(10))
    with pytest.raises(ValueError, match="unknown class '0 - zero'"):  # it has names, and they are others
        target_indices(make_model(tuple(f"{name} fruit" for name in range(10)), num_classes=10), images)
    with pytest.raises(ValueError, match="does not name its 4 classes"):
        target_indices(make_model(), images)


class Reader:
    """A stream of images with these targets, as timm's readers of shards are."""

    def __init__(self, targets):
        self.targets = targets

    def __iter__(self):
        return ((Image.new("RGB", (20, 20), (index, 0, 0)), target) for index, target in enumerate(self.targets))


def stream(targets):
    return IterableImageDataset(".", reader=Reader(targets))  # pyright: ignore


def test_a_stream_is_read_in_order(monkeypatch, tmp_path):
    asked = []

    def create_dataset(name, root, split):
        asked.append((name, root, split))
        return stream([2, 0, 1])

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    images = open_labelled("wds/fruit", data_dir=tmp_path, split="test")
    assert asked == [("wds/fruit", str(tmp_path), "test")]
    assert isinstance(images, LabelledStream)
    assert [(p.name, p.target) for p in images] == [("wds/fruit[0]", 2), ("wds/fruit[1]", 0), ("wds/fruit[2]", 1)]


@pytest.mark.parametrize("target", [None, [0, 1], 0.5, "pear"])
def test_targets_that_are_no_class_are_errors(target):
    with pytest.raises(TypeError, match=r"IterableImageDataset\[0\]: the target must be the index of one class"):
        read(stream([target]))
    with pytest.raises(TypeError, match="not an image: make the data set without a transform"):
        read([(np.zeros((2, 2)), 0)])
