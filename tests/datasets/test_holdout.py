"""One folder in two parts: every class in both, the same on every machine, and refused once the folder has changed."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from srnn_zoo.datasets.holdout import Holdout, hold_out
from srnn_zoo.datasets.readers import open_labelled
from srnn_zoo.datasets.splits import open_data

SIZES = {"one": 1, "two": 2, "three": 3, "ten": 10, "forty": 40}
PATHS = [f"{name}/{index:02d}.jpg" for name, count in SIZES.items() for index in range(count)]


def counts(paths):
    return Counter(path.partition("/")[0] for path in paths)


@pytest.mark.parametrize(
    ("fraction", "held"),
    [(0.2, {"two": 1, "three": 1, "ten": 2, "forty": 8}), (0.9, {"two": 1, "three": 2, "ten": 9, "forty": 36})],
)
def test_every_class_with_two_images_has_at_least_one_in_either_part(fraction, held, tmp_path):
    holdout = hold_out(tmp_path, PATHS, fraction, seed=0)
    assert counts(holdout.val) == held
    assert sorted(holdout.train + holdout.val) == sorted(PATHS)
    assert holdout.classes == list(SIZES)


def test_the_choice_follows_from_the_seed_alone_and_an_image_more_moves_no_other_class(tmp_path):
    first, again, other = (hold_out(tmp_path, PATHS, 0.2, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.val != other.val
    more = hold_out(tmp_path, [*PATHS, "forty/99.jpg"], 0.2, seed=0)
    assert [path for path in more.val if path[:5] != "forty"] == [path for path in first.val if path[:5] != "forty"]
    known = [path for path in first.val if path[:3] == "ten"]
    assert known == ["ten/00.jpg", "ten/09.jpg"]  # on every machine


def test_a_file_keeps_the_parts_of_a_folder_which_every_command_then_reads(class_folders, tmp_path):
    data = open_data(class_folders / "train", val_fraction=0.25, seed=3)
    assert (len(data.train), len(data.val), data.name) == (18, 6, "train")
    assert not {path for path, _ in data.train.samples} & {path for path, _ in data.val.samples}
    data.train.holdout.save(file := tmp_path / "split.json")
    again = open_data(file)
    for part in ("train", "val"):
        images = open_labelled(file, split=part)
        assert images.dataset == [(str(path), target) for path, target in getattr(data, part).samples]
        assert getattr(again, part).samples == getattr(data, part).samples
    assert again.name == "train"
    assert open_labelled(file).dataset == open_labelled(file, split="val").dataset
    with pytest.raises(ValueError, match=r"split\.json: unknown split 'vall'; did you mean 'val'"):
        open_labelled(file, split="vall")
    (class_folders / "train").rename(class_folders / "moved")
    with pytest.raises(FileNotFoundError, match=r"split\.json splits .*train, which is not there: if it has moved"):
        open_labelled(file)
    file.write_text('{"some": "other file"}')
    with pytest.raises(ValueError, match=r"split\.json is no split of a folder"):
        open_labelled(file)


def test_what_differs_from_the_recorded_split_is_said(class_folders):
    folder = class_folders / "train"
    old = open_data(folder, val_fraction=0.25).train.holdout
    old.check_same(open_data(folder, val_fraction=0.25).train.holdout, "split.json")
    with pytest.raises(
        ValueError, match=r"split\.json holds out 0\.25 of the images with seed 0; got 0\.5 with seed 0"
    ):
        old.check_same(open_data(folder, val_fraction=0.5).train.holdout, "split.json")
    shutil.copy(folder / "red" / "0.png", folder / "red" / "8.png")
    (folder / "blue" / "3.png").unlink()
    (folder / "blue" / "4.png").unlink()
    with pytest.raises(ValueError, match=r"image red/8\.png is new, 2 images \(blue/3\.png, …\) are gone; put it back"):
        old.check_same(open_data(folder, val_fraction=0.25).train.holdout, "split.json")


def test_what_cannot_be_held_out_is_refused_in_one_sentence(class_folders, tmp_path, caplog):
    for fraction in (0, 1, 2, -0.1):
        with pytest.raises(
            ValueError, match=f"val_fraction must be a share between 0 and 1, such as 0.2; got {fraction}"
        ):
            open_data(class_folders / "train", val_fraction=fraction)
    with pytest.raises(ValueError, match=r"images has a validation split, val: leave out val_fraction"):
        open_data(class_folders, val_fraction=0.2)
    with pytest.raises(FileNotFoundError, match=r"no validation split, .*--val-fraction 0\.2 \(val_fraction=0\.2\)"):
        open_data(class_folders / "train")
    shutil.make_archive(tmp_path / "train", "tar", class_folders / "train")
    with pytest.raises(ValueError, match=r"train\.tar is no folder of images, which alone val_fraction splits"):
        open_data(tmp_path / "train.tar", val_fraction=0.2)
    for image in sorted((class_folders / "train").glob("red/*"))[1:]:
        image.unlink()
    with caplog.at_level("INFO"):
        data = open_data(class_folders / "train", val_fraction=0.2)
    assert "the validation split has no image of 1 of the 3 classes: 'red'" in caplog.text
    assert [Path(path).parent.name for path, _ in data.train.samples].count("red") == 1
    with pytest.raises(ValueError, match="no class has two images"):
        hold_out(tmp_path, ["a/1.jpg", "b/1.jpg"], 0.5, 0)
    assert isinstance(data.val.holdout, Holdout)
