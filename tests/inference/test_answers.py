"""Collected answers are those of the steps, of the base CNN alone and of its ensembles; wrong input is refused."""

import pytest
import torch

from srnn_zoo import Pyramid
from srnn_zoo.inference.answers import CollectedAnswers, collect, ensembles

from .conftest import small_model


@pytest.mark.parametrize("variant", ["vanilla", "half_gru", "lstm", "mean_prob"])
def test_answers_are_those_of_the_steps_the_base_cnn_and_its_ensembles_and_no_level_is_read_twice(variant):
    net = small_model(variant=variant)
    images = torch.randn(40, 3, 64, 64) + 3 * torch.randn(40, 3, 1, 1)  # an untrained model tells colours apart
    targets = torch.arange(40) % 10
    read = []
    hook = net.backbone.register_forward_hook(lambda *call: read.append(len(call[-1])))
    found = collect(net, zip(images.split(20), targets.split(20), strict=True), progress=False)
    hook.remove()
    assert read.count(20) == 6  # and one image without values, whose cost is counted
    assert not net.backbone._forward_hooks
    with torch.no_grad():
        levels, steps = net.levels(images), list(net.steps(images))
        alone = torch.stack([net.fc(net.level_features(level)) for level in levels])
    assert len(alone.argmax(2).unique()) > 1
    for answers in (found, collect(net, [(levels, targets)], progress=False)):
        assert torch.allclose(answers.logits, torch.stack([step.logits for step in steps]), atol=1e-4)
        assert torch.equal(answers.targets, targets)
        assert answers.sizes == ((16, 16), (32, 32), (64, 64))
        assert answers.gmacs.tolist() == pytest.approx([step.gmacs for step in steps])
        assert torch.equal(answers.single_scales, alone.argmax(2))
        assert torch.equal(answers.logit_ensemble, alone.mean(0).argmax(1))
        assert torch.equal(answers.prob_ensemble, alone.softmax(2).mean(0).argmax(1))


def test_ensembles_are_the_mean_of_logits_and_the_logarithm_of_the_mean_probability():
    logits = torch.randn(3, 5, 7) * 40  # some probabilities are zero in float32
    mean, log_mean = ensembles(logits)
    assert torch.equal(mean, logits.mean(0))
    assert log_mean.isfinite().all()
    torch.testing.assert_close(log_mean.double(), logits.double().softmax(2).mean(0).log(), rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_is_never_right(net, answers):
    answers.logits[2, 7, answers.targets[7]] = float("inf")
    assert not answers.right[2, 7]
    images = torch.randn(3, 3, 64, 64)
    images[1] = float("nan")
    found = collect(net, [(images, torch.zeros(3, dtype=torch.long))], progress=False)
    classes = torch.stack([*found.single_scales, found.logit_ensemble, found.prob_ensemble])
    assert (classes[:, 1] == -1).all()
    assert (classes[:, [0, 2]] >= 0).all()


def test_what_cannot_be_collected_and_answers_that_do_not_belong_together_are_refused(net):
    def batch(classes):
        yield torch.randn(2, 3, 64, 64), classes
        raise AssertionError("read on")

    two_sizes = [(torch.randn(1, 3, size, size), torch.tensor([0])) for size in (64, 96)]
    mixed = Pyramid.pack([[torch.rand(3, 32, 32)], [torch.rand(3, 32, 32), torch.rand(3, 64, 64)]])
    logits, targets, gmacs = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 3.0])
    for make, *given, reason in [
        (collect, net, batch(torch.tensor([0, 10])), "class indices must be 0 to 9, the model's; got 10"),
        (collect, net, batch(torch.tensor([-1, 3])), "class indices must be 0 to 9, the model's; got -1"),
        (collect, net, batch(torch.tensor([0.0, 1])), "must be whole numbers, one for each of 2 images; got torch.fl"),
        (collect, net, batch(torch.zeros(2, 10).long()), r"one for each of 2 images; got torch.int64 of .* \(2, 10\)"),
        (collect, net, batch(torch.tensor([1])), r"one for each of 2 images; got torch.int64 of shape \(1,\)"),
        (collect, net, two_sizes, "levels of the same sizes"),
        (collect, net, [(mixed, torch.tensor([0, 1]))], "same sizes; got a batch of mixed heights"),
        (collect, net, [], "the loader gave no image"),
        (collect, small_model().train(), [], "training mode"),
        (collect, small_model(variant="concat"), [], "cannot stop early"),
        (CollectedAnswers, logits[0], targets, gmacs, r"logits must be \(L, N, K\) and gmacs \(L,\)"),
        (CollectedAnswers, logits, targets, gmacs[:1], "and gmacs"),
        (CollectedAnswers, logits[:, :0], targets[:0], gmacs, "at least one image"),
        (CollectedAnswers, logits, targets, gmacs.flip(0), "grow from level to level"),
        (CollectedAnswers, logits, targets + 1, gmacs, "class indices must be 0 to 2"),
        (CollectedAnswers, logits, targets[:3], gmacs, "one for each of 4 images"),
    ]:
        with pytest.raises(ValueError, match=reason):
            make(*given)
