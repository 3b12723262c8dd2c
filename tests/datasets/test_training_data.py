"""Training data: classes follow the training split, damaged pictures are named, and random numbers do not stray."""

from __future__ import annotations

import functools
import json
import multiprocessing
import operator
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.datasets.images import ImageError, open_image
from srnn_zoo.training import image_transform, open_data, open_split
from srnn_zoo.training.loader import TrainBatches, eval_loader, train_loader


def test_classes_are_those_of_the_training_split(class_folders: Path) -> None:
    shutil.rmtree(class_folders / "val" / "blue")
    data = open_data(class_folders)
    assert data.train.classes == data.val.classes == ["blue", "green", "red"]
    assert {data.val[index][1] for index in range(len(data.val))} == {1, 2}
    assert (len(data.train), len(data.val), data.name) == (24, 6, "pictures")


@pytest.mark.data
def test_grocery_has_81_classes_of_which_val_shows_60(grocery: Path) -> None:
    data = open_data(grocery)
    assert (len(data.train), len(data.val), len(data.train.classes)) == (2640, 296, 81)
    assert data.val.classes == data.train.classes
    assert data.val.samples is not None
    for path, target in data.val.samples:
        assert data.train.classes[target] == path.parent.name
    assert len({target for _, target in data.val.samples}) == 60


def test_a_validation_class_that_training_never_sees_is_named(class_folders: Path) -> None:
    shutil.copytree(class_folders / "val" / "red", class_folders / "val" / "pink")
    with pytest.raises(ValueError, match=r"val has classes that are not among the 3 of the training split: 'pink'"):
        open_data(class_folders)


def test_splits_may_lie_anywhere_and_have_any_name(class_folders: Path) -> None:
    (class_folders / "val").rename(class_folders / "held-out")
    with pytest.raises(FileNotFoundError, match="pictures has no validation split, no folder val or validation"):
        open_data(class_folders)
    assert len(open_data(class_folders, val_split="held-out").val) == 9
    assert len(open_data(class_folders / "train", val=class_folders / "held-out").val) == 9
    (class_folders / "held-out").rename(class_folders / "validation")
    assert len(open_data(class_folders).val) == 9


