"""A small model that can stop early, and made-up answers of one."""

import pytest
import torch

from srnn_zoo.inference.answers import CollectedAnswers
from tests.models import harness

GMACS = (1.0, 3.0, 7.0, 15.0)


def small_model(**options):
    """A model of three levels whose answers change from level to level."""
    return harness.trained(**{"scales": (0.25, 0.5, 1.0), "num_classes": 10, "img_size": 64, **options})


def synthetic_answers(levels=3, images=2000, seed=0):
    """Ten classes; images differ in how hard they are, and what makes one hard is partly the same at every level.

    Every level is more often right than the one before, and surer where it is right.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (images,), generator=generator)
    noise = torch.randn(levels, images, 10, generator=generator) + torch.randn(images, 10, generator=generator)
    ease = torch.exp(0.6 * torch.randn(images, 1, generator=generator))
    signal = torch.nn.functional.one_hot(targets, 10) * torch.linspace(1.5, 3.5, levels).view(levels, 1, 1) * ease
    return CollectedAnswers(2 * (noise + signal), targets, torch.tensor(GMACS[:levels], dtype=torch.float64))


@pytest.fixture
def net():
    return small_model()


@pytest.fixture
def answers():
    return synthetic_answers()
