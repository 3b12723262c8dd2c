"""Probes: features are the backbone's, come back from a file, and only cell and classifiers are fitted to them."""

import csv
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from srnn_zoo import SRNN, WeightsUnavailableError, list_cells
from srnn_zoo.training import FitResult, Interrupted, Recipe, fit, image_transform, open_data, recipe
from srnn_zoo.training.features import Features, evaluate_features, extract_features, fit_features
from tests.cli.command import refused, run
from tests.conftest import same_weights

from .trainings import Hooked, images, tiny


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
@pytest.mark.parametrize("variant", list_cells())
@torch.no_grad()
def test_the_answers_on_features_are_the_models_on_images(variant, options):
    model = tiny(variant=variant, **({} if variant == "concat" else options))
    data = images(5)
    found = extract_features(model, DataLoader(data, batch_size=2), progress=False)
    assert model.training
    assert (found.levels.shape, found.sizes) == ((2, 5, 96), ((16, 16), (32, 32)))
    assert torch.equal(found.targets, data.tensors[1])
    answers = evaluate_features(model, found, batch_size=3)
    expected = torch.stack([step.logits for step in model.eval().steps(data.tensors[0])])
    assert torch.allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize("variant", list_cells())
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
    first, again, other = (
        fitted(tiny(exits="separate"), features, epochs=3, lr_cell=0.0, loss="anytime", seed=seed, recurrence=0.25)
        for seed in (0, 0, 1)
    )
    assert same_weights(first, again)
    assert not torch.equal(first.get_parameter("fc.weight"), other.get_parameter("fc.weight"))
    start = tiny(exits="separate").cell.state_dict()
    torch.testing.assert_close(
        first.cell.state_dict(), {**start, "recurrent.weight": 0.25 * torch.eye(96)}, rtol=0, atol=0
    )


def test_optimiser_and_schedule_are_the_recipes(features):
    losses, rates = zip(
        *(
            fit_features(tiny(), features, recipe("probe", epochs=2, **settings), progress=False)
            for settings in ({}, {"schedule": "constant"}, {"optimizer": "sgd"}, {"lr_classifier": 0.1})
        ),
        strict=True,
    )
    assert rates == (pytest.approx(0.0025), 0.005, pytest.approx(0.0025), pytest.approx(0.0025))  # of one cosine
    assert losses[0] not in losses[2:]


def test_features_come_back_from_a_file_and_damage_is_seen(features, tmp_path):
    path = tmp_path / "train.safetensors"
    features.save(path)
    again = Features.load(path)
    assert torch.equal(again.levels, features.levels)
    assert torch.equal(again.targets, features.targets)
    assert again.sizes == features.sizes
    assert [p.name for p in tmp_path.iterdir()] == ["train.safetensors"]
    one = again.select([1])
    assert (len(one), one.sizes, one.levels.shape) == (80, ((64, 64),), (1, 80, 96))
    damage(path)
    with pytest.raises(WeightsUnavailableError, match="do not match the checksum"):
        Features.load(path)


def damage(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_what_cannot_be_fitted_is_refused(features):
    model = tiny()
    with pytest.raises(ValueError, match="features of width 96; got 8"):
        fitted(model, Features(torch.zeros(1, 3, 8), torch.zeros(3).long(), ((1, 1),)))
    with pytest.raises(FloatingPointError, match=r"the loss is nan: a smaller lr than 0\.005 may help"):
        fitted(model, Features(features.levels * float("nan"), features.targets, features.sizes))
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="the loader gave no image"):
        extract_features(model, [], progress=False)
    batches = [(torch.randn(1, 3, size, size), torch.zeros(1).long()) for size in (64, 96)]
    with pytest.raises(ValueError, match="levels of the same sizes"):
        extract_features(model, batches, progress=False)


Probe = Callable[..., tuple[FitResult, SRNN, int]]


@pytest.fixture
def probe(class_folders):
    """Fit a probe to the images; its result, the model, and how many batches the backbone has read."""

    def probe(output, model=None, settings=None, **options):
        model, data, calls = model or tiny(3), open_data(class_folders), []
        hook = model.backbone.register_forward_hook(lambda *args: calls.append(1))
        chosen = recipe("probe", epochs=20, lr=0.05, **(settings or {}))
        result = fit(model, data.train, data.val, chosen, output, workers=0, cpu=True, **options)
        hook.remove()
        return result, model, len(calls)

    return probe


def cached(folder):
    return sorted((folder / "features").iterdir())


