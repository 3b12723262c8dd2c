"""A model that was changed since it was made: it comes back equal, or saving says what to do."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from srnn_zoo import SRNN, create_model
from srnn_zoo.datasets.classes import class_names

from .test_hub import same_again


@pytest.mark.parametrize("num_classes", [3, 5, 7])
def test_a_linear_layer_takes_the_classifiers_place_and_as_many_classes_keep_their_names(num_classes, tmp_path):
    model = create_model("srnn_test_resnet", num_classes=5).eval()
    model.pretrained_cfg["label_names"] = tuple("abcde")
    model.zero_shot = True
    model.fc = nn.Linear(model.num_features, num_classes)
    assert (model.num_classes, model.zero_shot) == (num_classes, False)
    names = list("abcde") if num_classes == 5 else [f"class {index}" for index in range(num_classes)]
    assert class_names(model) == class_names(same_again(model, tmp_path)) == names


def test_tied_tensors_come_back_equal(tmp_path):
    model = create_model("srnn_test_resnet", num_classes=5, exits="separate").eval()
    model.exit_classifiers[0].weight = model.fc.weight
    images = torch.rand(2, 3, 64, 64)
    for ours, theirs in zip(model.steps(images), same_again(model, tmp_path).steps(images), strict=True):
        assert torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: prune.l1_unstructured(m.fc, "weight", amount=0.5),
            r"fc\.weight_orig, .*make the pruning permanent first \(torch\.nn\.utils\.prune\.remove\)",
        ),
        (
            lambda m: setattr(m, "fc", nn.Sequential(nn.Linear(m.num_features, 3))),
            r"fc\.0\.weight, .*a classifier is one linear layer .* use model\.reset_classifier",
        ),
        (
            lambda m: setattr(m, "fc", nn.Linear(m.num_features, 9)),  # and not those of the other exits
            r"exit_classifiers\.0\.weight, exit_classifiers\.0\.bias; a classifier is one linear layer for each exit",
        ),
        (lambda m: parametrizations.weight_norm(m.fc), r"fc\.parametrizations\..*remove the parametrisation first"),
        (lambda m: setattr(m.backbone, "extra", nn.Linear(2, 2)), r"backbone\.extra\..*make it by name"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(change, message, tmp_path):
    model = create_model("srnn_test_resnet", num_classes=5, exits="separate")
    change(model)
    with pytest.raises(ValueError, match=f"could not be loaded as srnn_test_resnet: .*{message}"):
        model.save_pretrained(tmp_path / "net")
    assert not [*tmp_path.glob("net/*")]


def test_a_backbone_that_no_argument_describes_is_refused(tmp_path):
    model = SRNN(timm.create_model("resnet18", num_classes=0, stem_type="deep", stem_width=32, avg_down=True))
    with pytest.raises(ValueError, match=r"as srnn_resnet18: backbone\.conv1\.0\.weight, .* and \d+ more; make"):
        model.save_pretrained(tmp_path)
    model = create_model(
        "srnn_resnet18", stem_type="deep", stem_width=32, avg_down=True, num_classes=2, img_size=96
    ).eval()
    same_again(model, tmp_path)
