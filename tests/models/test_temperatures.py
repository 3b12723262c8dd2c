"""Temperatures: exact at the paper's initialisation, stored after training, fitted, and used by every probability."""

import pytest
import torch

from srnn_zoo import SRNN, Anytime, create_model, list_cells
from srnn_zoo.datasets.loader import ImageLoader
from srnn_zoo.models.cells import create_cell
from srnn_zoo.models.recurrence import scan
from srnn_zoo.models.temperatures import fit_temperature, fit_temperatures

from .harness import full, trained

# those of levels that are alike, at the paper's initialisation
PAPER = {"half_gru": [0.5, 1, 1.5], "vanilla": [1, 2, 3], "gru": [0.5, 0.875], "lstm": [0.25, 0.4375]}


@pytest.mark.parametrize("variant", list_cells())
def test_levels_that_are_alike_are_the_temperature_of_the_papers_equations_times_the_features(variant):
    for activation in ("relu", "identity"):
        model = create_model("srnn_test_resnet", variant=variant, activation=activation)
        assert [model.temperature(level) for level in range(3)] == [1.0, 1.0, 1.0]  # made without weights
        model.zero_shot = True
        expected = PAPER.get("gru" if full(variant) == "mgu" else full(variant), [1, 1])
        assert [model.temperature(level) for level in range(len(expected))] == expected
        cell = create_cell(variant, 6, activation=activation).double()
        features = torch.rand(4, 6, dtype=torch.float64) - (0.5 if activation == "identity" else 0)
        for level, state in enumerate(scan(cell, [cell.as_read(features)] * 4) if cell.anytime else ()):
            assert torch.allclose(cell.output(state), model.temperature(level) * features, rtol=1e-6)


def test_stored_temperatures_come_first_are_saved_and_go_with_the_classifier(tmp_path):
    model = trained()
    model.metadata["temperatures"] = [0.5, 2.0]
    model.save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path)
    assert [loaded.temperature(level) for level in range(3)] == [0.5, 2.0, 2.0]
    loaded.reset_classifier(4)
    assert loaded.temperature(1) == 1.0


def test_exit_rules_read_probabilities_at_the_models_temperature_and_logits_stay():
    model, images = trained(std=0.1), torch.rand(8, 3, 64, 64)
    first = next(model.steps(images)).logits
    for temperature in (0.05, 1.0, 20.0):
        model.metadata["temperatures"] = [temperature, 1.0]
        threshold = (first / temperature).softmax(1).amax(1).sort().values[3:5].mean().item()
        logits, stopped_at, _ = Anytime(model, f"confidence:{threshold}")(images)
        assert (stopped_at == 0).sum() == 4
        assert torch.equal(logits[stopped_at == 0], first[stopped_at == 0])


def test_temperatures_undo_overconfidence():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator) * 2
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.3, 1.0, 4.0):
        found = fit_temperature(factor * logits, targets)
        assert found == pytest.approx(factor, rel=0.1)
        near = [factor * logits.double() / (found * f) for f in (0.99, 1, 1.01)]
        losses = [torch.nn.functional.cross_entropy(tempered, targets) for tempered in near]
        assert losses[1] == min(losses)
    assert fit_temperature(torch.full((3, 5), float("nan")), targets[:3]) == 1.0
    assert fit_temperatures(logits[None, :9], targets[:9]) == [1.0]
    assert fit_temperatures(logits[None], targets) == [fit_temperature(logits, targets)]
    assert fit_temperature(100 * torch.eye(5), torch.arange(5)) == pytest.approx(10**-1.5, rel=1e-3)  # always right


@pytest.mark.slow
@pytest.mark.data
def test_zero_shot_images_stop_early_at_no_loss_of_accuracy(imagenet_sample, lite0):
    right, stopped = [], []
    for levels, targets in ImageLoader(imagenet_sample[0].parents[1], lite0, batch_size=10):
        logits, stopped_at, _ = Anytime(lite0, "confidence:0.5")(levels)
        with torch.inference_mode():
            right.append(torch.stack([logits.argmax(1) == targets, lite0(levels).argmax(1) == targets]).double())
        stopped.append(stopped_at == 0)
    early, full = torch.cat(right, dim=1).mean(1).tolist()
    assert torch.cat(stopped).double().mean() >= 0.5
    assert early >= full - 0.01
