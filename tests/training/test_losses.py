"""A loss at every level is its formula, teaches the early levels, and random heights keep images whole."""

import pytest
import torch
from torch.nn import functional as F

from srnn_zoo import PackedPyramid, Pyramid, create_model, list_cells
from srnn_zoo.training import AnytimeLoss, EveryExit, random_heights

ANYTIME = [cell for cell in list_cells() if cell != "concat"]


@pytest.fixture
def logits():
    return torch.randn(3, 6, 5, dtype=torch.float64)


@pytest.fixture
def targets():
    return torch.arange(6) % 5


def test_it_is_the_weighted_sum_of_cross_entropies_and_divergences(logits, targets):
    weights, d, t = (1.0, 2.0, 5.0), 0.3, 2.0
    expected = 0.0
    teacher = (logits[2] / t).softmax(1)
    for level, weight in enumerate(weights):
        for image in range(6):
            p, q = logits[level, image].softmax(0), (logits[level, image] / t).softmax(0)
            own = -p[targets[image]].log()
            taught = t * t * sum(teacher[image, k] * (teacher[image, k] / q[k]).log() for k in range(5))
            expected += weight / 8 / 6 * (own if level == 2 else (1 - d) * own + d * taught)
    found = AnytimeLoss(weights, distillation=d, temperature=t)(logits, targets)
    assert found.item() == pytest.approx(float(expected), abs=1e-12)


def test_equal_weights_are_the_mean_cross_entropy_and_all_on_the_last_level_the_plain_one(logits, targets):
    expected = torch.stack([F.cross_entropy(answer, targets) for answer in logits]).mean()
    assert torch.allclose(AnytimeLoss()(logits, targets), expected)
    assert torch.allclose(AnytimeLoss()(list(logits), F.one_hot(targets, 5).double()), expected)
    assert torch.equal(AnytimeLoss((0, 0, 3))(logits, targets), F.cross_entropy(logits[2], targets))  # bit for bit


def test_the_last_level_learns_nothing_from_distillation(logits, targets):
    logits.requires_grad_()
    (taught,) = torch.autograd.grad(AnytimeLoss((1, 1, 1), distillation=1.0)(logits, targets), logits)
    (alone,) = torch.autograd.grad(AnytimeLoss((0, 0, 1))(logits, targets) / 3, logits)
    assert torch.allclose(taught[2], alone[2])
    assert (taught[:2].abs().sum(dim=(1, 2)) > 0).all()


def test_a_cut_pyramid_uses_the_first_weights(logits, targets):
    whole = AnytimeLoss((1.0, 3.0, 9.0))(logits[:2], targets)
    assert torch.allclose(whole, AnytimeLoss((1.0, 3.0))(logits[:2], targets))
    with pytest.raises(ValueError, match="3 levels need as many weights; got 2"):
        AnytimeLoss((1.0, 3.0))(logits, targets)
    with pytest.raises(ValueError, match="first 2 of 3 levels are all 0"):
        AnytimeLoss((0.0, 0.0, 1.0))(logits[:2], targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ()}, "weights must be 0 or more"),
        ({"weights": (1, -1)}, "weights must be 0 or more"),
        ({"weights": (0, 0)}, "not all 0"),
        ({"weights": (float("nan"),)}, "weights must be"),
        ({"distillation": 1.5}, "between 0 and 1; got 1.5"),
        ({"temperature": 0}, "temperature must be positive; got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AnytimeLoss(**options)


@pytest.mark.parametrize("variant", ANYTIME)
def test_every_exit_answers_as_the_steps_and_trains_the_whole_model(variant):
    model = create_model("srnn_test_resnet", variant=variant, num_classes=3, exits="separate")
    images = torch.randn(4, 3, 64, 64)
    every = EveryExit(model.eval())(images)
    assert torch.equal(every, torch.stack([step.logits for step in model.steps(images)]))
    assert torch.equal(every[-1], model(images))
    AnytimeLoss()(EveryExit(model.train())(images), torch.arange(4) % 3).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_has_no_answer_at_every_level_is_refused():
    with pytest.raises(ValueError, match="'concat' answers after the last level only"):
        EveryExit(create_model("srnn_test_resnet", variant="concat"))
    with pytest.raises(ValueError, match="no classifier"):
        EveryExit(create_model("srnn_test_resnet", num_classes=0))
    with pytest.raises(ValueError, match=r"logits must be \(L, B, K\), .* got \(4, 10\)"):
        AnytimeLoss()(torch.zeros(4, 10), torch.zeros(4, dtype=torch.long))


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
    with pytest.raises(ValueError, match="min_height must be 1 or more; got 0"):
        random_heights(levels, min_height=0)


def test_a_model_trains_on_random_heights_with_either_loss():
    model = create_model("srnn_test_resnet", num_classes=3)
    images, targets = torch.randn(6, 3, 64, 64), torch.arange(6) % 3
    cut = random_heights(model.levels(images), generator=torch.Generator().manual_seed(1))
    assert len(set(cut.heights)) > 1
    for loss in (F.cross_entropy(model(cut), targets), AnytimeLoss()(EveryExit(model)(cut), targets)):
        model.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
