"""A loss at every level is its formula, teaches the early levels, and random heights keep images whole."""

import pytest
import torch
from torch.nn import functional as F

from srnn_zoo import PackedPyramid, Pyramid
from srnn_zoo.training import AnytimeLoss, EveryExit, random_heights
from tests.models.harness import ANYTIME

from .trainings import tiny

TARGETS = torch.arange(6) % 5


@pytest.fixture
def logits():
    return torch.randn(3, 6, 5, dtype=torch.float64)


def test_it_is_the_weighted_sum_of_cross_entropies_and_divergences(logits):
    weights, d, t = (1.0, 2.0, 5.0), 0.3, 2.0
    expected = 0.0
    teacher = (logits[2] / t).softmax(1)
    for level, weight in enumerate(weights):
        for image in range(6):
            p, q = logits[level, image].softmax(0), (logits[level, image] / t).softmax(0)
            own = -p[TARGETS[image]].log()
            taught = t * t * sum(teacher[image, k] * (teacher[image, k] / q[k]).log() for k in range(5))
            expected += weight / 8 / 6 * (own if level == 2 else (1 - d) * own + d * taught)
    found = AnytimeLoss(weights, distillation=d, temperature=t)(logits, TARGETS)
    assert found.item() == pytest.approx(float(expected), abs=1e-12)


def test_equal_weights_are_the_mean_all_on_the_last_level_the_plain_loss_and_a_cut_pyramid_has_the_first(logits):
    expected = torch.stack([F.cross_entropy(answer, TARGETS) for answer in logits]).mean()
    assert torch.allclose(AnytimeLoss()(logits, TARGETS), expected)
    assert torch.allclose(AnytimeLoss()(list(logits), F.one_hot(TARGETS, 5).double()), expected)
    assert torch.equal(AnytimeLoss((0, 0, 3))(logits, TARGETS), F.cross_entropy(logits[2], TARGETS))  # bit for bit
    assert torch.allclose(AnytimeLoss((1, 3, 9))(logits[:2], TARGETS), AnytimeLoss((1, 3))(logits[:2], TARGETS))


def test_the_last_level_learns_nothing_from_distillation(logits):
    logits.requires_grad_()
    (taught,) = torch.autograd.grad(AnytimeLoss((1, 1, 1), distillation=1.0)(logits, TARGETS), logits)
    (alone,) = torch.autograd.grad(AnytimeLoss((0, 0, 1))(logits, TARGETS) / 3, logits)
    assert torch.allclose(taught[2], alone[2])
    assert (taught[:2].abs().sum(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("variant", ANYTIME)
def test_every_exit_answers_as_the_steps_and_trains_the_whole_model(variant):
    model = tiny(3, 64, variant=variant, exits="separate")
    images = torch.randn(6, 3, 64, 64)
    every = EveryExit(model.eval())(images)
    assert torch.equal(every, torch.stack([step.logits for step in model.steps(images)]))
    assert torch.equal(every[-1], model(images))
    cut = random_heights(model.levels(images), generator=torch.Generator().manual_seed(1))
    assert len(set(cut.heights)) > 1
    for batch in (images, cut):
        model.train().zero_grad()
        AnytimeLoss()(EveryExit(model)(batch), torch.arange(6) % 3).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_cell_that_answers_once_has_that_answer_alone():
    model, images = tiny(3, 64, variant="concat").eval(), torch.randn(6, 3, 64, 64)
    assert torch.equal(EveryExit(model)(images), model(images)[None])


def test_random_heights_cut_every_image_and_keep_its_first_levels():
    levels = [torch.randn(400, 1, size, size) for size in (1, 2, 4)]
    generator = torch.Generator().manual_seed(0)
    cut = random_heights(levels, generator=generator)
    assert isinstance(cut, PackedPyramid)
    assert all(90 < cut.heights.count(height) < 180 for height in (1, 2, 3))
    for index, image in enumerate(cut.unpack()):
        assert all(torch.equal(level, levels[s][index]) for s, level in enumerate(image))
    again = random_heights(cut, min_height=2)
    assert all(b == a if a < 3 else b in (2, 3) for a, b in zip(cut.heights, again.heights, strict=True))
    whole = random_heights(Pyramid(levels), min_height=3)
    assert whole.heights == [3] * 400
    assert isinstance(whole, Pyramid)


def test_what_cannot_be_honoured_is_refused():
    for call, message in (
        (lambda: AnytimeLoss(()), "weights must be 0 or more"),
        (lambda: AnytimeLoss((1, -1)), "weights must be 0 or more"),
        (lambda: AnytimeLoss((0, 0)), "not all 0"),
        (lambda: AnytimeLoss((float("nan"),)), "weights must be"),
        (lambda: AnytimeLoss(distillation=1.5), "between 0 and 1; got 1.5"),
        (lambda: AnytimeLoss(temperature=0), "temperature must be positive; got 0"),
        (lambda: AnytimeLoss((1, 3))(torch.zeros(3, 6, 5), TARGETS), "3 levels need as many weights; got 2"),
        (lambda: AnytimeLoss((0, 0, 1))(torch.zeros(2, 6, 5), TARGETS), "first 2 of 3 levels are all 0"),
        (lambda: AnytimeLoss()(torch.zeros(4, 10), TARGETS), r"logits must be \(L, B, K\), .* got \(4, 10\)"),
        (lambda: EveryExit(tiny(0)), "no classifier"),
        (lambda: random_heights([torch.zeros(1, 3, 4, 4)], min_height=0), "min_height must be 1 or more; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