def test_folders_that_are_no_data_are_refused_in_one_sentence(tmp_path: Path, class_folders: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for split in ("train_split", "val_split"):
        with pytest.raises(ValueError, match=r"pictures: unknown split 'tests'"):
            open_data(class_folders, **{split: "tests"})
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere'; give a folder of class folders"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no folder '.*0\.png'"):
        open_data(class_folders / "val" / "red" / "0.png")
    with pytest.raises(ValueError, match="empty: no class folders; expected"):
        open_data(empty, val=class_folders / "val")
    (class_folders / "train" / "pink").mkdir()
    with pytest.raises(ValueError, match="pink has no pictures"):
        open_data(class_folders)
    for name in ("blue", "green", "pink"):
        shutil.rmtree(class_folders / "train" / name)
    with pytest.raises(ValueError, match="has one class only, 'red'; training needs two at least"):
        open_data(class_folders)
    for file in (class_folders / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match="val: no pictures in its 3 class folders"):
        open_split(class_folders / "val", classes=["red"])


def test_tar_files_are_read_by_timm_with_the_same_classes(class_folders: Path, tmp_path: Path) -> None:
    shutil.rmtree(class_folders / "val" / "blue")
    (class_folders / "val" / "red" / "0.png").write_bytes(b"no picture")
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            archive.add(class_folders / split, arcname=".")
    data = open_data(tmp_path / "train.tar", val=tmp_path / "val.tar")
    assert data.val.classes == ["blue", "green", "red"]
    assert len(data.train) == 24
    loader = eval_loader(_with_tensors(data.val), 4, 0, 1, 0, 0, False)
    batches = list(loader)
    assert [int(t) for batch in batches for t in batch.targets] == [1, 1, 1, 2, 2]
    (skipped,) = [reason for batch in batches for reason in batch.skipped]
    assert "red/0.png: not a picture" in skipped


def test_torchvisions_data_sets_are_read_by_their_names(class_folders: Path) -> None:
    data = open_data("torch/image_folder", data_dir=class_folders)
    assert (len(data.train), len(data.val), data.name) == (24, 9, "torch/image_folder")
    assert data.train.classes == data.val.classes == ["blue", "green", "red"]
    image, target = data.val[3]
    assert (image.mode, target) == ("RGB", 1)


def test_hugging_faces_data_sets_are_read(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    data = open_data(f"hfds/{class_folders}", data_dir=tmp_path / "cache")
    assert (len(data.train), len(data.val)) == (24, 9)
    assert data.train.classes == data.val.classes == ["blue", "green", "red"]
    image, target = data.val[3]
    assert (image.mode, target) == ("RGB", 1)


@pytest.fixture
def shards(class_folders: Path, tmp_path: Path) -> Path:
    """The pictures as WebDataset: two shards to train with, one to validate, and the info file that timm reads."""
    webdataset = pytest.importorskip("webdataset")
    splits: dict[str, dict[str, object]] = {}
    for split, count in (("train", 2), ("validation", 1)):
        pictures = sorted((class_folders / split.removesuffix("idation")).rglob("*.png"))
        names = [f"{split}-{shard}.tar" for shard in range(count)]
        for shard, name in enumerate(names):
            with webdataset.TarWriter(os.fspath(tmp_path / name)) as writer:
                for number, picture in list(enumerate(pictures))[shard::count]:
                    target = ["blue", "green", "red"].index(picture.parent.name)
                    writer.write({"__key__": f"{number:04d}", "png": picture.read_bytes(), "cls": target})
        lengths = [len(pictures) // count] * count
        splits[split] = {"name": split, "filenames": names, "shard_lengths": lengths, "num_samples": len(pictures)}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")
    return tmp_path


def test_shards_of_webdataset_are_read_in_any_order(shards: Path, class_folders: Path) -> None:
    data = open_data("wds/colours", data_dir=shards)
    assert (len(data.train), len(data.val), data.train.classes) == (24, 9, ["0", "1", "2"])
    files = sorted((class_folders / "val").rglob("*.png"))
    for index in (8, 0, 3):
        image, target = data.val[index]
        assert image == open_image(files[index]).image
        assert target == ["blue", "green", "red"].index(files[index].parent.name)
    batches = train_loader(_with_tensors(data.train), TrainBatches(24, 4, 1, 0, 1, 0), 1, pin_memory=False)
    assert sorted(int(t) for batch in batches for t in batch.targets) == sorted(8 * [0, 1, 2])


def test_shards_that_are_damaged_are_refused_and_pictures_skipped(shards: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for sample, reason in (
        ({"png": b"no picture"}, r"train-1\.tar: 7 has no class \(\.cls\)"),
        ({"cls": 0, "txt": "a cat"}, r"train-1\.tar: 7 has no picture \(jpg, png, webp, jpeg\)"),
    ):
        with webdataset.TarWriter(os.fspath(shards / "train-1.tar")) as writer:
            writer.write({"__key__": "7", **sample})
        with pytest.raises(ValueError, match=reason):
            open_data("wds/colours", data_dir=shards)
    with webdataset.TarWriter(os.fspath(shards / "train-1.tar")) as writer:
        writer.write({"__key__": "7", "png": b"no picture", "cls": 1})
    train = open_data("wds/colours", data_dir=shards).train
    with pytest.raises(ImageError, match=r"train-1\.tar/7\.png: not a picture"):
        train[len(train) - 1]
    (shards / "train-1.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"train-1\.tar is no tar file, or a damaged one"):
        open_data("wds/colours", data_dir=shards)


def test_a_reader_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"hfds/food101 needs datasets: pip install datasets"):
        open_data("hfds/food101")


def test_only_the_largest_level_travels_and_it_is_the_one_of_the_levels_transform(model: SRNN) -> None:
    image = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    from torchvision.transforms.v2.functional import to_pil_image

    tensor = image_transform(model)(to_pil_image(image))
    assert isinstance(tensor, Tensor)
    assert tensor.shape == (3, *model.level_sizes()[-1])
    torch.testing.assert_close(tensor, srnn_zoo.create_transform(model)(to_pil_image(image))[-1])


class Noisy(Dataset[tuple[Tensor, int]]):
    """Items of random numbers from all three generators."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()]), index


def _items(workers: int, epoch: int, update: int = 0) -> Tensor:
    batches = TrainBatches(10, batch_size=4, grad_accum_steps=2, seed=3, num_processes=1, process=0)
    batches.go_to(epoch, update)
    return torch.cat([batch.images for batch in train_loader(Noisy(), batches, workers, pin_memory=False)])


def test_random_numbers_follow_from_the_place_in_the_run_and_not_from_the_worker() -> None:
    first = _items(workers=0, epoch=1)
    random.random()
    assert torch.equal(first, _items(workers=0, epoch=1))
    assert torch.equal(first, _items(workers=2, epoch=1))
    assert torch.equal(first[4:], _items(workers=1, epoch=1, update=1))
    other = _items(workers=0, epoch=2)
    assert not torch.equal(first[:, 0], other[:, 0])
    assert not set(first[:, 1].tolist()) & set(other[:, 1].tolist())


def test_loading_leaves_the_main_process_its_random_numbers() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches = TrainBatches(10, 4, 1, 0, 1, 0)
    iterator = iter(train_loader(Noisy(), batches, 0, pin_memory=False))
    torch.set_rng_state(states[2])  # which starting a loader takes one number from
    next(iterator)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_workers_end_by_a_signal_of_the_main_process_alone() -> None:
    iterator = iter(train_loader(Noisy(), TrainBatches(10, 1, 1, 0, 1, 0), 1, pin_memory=False))
    next(iterator)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for name in ("INT", "TERM"):  # as from a terminal or a scheduler
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    assert sum(len(batch.images) for batch in iterator) == 9
    iterator = iter(train_loader(Noisy(), TrainBatches(10, 1, 1, 0, 1, 0), 1, pin_memory=False))
    (worker,) = {*multiprocessing.active_children()} - {worker}
    next(iterator)
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


@pytest.mark.parametrize(("processes", "steps"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
def test_processes_and_steps_share_an_update_of_the_same_images(processes: int, steps: int) -> None:
    updates = list(TrainBatches(40, 12, 1, seed=5, num_processes=1, process=0))
    shares = [list(TrainBatches(40, 12, steps, 5, processes, process)) for process in range(processes)]
    for number, whole in enumerate(updates):
        pieces = [
            key
            for share in shares
            for key in functools.reduce(operator.iadd, share[number * steps : (number + 1) * steps], [])
        ]
        assert sorted(pieces) == sorted(whole)
    assert len({key for update in updates for key in update}) == 36


def test_updates_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be no more than the 5 training images; got 6"):
        TrainBatches(5, 6, 1, 0, 1, 0)
    with pytest.raises(ValueError, match=r"a multiple of processes x grad_accum_steps, 2 x 2; got 6"):
        TrainBatches(50, 6, 2, 0, 2, 0)


def test_every_image_is_validated_once_whatever_the_number_of_processes() -> None:
    for processes in (1, 2, 3, 7):
        loaders = [eval_loader(Noisy(), 4, 0, processes, process, 0, False) for process in range(processes)]
        seen = [int(target) for loader in loaders for batch in loader for target in batch.targets]
        assert sorted(seen) == list(range(10))


def test_a_damaged_picture_is_replaced_in_training_and_left_out_in_validation(class_folders: Path) -> None:
    data = open_data(class_folders)
    assert data.train.samples is not None
    assert data.val.samples is not None
    victim = data.train.samples[5][0]
    victim.write_bytes(victim.read_bytes()[:300])
    train = list(train_loader(_with_tensors(data.train), TrainBatches(24, 4, 1, 0, 1, 0), 0, pin_memory=False))
    assert sum(len(batch.images) for batch in train) == 24
    (reason,) = [reason for batch in train for reason in batch.skipped]
    assert reason.startswith(f"{victim}: truncated or damaged")
    for path, _ in data.val.samples[:4]:
        path.write_bytes(b"")
    first, *others = eval_loader(_with_tensors(data.val), 4, 0, 1, 0, 0, False)
    assert first.images is None
    assert len(first.skipped) == 4
    assert sum(len(batch.images) for batch in others) == 5


def test_images_that_are_no_tensors_are_refused_with_what_is_missing(class_folders: Path) -> None:
    with pytest.raises(TypeError, match=r"gives \(tensor, class\); image \d+ is Image: give it a transform"):
        next(iter(eval_loader(open_data(class_folders).val, 4, 0, 1, 0, 0, False)))


def _with_tensors(dataset: Dataset[tuple[Tensor, int]]) -> Dataset[tuple[Tensor, int]]:
    from torchvision.transforms.v2.functional import pil_to_tensor

    dataset.transform = lambda image: pil_to_tensor(image).float()  # pyright: ignore[reportAttributeAccessIssue]
    return dataset
