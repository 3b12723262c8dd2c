"""transformers opens what we saved, and we open what transformers saved, with equal logits."""

import json

import pytest
import torch
from PIL import Image

from srnn_zoo import SRNN, create_transform
from srnn_zoo.datasets.classes import class_names
from tests.models.harness import trained

transformers = pytest.importorskip("transformers")
NAMES = ["setosa", "versicolor", "virginica"]


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
