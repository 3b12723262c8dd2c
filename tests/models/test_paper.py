"""The paper's exact consequences, on real images with real ImageNet weights."""

from typing import NamedTuple

import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor

from srnn_zoo import create_model, create_transform
from srnn_zoo.models.base_cnn import create_base_cnn

NAME = "srnn_tf_efficientnet_lite0"


class Answers(NamedTuple):
    """What the base CNN alone and the half-GRU say of images; one row an image."""

    small: Tensor
    large: Tensor
    half_gru: Tensor
    targets: Tensor


def answers(paths, model):
    """The backbone, which the tests below show to be the base CNN's, reads every level once for both."""
    classifier = create_base_cnn("tf_efficientnet_lite0").get_classifier()
    transform = create_transform(model)
    names = ImageNetInfo().label_names()
    rows = []
    with torch.inference_mode():
        for path in paths:
            levels = transform(Image.open(path).convert("RGB"))
            features = [model.level_features(level[None]) for level in levels]
            rows.append((*(classifier(c) for c in features), model.forward_head(model.fuse(features))))
    targets = torch.tensor([names.index(path.parent.name) for path in paths])
    return Answers(*(torch.cat(column) for column in zip(*rows, strict=True)), targets)


def test_half_gru_with_two_levels_is_the_logit_ensemble(imagenet_sample, lite0):
    said = answers(imagenet_sample[:6], lite0)
    ensemble = (said.small + said.large) / 2
    assert torch.equal(said.half_gru.argmax(1), ensemble.argmax(1))
    assert (said.half_gru - ensemble).abs().max() <= 1e-4


@pytest.mark.slow
def test_on_300_images_it_is_so_too_and_they_are_recognised(imagenet_sample, lite0):
    """Training images of ImageNet: a check of the pipeline, not an accuracy. Far above chance (0.1 %)."""
    said = answers(imagenet_sample, lite0)
    ensemble = (said.small + said.large) / 2
    assert torch.equal(said.half_gru.argmax(1), ensemble.argmax(1))
    assert (said.half_gru - ensemble).abs().max() <= 1e-4
    for logits, least in ((said.small, 0.85), (said.half_gru, 0.85), (said.large, 0.75)):
        assert (logits.argmax(1) == said.targets).float().mean() >= least


@pytest.fixture(scope="module")
def few_levels(imagenet_sample, lite0):
    transform = create_transform(lite0, sizes=(128, 224, 320))
    images = [transform(Image.open(p).convert("RGB")) for p in imagenet_sample[:6]]
    return [torch.stack(level) for level in zip(*images, strict=True)]


def test_vanilla_with_one_level_is_the_base_cnn(few_levels):
    vanilla = create_model(NAME, variant="vanilla", pretrained=True).eval()
    base_cnn = create_base_cnn("tf_efficientnet_lite0").eval()
    with torch.inference_mode():
        for level in few_levels:
            assert torch.equal(vanilla([level]), base_cnn(level))


@pytest.mark.parametrize("height", [1, 2, 3])
def test_vanilla_with_n_levels_sums_the_logits_and_counts_the_bias_once(few_levels, height):
    """n · mean − (n − 1) · b of the levels' logits, in float64."""
    vanilla = create_model(NAME, variant="vanilla", pretrained=True).eval().double()
    levels = [level[:2].double() for level in few_levels[:height]]
    with torch.inference_mode():
        logits = torch.stack([vanilla([level]) for level in levels])
        expected = height * logits.mean(0) - (height - 1) * vanilla.fc.bias
        assert (vanilla(levels) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("variant", ["mean_logit", "mean_prob", "concat"])
def test_the_ensembles_are_the_papers(few_levels, variant):
    scales = [size / 320 for size in (128, 224, 320)]
    model = create_model(NAME, variant=variant, scales=scales, pretrained=True).eval()
    base_cnn = create_base_cnn("tf_efficientnet_lite0").eval()
    with torch.inference_mode():
        logits = torch.stack([base_cnn(level) for level in few_levels])
        expected = logits.softmax(2).mean(0) if variant == "mean_prob" else logits.mean(0).softmax(1)
        assert torch.allclose(model(few_levels).softmax(1), expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["vanilla", "half_gru", "gru", "lstm", "mgu"])
def test_a_pretrained_classifier_works_at_once_in_every_recurrent_cell(few_levels, imagenet_sample, variant):
    model = create_model(NAME, variant=variant, pretrained=True).eval()
    names = ImageNetInfo().label_names()
    targets = torch.tensor([names.index(p.parent.name) for p in imagenet_sample[:6]])
    with torch.inference_mode():
        top5 = model(few_levels[1:]).topk(5).indices
    assert (top5 == targets[:, None]).any(1).sum() >= 5
