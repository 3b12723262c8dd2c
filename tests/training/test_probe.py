"""Probes: features are the backbone's, come back from a file, and only cell and classifiers are fitted to them."""

import math
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from srnn_zoo import SRNN
from srnn_zoo.models.places import placed
from srnn_zoo.training import Interrupted, fit, open_data, recipe
from srnn_zoo.training import probe as probe_module
from srnn_zoo.training.features import Features, evaluate_features, extract_features, fit_features
from tests.conftest import same_weights
from tests.models.harness import POOLED

from .trainings import Hooked, images, tiny

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def features():
    """Four classes that the larger level tells apart better than the smaller one."""
    targets = torch.arange(80) % 4
    centres = torch.randn(4, 96)
    noise = torch.randn(2, 80, 96) * torch.tensor([2.0, 0.5]).view(2, 1, 1)
    return Features((centres[targets] + noise).relu(), targets, ((32, 32), (64, 64)))


def fitted(model, features, **settings):
    fit_features(model, features, recipe("probe", **{"recurrence": 1.0, **settings}), progress=False)
    return model


@pytest.mark.parametrize("options", [{}, {"exits": "separate", "norm": "per_level"}], ids=["shared", "own"])
@pytest.mark.parametrize("variant", POOLED)
@torch.no_grad()
def test_the_answers_on_features_from_a_file_are_the_models_on_images(variant, options, tmp_path):
    model, data = tiny(variant=variant, **({} if variant == "concat" else options)), images(5)
    extract_features(model, DataLoader(data, batch_size=2), progress=False).save(tmp_path / "features.safetensors")
    assert model.training
    found = Features.load(tmp_path / "features.safetensors")
    assert (found.levels.shape, found.sizes) == ((2, 5, 96), ((16, 16), (32, 32)))
    larger = found.select([1])
    assert (len(larger), larger.levels.shape, larger.sizes) == (5, (1, 5, 96), ((32, 32),))
    assert torch.equal(found.targets, data.tensors[1])
    answers = evaluate_features(model, found, batch_size=3)
    expected = torch.stack([step.logits for step in model.eval().steps(data.tensors[0])])
    assert torch.allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize("variant", POOLED)
def test_every_cell_is_fitted_and_the_backbone_stays(variant, features):
    model = tiny(variant=variant).eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fitted(model, features, epochs=60, batch_size=40, lr_cell=0.3)
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"fc"} if variant in ("mean_logit", "mean_prob") else {"fc", "cell"})
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.backbone.parameters())
    right = evaluate_features(model, features)[-1].argmax(1) == features.targets
    assert right.float().mean() > 0.95


def test_the_same_seed_gives_the_same_probe_and_no_learning_rate_leaves_the_cell(features):
    settings = {"epochs": 3, "lr_cell": 0.0, "loss": "anytime", "recurrence": 0.25}
    first, again, other = (fitted(tiny(exits="separate"), features, seed=seed, **settings) for seed in (0, 0, 1))
    assert same_weights(first, again)
    assert not torch.equal(first.fc.weight, other.fc.weight)
    start = {**tiny(exits="separate").cell.state_dict(), "recurrent.weight": 0.25 * torch.eye(96)}
    torch.testing.assert_close(first.cell.state_dict(), start, rtol=0, atol=0)


