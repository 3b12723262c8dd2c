"""Evaluation: the table against a plain loop over single images, what is shared, and what a table is written to."""

from __future__ import annotations

import copy
import csv
import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset
from torch import Tensor

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.evaluation import Row, Table, evaluate
from srnn_zoo.methods import Clock

from .test_labelled import Reader

CLASSES = tuple("fig kiwi lime mango olive peach plum".split())
SINGLE = ("base CNN 48", "base CNN 96")
ENSEMBLES = ("probability ensemble", "logit ensemble")


@pytest.fixture(scope="module")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of each of five classes; the other two of the models' classes are missing."""
    folder = tmp_path_factory.mktemp("fruit")
    random = np.random.default_rng(0)
    for name in CLASSES[1:6]:
        (folder / name).mkdir()
        for number in range(5):
            blocks = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(blocks).resize((90 + 20 * number, 130), Image.Resampling.NEAREST)
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def make(fruit: Path) -> Callable[..., SRNN]:
    """Make a model with random weights everywhere, whose answers differ from picture to picture."""

    def make(variant: str = "half_gru", seed: int = 0, names: tuple[str, ...] = CLASSES, **options: Any) -> SRNN:
        torch.manual_seed(0)
        options = {"img_size": 96, "num_classes": len(names), **options}
        model = srnn_zoo.create_model("srnn_test_resnet", variant=variant, **options).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in [*model.cell.parameters(), *(model.backbone.parameters() if seed else ())]:
                parameter.add_(0.05 * torch.randn_like(parameter))
            levels = pyramids(model, fruit)
            for index, classifier in enumerate([*model.exit_fc[:-1], model.fc] if len(model.exit_fc) else [model.fc]):
                features = torch.cat([model.level_features(level[index], index) for level in levels.values()])
                torch.nn.init.normal_(classifier.weight, std=8.0)  # pyright: ignore
                classifier.bias.copy_(-classifier.weight @ features.mean(dim=0))  # pyright: ignore
        model.pretrained_cfg["label_names"] = names
        return model

    return make


def pyramids(model: SRNN, folder: Path) -> dict[Path, list[Tensor]]:
    """The levels of every picture, each a batch of one, by its path."""
    transform = srnn_zoo.create_transform(model)
    paths = sorted(folder.glob("*/*.png"))
    return {path: [level[None] for level in transform(Image.open(path))] for path in paths}


class Expected(NamedTuple):
    """What a row must say of a picture."""

    answer: str
    probability: float
    correct: bool
    in_top5: bool


def expected(probabilities: Tensor, target: str, names: tuple[str, ...]) -> Expected:
    ranked = [names[index] for index in probabilities.argsort(descending=True)]
    return Expected(ranked[0], probabilities.max().item(), ranked[0] == target, target in ranked[:5])


@torch.no_grad()
def plain_loop(models: dict[str, SRNN], folder: Path) -> dict[str, list[Expected]]:
    """Every row, image by image in float64, with the whole models; the base CNN's rows from its parts."""
    found: dict[str, list[Expected]] = {}
    first = next(iter(models))
    for name, model in models.items():
        exact = copy.deepcopy(model).double()
        names = model.pretrained_cfg["label_names"]
        for path, levels in pyramids(model, folder).items():
            levels = [level.double() for level in levels]
            logits = {name: exact(levels)}
            if name == first:
                single = [exact.fc(exact.backbone(level)) for level in levels]
                logits |= dict(zip(SINGLE, single, strict=True))
                logits["logit ensemble"] = (single[0] + single[1]) / 2
                logits["probability ensemble"] = ((single[0].softmax(1) + single[1].softmax(1)) / 2).log()
            for row, values in logits.items():
                found.setdefault(row, []).append(expected(values.softmax(1)[0], path.parent.name, names))
    return found


