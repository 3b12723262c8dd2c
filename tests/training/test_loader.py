"""Training's loaders: every random number follows from the place in the run, and damaged images are named."""

import multiprocessing
import random
import subprocess

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from srnn_zoo.training import open_data
from srnn_zoo.training.loader import TrainBatches, eval_loader, train_loader


class Noisy(Dataset[tuple[Tensor, int]]):
    """Items of random numbers from all three generators."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()]), index


def _items(workers, epoch, update=0):
    batches = TrainBatches(10, batch_size=4, grad_accum_steps=2, seed=3, num_processes=1, process=0)
    batches.go_to(epoch, update)
    return torch.cat([batch.images for batch in train_loader(Noisy(), batches, workers, pin_memory=False)])


def test_random_numbers_follow_from_the_place_in_the_run_and_not_from_the_worker():
    first = _items(workers=0, epoch=1)
    random.random()
    assert torch.equal(first, _items(workers=0, epoch=1))
    assert torch.equal(first, _items(workers=2, epoch=1))
    assert torch.equal(first[4:], _items(workers=1, epoch=1, update=1))
    other = _items(workers=0, epoch=2)
    assert not torch.equal(first[:, 0], other[:, 0])
    assert not set(first[:, 1].tolist()) & set(other[:, 1].tolist())


def test_loading_leaves_the_main_process_its_random_numbers():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    iterator = iter(train_loader(Noisy(), TrainBatches(10, 4, 1, 0, 1, 0), 0, pin_memory=False))
    torch.set_rng_state(states[2])  # which starting a loader takes one number from
    next(iterator)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_workers_end_by_a_signal_of_the_main_process_alone():
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
def test_processes_and_steps_share_an_update_of_the_same_images_or_it_is_refused(processes, steps):
    updates = list(TrainBatches(40, 12, 1, seed=5, num_processes=1, process=0))
    shares = [list(TrainBatches(40, 12, steps, 5, processes, process)) for process in range(processes)]
    for number, whole in enumerate(updates):
        pieces = [key for share in shares for piece in share[number * steps : (number + 1) * steps] for key in piece]
        assert sorted(pieces) == sorted(whole)
    assert len({key for update in updates for key in update}) == 36
    with pytest.raises(ValueError, match=r"a multiple of processes x grad_accum_steps, 2 x 2; got 6"):
        TrainBatches(50, 6, 2, 0, 2, 0)


def test_every_image_is_validated_once_whatever_the_number_of_processes():
    for processes in (1, 2, 3, 7):
        loaders = [eval_loader(Noisy(), 4, 0, processes, process, 0, False) for process in range(processes)]
        seen = [int(target) for loader in loaders for batch in loader for target in batch.targets]
        assert sorted(seen) == list(range(10))


def test_images_need_a_transform_and_damaged_ones_are_replaced_in_training_and_left_out_in_validation(class_folders):
    data = open_data(class_folders)
    with pytest.raises(TypeError, match=r"gives \(tensor, target\); image \d+ is Image: give it a transform"):
        next(iter(eval_loader(data.val, 4, 0, 1, 0, 0, False)))
    data.train.transform = data.val.transform = pil_to_tensor
    victim = data.train.samples[5][0]
    victim.write_bytes(victim.read_bytes()[:300])
    train = list(train_loader(data.train, TrainBatches(24, 4, 1, 0, 1, 0), 0, pin_memory=False))
    assert sum(len(batch.images) for batch in train) == 24
    (reason,) = [reason for batch in train for reason in batch.skipped]
    assert reason.startswith(f"{victim}: truncated or damaged")
    for path, _ in data.val.samples[:4]:
        path.write_bytes(b"")
    first, *others = eval_loader(data.val, 4, 0, 1, 0, 0, False)
    assert (first.images, len(first.skipped)) == (None, 4)
    assert sum(len(batch.images) for batch in others) == 5
