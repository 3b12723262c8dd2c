"""Evaluation on images of ImageNet classes: class indices from WordNet ids, and figures that were recorded."""

import csv

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.datasets.classes import label_names
from srnn_zoo.evaluation.compare import evaluate
from tests.conftest import ROOT


@pytest.mark.data
def test_ten_imagenet_images_with_ten_right_answers(lite0, imagenet_sample, tmp_path):
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
    ids = label_names(lite0)
    assert row.correct.tolist() == [
        ids[int(k)] == path.parent.name for k, path in zip(answers, imagenet_sample, strict=False)
    ]
    assert row.correct.sum() >= 7


@pytest.mark.slow
@pytest.mark.data
def test_the_recorded_zero_shot_figures_come_out_again(imagenet_sample):
    models = [
        srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True, variant=variant).eval()
        for variant in ("vanilla", "half_gru")
    ]
    table = evaluate(models, imagenet_sample[0].parent.parent)
    path = ROOT / "results" / "zero_shot_imagenet_sample.csv"
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
