"""What a model costs, counted without computing anything."""

from __future__ import annotations

import pytest
import torch

from srnn_zoo import count_gmacs, create_model


def test_resnet18_costs_what_is_known_of_it() -> None:
    cost = count_gmacs(create_model("srnn_resnet18"))
    assert cost.levels == pytest.approx((1.81, 7.25), abs=0.01)
    cell = 2 * 3 * 512**2  # two levels; U, W_z and U_z
    assert cost.head == pytest.approx((cell + 512 * 1000) / 1e9)
    assert cost.total == pytest.approx(sum(cost.levels) + cost.head)


@pytest.mark.parametrize("name", ["srnn_test_vit3", "srnn_test_convnext", "srnn_test_nfnet"])
def test_counting_changes_nothing(name: str) -> None:
    model = create_model(name, variant="lstm", scales=(0.25, 0.5, 1.0)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cost = count_gmacs(model, (128, 256))
    assert len(cost.levels) == 3
    assert sorted(cost.levels) == list(cost.levels)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
