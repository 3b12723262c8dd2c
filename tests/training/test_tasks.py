"""Several labels an image, and numbers: their losses, measures, training, saved models, and what is refused."""

import csv
import importlib

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from srnn_zoo import SRNN, Anytime, calibrate, collect, create_transform
from srnn_zoo.evaluation.compare import evaluate
from srnn_zoo.inference.calibrate import budget_rule
from srnn_zoo.inference.exits import exit_rule
from srnn_zoo.inference.predict import predict
from srnn_zoo.training import Recipe, fit, recipe
from srnn_zoo.training.losses import create_loss
from srnn_zoo.training.tasks import mean_average_precision, micro_f1, training_task

from .trainings import images, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
CHOSEN = Recipe(optimizer="adamw", lr=3e-3, epochs=12, batch_size=8, weight_decay=0.0)


def labelled(task, count=8, size=32):
    """Images with which of three channels are bright, or with how bright they are."""
    generator = torch.Generator().manual_seed(2)
    bright = torch.randint(0, 2, (count, 3), generator=generator).float()
    if task == "regression":
        bright = torch.randn(count, 3, generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return TensorDataset(noise + 3 * bright[:, :, None, None], bright)


@pytest.fixture
def sklearn():
    return importlib.import_module("sklearn.metrics")  # here, as it takes seconds that other tests do not need


def test_precision_and_f1_are_scikit_learns_with_ties_and_labels_that_no_image_has(sklearn):
    scores = torch.randint(-3, 4, (40, 7)) / 2
    targets = torch.randint(0, 2, (40, 7))
    targets[:, 2] = 0
    targets[:, 3] = 1
    kept = [0, 1, 3, 4, 5, 6]
    expected = sklearn.average_precision_score(targets[:, kept], scores[:, kept], average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)
    assert micro_f1(scores > 0, targets > 0) == pytest.approx(sklearn.f1_score(targets, scores > 0, average="micro"))
    assert mean_average_precision(scores, torch.zeros(40, 7)) == micro_f1(scores > 9, targets > 9) == 0


def test_losses_are_their_formulas_of_the_last_level_or_of_every_one():
    outputs, labels, numbers = torch.randn(2, 4, 3).double(), torch.randint(0, 2, (4, 3)).double(), torch.randn(4, 3)
    smooth = 0.0
    for p, y in zip(outputs[1].sigmoid().flatten(), labels.flatten(), strict=True):
        q = y * 0.9 + 0.05
        smooth -= (q * p.log() + (1 - q) * (1 - p).log()) / 12
    loss = create_loss(Recipe(label_smoothing=0.1), training_task("multi_label"))
    assert loss(outputs[1], labels).item() == pytest.approx(float(smooth))
    loss = create_loss(Recipe(loss="anytime", anytime_weights=(1, 3)), training_task("regression"))
    expected = 0.25 * (outputs[0] - numbers).square().mean() + 0.75 * (outputs[1] - numbers).square().mean()
    assert loss(outputs, numbers.double()).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "chosen", [CHOSEN, recipe("probe", epochs=40, lr=0.05, batch_size=8)], ids=["trained", "probed"]
)
@pytest.mark.parametrize(("task", "metrics"), [("multi_label", ("map", "f1")), ("regression", ("mae", "rmse"))])
def test_a_run_learns_measures_and_keeps_the_best_by_the_tasks_own_metric(task, metrics, chosen, sklearn, tmp_path):
    model, data, val = tiny(3), labelled(task), labelled(task, 11)
    data.classes = val.classes = ["r", "g", "b"]
    model.metadata["temperatures"] = [3.0, 3.0]  # of another task
    result = fit(model, data, val, chosen, tmp_path / "run", task=task, workers=0, cpu=True)
    first, last = result.history[0], result.history[-1]
    assert last["train_loss"] < (0.5 * first["train_loss"] if len(result.history) > 1 else 0.6)
    columns = ["epoch", "lr", "train_loss", "val_loss", *(f"val_{name}" for name in metrics), "seconds"]
    log = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert [*log[0]] == [*first] == columns
    assert (tmp_path / "run" / "curves.png").is_file()
    choose = max if task == "multi_label" else min
    assert result.best[columns[4]] == choose(row[columns[4]] for row in result.history)

    saved = SRNN.from_pretrained(tmp_path / "run" / "best").eval()
    assert (saved.task, saved.metadata["task"], model.task) == (task, task, task)
    assert saved.metadata["metrics"] == {"images (val)": {name: result.best[f"val_{name}"] for name in metrics}}
    assert "temperatures" not in {**saved.metadata, **model.metadata}
    x, y = val.tensors
    with torch.no_grad():
        outputs = saved(x)
    if task == "multi_label":
        loss = F.binary_cross_entropy_with_logits(outputs, y)
        expected = [sklearn.average_precision_score(y, outputs), sklearn.f1_score(y, outputs > 0, average="micro")]
        expected = [100 * value for value in expected]
    else:
        loss = (outputs - y).square().mean()
        expected = [(outputs - y).abs().mean().item(), loss.sqrt().item()]
    assert [result.best[name] for name in columns[3:6]] == pytest.approx([loss.item(), *expected], rel=1e-4)
    saved.reset_classifier(5)
    assert saved.task == "classification"