def test_the_recipe_leaves_a_run_whose_saved_model_answers_as_the_probe_did(probe, class_folders, tmp_path):
    folder = tmp_path / "run"
    result, model, calls = probe(folder, dataset="colours")
    assert calls == 4  # two splits of one batch, two levels
    start = tiny(3)
    assert all(torch.equal(p, start.get_parameter(f"backbone.{name}")) for name, p in model.backbone.named_parameters())
    names = ("recipe.toml", "log.csv", "curves.png", "best", "last", "state", "features")
    assert {path.name for path in folder.iterdir()} == set(names)
    assert Recipe.from_toml(folder / "recipe.toml") == recipe("probe", epochs=20, lr=0.05)
    with (folder / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert {name: float(value) for name, value in row.items()} == pytest.approx(result.best, rel=1e-6)
    assert (result.history, result.best["epoch"], result.skipped) == ([result.best], 20, [])
    assert 0 < result.best["lr"] < 0.05
    assert result.best["val_top1"] >= 80  # chance is 33
    best, last = (SRNN.from_pretrained(folder / which) for which in ("best", "last"))
    assert same_weights(best, model)
    assert same_weights(last, model)
    assert list(best.pretrained_cfg["label_names"]) == ["blue", "green", "red"]
    assert best.metadata["metrics"]["colours (val)"]["top1"] == result.best["val_top1"]
    assert best.metadata["temperatures"] == [best.temperature(0), best.temperature(1)] == model.metadata["temperatures"]
    val = open_data(class_folders).val
    val.transform = image_transform(best)
    inputs, targets = next(iter(DataLoader(val, batch_size=len(val))))
    with torch.no_grad():
        logits = best.eval()(inputs)
    assert (logits.argmax(1) == targets).float().mean().item() * 100 == pytest.approx(result.best["val_top1"])
    assert F.cross_entropy(logits, targets).item() == pytest.approx(result.best["val_loss"], abs=1e-5)


def test_the_command_fits_a_probe_and_runs_it_again(class_folders, tmp_path):
    command = ("train", class_folders, "--recipe", "probe", "-o", tmp_path / "run", "-m", "srnn_test_resnet")
    command += ("--no-pretrained", "--sizes", "32,64", "--workers", 0, "--cpu", "--epochs", 5)
    said = run(*command)
    assert said.code == 0, said.err
    assert said.out.startswith("best epoch 5: top-1 ")
    first = SRNN.from_pretrained(tmp_path / "run" / "best")
    files = [path.stat().st_mtime_ns for path in cached(tmp_path / "run")]
    assert run(*command, "--resume").code == 0
    assert [path.stat().st_mtime_ns for path in cached(tmp_path / "run")] == files
    assert same_weights(SRNN.from_pretrained(tmp_path / "run" / "best"), first)
    for wrong, reason in {
        (): "holds another run",
        ("--resume", "--set", "lr=0.5"): "lr 0.5, was 0.005",
        ("--resume", "--variant", "vanilla"): "variant vanilla, was half_gru",
        ("--set", "mixup=0.2"): "cannot honour mixup=0.2",
    }.items():
        assert reason in refused(*command, *wrong)


def test_features_are_extracted_once_and_serve_another_variant_from_a_copy(probe, tmp_path):
    first, model, _ = probe(tmp_path / "run")
    again, same, calls = probe(tmp_path / "run", resume=True)
    assert calls == 0
    assert same_weights(model, same)
    assert {**again.best, "seconds": 0} == {**first.best, "seconds": 0}
    shutil.copytree(tmp_path / "run" / "features", tmp_path / "other" / "features")
    other = tiny(3, variant="vanilla", exits="separate")
    settings = {"loss": "anytime", "anytime_weights": (0.5, 1.0), "distillation": 0.3, "label_smoothing": 0.1}
    before = other.get_parameter("exit_classifiers.0.weight").detach().clone()
    assert probe(tmp_path / "other", other, settings)[2] == 0
    assert not torch.equal(other.get_parameter("exit_classifiers.0.weight"), before)
    assert len(cached(tmp_path / "other")) == 2


def test_features_are_those_of_these_files_and_this_backbone(probe, class_folders, tmp_path):
    probe(tmp_path / "run")
    os.utime(class_folders / "train" / "red" / "1.png", ns=(0, 0))
    assert probe(tmp_path / "run", resume=True)[2] == 2  # only the training split
    assert probe(tmp_path / "run", resume=True)[2] == 0
    model = tiny(3)
    with torch.no_grad():
        next(model.backbone.parameters())[0] += 1
    assert probe(tmp_path / "run", model, resume=True)[2] == 4
    assert probe(tmp_path / "run", tiny(3, interpolation="bilinear"), resume=True)[2] == 4


def test_features_are_found_by_another_path_to_the_same_files(probe, class_folders, tmp_path, monkeypatch):
    probe(tmp_path / "run")
    (tmp_path / "link").symlink_to(class_folders, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "run")
    data = open_data(Path("..") / "link")
    before = cached(tmp_path / "run")
    fit(tiny(3), data.train, data.val, recipe("probe", epochs=20, lr=0.05), tmp_path / "run", resume=True, workers=0)
    assert cached(tmp_path / "run") == before


def test_damaged_features_are_extracted_anew_and_such_as_cannot_be_kept_do_not_end_a_probe(probe, tmp_path, caplog):
    _, model, _ = probe(tmp_path / "run")
    flipped, cut = cached(tmp_path / "run")
    damage(flipped)
    cut.write_bytes(cut.read_bytes()[:100])
    _, again, calls = probe(tmp_path / "run", resume=True)
    assert calls == 4
    assert same_weights(model, again)
    assert caplog.text.count("features are extracted anew") == 2
    assert probe(tmp_path / "run", resume=True)[2] == 0
    shutil.rmtree(tmp_path / "run" / "features")
    (tmp_path / "run" / "features").write_text("a file where the folder would be")
    assert probe(tmp_path / "run", resume=True)[0].best["epoch"] == 20
    assert caplog.text.count("features are not kept for the next time") == 2


def test_corrupt_images_are_skipped_and_listed_each_time_or_fatal(probe, class_folders, tmp_path, caplog):
    victims = [class_folders / "train" / "red" / "3.png", class_folders / "val" / "blue" / "1.png"]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:200])
    result, _, _ = probe(tmp_path / "run")
    listed = tmp_path / "run" / "skipped.txt"
    assert [line.partition(":")[0] for line in listed.read_text().splitlines()] == [str(victim) for victim in victims]
    listed.unlink()
    again, _, calls = probe(tmp_path / "run", resume=True)
    assert (calls, again.skipped) == (0, result.skipped)
    assert listed.read_text().splitlines() == result.skipped
    assert caplog.text.count("skipped ") == 4
    for output, options in ((tmp_path / "run", {"resume": True}), (None, {})):
        with pytest.raises(ValueError, match=r"red/3\.png: truncated or damaged"):
            probe(output, corrupt="fatal", **options)
    for image in (class_folders / "val").glob("*/*"):
        image.write_bytes(b"")
    with pytest.raises(ValueError, match="no image of the validation split can be read"):
        probe(None)


