"""Data to train on: classes follow the training split, whatever the data set is, and unfit data are refused."""

import io
import json
import shutil
import tarfile

import pytest
from PIL import Image

from srnn_zoo.datasets.images import ImageError, open_image
from srnn_zoo.datasets.readers import open_labelled
from srnn_zoo.datasets.shards import index_shards
from srnn_zoo.datasets.splits import ImageSplit, open_data

CLASSES = ["blue", "green", "red"]


@pytest.mark.parametrize("reader", ["folder", "tar", "torch", "hfds"])
def test_classes_are_those_of_the_training_split_whatever_reads_it(reader, class_folders, tmp_path, monkeypatch):
    shutil.rmtree(class_folders / "val" / "blue")
    for split in ("train", "val"):
        shutil.make_archive(tmp_path / split, "tar", class_folders / split)
    if reader == "hfds":
        pytest.importorskip("datasets")
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    source, options, name = {
        "folder": (class_folders, {}, "images"),
        "tar": (tmp_path / "train.tar", {"val": tmp_path / "val.tar"}, "train"),
        "torch": ("torch/image_folder", {"data_dir": class_folders}, "torch/image_folder"),
        "hfds": (f"hfds/{class_folders}", {"data_dir": tmp_path / "cache"}, f"hfds/{class_folders}"),
    }[reader]
    data = open_data(source, **options)
    assert (len(data.train), len(data.val), data.name) == (24, 6, name)
    assert data.train.classes == data.val.classes == CLASSES
    assert [target for _, target in data.val] == [1, 1, 1, 2, 2, 2]
    assert data.val[3][0].mode == "RGB"


@pytest.mark.data
def test_grocery_has_81_classes_of_which_val_shows_60(grocery):
    data = open_data(grocery)
    assert (len(data.train), len(data.val), len(data.train.classes)) == (2640, 296, 81)
    assert data.val.classes == data.train.classes
    assert all(data.train.classes[target] == path.parent.name for path, target in data.val.samples)
    assert len({target for _, target in data.val.samples}) == 60


def test_splits_may_lie_anywhere_and_have_any_name(class_folders):
    (class_folders / "val").rename(class_folders / "held-out")
    with pytest.raises(FileNotFoundError, match="images has no validation split, no folder val or validation"):
        open_data(class_folders)
    assert len(open_data(class_folders, val_split="held-out").val) == 9
    assert len(open_data(class_folders / "train", val=class_folders / "held-out").val) == 9
    (class_folders / "held-out").rename(class_folders / "validation")
    assert len(open_data(class_folders).val) == 9


def test_what_is_no_data_to_train_on_is_refused_in_one_sentence(class_folders):
    with pytest.raises(ValueError, match="list does not name its classes; they must travel with the model"):
        ImageSplit(open_labelled([(Image.new("RGB", (20, 20)), 0)]))
    for split in ("train_split", "val_split"):
        with pytest.raises(ValueError, match=r"images: unknown split 'tests'"):
            open_data(class_folders, **{split: "tests"})
    with pytest.raises(FileNotFoundError, match=r"no folder '.*0\.png'"):
        open_data(class_folders / "val" / "red" / "0.png")
    shutil.copytree(class_folders / "val" / "red", class_folders / "val" / "pink")
    with pytest.raises(ValueError, match=r"val has classes that are not among the 3 of the training split: 'pink'"):
        open_data(class_folders)
    (class_folders / "train" / "pink").mkdir()
    with pytest.raises(ValueError, match="pink has no images"):
        open_data(class_folders)
    for name in ("blue", "green", "pink"):
        shutil.rmtree(class_folders / "train" / name)
    with pytest.raises(ValueError, match="has one class only, 'red'; training needs two at least"):
        open_data(class_folders)


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(class_folders, tmp_path):
    """The images as WebDataset: two shards to train with, one to validate, and the info file that timm reads."""
    pytest.importorskip("webdataset")
    splits = {}
    for split, count in (("train", 2), ("validation", 1)):
        images = sorted((class_folders / split.removesuffix("idation")).rglob("*.png"))
        names = [f"{split}-{shard}.tar" for shard in range(count)]
        for shard, name in enumerate(names):
            files = {}
            for number, image in enumerate(images[shard::count]):
                label = str(CLASSES.index(image.parent.name))
                files |= {f"{number:04d}.png": image.read_bytes(), f"{number:04d}.cls": label.encode()}
            write_tar(tmp_path / name, files)
        lengths = [len(images) // count] * count
        splits[split] = {"name": split, "filenames": names, "shard_lengths": lengths, "num_samples": len(images)}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")
    return tmp_path


def test_shards_of_webdataset_are_read_in_any_order(shards, class_folders):
    data = open_data("wds/colours", data_dir=shards)
    assert (len(data.train), len(data.val), data.train.classes) == (24, 9, ["0", "1", "2"])
    files = sorted((class_folders / "val").rglob("*.png"))
    for index in (8, 0, 3):
        assert data.val[index] == (open_image(files[index]).image, CLASSES.index(files[index].parent.name))
    assert sorted(data.train[index][1] for index in range(24)) == sorted(8 * [0, 1, 2])


def test_a_label_in_the_shards_json_is_the_class_and_a_negative_one_leaves_out(tmp_path):
    files = {"x/1.png": b"one", "x/1.json": b'{"kind": 3}', "2.JPG": b"two", "2.json": b'{"kind": -1}'}
    write_tar(tar := tmp_path / "a.tar", files)
    [image] = index_shards([tar], "kind")
    assert (image.name, image.target, image.open().read()) == ("a.tar/x/1.png", 3, b"one")
    with pytest.raises(ValueError, match=r"a\.tar: x/1 has no class \(sort in its \.json\)"):
        index_shards([tar], "sort")


def test_shards_that_are_damaged_are_refused_and_images_skipped(shards):
    shard = shards / "train-1.tar"
    for files, reason in (
        ({"7.png": b"no image"}, r"train-1\.tar: 7 has no class \(\.cls\)"),
        ({"7.cls": b"0", "7.txt": b"a cat"}, r"train-1\.tar: 7 has no image \(jpg, png, webp, jpeg\)"),
    ):
        write_tar(shard, files)
        with pytest.raises(ValueError, match=reason):
            open_data("wds/colours", data_dir=shards)
    write_tar(shard, {"7.png": b"no image", "7.cls": b"1"})
    train = open_data("wds/colours", data_dir=shards).train
    with pytest.raises(ImageError, match=r"train-1\.tar/7\.png: not an image"):
        train[len(train) - 1]
    shard.write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"train-1\.tar is no tar file, or a damaged one"):
        open_data("wds/colours", data_dir=shards)
