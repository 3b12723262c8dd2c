"""transformers opens what we saved, and we open what transformers saved, with equal logits."""

import json

import pytest
import torch
from PIL import Image

from srnn_zoo import SRNN, create_model, create_transform, list_cells
from srnn_zoo.datasets.classes import class_names
from tests.models.harness import trained

transformers = pytest.importorskip("transformers")
NAMES = ["setosa", "versicolor", "virginica"]


def open_auto(source, **options):
    model = transformers.AutoModelForImageClassification.from_pretrained(source, **options).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # it maps the file, and unaligned memory rounds differently
    return model


@pytest.mark.parametrize(
    ("backbone", "variant"),
    [*(("test_resnet", variant) for variant in list_cells()), ("test_convnext", "gru"), ("test_vit", "mean_prob")],
)
def test_transformers_opens_every_variant(backbone, variant, tmp_path):
    options = {"num_classes": 3, "scales": (0.25, 0.5, 1.0), "in_chans": 1, "img_size": 128}
    model = trained(f"srnn_{backbone}", variant=variant, **options)
    model.save_pretrained(tmp_path, label_names=NAMES)
    images = torch.randn(2, 1, 128, 128)
    theirs = open_auto(tmp_path)
    with torch.inference_mode():
        assert torch.equal(theirs(pixel_values=images).logits, model(images))
    assert theirs.config.id2label == dict(enumerate(NAMES))


def test_it_opens_from_the_hub(hub, cache):
    model = trained("srnn_test_resnet", num_classes=3)
    token = hub.token("ada")
    model.push_to_hub("ada/net", token=token, private=True)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(open_auto("ada/net", cache_dir=cache, token=token)(images).logits, model(images))


def test_its_image_processor_makes_our_largest_level(lite0, tmp_path):
    lite0.save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = Image.effect_noise((500, 600), 80).convert("RGB")
    levels = create_transform(lite0)(image)
    assert torch.allclose(processor(image).pixel_values[0], levels[-1], atol=1e-6)
    assert open_auto(tmp_path).config.id2label[281].startswith("tabby")


@pytest.mark.parametrize("variant", ["half_gru", "mean_prob"])
def test_what_transformers_saved_opens_here(variant, tmp_path):
    model = trained("srnn_test_resnet", num_classes=3, variant=variant)
    model.save_pretrained(tmp_path / "ours", label_names=NAMES, metrics={"iris": {"top1": 97.0}})
    theirs = open_auto(tmp_path / "ours")
    torch.nn.init.normal_(theirs.timm_model.fc.weight)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = SRNN.from_pretrained(tmp_path / "theirs").eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(loaded(images), theirs(images).logits)
    assert class_names(loaded) == NAMES
    assert loaded.metadata == {"metrics": {"iris": {"top1": 97.0}}}


def test_a_new_classifier_of_transformers_has_no_old_names(tmp_path):
    trained("srnn_test_resnet", num_classes=3).save_pretrained(tmp_path / "ours", label_names=NAMES)
    theirs = open_auto(tmp_path / "ours", num_labels=5, ignore_mismatched_sizes=True)
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["num_classes"] == 5
    loaded = SRNN.from_pretrained(tmp_path / "theirs")
    assert loaded.num_classes == 5
    assert class_names(loaded) == [f"class {index}" for index in range(5)]


def test_features_of_a_model_without_classifier(tmp_path):
    model = create_model("srnn_test_resnet", num_classes=0).eval()
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(theirs(images).pooler_output, model(images))
