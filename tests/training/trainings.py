"""Trainings that several test files run: a tiny model, a few images, and a run with everything that is random."""

import socket

import torch
from torch.utils.data import TensorDataset

import srnn_zoo
from srnn_zoo.training import Recipe, fit, open_data, recipe

TINY = Recipe(optimizer="adamw", lr=3e-3, epochs=3, batch_size=4, weight_decay=0.0, schedule="constant")


def tiny(num_classes=4, img_size=32, **options):
    torch.manual_seed(0)
    return srnn_zoo.create_model("srnn_test_resnet", num_classes=num_classes, img_size=img_size, **options)


def images(count=8, size=32):
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 4)


class Hooked(TensorDataset):
    """The images, with something that happens when the n-th is read."""

    def __init__(self, number, event):
        super().__init__(*images().tensors)
        self.number, self.event, self.read = number, event, 0

    def __getitem__(self, index):
        self.read += 1
        changed = self.event() if self.read == self.number else None
        image, target = super().__getitem__(index)
        return (image if changed is None else image * changed), target


def tiny_without_batch_norm():
    torch.manual_seed(0)
    return srnn_zoo.create_model("srnn_test_convnext", num_classes=4, img_size=64)


def one_step(output, workers):
    """The model after a step by the gradient itself, and the row of its log."""
    chosen = Recipe(momentum=0.0, lr=1.0, weight_decay=0.0, schedule="constant", epochs=1, batch_size=8)
    model, train, val = tiny_without_batch_norm(), images(size=64), images(11, size=64)
    return model, fit(model, train, val, chosen, output, workers=workers, cpu=True).best


def augmented(data, output, **options):
    """A run with augmentation, workers, an average and a decay to the identity."""
    splits, model = open_data(data), tiny(num_classes=3)
    chosen = recipe("finetune", epochs=2, batch_size=4, grad_accum_steps=2, mixup=0.1, auto_augment="rand-m5-mstd0.5")
    fit(model, splits.train, splits.val, chosen, output, workers=2, cpu=True, **options)
    return model


def events(run):
    """Epochs and validation losses in TensorBoard's file; a run has only one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (run / "tensorboard").iterdir()
    return [(event.step, event.value) for event in EventAccumulator(str(file)).Reload().Scalars("val/loss")]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
