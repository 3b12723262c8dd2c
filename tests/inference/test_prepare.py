"""A model made ready to answer: what becomes of its backbone, and when it is left alone."""

import pytest
import torch
from torch import nn

from srnn_zoo import SRNN, Anytime, for_inference
from srnn_zoo.inference import prepare
from tests.conftest import same_weights
from tests.inference.conftest import small_model
from tests.models.harness import trained


def norms(model):
    return sum(isinstance(module, prepare._BATCH_NORMS) for module in model.modules())


def close(found, expected):
    return (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "options", "folds"),
    [
        ("srnn_test_resnet", {}, True),
        ("srnn_test_resnet", {"norm": "frozen"}, True),
        ("srnn_test_resnet", {"norm": "per_level", "exits": "separate"}, False),
        ("srnn_test_efficientnet", {}, True),  # norm and activation in one
        ("srnn_tf_efficientnet_lite0", {}, True),  # convolutions that pad by themselves
    ],
)
@torch.no_grad()
def test_the_answers_stay_and_the_model_too(name, options, folds):
    model = trained(name, **options)
    before, images = {key: value.clone() for key, value in model.state_dict().items()}, torch.randn(2, 3, 128, 128)
    ready = for_inference(model)
    assert ready is not model
    assert bool(norms(ready)) == (not folds)
    weights = [m.weight for m in ready.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert close(ready(images), model(images))
    for step, other in zip(ready.steps(images), model.steps(images), strict=True):
        assert close(step.logits, other.logits)
        assert step.gmacs == pytest.approx(other.gmacs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert ready.cell is model.cell
    assert for_inference(ready) is ready


def test_stopping_early_is_the_same_from_a_model_made_ready():
    model, images = small_model(), torch.randn(8, 3, 64, 64)
    ours, plain = (Anytime(network, "confidence:0.5")(images) for network in (for_inference(model), model))
    assert torch.equal(ours.stopped_at, plain.stopped_at)
    assert close(ours.logits, plain.logits)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.half(),
        lambda model: model.to("meta"),
        lambda model: model.backbone.compile(),
        lambda model: model.backbone.conv1.register_forward_hook(lambda *_: None),
    ],
    ids=["training", "half", "another device", "compiled", "hooks"],
)
def test_a_model_that_would_lose_something_stays_as_it_is(change):
    model = small_model()
    change(model)
    assert for_inference(model) is model


@pytest.mark.parametrize("name", ["srnn_test_convnext", "srnn_test_vit"])
def test_a_backbone_without_batch_norm_gains_nothing(name):
    model = trained(name)
    assert for_inference(model) is model


@pytest.mark.parametrize("kind", ["twice", "norm of a sum", "output read twice"])
def test_a_norm_that_is_not_of_one_convolution_alone_stays(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.stem(x)
            y = self.conv(x)
            if kind == "twice":
                return self.norm(self.conv(self.norm(y)))
            return self.norm(y + x) if kind == "norm of a sum" else self.norm(y) + y

    net = Net().eval()
    nn.init.normal_(net.norm.running_mean)
    model = SRNN.wrap(net, num_classes=3, img_size=64).eval()
    ready, images = for_inference(model), torch.randn(2, 3, 64, 64)
    assert norms(ready) == 1
    assert same_weights(ready, model)
    assert close(ready(images), model(images))