def test_a_model_stays_what_it_was_trained_for_and_a_run_is_resumed_only_for_the_same(tmp_path):
    model, data, short = tiny(3), labelled("multi_label"), Recipe(epochs=1, batch_size=8)
    fit(model, data, data, short, task="multi_label", workers=0, cpu=True)
    fit(model, data, data, short, tmp_path / "run", workers=0, cpu=True)
    assert model.task == "multi_label"
    with pytest.raises(ValueError, match=r"another recipe, model or data: .*task regression, was multi_label"):
        fit(model, data, data, short, tmp_path / "run", task="regression", resume=True, workers=0, cpu=True)
    model.reset_classifier(4)
    fit(model, images(), images(), short, workers=0, cpu=True)
    assert "task" not in model.metadata
    model.metadata["task"] = "segmentation"
    with pytest.raises(ValueError, match="unknown task 'segmentation'"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("task", "target", "reason"),
    [
        ("multi_label", 2, "must be 0 or 1, one for each of the model's 3 labels; got 2"),
        ("multi_label", [0, 1], r"must be 0 or 1, one for each of the model's 3 labels; got shape \(2,\)"),
        ("multi_label", [0, 0.5, 1], "must be 0 or 1 for each of 3 labels; got 0.5"),
        ("multi_label", ["a", "b", "c"], "must be 0 or 1, one for each of the model's 3 labels; got list"),
        (
            "regression",
            torch.zeros(3, 1),
            r"must be numbers, one for each of the model's 3 outputs; got shape \(3, 1\)",
        ),
        ("regression", [0.0, float("nan"), 1.0], "must be finite numbers; got nan"),
        ("regression", None, "must be numbers, one for each of the model's 3 outputs; got NoneType"),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_one_sentence_with_their_image(task, target, reason):
    good = labelled(task)
    bad = [(image, target if index == 5 else y) for index, (image, y) in enumerate(good)]
    for train, val in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match=rf"^image 5: the target {reason}$"):
            fit(tiny(3), train, val, Recipe(epochs=1, batch_size=4), task=task, workers=0, cpu=True)


def test_whole_numbers_lists_and_single_numbers_are_targets():
    short = Recipe(epochs=1, batch_size=8)
    whole = [(image, [int(value) for value in y]) for image, y in labelled("multi_label")]
    fit(tiny(3), whole, whole, short, task="multi_label", workers=1, cpu=True)
    single = [(image, float(y[0])) for image, y in labelled("regression")]
    fit(tiny(1), single, single, short, task="regression", workers=0, cpu=True)


def test_what_only_classes_have_is_refused(class_folders):
    data = labelled("regression")
    for task, settings, options, reason in (
        ("multi_label", {"mixup": 0.1, "cutmix": 0.2}, {}, "^mixup=0.1, cutmix=0.2: this is for one class an image"),
        ("regression", {"loss": "anytime", "distillation": 0.5}, {}, "distillation=0.5: .* nothing for regression"),
        ("regression", {"label_smoothing": 0.1}, {}, "give label_smoothing=0; got 0.1"),
        (
            "multi_label",
            {},
            {"variant": "mean_prob"},
            "averages probabilities of classes: choose another for multi_label",
        ),
        ("multilabel", {}, {}, "unknown task 'multilabel'; did you mean 'multi_label'"),
    ):
        with pytest.raises(ValueError, match=reason):
            fit(tiny(3, **options), data, data, Recipe(epochs=1, batch_size=8, **settings), task=task)
    with pytest.raises(ValueError, match="folders give one class an image: for regression, give datasets"):
        fit(tiny(3), class_folders / "train", class_folders / "val", Recipe(), task="regression")


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_such_a_model_predicts_and_stops_by_level_or_time_and_is_no_classifier(task, tmp_path):
    model = tiny(3, img_size=64).eval()
    model.metadata["task"] = task
    image = Image.effect_noise((80, 70), 60)
    (said,) = predict(model, image, topk=2)
    steps = list(model.steps([level[None] for level in create_transform(model)(image)]))
    for answer, step in zip(said.answers, steps, strict=True):
        values = step.logits[0].detach()
        if task == "multi_label":
            assert [p for _, p in answer.top] == pytest.approx(values.sigmoid().sort(descending=True)[0][:2].tolist())
        else:
            assert answer.top == tuple((f"class {k}", pytest.approx(value)) for k, value in enumerate(values.tolist()))
    (said,) = predict(model, image, exit=exit_rule("level:0"))
    assert said.stopped_at == 0
    x = torch.randn(2, 3, 64, 64)
    for rule in ("level:0", "deadline:1e9", budget_rule(model, 10.0), lambda decision: decision.logits[:, 0] > 0):
        assert Anytime(model, rule)(x).logits.shape == (2, 3)
    for name in ("confidence:0.5", "margin:0.5", "entropy:0.5", "patience:2"):
        reason = (
            f"exit rule {name.split(':')[0]} looks at one class an image, and this model is for {task}: use level:0"
        )
        for call in (
            lambda name=name: Anytime(model, name),
            lambda name=name: list(predict(model, image, exit=exit_rule(name))),
        ):
            with pytest.raises(ValueError, match=reason):
                call()
    batches = [(x, torch.zeros(2).long())]
    for what, call in {
        "calibration": lambda: calibrate(model, batches, budget_gmacs=1.0),
        "the answers of a data set": lambda: collect(model, batches),
        "half_gru: evaluation": lambda: evaluate(model, tmp_path),
    }.items():
        with pytest.raises(ValueError, match=f"^{what} is about one class an image, and this model is for {task}$"):
            call()


def test_an_epoch_that_measures_no_number_is_never_the_best():
    nan, task = float("nan"), training_task("classification")
    rows = [
        {"val_top1": 10.0, "val_loss": nan},
        {"val_top1": nan, "val_loss": 1.0},
        {"val_top1": 10.0, "val_loss": 2.0},
        {"val_top1": 9.0, "val_loss": 0.1},
    ]
    for turned in (rows, rows[::-1]):
        assert max(turned, key=task.merit) is rows[2]
