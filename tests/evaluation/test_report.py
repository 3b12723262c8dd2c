"""The report: which images are chosen, figures whose right value is known, and a page that needs nothing else."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from srnn_zoo.evaluation import evaluate
from srnn_zoo.evaluation.by_level import ByLevel, rule_for
from srnn_zoo.evaluation.pictures import levels_read, normalization, picture_of, with_map
from srnn_zoo.evaluation.report import check_report_file
from srnn_zoo.evaluation.report_figures import reliability
from srnn_zoo.inference.exits import Confidence

from .conftest import FRUIT, pyramids


def collected(first, last, targets, **options):
    """What is collected of a model of two levels that says this, as the probabilities of classes."""
    model = SimpleNamespace(
        cell=SimpleNamespace(anytime=True),
        level_sizes=lambda: [(32, 32), (64, 64)],
        level_gmacs=lambda size: size[0] / 32,
        temperature=lambda level: 1.0,
        exit_logits=lambda features: [torch.tensor(values).log() for values in (first, last)],
    )
    found = ByLevel("a", model, **options)  # pyright: ignore
    images = [torch.arange(len(targets)).float().view(-1, 1, 1, 1).expand(-1, 3, size, size) for size in (2, 4)]
    found.keep(found.look([str(n) for n in range(len(targets))], torch.tensor(targets), [], images))
    return found


def test_the_most_changed_and_the_surest_mistakes_are_kept_best_first():
    first = [[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4]]
    last = [[0.1, 0.9], [0.3, 0.7], [0.7, 0.3], [0.1, 0.9], [0.4, 0.6], [0.3, 0.7]]
    found = collected(first, last, [1, 1, 1, 0, 0, 1], rule=Confidence(0.7))
    names = {group: [example.name for example in found.examples(group)] for group in ("mended", "spoiled", "worst")}
    assert names == {"mended": ["0", "1", "5"], "spoiled": ["2"], "worst": ["3", "4"]}
    best = found.examples("mended")[0]
    assert (best.target, best.answers) == (1, (0, 1))
    assert best.confidences == pytest.approx((0.9, 0.9))
    assert best.truths == pytest.approx((0.1, 0.9))
    assert [level[0, 0, 0, 0].item() for level in found.examples("worst")[0].images] == [3, 3]
    assert found.stopped_at.tolist() == [0, 1, 1, 0, 0, 1]  # pyright: ignore
    assert found.gmacs == [1, 3]
    few = collected(first, last, [1, 1, 1, 0, 0, 1], most=1)
    assert [example.name for example in few.examples("mended")] == ["0"]
    assert few.stopped_at is None


def test_logits_that_are_no_numbers_are_wrong_and_never_sure():
    found = collected([[0.9, 0.1]], [[float("nan"), 0.1]], [0])
    assert found.answers.tolist() == [[0], [-1]]
    assert found.confidences[1].item() == 0
    assert [example.name for example in found.examples("spoiled")] == ["0"]


def test_the_calibration_error_is_the_distance_to_the_diagonal_by_images():
    right = torch.tensor([True] * 8 + [False] * 2 + [True] * 3 + [False] * 7)
    means, shares, counts, error = reliability(right, torch.tensor([0.85] * 10 + [0.55] * 10))
    assert means == pytest.approx([0.55, 0.85])
    assert shares == pytest.approx([0.3, 0.8])
    assert counts.tolist() == [10, 10]
    assert error == pytest.approx((0.25 + 0.05) / 2)


def test_a_picture_shows_the_level_and_is_red_where_its_map_is_high(model, fruit):
    level = next(iter(pyramids(model, fruit).values()))[1]
    picture = picture_of(levels_read(model, [level])[0], normalization(model))
    assert picture.size == (64, 64)
    assert model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    wanted = 255 * (level[0] * 0.5 + 0.5)
    pixels = np.asarray(picture).astype(float)
    assert np.abs(pixels.transpose(2, 0, 1) - wanted.numpy()).max() <= 1
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    warm = np.asarray(with_map(grey, torch.tensor([[-5.0, 0.0], [0.0, 3.0]]))).astype(int)
    assert warm[0, 0].tolist() == [100, 100, 100]  # what speaks against the answer has no colour
    assert warm[-1, -1, 0] > 170
    assert warm[-1, -1, 1:].max() < 60


def test_the_page_has_the_tables_figures_every_class_and_its_images_and_asks_for_nothing(make, fruit, tmp_path):
    model, file = make(names=("<b>fig", *FRUIT[1:])), tmp_path / "report.html"
    table = evaluate({"a & b": model, "once": make("concat")}, fruit, report=file)
    page = file.read_text(encoding="utf-8")
    for row in table.rows[-2:]:
        assert f"<b>{100 - row.top1_error:.1f} %</b><span>right after all levels" in page
        assert f"<td>{100 - row.top1_error:.2f}<td>" in page
    assert "a &amp; b" in page
    assert "<b>fig" not in page
    assert all(f"<tr><td>{name}<td>5<td>" in page for name in FRUIT[1:6])  # five images each
    assert not re.findall(r'(?:src|href)="(?!data:image/(?:jpeg|png);base64,|#)', page)
    assert not re.findall(r"url\((?!#)", page)
    assert page.count("<svg") == 2 * 2 + 3  # accuracy and confusion of both, reliability of three answers
    mended = int(re.search(r"mended: wrong, then right: (\d+)", page)[1])  # pyright: ignore
    assert mended == int((table.row("a & b").correct & ~evaluate_first(model, fruit)).sum())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@torch.no_grad()
def evaluate_first(model, fruit):
    """Which images the first level answers rightly."""
    answers = {path: next(iter(model.steps(levels))).logits.argmax() for path, levels in pyramids(model, fruit).items()}
    return torch.tensor([FRUIT[answer] == path.parent.name for path, answer in answers.items()])


def test_an_exit_rule_says_where_images_stopped(model, fruit, tmp_path):
    evaluate(model, fruit, report=tmp_path / "report.html", exit="level:0")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "32 × 32: 25 images (100 %)" in page
    assert "64 × 64: 0 images (0 %)" in page


def test_what_cannot_be_reported_is_refused_before_the_work(make, model, fruit, tmp_path):
    for arguments, reason in (
        ({"report": tmp_path / "report.pdf"}, "a report is a page: call it 'report.html', not 'report.pdf'"),
        ({"report": tmp_path / "none" / "report.html"}, "no folder .*none to write to"),
        ({"exit": "confidence:0.9"}, "an exit rule is for the report"),
        ({"report": tmp_path / "a.html", "exit": "confidense:0.9"}, "unknown exit rule 'confidense'"),
        ({"report": tmp_path / "a.html", "exit": "deadline:50"}, "a deadline depends on the clock"),
        ({"report": tmp_path / "a.html", "exit": "calibrated"}, "the model was never calibrated"),
    ):
        with pytest.raises(ValueError, match=reason):
            evaluate(model, "no such folder", **arguments)
    with pytest.raises(ValueError, match="answers after the last level only"):
        rule_for(make("concat"), "level:0")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'a report needs scikit-learn: pip install "srnn-zoo\[report\]"'):
        check_report_file(tmp_path / "a.html")
