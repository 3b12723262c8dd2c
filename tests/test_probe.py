"""Probes: features are the backbone's, come back from a file, and cell and classifiers alone are fitted to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from srnn_zoo import SRNN, WeightsUnavailableError, create_model, list_cells
from srnn_zoo.training import AnytimeLoss
from srnn_zoo.training.probe import Features, evaluate_features, extract_features, fit_features, head_logits


def small(variant: str = "half_gru", **options: Any) -> SRNN:
    return create_model("srnn_test_resnet", variant=variant, num_classes=4, img_size=64, **options)


@pytest.fixture
def features() -> Features:
    """Four classes that the larger level tells apart better than the smaller one."""
    targets = torch.arange(80) % 4
    centres = torch.randn(4, 96)
    noise = torch.randn(2, 80, 96) * torch.tensor([2.0, 0.5]).view(2, 1, 1)
    return Features((centres[targets] + noise).relu(), targets, ((32, 32), (64, 64)))


@pytest.mark.parametrize("options", [{}, {"exits": "separate", "norm": "per_level"}], ids=["shared", "own"])
@pytest.mark.parametrize("variant", list_cells())
@torch.no_grad()
def test_the_answers_on_features_are_the_models_on_images(variant: str, options: dict[str, str]) -> None:
    if variant == "concat":
        options = {}
    model = small(variant, **options)
    images, targets = torch.randn(5, 3, 64, 64), torch.arange(5) % 4
    found = extract_features(model, DataLoader(TensorDataset(images, targets), batch_size=2), progress=False)
    assert model.training
    assert (found.levels.shape, found.sizes) == ((2, 5, 96), ((32, 32), (64, 64)))
    assert torch.equal(found.targets, targets)
    answers = evaluate_features(model, found, batch_size=3)
    expected = torch.stack([step.logits for step in model.eval().steps(images)])
    assert torch.allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize("variant", list_cells())
def test_every_cell_is_fitted_and_the_backbone_stays(variant: str, features: Features) -> None:
    model = small(variant).eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit_features(model, features, epochs=60, batch_size=40, cell_lr=0.3, progress=False)
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"fc"} if variant in ("mean_logit", "mean_prob") else {"fc", "cell"})
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.backbone.parameters())
    right = evaluate_features(model, features)[-1].argmax(1) == features.targets
    assert right.float().mean() > 0.95


def test_the_same_seed_gives_the_same_probe(features: Features) -> None:
    def fitted(seed: int) -> Tensor:
        torch.manual_seed(3)
        model = small(exits="separate")
        fit_features(model, features, epochs=3, loss=AnytimeLoss(), seed=seed, progress=False)
        return model.fc.get_parameter("weight").detach()

    assert torch.equal(fitted(0), fitted(0))
    assert not torch.equal(fitted(0), fitted(1))


def test_a_cell_without_a_learning_rate_stays_as_it_is(features: Features) -> None:
    model = small()
    with torch.no_grad():
        model.cell.get_parameter("recurrent.weight").mul_(0.25)
    before = {name: p.detach().clone() for name, p in model.cell.named_parameters()}
    fit_features(model, features, epochs=3, cell_lr=0.0, progress=False)
    assert all(torch.equal(p, before[name]) for name, p in model.cell.named_parameters())
    assert all(p.requires_grad for p in model.cell.parameters())


def test_u_decays_towards_where_it_started(features: Features) -> None:
    start = torch.eye(96)

    def distance(identity_decay: float) -> float:
        torch.manual_seed(0)
        model = small("vanilla")
        fit_features(model, features, epochs=20, cell_lr=1.0, identity_decay=identity_decay, progress=False)
        return (model.cell.get_parameter("recurrent.weight") - start).norm().item()

    assert distance(500.0) < 0.3 * distance(0.0)


def test_features_come_back_from_a_file_and_damage_is_seen(features: Features, tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    features.save(path)
    again = Features.load(path)
    assert torch.equal(again.levels, features.levels)
    assert torch.equal(again.targets, features.targets)
    assert again.sizes == features.sizes
    assert [p.name for p in tmp_path.iterdir()] == ["train.safetensors"]
    one = again.select([1])
    assert (len(one), one.sizes, one.levels.shape) == (80, ((64, 64),), (1, 80, 96))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match="do not match the checksum"):
        Features.load(path)


def test_what_cannot_be_fitted_is_refused(features: Features) -> None:
    model = small()
    with pytest.raises(ValueError, match="features of width 96; got 8"):
        fit_features(model, Features(torch.zeros(1, 3, 8), torch.zeros(3).long(), ((1, 1),)), progress=False)
    with pytest.raises(ValueError, match=r"the loss is nan: a smaller lr"):
        fit_features(model, Features(features.levels * float("nan"), features.targets, features.sizes), progress=False)
    with pytest.raises(ValueError, match="the loader gave no image"):
        extract_features(model, [], progress=False)
    batches = [(torch.randn(1, 3, size, size), torch.zeros(1).long()) for size in (64, 96)]
    with pytest.raises(ValueError, match="levels of the same sizes"):
        extract_features(model, batches, progress=False)
    assert head_logits(small("concat"), features.levels).shape == (1, 80, 4)
