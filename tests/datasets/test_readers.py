"""Labelled images: folders, tars, data sets of timm's and open ones, and whose names decide which class is which."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import timm.data
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from torchvision.datasets import ImageFolder

from srnn_zoo.datasets import readers
from srnn_zoo.datasets.classes import class_indices, class_names, label_names
from srnn_zoo.datasets.images import Skipped
from srnn_zoo.datasets.readers import LabelledFiles, LabelledStream, open_labelled, register_reader, target_indices

from .conftest import FRUIT, nameless
from .test_images import encoded


def read(data, **options):
    images = open_labelled(data, **options)
    return list(images) if isinstance(images, LabelledStream) else [images[index] for index in range(len(images))]


def check_fruit(images, names):
    """The readable images are of these classes, in order, and the broken one is skipped with a reason that names it."""
    good = [image for image in images if not isinstance(image.image, Skipped)]
    assert [next(c for c in FRUIT if f"{c}/" in image.name) for image in good] == names
    (broken,) = (image for image in images if isinstance(image.image, Skipped))
    assert broken.image == Skipped(broken.name, f"{broken.name}: not an image that Pillow can read")


def test_class_names_come_from_the_config_else_they_are_numbers():
    model = nameless(2)
    assert class_names(model) == label_names(model) == ["class 0", "class 1"]
    assert model.label_names == ()
    model.pretrained_cfg["label_names"] = ("n01", "n02")
    assert class_names(model) == [*model.label_names] == ["n01", "n02"]
    model.pretrained_cfg["label_descriptions"] = {"n02": "oat milk, from oats"}
    assert class_names(model) == ["n01", "oat milk, from oats"]
    assert class_indices(model) == {"n01": 0, "n02": 1, "oat milk, from oats": 1}
    assert label_names(model) == ["n01", "n02"]
    model.reset_classifier(3)  # the names were of the old classifier
    assert class_names(model) == ["class 0", "class 1", "class 2"]


def test_imagenet_models_know_wordnet_ids_and_names(tmp_path):
    imagenet = nameless(1000)
    assert class_names(imagenet)[0] == "class 0"  # a thousand classes may be anybody's
    imagenet.metadata = {"dataset": ["imagenet-1k", "flowers"]}
    names, indices = class_names(imagenet), class_indices(imagenet)
    assert (len(names), names[281][:5], names[967]) == (1000, "tabby", "espresso")
    assert indices["n01440764"] == indices["tench, Tinca tinca"] == 0
    assert len(set(indices.values())) == 1000
    assert "crane" not in indices  # a bird, and a machine
    assert label_names(imagenet)[281] == "n02123045"
    for name in ("n02123045", "n01440764"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / name / "1.png")
    assert target_indices(imagenet, open_labelled(tmp_path)) == [0, 281]  # tench and tabby
    (tmp_path / "n01440764").rename(tmp_path / "n01440765")
    with pytest.raises(ValueError, match=r"unknown class 'n01440765'; did you mean .*'n01440764'"):
        target_indices(imagenet, open_labelled(tmp_path))


def test_a_folder_gives_its_images_at_any_depth_by_the_models_names_of_their_classes(folder, named):
    (folder / "val" / "unheard of").mkdir()  # an empty class folder and hidden folders do not count
    (folder / "val" / ".cache").mkdir()
    (folder / "val" / ".cache" / "1.png").touch()
    images = read(folder / "val")
    assert [Path(image.name).name for image in images] == ["0.png", "broken.jpg", "1.png", "0.png", "1.png"]
    assert [image.target for image in images] == [0, 0, 0, 1, 1]
    check_fruit(images, ["pear", "pear", "quince", "quince"])
    assert [image.name for image in read(folder, split="val")] == [image.name for image in images]
    assert target_indices(named, open_labelled(folder / "train")) == [3, 2, 1, 0]
    assert target_indices(named, open_labelled(folder / "val")) == [2, 0]


def test_an_unknown_class_is_an_error_with_the_closest_name(folder, named):
    (folder / "val" / "pear").rename(folder / "val" / "pearl")
    with pytest.raises(ValueError, match="val: unknown class 'pearl'; did you mean 'pear'"):
        target_indices(named, open_labelled(folder / "val"))
    (folder / "val" / "quince").rename(folder / "val" / "zebra")
    with pytest.raises(ValueError, match=r"2 of the 2 classes are unknown"):
        target_indices(named, open_labelled(folder / "val"))
    with pytest.raises(ValueError, match=r"fruit holds the splits train, val: choose one"):
        target_indices(named, open_labelled(folder))
    with pytest.raises(ValueError, match=r"does not name its 4 classes.*label_names"):
        target_indices(nameless(), open_labelled(folder / "train"))


def test_what_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    empty, cats = tmp_path / "empty", tmp_path / "cats"
    for file in (empty / "1.txt", cats / "cat" / "1.txt"):
        file.parent.mkdir(parents=True)
        file.touch()
    for name, options, error, reason in (
        (empty, {}, ValueError, r"no class folders; expected .*CLASS.image\.jpg"),
        (cats, {}, ValueError, "no images in its 1 class folders"),
        (cats, {"split": "cats"}, ValueError, "unknown split 'cats'; did you mean 'cat'"),
        (cats, {"data_dir": "x"}, ValueError, r"data_dir goes with the name of a data set \(hfds/…"),
        ("nowhere", {}, FileNotFoundError, r"no folder 'nowhere'; give a folder .* \(hfds/…"),
        ("/nowhere", {}, FileNotFoundError, r"no folder '/nowhere'"),
        (".tar", {}, FileNotFoundError, r"no folder '\.tar'"),
        ("torch/mnist", {}, ValueError, "torch/mnist needs a data_dir"),
        ("torch/minst", {"data_dir": "."}, ValueError, "cannot open 'torch/minst': Unknown torchvision dataset minst"),
        ("torch/mnist", {"data_dir": "nowhere"}, ValueError, "timm cannot open 'torch/mnist': Dataset not found"),
    ):
        with pytest.raises(error, match=reason):
            open_labelled(name, **options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="tfds/food101 needs tensorflow_datasets: pip install tensorflow-datasets"):
        open_labelled("tfds/food101")


def test_a_registered_reader_opens_names_and_files(folder, named, monkeypatch):
    monkeypatch.setattr(readers, "_READERS", dict(readers._READERS))
    file = str(folder / "val" / "pear" / "0.png")
    read_csv = register_reader("csv/", ".csv")(Mock(return_value=LabelledFiles([(file, 1)], "csv", ["quince", "pear"])))
    (image,) = read("CSV/fruit", split="test", data_dir=folder)
    assert (image.name, image.target) == (file, 1)
    read_csv.assert_called_with("CSV/fruit", "test", str(folder))
    (folder / "fruit.csv").touch()
    assert target_indices(named, open_labelled(folder / "fruit.csv")) == [0, 2]
    read_csv.assert_called_with(str(folder / "fruit.csv"), None, None)
    with pytest.raises(FileNotFoundError, match=r"\(hfds/….*, csv/…\)"):
        open_labelled("nowhere")


def pack(folder):
    """A tar of the images of a folder."""
    return Path(shutil.make_archive(folder, "tar", folder))


@pytest.mark.parametrize(
    ("make", "refusal"), [(pack, "one split already"), (ImageFolder, "open already"), (ImageDataset, "open already")]
)
def test_tars_and_open_data_sets_are_read_past_their_own_handling_of_broken_images(make, refusal, folder, named):
    for path in (folder / "val").glob("*/deeper/*"):  # timm takes the leaf folder for the class
        path.rename(path.parent.parent / path.name)
        path.parent.rmdir()
    dataset = make(folder / "val")
    check_fruit(read(dataset), ["pear", "pear", "quince", "quince"])
    assert target_indices(named, open_labelled(dataset)) == [2, 0]
    with pytest.raises(ValueError, match=refusal):
        open_labelled(dataset, split="val")


def test_damaged_tars_and_data_sets_with_a_transform_are_refused(folder):
    tar = pack(folder / "val")
    for damaged in (tar.read_bytes()[:700], b"no archive"):
        tar.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"timm cannot open '.*val\.tar'"):
            open_labelled(tar)
    for make in (ImageFolder, ImageDataset):
        with pytest.raises(ValueError, match="without a transform"):
            open_labelled(make(folder / "val", transform=np.asarray))


def test_a_data_sets_own_order_holds_where_the_model_has_no_names():
    class Digits(list):
        classes = tuple(f"digit {number}" for number in range(10))

    images = open_labelled(Digits((Image.new("L", (20, 20), number), number) for number in (7, 0, 9)))
    assert [(images[index].name, images[index].target) for index in (0, 2)] == [("Digits[0]", 7), ("Digits[2]", 9)]
    assert images[1].image.getextrema() == (0, 0)
    model = nameless(10)
    assert target_indices(model, images) == list(range(10))
    model.pretrained_cfg["label_names"] = [f"{number} fruit" for number in range(10)]
    with pytest.raises(ValueError, match="unknown class 'digit 0'"):  # it has names, and they are others
        target_indices(model, images)
    with pytest.raises(ValueError, match="does not name its 4 classes"):
        target_indices(nameless(4), images)


def stream(targets):
    """A stream of images with these targets, as timm's readers of shards give one."""
    return IterableImageDataset(".", reader=[(Image.new("RGB", (20, 20)), target) for target in targets])


