"""Probes: features are the backbone's, come back from a file, and cell and classifiers alone are fitted to them."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from srnn_zoo import SRNN, WeightsUnavailableError, create_model, list_cells
from srnn_zoo.training import AnytimeLoss, FitResult, Interrupted, Recipe, fit, image_transform, open_data, recipe
from srnn_zoo.training.features import Features, evaluate_features, extract_features, fit_features, head_logits
from tests.cli.test_predict import refused, run
from tests.conftest import same_weights

from .trainings import Hooked, images, tiny


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
    with pytest.raises(FloatingPointError, match=r"the loss is nan: a smaller lr"):
        fit_features(model, Features(features.levels * float("nan"), features.targets, features.sizes), progress=False)
    with pytest.raises(ValueError, match="the loader gave no image"):
        extract_features(model, [], progress=False)
    batches = [(torch.randn(1, 3, size, size), torch.zeros(1).long()) for size in (64, 96)]
    with pytest.raises(ValueError, match="levels of the same sizes"):
        extract_features(model, batches, progress=False)
    assert head_logits(small("concat"), features.levels).shape == (1, 80, 4)


Probe = Callable[..., tuple[FitResult, SRNN, int]]


@pytest.fixture
def probe(class_folders: Path) -> Probe:
    """Fit a probe to the pictures; what came of it, the model, and how many batches the backbone has read."""

    def fitted(
        output: Path | None, model: SRNN | None = None, settings: dict[str, Any] | None = None, **options: Any
    ) -> tuple[FitResult, SRNN, int]:
        model, data, calls = model or tiny(3), open_data(class_folders), []
        hook = model.backbone.register_forward_hook(lambda *args: calls.append(1))
        chosen = recipe("probe", epochs=20, lr=0.05, **(settings or {}))
        result = fit(model, data.train, data.val, chosen, output, workers=0, cpu=True, **options)
        hook.remove()
        return result, model, len(calls)

    return fitted


def answers(model: SRNN, folder: Path) -> tuple[Tensor, Tensor]:
    """The model's logits of all validation pictures, and their classes."""
    val = open_data(folder).val
    val.transform = image_transform(model)
    pictures, targets = next(iter(DataLoader(val, batch_size=len(val))))
    with torch.no_grad():
        return model.eval()(pictures), targets


def cached(folder: Path) -> list[Path]:
    return sorted((folder / "features").iterdir())


def test_the_recipe_leaves_a_run_whose_saved_model_answers_as_the_probe_did(
    probe: Probe, class_folders: Path, tmp_path: Path
) -> None:
    result, model, calls = probe(tmp_path / "run", dataset="colours")
    assert calls == 4  # two splits of one batch, two levels
    start = tiny(3)
    assert all(torch.equal(p, start.get_parameter(f"backbone.{name}")) for name, p in model.backbone.named_parameters())
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("recipe.toml", "log.csv", "curves.png", "best", "last", "state", "features")
    }
    assert Recipe.from_toml(folder / "recipe.toml") == recipe("probe", epochs=20, lr=0.05)
    with (folder / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "seconds"]
    assert {name: float(value) for name, value in row.items()} == pytest.approx(result.best, rel=1e-6)
    assert (result.history, result.best["epoch"], result.skipped) == ([result.best], 20, [])
    assert 0 < result.best["lr"] < 0.05
    assert result.best["val_top1"] >= 80  # chance is 33
    best, last = (SRNN.from_pretrained(folder / which) for which in ("best", "last"))
    assert same_weights(best, model)
    assert same_weights(last, model)
    assert list(best.pretrained_cfg["label_names"]) == ["blue", "green", "red"]
    assert best.metadata["metrics"]["colours (val)"]["top1"] == result.best["val_top1"]
    logits, targets = answers(best, class_folders)
    assert (logits.argmax(1) == targets).float().mean().item() * 100 == pytest.approx(result.best["val_top1"])
    loss = torch.nn.functional.cross_entropy(logits, targets).item()
    assert loss == pytest.approx(result.best["val_loss"], abs=1e-5)


def test_the_command_fits_a_probe_and_runs_it_again(class_folders: Path, tmp_path: Path) -> None:
    command = ("train", class_folders, "--recipe", "probe", "-o", tmp_path / "run", "-m", "srnn_test_resnet")
    command += ("--no-pretrained", "--sizes", "32,64", "--workers", 0, "--cpu", "--epochs", 5)
    said = run(*command)
    assert said.code == 0, said.err
    assert said.out.startswith("best epoch 5: top-1 ")
    first = SRNN.from_pretrained(tmp_path / "run" / "best")
    assert "holds another run" in refused(*command)
    assert "lr 0.5, was 0.005" in refused(*command, "--resume", "--set", "lr=0.5")
    assert "variant vanilla, was half_gru" in refused(*command, "--resume", "--variant", "vanilla")
    files = [path.stat().st_mtime_ns for path in cached(tmp_path / "run")]
    assert run(*command, "--resume").code == 0
    assert [path.stat().st_mtime_ns for path in cached(tmp_path / "run")] == files
    assert same_weights(SRNN.from_pretrained(tmp_path / "run" / "best"), first)
    assert "cannot honour mixup=0.2" in refused(*command, "--set", "mixup=0.2")