def check(table: Table, wanted: dict[str, list[Expected]]) -> None:
    assert {row.name for row in table.rows} == wanted.keys()
    for row in table.rows:
        assert row.correct.tolist() == [image.correct for image in wanted[row.name]]
        assert row.in_top5.tolist() == [image.in_top5 for image in wanted[row.name]]
        assert row.top1_error == pytest.approx(100 * (1 - row.correct.double().mean().item()))
        assert row.top5_error == pytest.approx(100 * (1 - row.in_top5.double().mean().item()))


def test_every_variant_has_the_figures_of_a_plain_loop_in_float64(
    make: Callable[..., SRNN], fruit: Path, tmp_path: Path
) -> None:
    variants = "vanilla half_gru gru lstm mgu mean_logit mean_prob concat".split()
    models = {variant: make(variant) for variant in variants}
    wanted = plain_loop(models, fruit)
    table = evaluate(models, fruit, batch_size=7, output=tmp_path)
    check(table, wanted)
    assert [row.name for row in table.rows] == [*SINGLE, *ENSEMBLES, *models]
    assert len({row.correct.sum().item() for row in table.rows}) > 3  # the rows are told apart
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["path"] for line in lines] == [str(path) for path in sorted(fruit.glob("*/*.png"))]
    assert [line["target"] for line in lines] == [path.parent.name for path in sorted(fruit.glob("*/*.png"))]
    for name, images in wanted.items():
        assert [line[f"{name}: class"] for line in lines] == [image.answer for image in images]
        assert [line[f"{name}: correct"] for line in lines] == [str(int(image.correct)) for image in images]
        probabilities = [float(line[f"{name}: probability"]) for line in lines]
        assert probabilities == pytest.approx([image.probability for image in images], abs=1e-3)


def test_levels_with_classifiers_and_norms_of_their_own_are_read_by_them(
    make: Callable[..., SRNN], fruit: Path
) -> None:
    model = make(exits="separate", norm="per_level")
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if ".0.weight" in name or ".1.weight" in name:
                parameter.add_(0.3 * torch.rand_like(parameter))
    table = evaluate(model, fruit, batch_size=4)
    for number, (path, levels) in enumerate(pyramids(model, fruit).items()):
        with torch.no_grad():
            single = [
                model.classifier(index)(model.level_features(level, index)).argmax().item()
                for index, level in enumerate(levels)
            ]
            whole = model(levels).argmax().item()
        target = CLASSES.index(path.parent.name)
        for name, answer in zip((*SINGLE, "half_gru"), (*single, whole), strict=True):
            assert table.row(name).correct[number].item() == (answer == target)


def test_models_may_have_their_classes_in_another_order(make: Callable[..., SRNN], fruit: Path) -> None:
    models = {"forward": make("vanilla"), "backward": make("vanilla", names=CLASSES[::-1])}
    check(evaluate(models, fruit), plain_loop(models, fruit))


def test_another_model_can_give_the_base_rows(make: Callable[..., SRNN], fruit: Path) -> None:
    base, other = make("vanilla"), make("half_gru", seed=2)
    table = evaluate(other, fruit, base=base)
    wanted = plain_loop({"half_gru": base}, fruit) | {"half_gru": plain_loop({"half_gru": other}, fruit)["half_gru"]}
    check(table, wanted)
    assert "the model given as base" in table.caption


def test_backbones_are_run_once_for_all_rows_that_share_them(make: Callable[..., SRNN], fruit: Path) -> None:
    models = {
        "a": make("vanilla"),
        "b": make("half_gru"),  # the same backbone, as another object
        "c": make("half_gru", seed=1),  # another one
        "d": make("half_gru", img_size=128),  # the first one, on other levels
    }
    read: list[tuple[str, int]] = []

    def note(name: str, images: Tensor) -> None:
        if not images.is_meta:  # those only count the cost
            read.append((name, images.shape[-1]))

    for name, model in models.items():
        model.backbone.register_forward_hook(lambda _, images, __, name=name: note(name, images[0]))
    evaluate(models, fruit, batch_size=25)
    levels = [("a", 48), ("a", 96), ("c", 48), ("c", 96), ("d", 64), ("d", 128)]
    assert read == levels


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_neither_batches_nor_workers_change_an_answer(
    make: Callable[..., SRNN], fruit: Path, batch_size: int, workers: int
) -> None:
    model = make()
    check(evaluate(model, fruit, batch_size=batch_size, workers=workers), plain_loop({"half_gru": model}, fruit))


