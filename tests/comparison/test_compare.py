"""A comparison in one folder: its rows are what plain code computes, and the same call computes nothing twice."""

import csv
import shlex
import shutil

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.comparison import compare, views
from srnn_zoo.comparison.compare import Creator
from srnn_zoo.comparison.fits import Fit, Fits
from srnn_zoo.comparison.views import FrozenViews, View
from srnn_zoo.training import open_split, recipe
from srnn_zoo.training.features import evaluate_features
from tests.cli.command import refused, run

SIZES = (32, 48)
FEW_EPOCHS = recipe("probe", loss="anytime", epochs=2)
SMALL = {"sizes": SIZES, "zooms": (1.25,), "seeds": 1, "rates": (0.01,), "pretrained": False, "progress": False}
SMALL |= {"settings": FEW_EPOCHS}
ROWS = [f"{kind} {size}" for size in SIZES for kind in ("single scale", "tight crop", "FixRes", "GeM")]
ROWS += ["test-time augmentation"]
KINDS = ("ensemble {}", "cascade {}, last answers", "cascade {}, all answer", "trained mean {}")
KINDS += ("vanilla_scalar {}", "half_gru_diag {}")
ROWS += [kind.format(what) for what in ("32 + 48", "32 + 32 zoom 1.25") for kind in KINDS]
ROWS += [kind.format("32 zoom 1.25 + 32") for kind in KINDS[1:]]


@pytest.fixture
def frozen(class_folders, tmp_path):
    splits = {"train": open_split(class_folders / "train"), "val": open_split(class_folders / "val")}
    (tmp_path / "features").mkdir()
    create = Creator("srnn_test_resnet", 3, pretrained=False)
    return FrozenViews(create.of_views, splits, tmp_path / "features", 32, progress=False)


def images_of(frozen, view, split="val"):
    model = frozen._create([view]).eval()
    transform = srnn_zoo.training.image_transform(model)
    samples = frozen._splits[split].samples
    images = torch.stack([transform(Image.open(path)) for path, _ in samples])
    return model, model.levels(images)[0]


@torch.no_grad()
@pytest.mark.parametrize("view", [View(32), View(48), View(32, 1.25), View(32, flipped=True)], ids=str)
def test_features_are_the_backbones_of_that_view(frozen, view):
    model, levels = images_of(frozen, view._replace(flipped=False))
    expected = model.backbone(levels.flip(3) if view.flipped else levels)
    assert torch.allclose(frozen.features([view], "val").levels[0], expected, atol=1e-4)


@torch.no_grad()
def test_generalised_means_are_those_of_the_last_map(frozen):
    model, levels = images_of(frozen, View(48))
    maps = model.backbone.forward_features(levels)
    for exponent in views.EXPONENTS:
        found = frozen.features([View(48, exponent=exponent)], "val").levels[0]
        assert torch.allclose(found, (maps.clamp(min=1e-6) ** exponent).mean((2, 3)) ** (1 / exponent), atol=1e-4)