def test_features_are_extracted_once_and_serve_another_variant_from_a_copy(probe: Probe, tmp_path: Path) -> None:
    first, model, _ = probe(tmp_path / "run")
    again, same, calls = probe(tmp_path / "run", resume=True)
    assert calls == 0
    assert same_weights(model, same)
    assert {**again.best, "seconds": 0} == {**first.best, "seconds": 0}
    shutil.copytree(tmp_path / "run" / "features", tmp_path / "other" / "features")
    other = tiny(3, variant="vanilla", exits="separate")
    settings = {"loss": "anytime", "anytime_weights": (0.5, 1.0), "distillation": 0.3, "label_smoothing": 0.1}
    before = other.get_parameter("exit_fc.0.weight").detach().clone()
    assert probe(tmp_path / "other", other, settings)[2] == 0
    assert not torch.equal(other.get_parameter("exit_fc.0.weight"), before)
    assert len(cached(tmp_path / "other")) == 2


def test_features_are_those_of_these_files_and_this_backbone(probe: Probe, class_folders: Path, tmp_path: Path) -> None:
    probe(tmp_path / "run")
    changed = class_folders / "train" / "red" / "1.png"
    os.utime(changed, ns=(0, 0))
    assert probe(tmp_path / "run", resume=True)[2] == 2  # the training split alone
    assert probe(tmp_path / "run", resume=True)[2] == 0
    model = tiny(3)
    with torch.no_grad():
        next(model.backbone.parameters())[0] += 1
    assert probe(tmp_path / "run", model, resume=True)[2] == 4
    model = tiny(3, interpolation="bilinear")
    assert probe(tmp_path / "run", model, resume=True)[2] == 4


def test_features_are_found_by_another_way_to_the_same_files(
    probe: Probe, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe(tmp_path / "run")
    (tmp_path / "link").symlink_to(class_folders, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "run")
    data = open_data(Path("..") / "link")
    shutil.copytree("features", "../other/features")
    fit(tiny(3), data.train, data.val, recipe("probe", epochs=1), tmp_path / "other", workers=0, cpu=True)
    assert cached(tmp_path / "other") == [
        tmp_path / "other" / x.relative_to(tmp_path / "run") for x in cached(tmp_path / "run")
    ]


def test_damaged_features_are_extracted_anew(probe: Probe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, model, _ = probe(tmp_path / "run")
    flipped, cut = cached(tmp_path / "run")
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:100])
    _, again, calls = probe(tmp_path / "run", resume=True)
    assert calls == 4
    assert same_weights(model, again)
    assert caplog.text.count("features are extracted anew") == 2
    assert probe(tmp_path / "run", resume=True)[2] == 0


def test_features_that_cannot_be_kept_do_not_end_a_probe(
    probe: Probe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "features").write_text("a file where the folder would be")
    assert probe(tmp_path / "run")[0].best["epoch"] == 20
    assert caplog.text.count("features are not kept for the next time") == 2


def test_corrupt_pictures_are_skipped_and_listed_each_time_or_fatal(
    probe: Probe, class_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    with pytest.raises(ValueError, match=r"red/3\.png: truncated or damaged"):
        probe(tmp_path / "run", resume=True, corrupt="fatal")
    with pytest.raises(ValueError, match=r"red/3\.png: truncated or damaged"):
        probe(None, corrupt="fatal")
    for picture in (class_folders / "val").glob("*/*"):
        picture.write_bytes(b"")
    with pytest.raises(ValueError, match="no image of the validation split can be read"):
        probe(None)


def test_any_dataset_is_probed_and_only_folders_of_pictures_are_cached(tmp_path: Path) -> None:
    result = fit(
        tiny(),
        images(),
        images(),
        recipe("probe", epochs=60, lr=0.05, lr_cell=0.1, recurrence=1.0),
        tmp_path / "run",
        workers=0,
    )
    assert result.best["train_loss"] < 0.7  # chance is 1.39
    assert not (tmp_path / "run" / "features").exists()


def test_a_signal_stops_the_extraction_and_resuming_goes_on(tmp_path: Path) -> None:
    stopped = Hooked(8, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped by SIGTERM at the features of the training split: resume to go on"):
        fit(tiny(), stopped, images(), recipe("probe", epochs=2), tmp_path / "run", workers=0)
    result = fit(tiny(), images(), images(), recipe("probe", epochs=2), tmp_path / "run", workers=0, resume=True)
    assert result.best["epoch"] == 2


def test_what_a_probe_cannot_do_is_refused_before_it_begins(
    probe: Probe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"cannot honour mixup=0\.1, ema_decay=0\.9: leave that as in the recipe probe"
    ):
        probe(folder, settings={"mixup": 0.1, "ema_decay": 0.9})
    with pytest.raises(ValueError, match='exits="separate" needs loss="anytime"'):
        probe(folder, tiny(3, exits="separate"))
    with pytest.raises(ValueError, match="variant 'concat' answers after the last level only"):
        probe(folder, tiny(3, variant="concat"), {"loss": "anytime"})
    with pytest.raises(ValueError, match="2 levels need as many weights; got 1"):
        probe(folder, settings={"loss": "anytime", "anytime_weights": (1.0,)})
    with pytest.raises(ValueError, match="the model has 4 classes, the training split 3"):
        probe(folder, tiny(4))
    with pytest.raises(FileNotFoundError, match="holds no probe to resume"):
        probe(folder, resume=True)
    assert not folder.exists()
