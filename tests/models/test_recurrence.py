"""Steps: a level is built and read when it is asked for, and a state can be continued later."""

import pytest
import torch

from srnn_zoo import Pyramid
from srnn_zoo.transforms import levels as levels_module
from tests.models.harness import trained


@pytest.fixture
def model():
    return trained(scales=(0.25, 0.5, 1.0), img_size=128)


@pytest.fixture
def images():
    return torch.randn(3, 3, 128, 128)


def test_a_level_is_built_and_read_only_when_it_is_asked_for(model, images, monkeypatch):
    built, read, resize = [], [], levels_module.resize
    monkeypatch.setattr(levels_module, "resize", lambda x, size, *how: built.append(size[0]) or resize(x, size, *how))
    model.backbone.register_forward_hook(lambda module, args, output: read.append(args[0].shape[-1]))
    steps = model.steps(images)
    assert built == read == []
    for count, _ in enumerate(steps, start=1):
        assert built == [32, 64][:count]  # the last level is the image itself
        assert read == [32, 64, 128][:count]


@torch.no_grad()
def test_logits_follow_from_features(model):
    model = model.double()
    features = torch.rand(3, 4, model.num_features, dtype=torch.float64)
    every = list(model.exit_logits(features))
    assert torch.equal(every[-1], model.forward_head(model.fuse(list(features))))
    assert torch.allclose(every[0], model.state_logits(model.cell(features[0], torch.zeros_like(features[0]))))
    assert torch.equal(model.level_logits(features[0], 0), model.fc(features[0]))
    (only,) = trained(variant="concat", scales=(0.25, 0.5, 1.0)).double().exit_logits(features)
    assert only.shape == (4, 5)


def test_a_state_of_other_images_is_refused(model, images):
    *_, last = model.steps(images[:2])
    packed = Pyramid.pack([[images[0, :, :32, :32]], [images[1, :, :32, :32], images[1]]])
    for given, message in (
        (images, "the state is of 2 images; got a level of 3"),
        (images[:1], "the state is of 2 images; got a level of 1"),
        (packed, "a packed pyramid starts anew"),
    ):
        with pytest.raises(ValueError, match=message):
            list(model.steps(given, state=last.state))
