"""Collected answers are those of the steps, of the base CNN alone and of its ensembles; wrong input is refused."""

import functools

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from srnn_zoo import create_model
from srnn_zoo.inference.answers import CollectedAnswers, collect, ensembles

from .synthetic_answers import synthetic_answers


@functools.cache
def model(**options):
    """A model for all tests here; none changes it."""
    torch.manual_seed(0)
    options = {"scales": (0.25, 0.5, 1.0), "num_classes": 10, **options}
    net = create_model("srnn_test_resnet", **options).eval()
    torch.nn.init.normal_(net.fc.weight, std=1.0)  # pyright: ignore -- answers that differ
    return net


def coloured(count):
    """Images that differ in colour, so that even an untrained model tells them apart."""
    return torch.randn(count, 3, 64, 64) + 3 * torch.randn(count, 3, 1, 1)


def test_answers_are_those_of_the_steps_and_the_loader_of_images_or_levels_is_the_same():
    net = model()
    images, targets = torch.randn(5, 3, 64, 64), torch.arange(5)
    found = collect(net, DataLoader(TensorDataset(images, targets), batch_size=2), progress=False)
    with torch.no_grad():
        steps = list(net.steps(images))
        assert torch.allclose(found.logits, torch.stack([step.logits for step in steps]), atol=1e-5)
        levels = net.levels(images)
        again = collect(net, [(levels, targets)], progress=False)
    assert torch.allclose(again.logits, found.logits, atol=1e-5)
    assert torch.equal(found.targets, targets)
    assert found.sizes == again.sizes == ((16, 16), (32, 32), (64, 64))
    assert torch.equal(found.gmacs, again.gmacs)
    assert found.gmacs.tolist() == pytest.approx([step.gmacs for step in steps])


@pytest.mark.parametrize("variant", ["vanilla", "half_gru", "lstm", "mean_prob"])
def test_the_base_cnn_alone_and_its_ensembles_are_kept_and_no_level_is_read_twice(variant):
    net = model(variant=variant)
    images, targets = coloured(40), torch.zeros(40, dtype=torch.long)
    read = []
    hook = net.backbone.register_forward_hook(lambda *call: read.append(len(call[-1])))
    found = collect(net, DataLoader(TensorDataset(images, targets), batch_size=20), progress=False)
    hook.remove()
    assert read.count(20) == 6  # and one image without values, whose cost is counted
    assert not net.backbone._forward_hooks
    with torch.no_grad():
        alone = torch.stack([net.fc(net.level_features(level)) for level in net.levels(images)])
    assert found.single_scales is not None
    assert torch.equal(found.single_scales, alone.argmax(2))
    assert len(found.single_scales.unique()) > 1
    assert torch.equal(torch.as_tensor(found.logit_ensemble), alone.mean(0).argmax(1))
    assert torch.equal(torch.as_tensor(found.prob_ensemble), alone.softmax(2).mean(0).argmax(1))


def test_two_levels_of_an_untrained_half_gru_answer_as_the_logit_ensemble_does():
    found = collect(model(scales=(0.5, 1.0)), [(coloured(50), torch.zeros(50, dtype=torch.long))], progress=False)
    assert torch.equal(found.logits[1].argmax(1), torch.as_tensor(found.logit_ensemble))


def test_ensembles_are_the_mean_of_logits_and_the_logarithm_of_the_mean_probability():
    logits = torch.randn(3, 5, 7) * 40  # some probabilities are zero in float32
    mean, log_mean = ensembles(logits)
    assert torch.equal(mean, logits.mean(0))
    assert log_mean.isfinite().all()
    torch.testing.assert_close(log_mean.double(), logits.double().softmax(2).mean(0).log(), rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_is_never_right():
    answers = synthetic_answers(images=20)
    answers.logits[1, 4] = float("nan")
    answers.logits[2, 7, answers.targets[7]] = float("inf")
    assert not answers.right[1, 4]
    assert not answers.right[2, 7]
    net = model()
    images = torch.randn(3, 3, 64, 64)
    images[1] = float("nan")
    found = collect(net, [(images, torch.zeros(3, dtype=torch.long))], progress=False)
    assert found.single_scales is not None
    assert (found.single_scales[:, 1] == -1).all()
    assert torch.as_tensor(found.logit_ensemble)[1] == torch.as_tensor(found.prob_ensemble)[1] == -1
    assert (found.single_scales[:, 0] >= 0).all()


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (torch.tensor([0, 10]), "class indices must be 0 to 9, the model's; got 10"),
        (torch.tensor([-1, 3]), "class indices must be 0 to 9, the model's; got -1"),
        (torch.tensor([0.0, 1.0]), "classes must be whole numbers, one for each of 2 images; got torch.float32"),
        (torch.zeros(2, 10, dtype=torch.long), r"one for each of 2 images; got torch.int64 of shape \(2, 10\)"),
        (torch.tensor([1]), r"one for each of 2 images; got torch.int64 of shape \(1,\)"),
    ],
)
def test_classes_that_are_no_indices_of_the_model_are_refused_at_the_first_batch(classes, reason):
    def batches():
        yield torch.randn(2, 3, 64, 64), classes
        raise AssertionError("read on")

    with pytest.raises(ValueError, match=reason):
        collect(model(), batches(), progress=False)


def test_what_cannot_be_collected_is_refused():
    with pytest.raises(ValueError, match="the loader gave no image"):
        collect(model(), [], progress=False)
    with pytest.raises(ValueError, match="cannot stop early"):
        collect(model(variant="concat"), [], progress=False)
    with pytest.raises(ValueError, match="training mode"):
        collect(create_model("srnn_test_resnet").train(), [], progress=False)
    with pytest.raises(ValueError, match="no classifier"):
        collect(create_model("srnn_test_resnet", num_classes=0).eval(), [], progress=False)
    batches = [(torch.randn(1, 3, size, size), torch.zeros(1, dtype=torch.long)) for size in (64, 96)]
    with pytest.raises(ValueError, match="levels of the same sizes"):
        collect(model(), batches, progress=False)


def test_answers_that_do_not_belong_together_are_refused():
    logits, targets, gmacs = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 3.0])
    for wrong, reason in [
        ((logits[0], targets, gmacs), r"logits must be \(L, N, K\) and gmacs \(L,\)"),
        ((logits, targets, gmacs[:1]), r"logits must be \(L, N, K\) and gmacs \(L,\)"),
        ((logits[:, :0], targets[:0], gmacs), "at least one image"),
        ((logits, targets, gmacs.flip(0)), "grow from level to level"),
        ((logits, targets + 1, gmacs), "class indices must be 0 to 2"),
        ((logits, targets[:3], gmacs), "one for each of 4 images"),
    ]:
        with pytest.raises(ValueError, match=reason):
            CollectedAnswers(*wrong)