def test_any_dataset_is_probed_after_a_stop_too_and_only_folders_of_images_are_cached(tmp_path):
    stopped = Hooked(8, lambda: signal.raise_signal(signal.SIGTERM))
    chosen, run = recipe("probe", epochs=60, lr=0.05, lr_cell=0.1, recurrence=1.0), tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped by SIGTERM at the features of the training split: resume to go on"):
        fit(tiny(), stopped, images(), chosen, run, workers=0)
    result = fit(tiny(), images(), images(), chosen, run, workers=0, resume=True)
    assert result.best["train_loss"] < 0.7  # chance is 1.39
    assert not (run / "features").exists()


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        ({}, {"mixup": 0.1, "ema_decay": 0.9}, "cannot honour mixup=0.1, ema_decay=0.9: leave that as in the recipe"),
        ({"exits": "separate"}, {}, 'exits="separate" needs loss="anytime"'),
        ({"variant": "concat"}, {"loss": "anytime"}, "variant 'concat' answers after the last level only"),
        ({}, {"loss": "anytime", "anytime_weights": (1.0,)}, "2 levels need as many weights; got 1"),
        ({"num_classes": 4}, {}, "the model has 4 classes, the training split 3"),
        ({}, {"resume": True}, "holds no probe to resume"),
    ],
)
def test_what_a_probe_cannot_do_is_refused_before_it_begins(probe, tmp_path, model, settings, reason):
    resume = settings.pop("resume", False)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        probe(tmp_path / "run", tiny(**{"num_classes": 3, **model}), settings, resume=resume)
    assert reason in str(error.value)
    assert not (tmp_path / "run").exists()
