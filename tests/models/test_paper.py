"""The paper's exact consequences, on real images with real ImageNet weights."""

import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from srnn_zoo import create_model, create_transform
from srnn_zoo.models.base_cnn import create_base_cnn

NAME = "srnn_tf_efficientnet_lite0"


def targets(paths):
    names = ImageNetInfo().label_names()
    return torch.tensor([names.index(path.parent.name) for path in paths])


@pytest.fixture(scope="module")
def base_cnn():
    return create_base_cnn("tf_efficientnet_lite0").eval()


@pytest.fixture(scope="module")
def levels(imagenet_sample, lite0):
    transform = create_transform(lite0, sizes=(96, 160, 224))
    images = [transform(Image.open(p).convert("RGB")) for p in imagenet_sample[:6]]
    return [torch.stack(level) for level in zip(*images, strict=True)]


@pytest.mark.parametrize("count", [6, pytest.param(300, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_half_gru_with_two_levels_is_the_logit_ensemble(count, imagenet_sample, lite0, base_cnn):
    transform, logits = create_transform(lite0), []
    for path in imagenet_sample[:count]:  # the backbone, which is the base CNN's, reads every level once for both
        features = [lite0.level_features(level[None]) for level in transform(Image.open(path).convert("RGB"))]
        both = [base_cnn.get_classifier()(level) for level in features]
        logits.append(torch.stack([*both, lite0.forward_head(lite0.fuse(features))]))
    small, large, half_gru = torch.cat(logits, dim=1)
    ensemble = (small + large) / 2
    assert torch.equal(half_gru.argmax(1), ensemble.argmax(1))
    assert (half_gru - ensemble).abs().max() <= 1e-4
    if count > 6:  # training images of ImageNet: a check of the pipeline, not an accuracy; chance is 0.1 %
        for answers, least in ((small, 0.85), (half_gru, 0.85), (large, 0.75)):
            assert (answers.argmax(1) == targets(imagenet_sample)).float().mean() >= least


@torch.inference_mode()
def test_vanilla_sums_the_logits_counts_the_bias_once_and_with_one_level_is_the_base_cnn(levels, base_cnn):
    """n · mean - (n - 1) · b of the levels' logits, in float64."""
    vanilla = create_model(NAME, variant="vanilla", pretrained=True).eval()
    for level in levels:
        assert torch.equal(vanilla([level]), base_cnn(level))
    vanilla, doubles = vanilla.double(), [level[:2].double() for level in levels]
    logits = torch.stack([vanilla([level]) for level in doubles])
    for height in (1, 2, 3):
        expected = height * logits[:height].mean(0) - (height - 1) * vanilla.fc.bias
        assert (vanilla(doubles[:height]) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("variant", ["mean_logit", "mean_prob", "concat"])
@torch.inference_mode()
def test_the_ensembles_are_the_papers(levels, base_cnn, variant):
    scales = [size / 224 for size in (96, 160, 224)]
    model = create_model(NAME, variant=variant, scales=scales, pretrained=True).eval()
    logits = torch.stack([base_cnn(level) for level in levels])
    expected = logits.softmax(2).mean(0) if variant == "mean_prob" else logits.mean(0).softmax(1)
    assert torch.allclose(model(levels).softmax(1), expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["gru", "lstm", "mgu"])  # the tests above are of the others
@torch.inference_mode()
def test_a_pretrained_classifier_works_at_once_in_every_recurrent_cell(levels, imagenet_sample, variant):
    top5 = create_model(NAME, variant=variant, pretrained=True).eval()(levels[1:]).topk(5).indices
    assert (top5 == targets(imagenet_sample[:6])[:, None]).any(1).sum() >= 5
