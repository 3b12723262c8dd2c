"""`fit`: learns, measures, and keeps what is best."""

import csv
import dataclasses
import shutil
import sys

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from srnn_zoo import SRNN
from srnn_zoo.models.temperatures import fit_temperature
from srnn_zoo.training import Interrupted, Recipe, fit, image_transform, open_data, recipe
from tests.cli.command import TORCHRUN, python
from tests.conftest import same_weights

from .trainings import TINY, events, images, one_step, tiny, tiny_without_batch_norm

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINED, PROBED = Recipe(optimizer="adamw", lr=3e-3, epochs=3, batch_size=8), recipe("probe", epochs=20, lr=0.05)
trained_and_probed = pytest.mark.parametrize("chosen", [TRAINED, PROBED], ids=["trained", "probed"])


@pytest.mark.parametrize("variant", ["vanilla", "half_gru", "lstm", "mean_prob", "concat"])
def test_a_model_overfits_one_batch(variant):
    chosen = Recipe(optimizer="adamw", lr=5e-3, epochs=16, batch_size=8, weight_decay=0.0, schedule="constant")
    losses = [row["train_loss"] for row in fit(tiny(variant=variant), images(), images(2), chosen, workers=0).history]
    assert losses[0] > 1
    assert losses[-1] < 0.02


@trained_and_probed
def test_a_cell_that_answers_once_is_trained_at_that_answer_by_either_loss(chosen):
    models = [tiny(variant="concat") for _ in range(2)]
    for model, loss in zip(models, ("last", "anytime"), strict=True):
        fit(model, images(), images(2), dataclasses.replace(chosen, loss=loss, epochs=2), workers=0)
    assert same_weights(*models)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {"loss": "anytime", "anytime_weights": (0.5, 1.0)}),
        ({"exits": "separate"}, {"loss": "anytime", "distillation": 0.3, "temperature": 2.0}),
        ({"norm": "per_level"}, {"random_heights": True}),
        ({"norm": "frozen"}, {"mixup": 0.2, "label_smoothing": 0.1}),
        ({}, {"cutmix": 0.1}),
        ({}, {"precision": "bf16", "grad_checkpointing": True, "grad_accum_steps": 2, "clip_grad": 1.0, "epochs": 6}),
        ({}, {"channels_last": False, "layer_decay": 0.7, "ema_decay": 0.5, "identity_decay": 0.1, "recurrence": 0.5}),
    ],
)
def test_every_part_of_a_recipe_learns(options, settings):
    chosen = Recipe(
        **{"optimizer": "adamw", "lr": 3e-3, "epochs": 12, "batch_size": 8, "schedule": "constant", **settings}
    )
    small = not chosen.random_heights and chosen.precision == "no"  # bf16 gives nan on a CPU for images of 32 pixels
    train = images() if small else images(4, size=64)
    losses = [row["train_loss"] for row in fit(tiny(**options), train, images(2), chosen, workers=0).history]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_u_decays_towards_a_part_of_the_identity_wherever_it_started():
    settings = {"lr": 1e-3, "epochs": 8, "recurrence": 0.25, "identity_decay": 300.0}
    for chosen in (Recipe(optimizer="adamw", batch_size=8, **settings), recipe("probe", lr_cell=1.0, **settings)):
        model = tiny(variant="vanilla")
        u = model.cell.get_parameter("recurrent.weight").data
        target = 0.25 * torch.eye(len(u))
        before = (u.copy_(2 * torch.eye(len(u))) - target).norm()  # not the identity: as if it had been trained
        fit(model, images(), images(2), chosen, workers=0)
        assert (u - target).norm() < 0.3 * before


def test_accumulated_steps_learn_what_one_batch_does():
    models = [tiny_without_batch_norm() for _ in range(3)]
    for model, steps in zip(models, (1, 2, 4), strict=True):
        chosen = Recipe(epochs=2, batch_size=8, lr=0.1, grad_accum_steps=steps)
        fit(model, images(size=64), images(2, size=64), chosen, workers=0)
        torch.testing.assert_close(model.state_dict(), models[0].state_dict(), rtol=0, atol=1e-5)


