"""Checkpoints of the base CNN become SRNNs, and SRNNs that read one level become base CNNs again."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from srnn_zoo import create_model, to_base_cnn
from tests.models.harness import ANYTIME

IMAGES = torch.linspace(-2, 2, 3 * 96 * 96).reshape(1, 3, 96, 96).roll(1111)


def with_statistics(model):
    """Batch norms that do something, so that a mixed-up one shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(
    ("theirs", "architecture"),
    [
        ("resnet18", "resnet18"),
        ("regnet_y_400mf", "regnety_004"),
        *(pytest.param(name, name, marks=pytest.mark.slow) for name in ("resnext50_32x4d", "vgg11_bn", "densenet121")),
    ],
)
def test_a_torchvision_checkpoint_becomes_a_zero_shot_srnn(theirs, architecture, tmp_path):
    base_cnn = with_statistics(torchvision.models.get_model(theirs, num_classes=5))
    torch.save(base_cnn.state_dict(), tmp_path / "base.pth")
    options = {"num_classes": 5, "pretrained": True, "pretrained_backbone": tmp_path / "base.pth"}
    model = create_model(f"srnn_{architecture}", variant="vanilla", **options).eval()
    assert model.zero_shot
    assert torch.allclose(model([IMAGES]), base_cnn(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_and_back_to_a_checkpoint_that_torchvision_opens(name, tmp_path):
    theirs = with_statistics(torchvision.models.get_model(name, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "base.pth")
    model = create_model(f"srnn_{name}", num_classes=5, pretrained=True, pretrained_backbone=tmp_path / "base.pth")
    torch.save(to_base_cnn(model).state_dict(), tmp_path / "back.pth")
    again = torchvision.models.get_model(name, num_classes=5).eval()
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    again.load_state_dict({key.replace("head.fc", "classifier"): value for key, value in state.items()})
    expected = model.eval()([IMAGES])
    assert torch.allclose(again(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "variant"),
    [
        *(("test_resnet", variant) for variant in ANYTIME),
        *((name, "half_gru") for name in ("test_efficientnet", "test_vit", "mobilenetv3_small_050")),
    ],
)
def test_a_zero_shot_model_of_every_variant_has_a_base_cnn(architecture, variant):
    model = create_model(f"srnn_{architecture}", variant=variant, num_classes=5)
    base_cnn = to_base_cnn(model)
    assert isinstance(base_cnn, type(timm.create_model(architecture)))
    assert model.training
    size = model.level_sizes()[0]
    images = torch.randn(2, 3, *size)
    ours, theirs = model.eval()([images]), base_cnn.eval()(images)
    assert torch.allclose(ours.softmax(1), theirs.softmax(1), atol=1e-5)


def srnn(name="srnn_test_resnet", moved="", **options):
    """A model of five classes, with one of its cell's weights as after training."""
    model = create_model(name, **{"num_classes": 5, **options})
    if moved:
        nn.init.normal_(model.cell.get_parameter(moved), std=0.1)
    return model


def test_a_trained_vanilla_model_still_has_one():
    model = srnn(variant="vanilla", moved="recurrent.weight")
    assert torch.allclose(to_base_cnn(model)(IMAGES), model.eval()([IMAGES]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moved": "gate_input.weight"}, r"half_gru model does on one level: .* the gates have been trained"),
        ({"name": "srnn_test_vit", "activation": "relu"}, r"activation \(relu\) changes the features"),
        ({"num_classes": 0}, "no classifier"),
        ({"name": "srnn_deit_tiny_distilled_patch16_224"}, "does not classify with one linear layer"),
        ({"variant": "concat"}, "variant 'concat' fuses a fixed number of levels"),
    ],
)
def test_what_no_base_cnn_does_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_base_cnn(srnn(**options))
