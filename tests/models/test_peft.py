"""PEFT's LoRA on an SRNN, with the classifier trained in full: it trains, comes back equal, and merges into an SRNN."""

import copy

import pytest
import torch

from srnn_zoo import SRNN
from tests.models.harness import trained

IMAGES = torch.randn(2, 3, 160, 160)


@pytest.fixture(scope="module")
def peft():
    """Imported here, as it takes seconds that other tests do not need."""
    return pytest.importorskip("peft")


@pytest.mark.parametrize(
    ("name", "layer", "saved", "everywhere"),
    [
        ("srnn_test_vit", "qkv", ["fc", "exit_classifiers.0"], False),
        ("srnn_test_resnet", "conv2", ["fc", "exit_classifiers.0"], False),
        ("srnn_test_convnext", "fc1", ["fc"], True),
    ],
)
def test_lora_with_its_classifier(name, layer, saved, everywhere, peft, tmp_path):
    base = trained(name, num_classes=5, exits="shared" if len(saved) == 1 else "separate", img_size=160)
    targets = "all-linear" if everywhere else [layer]
    config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=saved, init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    trainable = dict(item for item in model.named_parameters() if item[1].requires_grad)
    assert any(("cell." if everywhere else f"{layer}.") in key for key in trainable if "lora" in key)
    assert sum("modules_to_save" in key for key in trainable) == 2 * len(saved)
    sum(step.logits.sum() for step in model.base_model.model.steps(IMAGES)).backward()
    assert all(value.grad is not None for value in trainable.values())

    expected = model(IMAGES)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IMAGES), expected)
    with pytest.raises(ValueError, match="merge the adapter first"):
        model.base_model.model.save_pretrained(tmp_path / "merged")
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IMAGES), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(SRNN.from_pretrained(tmp_path / "merged").eval()(IMAGES), merged(IMAGES))


@pytest.mark.parametrize("name", ["srnn_test_resnet", "srnn_test_convnext"])
def test_lora_on_every_linear_layer_takes_the_classifier_and_no_place_of_a_removed_one(name, peft):
    model = peft.get_peft_model(trained(name), peft.LoraConfig(target_modules="all-linear"))
    assert any("model.fc.lora_A" in key for key in model.state_dict())