@trained_and_probed
def test_a_run_leaves_what_others_read_and_models_that_answer_as_it_says(chosen, class_folders, tmp_path):
    data, model, folder = open_data(class_folders), tiny(num_classes=3), tmp_path / "run"
    result = fit(model, data.train, data.val, chosen, folder, workers=0, tensorboard=True, dataset="colours", cpu=True)
    names = {"recipe.toml", "log.csv", "curves.png", "tensorboard", "best", "last", "state"}
    assert {path.name for path in folder.iterdir()} == names | ({"features"} if chosen.freeze_backbone else set())
    assert Recipe.from_toml(folder / "recipe.toml") == chosen
    log = csv.DictReader((folder / "log.csv").read_text().splitlines())
    rows = [{name: float(value) for name, value in row.items()} for row in log]
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "seconds"]
    assert rows == [pytest.approx(row, rel=1e-6) for row in result.history]
    assert [row["epoch"] for row in rows] == ([20] if chosen.freeze_backbone else [1, 2, 3])
    assert all(row["val_top5"] == 100 for row in rows)  # of three classes
    assert events(folder) == [(row["epoch"], pytest.approx(row["val_loss"])) for row in rows]
    assert result.skipped == []
    assert result.best["val_top1"] == max(row["val_top1"] for row in result.history)
    for which, row in (("best", result.best), ("last", result.history[-1])):
        saved = SRNN.from_pretrained(folder / which).eval()
        assert list(saved.pretrained_cfg["label_names"]) == ["blue", "green", "red"]
        assert saved.metadata["metrics"] == {"colours (val)": {"top1": row["val_top1"], "top5": 100.0}}
        assert (saved.metadata["recipe"]["lr"], saved.metadata["recipe"]["epoch"]) == (chosen.lr, row["epoch"])
        data.val.transform = image_transform(saved)
        inputs, targets = next(iter(DataLoader(data.val, batch_size=len(data.val))))
        with torch.no_grad():
            logits = saved(inputs)
        assert (logits.argmax(1) == targets).float().mean().item() * 100 == pytest.approx(row["val_top1"])
        assert F.cross_entropy(logits, targets).item() == pytest.approx(row["val_loss"], abs=1e-5)
    assert same_weights(saved, model)
    assert model.metadata["temperatures"] == [saved.temperature(0), saved.temperature(1)]
    if chosen.freeze_backbone:
        assert same_weights(model.backbone, tiny(num_classes=3).backbone)
        assert 0 < result.best["lr"] < 0.05
        assert result.best["val_top1"] >= 80  # chance is 33


def test_accuracy_is_that_of_the_saved_model_counted_by_hand_and_old_thresholds_are_forgotten(tmp_path):
    model, val = tiny(num_classes=7), images(11)
    model.metadata["exit"] = {"rule": "confidence", "thresholds": [0.5], "temperatures": [1.0, 1.0]}
    row = fit(model, images(), val, TINY, tmp_path / "run", workers=0).history[-1]
    saved = SRNN.from_pretrained(tmp_path / "run" / "last").eval()
    with torch.no_grad():
        order = saved(val.tensors[0]).argsort(dim=1, descending=True)
    right = order == val.tensors[1][:, None]
    assert row["val_top1"] == pytest.approx(100 * right[:, 0].float().mean().item())
    assert row["val_top5"] == pytest.approx(100 * right[:, :5].any(dim=1).float().mean().item())
    assert "exit" not in {**model.metadata, **saved.metadata}
    for step in saved.steps(val.tensors[0]):
        expected = fit_temperature(step.logits.detach(), val.tensors[1])
        assert saved.temperature(step.level) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_moving_average_is_what_is_kept_and_a_compiled_model_trains_as_the_plain_one(tmp_path):
    plain, averaged, inner = tiny(), tiny(), tiny()
    fit(plain, images(), images(), TINY, workers=0)
    for model, given, chosen in (
        (averaged, averaged, dataclasses.replace(TINY, ema_decay=0.9)),
        (inner, torch.compile(inner, backend="eager"), TINY),
    ):
        model.zero_shot, run = True, tmp_path / str(chosen.ema_decay)
        fit(given, images(), images(), chosen, run, workers=0)
        saved = SRNN.from_pretrained(run / "last")
        assert same_weights(model, saved)
        assert (saved.zero_shot, model.zero_shot, model.training) == (False, False, False)
    assert same_weights(plain, inner)
    assert not same_weights(averaged, plain)


