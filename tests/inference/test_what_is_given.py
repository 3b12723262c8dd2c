"""What a new user gives first: one image in any form, and what is meant but written in another way."""

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from srnn_zoo import Pyramid, budget_rule, collect, create_model, create_transform
from srnn_zoo.inference.predict import predict
from tests.cli.command import run


@pytest.fixture
def model():
    return create_model("srnn_test_resnet", num_classes=3, img_size=64).eval()


def test_one_image_may_be_a_path_an_image_bytes_or_an_array(model, tmp_path):
    image = Image.effect_noise((80, 70), 60).convert("RGB")
    image.save(file := tmp_path / "a.png")
    buffer = io.BytesIO()
    image.rotate(90, expand=True).save(buffer, "JPEG")
    (expected,) = predict(model, [file])
    for given in (str(file), file, image, file.read_bytes(), np.asarray(image), [image], (x for x in [file])):
        (said,) = predict(model, given)
        assert said.answers == expected.answers
        assert said.path in (str(file), "image 0")
    assert [x.path for x in predict(model, [image, str(file), b"no image"])] == ["image 0", str(file), "image 2"]
    for given, error, message in (
        ([3], TypeError, "image 0 must be a path, a PIL image, bytes or an array; got int"),
        ([image, np.zeros((3, 8, 8))], ValueError, r"image 1: an array must be uint8 \(H, W\) or .*; got float64 of"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"got uint8 of shape \(8, 8, 4\)"),
    ):
        with pytest.raises(error, match=message):
            list(predict(model, given))


def test_mistakes_of_the_first_day_are_one_clear_sentence(model):
    image = Image.new("RGB", (64, 64))
    mixed = Pyramid.pack([[torch.rand(3, 32, 32)], [torch.rand(3, 32, 32), torch.rand(3, 64, 64)]])
    model.metadata["exit"] = {"rule": "confidence", "sizes": [[32, 32], [64, 64]], "thresholds": [0.5], "curve": []}
    for call, error, message in (
        (lambda: create_model("srnn_resnet18", "half_gru"), TypeError, "pretrained must .* is variant='half_gru'"),
        (lambda: create_model("srnn_resnet18", num_classes="5"), ValueError, "num_classes must be a whole .* got '5'"),
        (lambda: model(image), TypeError, r"a list of levels or a Pyramid; got Image \(srnn_zoo.create_transform"),
        (lambda: create_transform(model)("a.png"), TypeError, "got str: open it with PIL.Image.open"),
        (lambda: collect(model, [(mixed, torch.tensor([0, 1]))]), ValueError, "same sizes; got a batch of mixed h"),
        (lambda: budget_rule(model, 0.001, sizes=[96, 192]), ValueError, "was calibrated for levels of 32 x 32"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert model.label_names == ()
    model.pretrained_cfg["label_names"] = ("a", "b", "c")
    assert model.label_names == ("a", "b", "c")


def test_a_plot_holds_the_first_of_many_images_and_probabilities_that_are_no_numbers_are_null_in_json(model, tmp_path):
    model.get_parameter("fc.bias").data.fill_(math.nan)
    model.save_pretrained(tmp_path / "net")
    for number in range(14):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    said = run("predict", tmp_path, "--model", tmp_path / "net", "--json", "--plot", tmp_path / "out.jpg")
    answers = [json.loads(line, parse_constant=pytest.fail) for line in said.out.splitlines()]
    top = [entry for answer in answers for level in answer["levels"] for entry in level["top"]]
    assert [entry["probability"] for entry in top] == [None] * 6 * 14
    assert said.err.endswith("out.jpg: the first 12 of 14 images\n")
    assert (tmp_path / "out.jpg").stat().st_size > 10_000