def test_gmacs_are_those_of_the_levels_and_the_head(make: Callable[..., SRNN], fruit: Path) -> None:
    models = {variant: make(variant) for variant in ("vanilla", "half_gru")}
    table = evaluate(models, fruit)
    costs = {name: srnn_zoo.count_gmacs(model) for name, model in models.items()}
    small, large = costs["vanilla"].levels
    classifier = models["vanilla"].num_features * len(CLASSES) / 1e9
    wanted = {
        "base CNN 48": small + classifier,
        "base CNN 96": large + classifier,
        "probability ensemble": small + large + 2 * classifier,
        "logit ensemble": small + large + 2 * classifier,
        **{name: cost.total for name, cost in costs.items()},
    }
    assert {row.name: row.gmacs for row in table.rows} == pytest.approx(wanted, rel=1e-9)


def test_speed_counts_a_rows_own_levels_and_not_the_first_batch_or_the_reading(
    make: Callable[..., SRNN], fruit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    model = make()
    level_features, fuse, calls = model.level_features, model.fuse, [0]

    def slow_level(level: Tensor, index: int | None = None) -> Tensor:
        calls[0] += 1
        now[0] += (100 if calls[0] <= 2 else 1) * len(level) * (1 + 3 * bool(index))  # 1 and 4 seconds an image
        return level_features(level, index)

    def slow_fuse(features: list[Tensor]) -> Tensor:
        now[0] += 5 * len(features[0])
        return fuse(features)

    monkeypatch.setattr(model, "level_features", slow_level)
    monkeypatch.setattr(model, "fuse", slow_fuse)
    table = evaluate(model, fruit, batch_size=10)
    speeds = {row.name: row.images_per_second for row in table.rows}
    assert speeds == pytest.approx(
        {"base CNN 48": 1, "base CNN 96": 1 / 4, **dict.fromkeys(ENSEMBLES, 1 / 5), "half_gru": 1 / 10}
    )


def test_a_single_batch_is_its_own_measurement() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.time(5):
        pass
    assert 0 < clock.seconds_per_image < 1
    clock.seconds, clock.images = [9.0, 2.0, 1.0], [3, 4, 2]
    assert clock.seconds_per_image == 0.5


def test_with_five_classes_the_top_five_are_all(make: Callable[..., SRNN], fruit: Path) -> None:
    model = make(names=CLASSES[1:6])
    row = evaluate(model, fruit).row("half_gru")
    assert (row.top5_error, row.top5_interval[0]) == (0, 0)
    assert 0 < row.top1_error < 100


def test_with_three_classes_and_one_image(make: Callable[..., SRNN], tmp_path: Path) -> None:
    (tmp_path / "fig").mkdir()
    Image.new("RGB", (40, 40), "green").save(tmp_path / "fig" / "1.png")
    table = evaluate(make(names=CLASSES[:3]), tmp_path)
    for row in table.rows:
        assert (row.images, row.top5_error) == (1, 0)
        assert row.top1_error in (0, 100)
        low, high = row.top1_interval
        assert high - low == pytest.approx(79.35, abs=0.01)  # all that one image says
    assert all(table.compare(row.name, table.reference).p_value == 1 for row in table.rows)


def test_a_model_of_one_level_has_no_ensembles(make: Callable[..., SRNN], fruit: Path) -> None:
    table = evaluate(make("vanilla", scales=(1.0,)), fruit)
    assert [row.name for row in table.rows] == ["base CNN 96", "vanilla"]
    assert table.reference == "base CNN 96"


def test_a_model_in_half_precision_is_evaluated_in_it(make: Callable[..., SRNN], fruit: Path) -> None:
    model = make()
    exact = evaluate(model, fruit).row("half_gru")
    half = evaluate(copy.deepcopy(model).bfloat16(), fruit).row("half_gru")
    assert (half.correct == exact.correct).double().mean() > 0.8


def test_logits_that_are_not_finite_are_wrong_and_counted(
    make: Callable[..., SRNN], fruit: Path, tmp_path: Path
) -> None:
    model = make()
    with torch.no_grad():
        model.fc.bias[CLASSES.index("kiwi")] = torch.nan  # pyright: ignore
    table = evaluate(model, fruit, output=tmp_path)
    for row in table.rows:
        assert (row.top1_error, row.top5_error, row.not_finite) == (100, 100, 25)
        assert f"`{row.name}` had logits that were not finite on 25 images, which count as wrong" in table.caption
    assert ",nan,0" in (tmp_path / "predictions.csv").read_text()


def test_the_probability_ensemble_survives_logits_of_any_size(make: Callable[..., SRNN], fruit: Path) -> None:
    model = make()
    with torch.no_grad():
        model.fc.weight.mul_(1e5)  # pyright: ignore
    assert evaluate(model, fruit).row("probability ensemble").not_finite == 0


def row(name: str, answers: str) -> Row:
    """A row from its answers, 1 for a right one."""
    right = torch.tensor([answer == "1" for answer in answers])
    return Row(name, ((48, 48), (96, 96)), right, torch.ones_like(right), 1.5, 200.0)


def test_the_reference_is_the_better_ensemble_or_a_row_that_is_named(make: Callable[..., SRNN], fruit: Path) -> None:
    for seed in range(4):
        table = evaluate(make(seed=seed), fruit)
        probability, logit = (table.row(name) for name in ENSEMBLES)
        better = probability if probability.top1_error < logit.top1_error else logit
        assert table.reference == better.name
    table = evaluate(make(), fruit, reference="base CNN 48")
    assert table.reference == "base CNN 48"
    assert "against `base CNN 48`" in table.caption


def test_two_rows_are_compared_on_the_same_images() -> None:
    table = Table((row("a", "1111111111"), row("b", "0000000011")), "a", "")
    test = table.compare("a", "b")
    assert (test.only_a, test.only_b, test.p_value) == (8, 0, pytest.approx(2 / 256))
    with pytest.raises(ValueError, match="unknown row 'c'; choose one of a, b"):
        table.compare("a", "c")


def test_markdown_shows_errors_intervals_and_tests_aligned() -> None:
    table = Table((row("a", "1110"), row("b | c\n", "0001")), "a", "Four images.")
    title, rule, first, second, empty, caption = table.to_markdown().splitlines()
    assert "p against a (only this : only that right)" in title
    assert set(rule) == set("| -:")
    assert [cell.strip() for cell in first.strip("|").split(" | ")] == [
        "a",
        "25.00 (4.56–69.94)",
        "0.00 (0.00–48.99)",
        "reference",
        "1.500",
        "200.0",
    ]
    assert second.startswith("| b \\| c ")
    assert "0.6250 (1 : 3)" in second
    assert (empty, caption) == ("", "Four images.")
    assert len({len(line) for line in (title, rule, first, second)}) == 1


def test_small_p_values_are_bounds() -> None:
    table = Table((row("a", "1" * 30), row("b", "0" * 30)), "a", "")
    assert "< 0.0001 (0 : 30)" in table.to_markdown()


def test_csv_has_every_figure() -> None:
    table = Table((row("a", "1110"), row("b, c", "0001")), "a", "")
    first, second = csv.DictReader(io.StringIO(table.to_csv()))
    assert (first["reference"], first["p_value"]) == ("", "")
    assert second["method"] == "b, c"
    assert second["levels"] == "48x48 96x96"
    figures = {key: float(value) for key, value in second.items() if key not in ("method", "levels", "reference")}
    assert figures == pytest.approx(
        {
            "images": 4,
            "correct": 1,
            "top1_error": 75,
            "top1_error_low": 30.0642,
            "top1_error_high": 95.4413,
            "top5_error": 0,
            "top5_error_low": 0,
            "top5_error_high": 48.9891,
            "only_this_right": 1,
            "only_reference_right": 3,
            "p_value": 0.625,
            "gmacs": 1.5,
            "images_per_second": 200,
        },
        abs=1e-4,
    )


def test_broken_pictures_are_named_and_in_no_figure(make: Callable[..., SRNN], fruit: Path, tmp_path: Path) -> None:
    for path in sorted(fruit.glob("*/[01].png")):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "kiwi" / "0a.png"
    broken.write_bytes(b"no picture")
    (tmp_path / "lime" / "0.png").write_bytes(b"")
    model = make()
    for batch_size in (1, 2, 50):
        table = evaluate(model, tmp_path, batch_size=batch_size)
        assert [item.path for item in table.skipped] == [str(broken), str(tmp_path / "lime" / "0.png")]
        assert table.skipped[0].reason == f"{broken}: not a picture that Pillow can read"
        assert table.rows[0].images == 9


def test_without_a_readable_picture_there_is_no_table(make: Callable[..., SRNN], tmp_path: Path) -> None:
    (tmp_path / "kiwi").mkdir()
    (tmp_path / "kiwi" / "1.png").write_bytes(b"no picture")
    out = tmp_path.parent / f"{tmp_path.name} out"
    with pytest.raises(ValueError, match=r"none of 1 pictures can be read; the first: .*1\.png: not a picture"):
        evaluate(make(), tmp_path, output=out)
    assert [path.name for path in out.iterdir()] == ["predictions.csv.partial"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"models": []}, "needs at least one model; got none"),
        ({"models": {}}, "needs at least one model; got none"),
        ({"models": ["srnn_resnet18"]}, r"a model must be an SRNN \(srnn_zoo.create_model\); got str"),
        ({"models": {"a": "srnn_resnet18"}}, "a must be an SRNN"),
        ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
        ({"workers": -1}, "num_workers option should be non-negative"),
        ({"reference": "logits ensemble"}, "unknown row 'logits ensemble'; did you mean 'logit ensemble'"),
        ({"split": "test"}, "unknown split 'test'; choose one of kiwi, lime"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], reason: str, make: Callable[..., SRNN], fruit: Path
) -> None:
    with pytest.raises((ValueError, TypeError), match=reason):
        evaluate(**{"models": make(), "data": fruit, **arguments})