@trained_and_probed
def test_the_card_of_a_runs_model_has_its_name_its_classes_and_its_curves(chosen, class_folders, tmp_path):
    data, run = open_data(class_folders), tmp_path / "colours"
    (run / "last").mkdir(parents=True)
    (run / "last" / "README.md").write_text("mine")
    fit(tiny(num_classes=3), data.train, data.val, chosen, run, workers=0, cpu=True)
    has_curves = not chosen.freeze_backbone  # a probe has one epoch's row alone, which is no curve
    best = SRNN.from_pretrained(run / "best")
    for _ in range(2):
        card = (run / "best" / "README.md").read_text()
        assert "\n# colours\n" in card
        assert 'from_pretrained("path/to/colours/best")' in card
        assert "\n## Classes\n\n`blue`, `green`, `red`\n" in card
        assert ("](curves.png)" in card) == has_curves == (run / "best" / "curves.png").is_file()
        best.save_pretrained(run / "best")  # as calibrating does
    assert not has_curves or (run / "last" / "curves.png").read_bytes() == (run / "curves.png").read_bytes()
    assert (run / "last" / "README.md").read_text() == "mine"
    best.save_pretrained(tmp_path / "elsewhere")
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    assert "\n# elsewhere\n" in card
    assert "curves.png" not in card


def focal(logits, targets):
    losses = F.cross_entropy(logits, targets, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


@pytest.mark.parametrize("levels", ["last", "anytime"])
@trained_and_probed
def test_a_loss_of_ones_own_takes_the_place_of_the_tasks_and_of_its_smoothing(chosen, levels, tmp_path, caplog):
    def trained(loss, output=None, **settings):
        model, recipe = tiny(), dataclasses.replace(chosen, loss=levels, epochs=2, **settings)
        return model, fit(model, images(), images(), recipe, output, loss=loss, workers=0).best

    caplog.set_level("INFO")
    (plain, row), (same, same_row) = trained(None), trained(F.cross_entropy, tmp_path, label_smoothing=0.2)
    assert same_weights(plain, same)
    assert same_row["train_loss"] == row["train_loss"]
    assert "label_smoothing 0.2 is not used: the loss is your own" in caplog.text
    assert Recipe.from_toml(tmp_path / "recipe.toml").label_smoothing == 0
    other, other_row = trained(focal)
    assert not same_weights(plain, other)
    assert 0 < other_row["train_loss"] < row["train_loss"]  # (1 - p)² < 1
    module, _ = trained(torch.nn.CrossEntropyLoss(weight=torch.tensor([9.0, 1.0, 1.0, 1.0])))
    assert not same_weights(plain, module)


@trained_and_probed
def test_what_is_no_loss_is_refused_and_a_run_goes_on_with_its_own_only(chosen, tmp_path):
    settings = {"workers": 0, "resume": False}
    for loss, error, reason in (
        ("focal", TypeError, r"loss must be a function of \(logits, targets\); got 'focal'"),
        (lambda x, y: F.cross_entropy(x, y, reduction="none"), ValueError, r"one number .*; got shape \(8,\)"),
        (lambda x, y: F.cross_entropy(x, y).item(), ValueError, r"one number that follows from the logits, .*; got \d"),
    ):
        with pytest.raises(error, match=reason):
            fit(tiny(), images(), images(), chosen, loss=loss, **settings)
    run = {"recipe": dataclasses.replace(chosen, epochs=1), "output": tmp_path / "run", "workers": 0}
    fit(tiny(), images(), images(), loss=focal, **run)
    fit(tiny(), images(), images(), loss=focal, resume=True, **run)
    with pytest.raises(ValueError, match="loss function None, was focal"):
        fit(tiny(), images(), images(), resume=True, **run)


def test_patience_ends_a_run_that_gets_no_better_and_says_so(caplog):
    stuck = Recipe(lr=1e-12, epochs=50, batch_size=8, patience=3)
    with caplog.at_level("INFO"):
        history = fit(tiny(norm="frozen"), images(), images(), stuck, workers=0).history
    best = max(history, key=lambda row: (row["val_top1"], -row["val_loss"]))["epoch"]
    assert len(history) == best + 3
    assert caplog.text.count("stopped early: none of the last 3 epochs was better (patience 3)") == 1


@trained_and_probed
def test_damaged_images_are_skipped_and_listed_or_fatal(chosen, class_folders, tmp_path, caplog):
    data, run = open_data(class_folders), tmp_path / "run"
    victims = [class_folders / "train" / "red" / "3.png", class_folders / "val" / "blue" / "1.png"]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:200])
    for resume in (False, True):  # then from the state, or from the features that are kept
        result = fit(tiny(3), data.train, data.val, chosen, run, workers=1, resume=resume)
        lines = (run / "skipped.txt").read_text().splitlines()
        assert lines == result.skipped
        assert result.val_images == 8
        assert [line.partition(":")[0] for line in lines] == [str(victim) for victim in victims]
    assert caplog.text.count("skipped ") == (4 if chosen.freeze_backbone else 2)
    for output, resume in ((None, False), (run, True)) if chosen.freeze_backbone else ((None, False),):
        with pytest.raises(ValueError, match=r"red/3\.png: truncated or damaged"):
            fit(tiny(3), data.train, data.val, chosen, output, workers=0, corrupt="fatal", resume=resume)
    for image in (class_folders / "val").glob("*/*"):
        image.write_bytes(b"")
    with pytest.raises(ValueError, match="no image of the validation split can be read"):
        fit(tiny(3), data.train, data.val, chosen, workers=0)


