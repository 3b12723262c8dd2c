"""What a new model starts from: the paper's initialisation, from a base CNN."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file

from srnn_zoo import SRNN, create_model, init_from_base_cnn
from tests.conftest import same_weights


@pytest.fixture
def base_cnn():
    return timm.create_model("test_resnet", num_classes=5)


def test_zero_shot_takes_backbone_and_classifier_and_says_so(lite0):
    through_timm = timm.create_model("srnn_tf_efficientnet_lite0", pretrained=True)
    assert lite0.zero_shot
    assert through_timm.zero_shot
    assert same_weights(through_timm, lite0)
    assert torch.equal(lite0.cell.state_dict()["recurrent.weight"], torch.eye(1280))
    stem = create_model("srnn_tf_efficientnet_lite0", pretrained=True, in_chans=1).backbone.conv_stem
    assert torch.allclose(stem.weight, lite0.backbone.conv_stem.weight.sum(1, keepdim=True))  # adapted as timm does


def test_a_base_cnn_may_read_its_own_size_only():
    base_cnn = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    with pytest.raises(AssertionError):
        base_cnn(torch.randn(1, 3, 96, 96))
    model = create_model("srnn_vit_tiny_patch16_224", variant="vanilla", num_classes=5).eval()
    init_from_base_cnn(model, base_cnn)
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(model([images]), base_cnn(images))


@pytest.mark.parametrize("architecture", ["efficientvit_m0", pytest.param("levit_128s", marks=pytest.mark.slow)])
def test_what_a_base_cnn_does_before_its_classifier_belongs_to_f(architecture):
    """A batch norm; in LeViT two classifiers as well, each after its own."""
    base_cnn = timm.create_model(architecture, num_classes=5).eval()
    for module in base_cnn.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
    model = create_model(f"srnn_{architecture}", variant="vanilla", num_classes=5).eval()
    init_from_base_cnn(model, base_cnn)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model([images]), base_cnn(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"pretrained": True, "num_classes": 10}, {"pretrained_backbone": True}])
def test_other_classes_or_the_backbone_alone_start_a_new_classifier(lite0, options):
    model = create_model("srnn_tf_efficientnet_lite0", **options)
    assert not model.zero_shot
    assert model.fc.weight.shape == (options.get("num_classes", 1000), 1280)
    assert not torch.equal(model.fc.weight, lite0.fc.weight)
    assert torch.equal(model.backbone.conv_stem.weight, lite0.backbone.conv_stem.weight)
    assert "pretrained_backbone" not in model._model_args  # a saved model must not download again


def test_zero_shot_is_a_fact_that_training_and_other_weights_end(base_cnn):
    for change in (
        lambda model: model.train(),
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: init_from_base_cnn(model, base_cnn, classifier=False),
        lambda model: model.reset_classifier(5),
        lambda model: model.fc.weight.detach().neg_(),
        lambda model: [*model.cell.parameters()][-1].detach().add_(0.1),
    ):
        model = create_model("srnn_test_resnet", num_classes=5)
        init_from_base_cnn(model, base_cnn)
        assert model.eval().zero_shot
        assert copy.deepcopy(model).half().zero_shot
        change(model)
        assert not model.zero_shot
    with torch.no_grad():
        next(model.cell.parameters()).add_(0.1)
    init_from_base_cnn(model, base_cnn)
    assert not model.zero_shot  # the cell is no longer as it starts


def test_the_backbone_alone_comes_from_a_file_and_must_fit(base_cnn, tmp_path):
    torch.save(base_cnn.state_dict(), tmp_path / "mine.pth")
    model = create_model("srnn_test_resnet", num_classes=3, pretrained_backbone=tmp_path / "mine.pth")
    assert torch.equal(model.backbone.conv1[0].weight, base_cnn.conv1[0].weight)
    with pytest.raises(ValueError, match=r"does not fit the backbone; missing or wrongly shaped: conv1\.weight"):
        init_from_base_cnn(create_model("srnn_resnet18"), base_cnn)


def test_a_saved_model_is_zero_shot_while_its_weights_are_those_it_was_saved_with(base_cnn, tmp_path):
    model = create_model("srnn_test_resnet", num_classes=5)
    init_from_base_cnn(model, base_cnn)
    model.save_pretrained(tmp_path)
    assert SRNN.from_pretrained(tmp_path).zero_shot
    assert not SRNN.from_pretrained(tmp_path, num_classes=3).zero_shot
    with torch.no_grad():
        model.fc.weight.mul_(2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # as transformers does, under the old config
    assert not SRNN.from_pretrained(tmp_path).zero_shot