def test_models_that_cannot_be_evaluated_are_named(make: Callable[..., SRNN], fruit: Path) -> None:
    model = make()
    with pytest.raises(ValueError, match="two models are of variant 'half_gru': give a dict"):
        evaluate([model, make()], fruit)
    with pytest.raises(ValueError, match="two rows would be called 'logit ensemble'"):
        evaluate({"logit ensemble": model}, fruit)
    with pytest.raises(ValueError, match=r"half_gru: the model is in training mode; call model.eval\(\)"):
        evaluate(make().train(), fruit)
    headless = make()
    headless.reset_classifier(0)
    with pytest.raises(ValueError, match="base: the model has no classifier"):
        evaluate(model, fruit, base=headless)


def test_a_target_beyond_the_models_classes_is_an_error(make: Callable[..., SRNN]) -> None:
    for target in (7, -1):
        stream = IterableImageDataset(".", reader=Reader([3, target]))  # pyright: ignore
        with pytest.raises(ValueError, match=rf"\[1\] has target {target}; the model has classes 0 to 6"):
            evaluate(make(), stream)
    assert evaluate(make(), IterableImageDataset(".", reader=Reader([3, 6]))).rows[0].images == 2  # pyright: ignore


def test_memory_holds_answers_and_no_features(make: Callable[..., SRNN], fruit: Path) -> None:
    model = make()
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def note(_: Any, images: tuple[Tensor], features: Tensor) -> None:
        seen.extend((weakref.ref(images[0]), weakref.ref(features)))
        alive.append(sum(tensor() is not None for tensor in seen))

    model.backbone.register_forward_hook(note)
    table = evaluate(model, fruit, batch_size=1)
    assert len(seen) >= 2 * 2 * 25
    assert max(alive) <= 2 * 2 * 2  # images and features of two levels, of one batch and at most the one before
    assert table.rows[0].images == 25


