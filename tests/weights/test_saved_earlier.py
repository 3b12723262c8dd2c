"""Folders that an earlier srnn-zoo saved load as they were, with the very logits that were written down then."""

import json
from pathlib import Path

import pytest
import timm
import torch

from srnn_zoo import SRNN

EARLIER = Path(__file__).parent / "saved_earlier"


@pytest.mark.parametrize(("name", "zero_shot"), [("lstm", False), ("half_gru", True)])
def test_a_folder_saved_earlier_gives_the_same_logits_at_every_level(name, zero_shot):
    """Computed in double precision and rounded to single, they are equal bit by bit on any processor."""
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    expected = torch.tensor(json.loads((EARLIER / name / "logits.json").read_text()))
    model = SRNN.from_pretrained(EARLIER / name).eval()
    assert model.zero_shot == zero_shot
    by_timm = timm.create_model(f"local-dir:{EARLIER / name}", pretrained=True).eval()
    with torch.no_grad():
        found = torch.stack([step.logits.float() for step in model.double().steps(images)])
        assert torch.equal(found, expected)
        assert torch.equal(by_timm.double()(images).float(), expected[-1])


def test_what_was_said_of_the_weights_comes_back():
    model = SRNN.from_pretrained(EARLIER / "lstm")
    assert (model.variant, model.exits, model.norm) == ("lstm", "separate", "per_level")
    assert model.level_sizes() == [(16, 16), (32, 32), (64, 64)]
    assert model.pretrained_cfg["label_names"] == ["apple", "banana", "cherry", "date"]
    assert model.metadata == {"dataset": "fruit", "metrics": {"fruit": {"top1": 50.0}}, "recipe": {"epochs": 1}}
