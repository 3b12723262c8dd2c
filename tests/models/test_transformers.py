"""transformers opens what we saved, and we open what transformers saved, with equal logits."""

import json
from collections import Counter

import pytest
import torch
from PIL import Image

from srnn_zoo import SRNN, create_transform
from srnn_zoo.datasets.classes import class_names
from srnn_zoo.inference.predict import predict
from tests.conftest import SKIMAGE
from tests.models.harness import trained

transformers = pytest.importorskip("transformers")
NAMES = ["setosa", "versicolor", "virginica"]
PHOTOGRAPHS = (
    "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png horse.png "
    "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png page.png retina.jpg rocket.jpg"
).split()


def open_auto(source, **options):
    model = transformers.AutoModelForImageClassification.from_pretrained(source, **options).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # it maps the file, and unaligned memory rounds differently
    return model


@torch.inference_mode()
def assert_same_answers(ours, theirs, output="logits"):
    images = torch.randn(2, ours.in_chans, 128, 128)
    assert torch.equal(theirs(pixel_values=images)[output], ours(images))


@pytest.mark.parametrize(
    ("backbone", "variant"),
    [
        *(("test_resnet", variant) for variant in ("half_gru", "concat", "mgu")),
        ("test_convnext", "gru"),
        ("test_vit", "mean_prob"),
    ],
)
def test_transformers_opens_what_we_saved(backbone, variant, tmp_path):
    options = {"num_classes": 3, "scales": (0.25, 0.5, 1.0), "in_chans": 1, "img_size": 128}
    model = trained(f"srnn_{backbone}", variant=variant, **options)
    model.save_pretrained(tmp_path, label_names=NAMES)
    theirs = open_auto(tmp_path)
    assert_same_answers(model, theirs)
    assert theirs.config.id2label == dict(enumerate(NAMES))


def test_it_opens_from_the_hub_and_gives_features_without_a_classifier(hub, cache, tmp_path):
    model, token = trained(), hub.token("ada")
    model.push_to_hub("ada/net", token=token, private=True)
    assert_same_answers(model, open_auto("ada/net", cache_dir=cache, token=token))
    model.reset_classifier(0)
    model.save_pretrained(tmp_path / "net")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "net").eval()
    assert_same_answers(model, theirs, output="pooler_output")


def test_its_image_processor_makes_our_largest_level(lite0, tmp_path):
    lite0.save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = Image.effect_noise((500, 600), 80).convert("RGB")
    assert torch.allclose(processor(image).pixel_values[0], create_transform(lite0, exact=True)(image)[-1], atol=1e-6)
    assert open_auto(tmp_path).config.id2label[281].startswith("tabby")


@pytest.mark.parametrize("variant", ["half_gru", "mean_prob"])
def test_what_transformers_saved_opens_here_and_a_new_classifier_of_it_has_no_old_names(variant, tmp_path):
    model = trained(num_classes=3, variant=variant)
    model.save_pretrained(tmp_path / "ours", label_names=NAMES, metrics={"iris": {"top1": 97.0}})
    for options, names in (({}, NAMES), ({"num_labels": 5}, [f"class {index}" for index in range(5)])):
        theirs = open_auto(tmp_path / "ours", ignore_mismatched_sizes=True, **options)
        torch.nn.init.normal_(theirs.timm_model.fc.weight)
        theirs.save_pretrained(tmp_path / "theirs")
        loaded = SRNN.from_pretrained(tmp_path / "theirs").eval()
        assert_same_answers(loaded, theirs)
        assert class_names(loaded) == names
        config = json.loads((tmp_path / "theirs" / "config.json").read_text())
        assert config["num_classes"] == loaded.num_classes == len(names)
        if names == NAMES:
            assert loaded.metadata == {"metrics": {"iris": {"top1": 97.0}}}


def through_the_pipeline(folder, model, files):
    """The probabilities of `transformers.pipeline` and of `predict` after the last level, `(N, K)` each."""
    classify = transformers.pipeline("image-classification", model=str(folder))
    theirs = classify(list(map(str, files)), top_k=model.num_classes)
    ours = [prediction.answers[-1].top for prediction in predict(model, files, topk=model.num_classes)]
    found = [by_name((answer["label"], answer["score"]) for answer in answers) for answers in theirs]
    expected = [by_name(top) for top in ours]
    assert [set(answers) for answers in found] == [set(answers) for answers in expected]
    return [
        torch.tensor([[answers[name] for name in sorted(answers)] for answers in each]) for each in (found, expected)
    ]


def by_name(top):
    """Two of ImageNet's classes have one name, crane."""
    found = Counter()
    for name, probability in top:
        found[name] += probability
    return found


def test_the_pipeline_answers_as_predict_does_after_the_last_level(tmp_path):
    model = trained(num_classes=3, img_size=64)
    model.save_pretrained(tmp_path, label_names=NAMES)
    model = SRNN.from_pretrained(tmp_path).eval()
    found, expected = through_the_pipeline(tmp_path, model, [SKIMAGE / "chelsea.png", SKIMAGE / "coffee.png"])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.slow
def test_what_the_pipelines_one_tensor_loses_is_what_the_docs_say(lite0, tmp_path):
    lite0.save_pretrained(tmp_path)
    found, expected = through_the_pipeline(tmp_path, lite0, [SKIMAGE / name for name in PHOTOGRAPHS])
    assert found.argmax(dim=1).tolist() == expected.argmax(dim=1).tolist()
    *most, worst = sorted((found - expected).abs().amax(dim=1).tolist())
    assert most[len(PHOTOGRAPHS) // 2] <= 0.003
    assert most[-1] <= 0.01
    assert worst <= 0.08  # of the moon
