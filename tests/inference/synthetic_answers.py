"""Made-up answers of a model: every level is more often right than the one before, and surer where it is right."""

import torch

from srnn_zoo.inference.answers import CollectedAnswers

GMACS = (1.0, 3.0, 7.0, 15.0)


def synthetic_answers(levels=3, images=2000, seed=0, **given):
    """Ten classes; images differ in how hard they are, and what makes one hard is partly the same at every level."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (images,), generator=generator)
    noise = torch.randn(levels, images, 10, generator=generator) + torch.randn(images, 10, generator=generator)
    ease = torch.exp(0.6 * torch.randn(images, 1, generator=generator))
    signal = torch.nn.functional.one_hot(targets, 10) * torch.linspace(1.5, 3.5, levels).view(levels, 1, 1) * ease
    return CollectedAnswers(2 * (noise + signal), targets, torch.tensor(GMACS[:levels], dtype=torch.float64), **given)  # pyright: ignore
