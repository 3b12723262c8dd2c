"""Steps: a level is built and read when it is asked for, says what it has cost, and a state can be continued later."""

from typing import Any

import pytest
import torch

from srnn_zoo import Pyramid, count_gmacs
from srnn_zoo.models.recurrence import scan
from srnn_zoo.transforms import pyramid
from tests.models.harness import trained

OPTIONS: Any = {"scales": (0.25, 0.5, 1.0), "img_size": 128}


@pytest.fixture
def images():
    return torch.randn(3, 3, 128, 128)


def test_a_larger_copy_is_resized_only_when_it_is_needed(images, monkeypatch):
    built = []
    resize = pyramid.resize

    def watch(source, size, interpolation):
        built.append(size[0])
        return resize(source, size, interpolation)

    monkeypatch.setattr(pyramid, "resize", watch)
    for count, _ in enumerate(trained(**OPTIONS).steps(images), start=1):
        assert built == [32, 64][:count]  # the last level is the image itself


@torch.no_grad()
def test_a_step_says_what_it_has_cost(images):
    model = trained(**OPTIONS)
    costs = count_gmacs(model).levels
    found = [step.gmacs for step in model.steps(images)]
    assert found == pytest.approx([sum(costs[: level + 1]) for level in range(3)])


@torch.no_grad()
def test_a_state_goes_on_when_a_larger_image_arrives(images):
    model = trained(**OPTIONS)
    levels = model.levels(images)
    *_, thumbnail = model.steps(levels[:1])
    *_, last = model.steps(levels[1:], state=thumbnail.state)
    assert torch.equal(last.logits, model(images))


@torch.no_grad()
def test_later_levels_may_have_fewer_images_and_logits_follow_from_features():
    model = trained(**OPTIONS).double()
    features = torch.rand(3, 4, model.num_features, dtype=torch.float64)
    states = list(scan(model.cell, [level[: 4 - s] for s, level in enumerate(features)]))
    assert [len(state) for state in states] == [4, 3, 2]
    assert torch.allclose(states[-1], list(scan(model.cell, features[:, :2]))[-1], atol=1e-12)
    assert torch.equal(states[-1], next(scan(model.cell, [features[2, :2]], states[1])))
    every = list(model.exit_logits(features))
    assert torch.equal(every[-1], model.forward_head(model.fuse(list(features))))
    assert torch.allclose(every[0], model.state_logits(model.cell(features[0], torch.zeros_like(features[0]))))
    assert torch.equal(model.level_logits(features[0], 0), model.fc(features[0]))
    (only,) = trained(variant="concat", **OPTIONS).double().exit_logits(features)
    assert only.shape == (4, 5)


def test_a_state_of_other_images_is_refused(images):
    model = trained(**OPTIONS)
    *_, last = model.steps(images[:2])
    with pytest.raises(ValueError, match="the state is of 2 images; got a level of 3"):
        list(model.steps(images, state=last.state))
    with pytest.raises(ValueError, match="the state is of 2 images; got a level of 1"):
        list(model.steps(images[:1], state=last.state))
    packed = Pyramid.pack([[image] for image in images[:, :, :32, :32]] + [[images[0, :, :32, :32], images[0]]])
    with pytest.raises(ValueError, match="a packed pyramid starts anew"):
        list(model.steps(packed, state=last.state))
