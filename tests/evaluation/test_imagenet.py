"""Evaluation on images of ImageNet classes: class indices from WordNet ids, and figures that were recorded."""

import csv

import pytest

import srnn_zoo
from srnn_zoo.evaluation.compare import evaluate
from tests.conftest import ROOT


@pytest.mark.data
@pytest.mark.slow
def test_ten_imagenet_images_with_ten_right_answers(lite0, imagenet_sample, tmp_path):
    """Class indices come from WordNet ids, not from the ten folders that are there."""
    for path in imagenet_sample[:10]:
        (tmp_path / path.parent.name).symlink_to(path.parent)
    assert evaluate(lite0, tmp_path).row("half_gru").correct.sum() >= 7


@pytest.mark.slow
@pytest.mark.data
def test_the_recorded_zero_shot_figures_come_out_again(imagenet_sample):
    name = "srnn_tf_efficientnet_lite0"
    models = [srnn_zoo.create_model(name, pretrained=True, variant=v).eval() for v in ("vanilla", "half_gru")]
    found = [int(row.correct.sum()) for row in evaluate(models, imagenet_sample[0].parent.parent, exact=True).rows]
    recorded = (ROOT / "results" / "zero_shot_imagenet_sample.csv").read_text(encoding="utf-8").splitlines()
    correct = {line["method"]: int(line["correct"]) for line in csv.DictReader(recorded) if line["model"] == name}
    methods = ("single scale, small", "single scale, large", "mean_prob", "mean_logit", "vanilla", "half_gru")
    assert found == [correct[method] for method in methods] == [266, 248, 266, 266, 267, 266]