class TestFiles:
    """What is in the folder of results, and when."""

    def test_a_complete_evaluation_leaves_three_files(
        self, make: Callable[..., SRNN], fruit: Path, tmp_path: Path
    ) -> None:
        table = evaluate(make(), fruit, output=tmp_path / "new" / "folder")
        files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new" / "folder").iterdir()}
        assert files.keys() == {"table.csv", "table.md", "predictions.csv"}
        assert (files["table.csv"], files["table.md"]) == (table.to_csv(), table.to_markdown())

    def test_an_interrupted_one_leaves_what_was_done_under_another_name(
        self, make: Callable[..., SRNN], fruit: Path, tmp_path: Path
    ) -> None:
        model = make()
        evaluate(model, fruit, output=tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        calls: list[int] = []

        def interrupt(*_: Any) -> None:
            calls.append(1)
            if len(calls) > 6:  # in the fourth batch
                raise KeyboardInterrupt

        hook = model.backbone.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, fruit, batch_size=4, output=tmp_path)
        hook.remove()
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        done, complete = (
            [line.split(b",")[:2] for line in text.splitlines()]
            for text in (after.pop("predictions.csv.partial"), before["predictions.csv"])
        )
        assert done == complete[: 1 + 3 * 4]
        assert after == before  # the earlier results are whole
        evaluate(model, fruit, batch_size=4, output=tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == before.keys()

    def test_no_table_stands_beside_other_predictions(
        self, make: Callable[..., SRNN], fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make()
        evaluate(model, fruit, output=tmp_path)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Table, "save", full)
        with pytest.raises(OSError, match="No space"):
            evaluate(model, fruit, output=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]

    def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
        self, make: Callable[..., SRNN], fruit: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        model = make()
        model.backbone.register_forward_hook(lambda *_: pytest.fail("read"))
        for path, reason in {"file": "it is a file", "file/below": "cannot make the folder"}.items():
            with pytest.raises(ValueError, match=reason):
                evaluate(model, fruit, output=tmp_path / path)


@pytest.mark.data
def test_ten_imagenet_pictures_with_ten_right_answers(lite0: SRNN, imagenet_sample: list[Path], tmp_path: Path) -> None:
    """Class indices come from WordNet ids, not from the ten folders that are there."""
    for path in imagenet_sample[:10]:
        (tmp_path / path.parent.name).symlink_to(path.parent)
    row = evaluate(lite0, tmp_path).row("half_gru")
    with torch.inference_mode():
        transform = srnn_zoo.create_transform(lite0)
        answers = [
            lite0([level[None] for level in transform(Image.open(path).convert("RGB"))]).argmax().item()
            for path in imagenet_sample[:10]
        ]
    ids = srnn_zoo.labelled.label_names(lite0) or []
    assert row.correct.tolist() == [
        ids[int(k)] == path.parent.name for k, path in zip(answers, imagenet_sample, strict=False)
    ]
    assert row.correct.sum() >= 7


@pytest.mark.slow
@pytest.mark.data
def test_the_recorded_zero_shot_figures_come_out_again(imagenet_sample: list[Path]) -> None:
    models = [
        srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True, variant=variant).eval()
        for variant in ("vanilla", "half_gru")
    ]
    table = evaluate(models, imagenet_sample[0].parent.parent)
    path = Path(__file__).parent.parent / "results" / "zero_shot_imagenet_sample.csv"
    with path.open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["model"] == "srnn_tf_efficientnet_lite0"]
    recorded = {line["method"]: int(line["correct"]) for line in lines}
    names = {
        "base CNN 224": "single scale, small",
        "base CNN 448": "single scale, large",
        "probability ensemble": "mean_prob",
        "logit ensemble": "mean_logit",
        "vanilla": "vanilla",
        "half_gru": "half_gru",
    }
    assert {row.name: int(row.correct.sum()) for row in table.rows} == {ours: recorded[s] for ours, s in names.items()}
    assert [int(row.correct.sum()) for row in table.rows] == [266, 248, 266, 266, 267, 266]