def test_patience_keeps_the_best_epoch_and_ends_the_fit(features):
    merits, kept = [0.1, 0.5, 0.3, 0.5, 0.4, 0.9], []
    model = tiny()

    def merit():
        kept.append({key: value.clone() for key, value in model.state_dict().items()})
        return merits[len(kept) - 1]

    fitted = fit_features(model, features, recipe("probe", epochs=6, patience=3), progress=False, merit=merit)
    assert (len(kept), fitted.epoch) == (5, 2)
    torch.testing.assert_close(model.state_dict(), kept[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="patience needs images that choose"):
        fit_features(model, features, recipe("probe", patience=3), progress=False)


@pytest.mark.parametrize(
    ("merits", "kept"),
    [
        ([math.nan, 0.5, 0.3, 0.4], 2),
        ([0.5, math.nan, math.nan], 1),
        ([(math.nan, -1.0), (0.1, -1.0), (0.2, math.nan), (0.1, -2.0)], 2),
        ([math.nan, math.nan, 0.5], 2),  # patience ends it, without a best one
    ],
)
def test_an_epoch_without_a_merit_is_never_the_best(features, merits, kept):
    settings, left = recipe("probe", epochs=len(merits), patience=2), iter(merits)
    assert fit_features(tiny(), features, settings, progress=False, merit=lambda: next(left)).epoch == kept


def test_optimiser_and_schedule_are_the_recipes(features):
    settings = ({}, {"schedule": "constant"}, {"optimizer": "sgd"}, {"lr_classifier": 0.1})
    chosen = [recipe("probe", epochs=2, **changed) for changed in settings]
    losses, rates, _ = zip(*(fit_features(tiny(), features, each, progress=False) for each in chosen), strict=True)
    assert rates == (pytest.approx(0.005), 0.01, pytest.approx(0.005), pytest.approx(0.005))  # of one cosine
    assert losses[0] not in losses[2:]


@pytest.mark.parametrize("loss", ["last", "anytime"])
def test_a_batch_in_pieces_gives_the_same_fit(loss, features):
    settings = {"epochs": 2, "batch_size": 32, "loss": loss, "optimizer": "sgd", "lr": 0.1}  # the last batch has 16
    whole, pieces = (fitted(tiny(), features, grad_accum_steps=n, **settings) for n in (1, 4))
    torch.testing.assert_close(pieces.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["vanilla_map_diag", "half_gru_map_diag"])
def test_maps_of_one_position_give_a_map_cell_the_fit_of_its_pooled_twin(variant, features):
    maps = torch.stack([placed(level[:, :, None, None]) for level in features.levels])
    pooled = fitted(tiny(variant=variant.replace("_map", "")), features, epochs=3, lr_cell=0.3)
    fit = fitted(tiny(variant=variant), replace(features, levels=maps), epochs=3, lr_cell=0.3)
    torch.testing.assert_close(fit.state_dict(), pooled.state_dict(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_fitted_is_refused(features):
    model, narrow = tiny(), Features(torch.zeros(1, 3, 8), torch.zeros(3).long(), ((1, 1),))
    without_numbers = replace(features, levels=features.levels * float("nan"))
    batches = [(torch.randn(1, 3, size, size), torch.zeros(1).long()) for size in (64, 96)]
    for call, given, error, reason in (
        (fitted, narrow, ValueError, "features of width 96; got 8"),
        (fitted, without_numbers, FloatingPointError, r"the loss is nan: a smaller lr than 0\.01 may help"),
        (extract_features, [], ValueError, "the loader gave no image"),
        (extract_features, batches, ValueError, "levels of the same sizes"),
    ):
        with pytest.raises(error, match=reason):
            call(model, given)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.fixture
def probe(class_folders):
    """Fit a probe to the images; its result, the model, and how many batches the backbone has read."""

    def probe(output, model=None, settings=None, folders=class_folders, **options):
        model, data, calls = model or tiny(3), open_data(folders), []
        chosen = recipe("probe", epochs=20, lr=0.05, **(settings or {}))
        with model.backbone.register_forward_hook(lambda *args: calls.append(1)):
            result = fit(model, data.train, data.val, chosen, output, workers=0, cpu=True, **options)
        return result, model, len(calls)

    return probe


def cached(folder):
    return sorted((folder / "features").iterdir())


def test_features_serve_every_probe_of_these_files_and_this_backbone(probe, class_folders, tmp_path, monkeypatch):
    folder, changed = tmp_path / "run", tiny(3)
    first, model, _ = probe(folder)
    again, same, calls = probe(folder, resume=True)
    assert calls == 0
    assert same_weights(model, same)
    assert {**again.best, "seconds": 0} == {**first.best, "seconds": 0}
    shutil.copytree(folder / "features", tmp_path / "other" / "features")
    other = tiny(3, variant="vanilla", exits="separate")
    settings = {"loss": "anytime", "anytime_weights": (0.5, 1.0), "distillation": 0.3, "label_smoothing": 0.1}
    before = other.exit_classifiers[0].weight.detach().clone()
    assert probe(tmp_path / "other", other, settings)[2] == 0
    assert not torch.equal(other.exit_classifiers[0].weight, before)
    assert len(cached(tmp_path / "other")) == 2
    os.utime(class_folders / "train" / "red" / "1.png", ns=(0, 0))
    with torch.no_grad():
        next(changed.backbone.parameters())[0] += 1
    (tmp_path / "link").symlink_to(class_folders, target_is_directory=True)
    monkeypatch.chdir(folder)
    for model, folders, batches in (
        (tiny(3), class_folders, 2),  # only the training split
        (tiny(3), Path("..") / "link", 0),
        (changed, class_folders, 4),
        (tiny(3, interpolation="bilinear"), class_folders, 4),
    ):
        assert probe(folder, model, folders=folders, resume=True)[2] == batches


def test_damaged_features_are_extracted_anew_and_such_as_cannot_be_kept_do_not_end_a_probe(probe, tmp_path, caplog):
    _, model, _ = probe(tmp_path / "run")
    changed, cut = cached(tmp_path / "run")
    changed.write_bytes(changed.read_bytes()[:-5] + b"other")
    cut.write_bytes(cut.read_bytes()[:100])
    _, again, calls = probe(tmp_path / "run", resume=True)
    assert calls == 4
    assert same_weights(model, again)
    assert caplog.text.count("features are extracted anew") == 2
    assert caplog.text.count("do not match the checksum") == 1
    assert probe(tmp_path / "run", resume=True)[2] == 0
    shutil.rmtree(tmp_path / "run" / "features")
    (tmp_path / "run" / "features").write_text("a file where the folder would be")
    assert probe(tmp_path / "run", resume=True)[0].best["epoch"] == 20
    assert caplog.text.count("features are not kept for the next time") == 2


def test_any_dataset_is_probed_after_a_stop_too_and_only_folders_of_images_are_cached(tmp_path):
    stopped = Hooked(8, lambda: signal.raise_signal(signal.SIGTERM))
    chosen = recipe("probe", epochs=60, lr=0.05, lr_cell=0.1, recurrence=1.0, loss="last")
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped by SIGTERM at the features of the training split: resume to go on"):
        fit(tiny(), stopped, images(), chosen, run, workers=0)
    result = fit(tiny(), images(), images(), chosen, run, workers=0, resume=True)
    assert result.best["train_loss"] < 0.7  # chance is 1.39
    assert not (run / "features").exists()


def test_what_a_probe_cannot_do_is_refused_before_it_begins(probe, tmp_path):
    for options, settings, reason in (
        ({}, {"mixup": 0.1, "ema_decay": 0.9}, "cannot honour mixup=0.1, ema_decay=0.9: leave that as in the recipe"),
        ({"exits": "separate"}, {"loss": "last"}, 'exits="separate" needs loss="anytime"'),
        ({}, {"loss": "anytime", "anytime_weights": (1.0,)}, "2 levels need as many weights; got 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            probe(tmp_path / "run", tiny(3, **options), settings)
        assert not (tmp_path / "run").exists()


def test_a_probe_whose_views_follow_looks_by_the_first_levels_answers(tmp_path, monkeypatch):
    """The classifier is fitted to the first level before features are read, and the cell starts anew after that."""
    data, order = images(12, size=64), []
    model = tiny(zooms=(1.0, 2.0), views="attention", img_size=64, variant="vanilla")
    untrained = model.fc.weight.detach().clone()
    for name in ("extract_features", "fit_features"):
        original = getattr(probe_module, name)

        def noted(model, features, *args, name=name, original=original, **kwargs):
            order.append((name, torch.equal(model.fc.weight, untrained), is_identity(model)))
            return original(model, features, *args, **kwargs)

        monkeypatch.setattr(probe_module, name, noted)
    result = fit(model, data, images(8, size=64), recipe("probe", epochs=2, batch_size=4), tmp_path / "run", cpu=True)
    assert [name for name, _, _ in order] == [
        "extract_features",
        "fit_features",
        *["extract_features"] * 2,
        "fit_features",
    ]
    assert [same for _, same, _ in order] == [True, True, False, False, False]
    assert all(whole for _, _, whole in order)
    assert result.best["epoch"] == 2
    saved = SRNN.from_pretrained(tmp_path / "run" / "last")
    assert (saved.zooms, saved.views) == ((1.0, 2.0), "attention")


def is_identity(model):
    return torch.equal(model.cell.recurrent.weight, torch.eye(model.num_features))
