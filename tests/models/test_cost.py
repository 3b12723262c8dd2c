"""What a model costs, counted without computing anything."""

import pytest
import torch

from srnn_zoo import count_gmacs, create_model
from srnn_zoo.models import cost


def test_resnet18_costs_what_is_known_of_it():
    found = count_gmacs(create_model("srnn_resnet18"))
    assert found.levels == pytest.approx((1.81, 7.25), abs=0.01)
    cell = 2 * 3 * 512**2  # two levels; U, W_z and U_z
    assert found.head == pytest.approx((cell + 512 * 1000) / 1e9)
    assert found.total == pytest.approx(sum(found.levels) + found.head)


def test_a_backbone_is_counted_once_for_a_size_without_a_copy_of_its_weights(monkeypatch):
    model = create_model("srnn_test_resnet").half()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__deepcopy__", lambda x, memo: pytest.fail("copied weights"))
        first = model.level_gmacs((64, 64))
    assert model.level_gmacs((128, 128)) == pytest.approx(4 * first)
    monkeypatch.setattr(cost, "_without_values", None)
    assert model.level_gmacs((64, 64)) == first
    model.backbone = create_model("srnn_test_resnet", stem_width=8).backbone
    with pytest.raises(TypeError):  # another backbone is counted anew
        model.level_gmacs((64, 64))


@pytest.mark.parametrize("name", ["srnn_test_vit3", "srnn_test_convnext", "srnn_test_nfnet"])
def test_counting_changes_nothing(name):
    model = create_model(name, variant="lstm", scales=(0.25, 0.5, 1.0)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = count_gmacs(model, (128, 256))
    assert len(found.levels) == 3
    assert sorted(found.levels) == list(found.levels)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