def test_a_stream_is_read_in_order(monkeypatch, tmp_path):
    create_dataset = Mock(return_value=stream([2, 0, 1]))
    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    images = open_labelled("wds/fruit", data_dir=tmp_path, split="test")
    create_dataset.assert_called_once_with("wds/fruit", root=str(tmp_path), split="test")
    assert [(p.name, p.target) for p in images] == [("wds/fruit[0]", 2), ("wds/fruit[1]", 0), ("wds/fruit[2]", 1)]


def test_what_is_no_image_or_no_class_is_an_error():
    for target in (None, [0, 1], 0.5, "pear"):
        with pytest.raises(TypeError, match=r"IterableImageDataset\[0\]: the target must be the index of one class"):
            read(stream([target]))
    with pytest.raises(TypeError, match="not an image: make the data set without a transform"):
        read([(np.zeros((2, 2)), 0)])


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_hugging_face_data_set_is_read_by_its_columns_of_images_and_classes(is_stream):
    datasets = pytest.importorskip("datasets")
    files = [encoded(Image.new("RGB", (40, 30 + 10 * number)), "PNG") for number in range(3)]
    files[1] = files[1][:40]
    features = {"x": datasets.Value("int64"), "kind": datasets.ClassLabel(names=["plum", "pear"])}
    rows = {"photo": [{"bytes": file, "path": None} for file in files], "kind": [1, 0, 1], "x": [0, 0, 0]}
    data = datasets.Dataset.from_dict(rows, datasets.Features(features | {"photo": datasets.Image()}))
    data = data.to_iterable_dataset() if is_stream else data
    assert open_labelled(data).classes == ["plum", "pear"]
    assert [item.target for item in read(data)] == [1, 0, 1]
    assert [getattr(item.image, "size", None) for item in read(data)] == [(40, 30), None, (40, 50)]
    with pytest.raises(ValueError, match="no column of type Image; got"):
        open_labelled(data.remove_columns("photo"))