@torch.no_grad()
def test_batch_norm_of_a_size_has_the_statistics_of_the_training_images(frozen):
    model, levels = images_of(frozen, View(48), "train")
    first = next(m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    inputs = []
    hook = first.register_forward_hook(lambda _, x, y: inputs.append(x[0]))
    model.backbone(levels)
    hook.remove()
    fitted = frozen._with_own_norm(model, View(48))
    norm = next(m for m in fitted.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert torch.allclose(norm.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-4)
    assert not torch.allclose(first.running_mean, norm.running_mean, atol=1e-4)


def test_test_time_augmentation_is_the_mean_of_probabilities(frozen, tmp_path):
    frozen._splits["test"] = frozen._splits["val"]
    create = Creator("srnn_test_resnet", 3, pretrained=False)
    fits = Fits(frozen, create.of_levels, recipe("probe", epochs=2), [0.01], [0], tmp_path / "fits.jsonl")
    fit, read = Fit((View(32),), "vanilla_scalar", 0.01), [View(32), View(48, flipped=True)]
    model = fits._fitted(fit, 0)
    expected = sum(evaluate_features(model, frozen.features([view], "val"))[0].softmax(1) for view in read) / 2
    [answers] = fits.augmented(fit, read)
    assert torch.allclose(answers.test.logits[0].softmax(1), expected, atol=1e-5)
    assert answers.test.gmacs.tolist() == pytest.approx([frozen.gmacs(View(32)) + frozen.gmacs(View(48))])


@pytest.mark.parametrize("variant", ["vanilla_scalar", "half_gru_diag"])
def test_a_fit_trains_the_cell_and_each_begins_where_the_first_did(variant, frozen, tmp_path):
    create = Creator("srnn_test_resnet", 3, pretrained=False)
    fits = Fits(frozen, create.of_levels, FEW_EPOCHS, (0.01,), (0,), tmp_path / "fits.jsonl")
    fit = Fit((View(32), View(48)), variant, 0.01)
    start = create.of_levels(2, variant).cell.state_dict()
    once, again = ({k: v.clone() for k, v in fits._fitted(fit, 0).cell.state_dict().items()} for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    moved = {name for name in start if not torch.equal(once[name], FEW_EPOCHS.recurrence * start[name])}
    assert moved == set(start)


def test_the_same_call_goes_on_and_a_larger_one_computes_what_is_new(class_folders, tmp_path, monkeypatch):
    found = compare("srnn_test_resnet", class_folders, tmp_path / "run", **SMALL)
    assert [way.name for way in found.ways] == ROWS
    with (tmp_path / "run" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [line.name for line in found.lines]
    assert all(0 <= float(row["accuracy"]) <= 100 for row in rows)
    assert found.sentence in (tmp_path / "run" / "table.md").read_text()
    assert "halves of one split" in found.caption
    monkeypatch.setattr(FrozenViews, "_extract", lambda *_: pytest.fail("features were there"))
    again = compare("srnn_test_resnet", class_folders, tmp_path / "run", **SMALL)
    assert again.to_csv() == found.to_csv()
    with (tmp_path / "run" / "fits.jsonl").open("a") as file:
        file.write('\n["cut by an interr')
    small = {**SMALL, "sizes": (32,), "variants": ["vanilla"], "seeds": 2}
    more = compare("srnn_test_resnet", class_folders, tmp_path / "run", **small)
    ours = [way.name for way in more.ways if way.group == "SRNN"]
    assert ours == ["vanilla 32 + 32 zoom 1.25", "vanilla 32 zoom 1.25 + 32"]
    assert all(len(line.of_seeds) == 2 for line in more.lines)
    known = (tmp_path / "run" / "fits.jsonl").read_text()
    other = compare(
        "srnn_test_resnet", class_folders, tmp_path / "run", **{**small, "settings": recipe("probe", epochs=3)}
    )
    assert other.to_csv() != more.to_csv()
    assert (tmp_path / "run" / "fits.jsonl").read_text().startswith(known)


@pytest.mark.slow
def test_other_images_are_read_anew(class_folders, tmp_path):
    broken = class_folders / "val" / "red" / "0.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    small = {**SMALL, "zooms": (), "variants": ["vanilla_scalar"]}
    assert "0.png" in " ".join(compare("srnn_test_resnet", class_folders, tmp_path / "run", **small).skipped)
    broken.write_bytes(whole)
    again = compare("srnn_test_resnet", class_folders, tmp_path / "run", **small)
    assert again.skipped == ()
    fresh = compare("srnn_test_resnet", class_folders, tmp_path / "other", **small)
    assert again.to_csv() == fresh.to_csv()


def test_a_test_split_measures_where_there_is_one_and_damaged_images_are_listed(class_folders, tmp_path):
    shutil.copytree(class_folders / "val", class_folders / "test")
    (class_folders / "test" / "red" / "0.png").write_bytes(b"no image")
    found = compare("srnn_test_resnet", class_folders, tmp_path / "run", **{**SMALL, "zooms": ()})
    assert "halves" not in found.caption
    assert [reason for reason in found.skipped if "0.png" in reason]
    assert not [way.name for way in found.ways if "zoom" in way.name or "crop" in way.name]
    assert len(found.ways[0].answers[0].test.targets) == 8


def test_a_backbone_of_tokens_has_no_generalised_means_and_no_batch_norm(class_folders, tmp_path):
    small = {**SMALL, "sizes": (160, 192), "zooms": (), "variants": ["vanilla_scalar"]}
    found = compare("srnn_test_vit", class_folders, tmp_path / "run", **small)
    names = " ".join(way.name for way in found.ways)
    assert "GeM" not in names
    assert "FixRes" not in names
    assert "cascade 160 + 192, all answer" in names


def test_the_command_prints_the_table_draws_it_and_lists_what_it_skipped(class_folders, tmp_path):
    (class_folders / "train" / "red" / "0.png").write_bytes(b"no image")
    options = ("--sizes", "32,48", "--zooms", "1.25", "--seeds", 1, "--rates", "0.01", "--epochs", 2, "--workers", 0)
    options += ("--model", "srnn_test_resnet", "--no-pretrained", "--plot", tmp_path / "compare.png")
    said = run("compare", class_folders, "--output", tmp_path / "run", *options)
    assert said.code == 1
    assert "skipped 1 of 33 images" in said.err
    assert "0.png" in said.err
    assert said.out == (tmp_path / "run" / "table.md").read_text()
    with Image.open(tmp_path / "compare.png") as image:
        assert image.width > 500
    [command] = [line for line in said.err.splitlines() if "srnn-zoo train" in line]
    words = shlex.split(command.partition("srnn-zoo ")[2])[:-1]  # without the folder of the output
    assert run(*words, tmp_path / "best", "--workers", 0).code == 0
    assert (tmp_path / "best" / "best" / "config.json").is_file()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--zooms", "1,1.6"), "zooms to try must be more than 1"),
        (("--zooms", "wide"), "--zooms takes numbers"),
        (("--sizes", "336,224"), "grow"),
        (("--rates", "fast"), "--rates takes numbers"),
        (("--variants", "vanila"), "vanilla"),
        (("--variants", "half_gru_map"), "reads maps"),
        (("--variants", "concat"), "concat"),
        (("--rule", "margn"), "margin"),
        (("--test", "nowhere"), "nowhere"),
        (("--sizes", "32", "--zooms", "none"), "an SRNN needs two levels"),
        (("--model", "local-dir:saved"), "is a saved model"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_the_work(class_folders, tmp_path, options, reason):
    small = ("--model", "srnn_test_resnet", "--no-pretrained")
    assert reason in refused("compare", class_folders, "--output", tmp_path / "run", *small, *options)
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.slow
@pytest.mark.data
def test_eight_classes_take_less_than_three_minutes(grocery, tmp_path):
    names = sorted(path.name for path in (grocery / "val").iterdir())[:8]
    for split in ("train", "val", "test"):
        for name in names:
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / split / name).symlink_to((grocery / split / name).resolve())
    said = run("compare", tmp_path / "data", "--output", tmp_path / "run", "--sizes", "112,168", "--zooms", "1.6")
    assert said.code == 0
    assert "GMACs an image use" in said.out
