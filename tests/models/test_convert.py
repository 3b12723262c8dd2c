"""Checkpoints of the base CNN become SRNNs, and SRNNs that read one level become base CNNs again."""

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from srnn_zoo import create_model, from_base_cnn, to_base_cnn
from tests.models.harness import ANYTIME

IMAGES = torch.linspace(-2, 2, 3 * 96 * 96).reshape(1, 3, 96, 96).roll(1111)


@pytest.mark.parametrize(
    ("theirs", "architecture"),
    [
        ("resnet18", "resnet18"),
        ("regnet_y_400mf", "regnety_004"),
        *(pytest.param(name, name, marks=pytest.mark.slow) for name in ("densenet121", "resnext50_32x4d", "vgg11_bn")),
    ],
)
def test_a_torchvision_checkpoint_becomes_a_zero_shot_srnn_and_back(theirs, architecture, tmp_path):
    base_cnn = torchvision.models.get_model(theirs, num_classes=5).eval()
    for module in base_cnn.modules():  # batch norms that do something, so that a mixed-up one shows
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    torch.save(base_cnn.state_dict(), tmp_path / "base.pth")
    options = {"pretrained": True, "pretrained_backbone": tmp_path / "base.pth"}  # its classes come with it
    model = create_model(f"srnn_{architecture}", variant="vanilla", **options).eval()
    assert model.zero_shot
    assert torch.allclose(model([IMAGES]), base_cnn(IMAGES), rtol=1e-4, atol=1e-4)
    if theirs in ("resnet18", "densenet121"):
        model = create_model(f"srnn_{architecture}", **options).eval()
        back = {key.replace("head.fc", "classifier"): value for key, value in to_base_cnn(model).state_dict().items()}
        again = torchvision.models.get_model(theirs, num_classes=5).eval()
        again.load_state_dict(back)
        assert torch.allclose(again(IMAGES), model([IMAGES]), rtol=1e-4, atol=1e-5)


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
    images = torch.randn(2, 3, *model.level_sizes()[0])
    ours, theirs = model.eval()([images]), base_cnn.eval()(images)
    assert torch.allclose(ours.softmax(1), theirs.softmax(1), atol=1e-5)


def test_a_trained_vanilla_model_still_has_one_and_what_no_base_cnn_does_is_refused():
    vanilla, gated = (create_model("srnn_test_resnet", variant=v, num_classes=5) for v in ("vanilla", "half_gru"))
    nn.init.normal_(vanilla.cell.recurrent.weight, std=0.1)
    assert torch.allclose(to_base_cnn(vanilla)(IMAGES), vanilla.eval()([IMAGES]), rtol=1e-4, atol=1e-5)
    nn.init.normal_(gated.cell.gate_input.weight, std=0.1)
    for model, message in (
        (gated, r"half_gru model does on one level: .* the gates have been trained"),
        (create_model("srnn_test_vit", activation="relu"), r"activation \(relu\) changes the features"),
        (create_model("srnn_test_resnet", num_classes=0), "no classifier"),
        (create_model("srnn_deit_tiny_distilled_patch16_224"), "does not classify with one linear layer"),
        (create_model("srnn_test_resnet", variant="concat"), "variant 'concat' fuses a fixed number of levels"),
    ):
        with pytest.raises(ValueError, match=message):
            to_base_cnn(model)


@pytest.mark.slow
def test_timm_alone_opens_a_base_cnn_with_its_classes_and_preprocessing(tmp_path):
    model = create_model("srnn_test_resnet", num_classes=3).eval()
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "crop_pct": 1.0, "label_names": ["ash", "elm", "oak"]}
    base_cnn = to_base_cnn(model)
    torch.save(base_cnn.state_dict(), tmp_path / "trees.pth")
    timm.models.save_for_hf(base_cnn, tmp_path / "trees", safe_serialization=True)
    (tmp_path / "open.py").write_text(
        "import sys, timm, torch\n"
        "a = timm.create_model('test_resnet', num_classes=3, checkpoint_path='trees.pth').eval()\n"
        "b = timm.create_model('local-dir:trees', pretrained=True).eval()\n"
        "config = timm.data.resolve_model_data_config(b)\n"
        "assert (config['mean'], config['crop_pct']) == ([0.1, 0.2, 0.3], 1.0) and 'srnn_zoo' not in sys.modules\n"
        "assert b.pretrained_cfg['label_names'] == ['ash', 'elm', 'oak']\n"
        "images = torch.load('images.pt')\n"
        "torch.save([a(images), b(images)], 'logits.pt')\n"
    )
    torch.save(IMAGES, tmp_path / "images.pt")
    subprocess.run([sys.executable, "open.py"], cwd=tmp_path, check=True)
    for logits in torch.load(tmp_path / "logits.pt"):
        assert torch.allclose(logits.softmax(1), model([IMAGES]).softmax(1), atol=1e-5)


def test_a_timm_model_that_is_there_becomes_a_zero_shot_srnn_with_its_classes_and_preprocessing():
    overlay = {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.8, "label_names": ("a", "b", "c"), "input_size": (3, 96, 96)}
    base_cnn = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=overlay).double().eval()
    before = {key: value.clone() for key, value in base_cnn.state_dict().items()}
    model = from_base_cnn(base_cnn, variant="vanilla")
    assert model.zero_shot
    assert model.level_sizes() == [(96, 96), (192, 192)]
    assert model.label_names == ("a", "b", "c")
    images = IMAGES.double()
    assert torch.allclose(model([images]), base_cnn(images), atol=1e-8)
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    halves = from_base_cnn(base_cnn)([images, larger])
    assert torch.allclose(halves, (base_cnn(images) + base_cnn(larger)) / 2, atol=1e-8)
    assert all(torch.equal(value, before[key]) for key, value in base_cnn.state_dict().items())
    assert torch.allclose(to_base_cnn(model)(images), base_cnn(images), atol=1e-8)


@pytest.mark.parametrize(
    ("base_cnn", "reason"),
    [
        (nn.Linear(2, 2), "Linear is no model of timm's: SRNN.wrap takes any other network"),
        (timm.create_model("test_vit", img_size=96), "base CNN does not fit the backbone"),
    ],
)
def test_what_makes_no_srnn_is_refused(base_cnn, reason):
    with pytest.raises(ValueError, match=reason):
        from_base_cnn(base_cnn)