@pytest.mark.parametrize(("seconds", "epochs"), [(10, [3]), (-1, [1, 2, 3])])
def test_curves_are_drawn_now_and_then_and_at_the_end_and_end_no_run(seconds, epochs, monkeypatch, tmp_path, caplog):
    def draw(history, task, file):
        drawn.append(len(history))
        raise OSError("no space left")

    drawn = []
    monkeypatch.setattr("srnn_zoo.training.run_folder._SECONDS_BETWEEN_CURVES", seconds)
    monkeypatch.setattr("srnn_zoo.training.run_folder._plot_log", draw)
    assert len(fit(tiny(), images(), images(2), TINY, tmp_path / "run", workers=0).history) == 3
    assert drawn == epochs
    assert "cannot draw the curves: no space left" in caplog.text


def test_data_and_models_that_do_not_fit_the_recipe_are_refused():
    for options, settings, reason in (
        ({}, {"precision": "fp16"}, 'precision "fp16" needs a GPU'),
        ({}, {"mixup": 0.1, "batch_size": 3}, "a process reads 3 at a time"),
        ({"exits": "separate"}, {}, 'exits="separate" needs loss="anytime" or random_heights'),
        ({"num_classes": 0}, {}, r"the model has no classifier \(num_classes=0\)"),
        ({"num_classes": 0}, {"loss": "anytime"}, r"the model has no classifier \(num_classes=0\)"),
    ):
        model = tiny(**options)
        model.zero_shot = True
        with pytest.raises(ValueError, match=reason):
            fit(model, images(), images(), dataclasses.replace(TINY, **settings), cpu=True)
        assert model.zero_shot  # as it was


