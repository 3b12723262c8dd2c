"""A model saved as timm saves models opens again through timm, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from srnn_zoo import SRNN, create_model, list_cells


def round_trip(model: SRNN, folder: Path) -> Any:
    save_for_hf(model, folder, safe_serialization=True)  # pyright: ignore
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("variant", list_cells())
@pytest.mark.parametrize("name", ["srnn_test_resnet", "srnn_test_vit"])
def test_what_was_saved_comes_back_with_the_same_logits(name: str, variant: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"variant": variant, "scales": (0.25, 0.5, 1.0), "num_classes": 7, "in_chans": 1}
    model = create_model(name, interpolation="bilinear", img_size=192, **options).eval()
    for parameter in model.cell.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    loaded = round_trip(model, tmp_path)
    images = torch.randn(2, 1, 192, 192)
    assert torch.equal(loaded(images), model(images))
    for attribute in ("variant", "scales", "interpolation", "num_classes", "in_chans", "img_size"):
        assert getattr(loaded, attribute) == getattr(model, attribute)
    assert loaded.cell.activation == model.cell.activation


def test_a_new_classifier_and_no_classifier_come_back(tmp_path: Path) -> None:
    model = create_model("srnn_test_resnet", num_classes=7).eval()
    images = torch.randn(1, 3, 64, 64)
    for classes in (3, 0):
        model.reset_classifier(classes)
        loaded = round_trip(model, tmp_path / str(classes))
        assert loaded.num_classes == classes
        assert torch.equal(loaded(images), model(images))


def test_an_input_size_set_later_comes_back(tmp_path: Path) -> None:
    model = create_model("srnn_test_vit", num_classes=7).eval()
    model.set_input_size(448)
    loaded = round_trip(model, tmp_path)
    images = torch.randn(1, 3, 448, 448)
    assert loaded.img_size == (448, 448)
    assert torch.equal(loaded(images), model(images))


def test_zero_shot_is_said_until_training_moves_the_cell(tmp_path: Path) -> None:
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True)
    assert round_trip(model, tmp_path).zero_shot
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert not model.zero_shot
    assert "notes" not in model.pretrained_cfg


def test_a_model_of_one_level_is_made_for_the_size_asked_for() -> None:
    model = create_model("srnn_levit_128s", scales=(1.0,), img_size=256, num_classes=3).eval()
    assert model(torch.randn(1, 3, 256, 256)).shape == (1, 3)