def test_one_split_trains_models_of_several_sizes(class_folders):
    data = open_data(class_folders)
    for size in (32, 64):
        model, read = tiny(3, size), []
        model.backbone.register_forward_hook(lambda *args, read=read: read.append(args[1][0].shape[-1]))
        fit(model, data.train, data.val, Recipe(epochs=1, batch_size=8), workers=0)
        assert set(read) == {size // 2, size}
    assert data.train.transform is None


def test_folders_opened_one_by_one_are_refused_where_their_classes_differ(class_folders):
    shutil.rmtree(class_folders / "val" / "blue")
    model = tiny(num_classes=3)
    train, val = (ImageFolder(str(class_folders / split), image_transform(model)) for split in ("train", "val"))
    with pytest.raises(ValueError, match="numbers its classes in another way than the training split"):
        fit(model, train, val, TINY)
    with pytest.raises(ValueError, match="the model has 4 classes, the training split 3: create it with num_classes=3"):
        fit(tiny(), train, val, TINY)
    assert len(fit(model, class_folders / "train", class_folders / "val", TINY, workers=0).history) == 3


def test_optional_packages_are_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr("srnn_zoo.training.run_folder.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'TensorBoard log needs tensorboard: pip install "srnn-zoo\[train\]"'):
        fit(tiny(), images(), images(), TINY, tmp_path / "run", tensorboard=True)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'training needs accelerate: pip install "srnn-zoo\[train\]"'):
        fit(tiny(), images(), images(), TINY)


def another_process(monkeypatch, *adds):
    """Stand in for the second of two: it adds nothing to any sum, or this to the first; gives all sums so far."""
    sums = []

    def reduce(accelerator, tensor, how):
        sums.append(tensor)
        return tensor + torch.tensor(adds) if adds and len(sums) == 1 else tensor

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "reduce", reduce)
    monkeypatch.setattr("srnn_zoo.training.trainer.distribute_bn", lambda *args, **options: None)
    return sums


TWICE = Recipe(epochs=1, batch_size=8, grad_accum_steps=2)


def test_processes_wait_and_read_losses_from_the_device_once_an_update(monkeypatch, tmp_path):
    sums, counts, item, with_gradients = another_process(monkeypatch), [], Tensor.item, []
    monkeypatch.setattr(Tensor, "item", lambda x: with_gradients.append(x.requires_grad) or item(x))
    for updates in (1, 4):
        sums.clear()
        fit(tiny(), images(8 * updates), images(2), TWICE, tmp_path / str(updates), workers=0)
        counts.append(len(sums))
    assert counts[1] - counts[0] == 3
    assert not any(with_gradients)  # no loss of a piece is read by itself


def test_what_happens_in_another_process_ends_the_run_in_this_one(monkeypatch):
    for adds, error, reason in (
        ((0, 1, 0, 0), Interrupted, "stopped by SIGTERM at epoch 1, batch 1: nothing is saved"),
        ((0, 0, 1, 0), Interrupted, "stopped by SIGINT at epoch 1, batch 1"),
        ((1, 0, 0, 0), FloatingPointError, "the loss is not finite in another process at epoch 1, batch 1: choose"),
    ):
        another_process(monkeypatch, *adds)
        model = tiny()
        with pytest.raises(error, match=reason):
            fit(model, images(16), images(2), TWICE, workers=0)
        assert torch.equal(model.fc.weight, tiny().fc.weight) == (error is FloatingPointError)


@pytest.mark.slow
def test_two_processes_learn_and_measure_as_one(tmp_path):
    code = f"from tests.training.trainings import one_step\none_step({str(tmp_path / 'two')!r}, workers=1)"
    done = python(*TORCHRUN, "--no_python", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    model, row = one_step(tmp_path / "one", workers=0)
    start, two = tiny_without_batch_norm().state_dict(), SRNN.from_pretrained(tmp_path / "two" / "last").state_dict()
    gradients = {name: start[name] - value for name, value in model.state_dict().items()}
    torch.testing.assert_close({name: start[name] - two[name] for name in gradients}, gradients, rtol=0, atol=1e-6)
    assert max(gradient.abs().max().item() for gradient in gradients.values()) > 1e-3
    (other,) = csv.DictReader((tmp_path / "two" / "log.csv").read_text().splitlines())
    for name in ("val_top1", "val_top5", "train_loss", "val_loss"):
        assert float(other[name]) == pytest.approx(row[name], rel=1e-5), name
