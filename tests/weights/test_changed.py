"""A model that was changed since it was made: it comes back equal, or saving says what to do."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from srnn_zoo import SRNN, create_model
from srnn_zoo.datasets.classes import class_names

IMAGES = torch.rand(2, 3, 64, 64)


def again(model, folder):
    model.save_pretrained(folder)
    return SRNN.from_pretrained(folder).eval()


@pytest.mark.parametrize("num_classes", [3, 7])
def test_a_linear_layer_may_take_the_classifiers_place(num_classes, tmp_path):
    model = create_model("srnn_test_resnet", num_classes=5).eval()
    model.pretrained_cfg["label_names"] = tuple("abcde")
    model.zero_shot = True
    model.fc = nn.Linear(model.num_features, num_classes)
    assert (model.num_classes, model.zero_shot) == (num_classes, False)
    assert class_names(model) == [f"class {index}" for index in range(num_classes)]
    loaded = again(model, tmp_path)
    assert loaded.num_classes == num_classes
    assert torch.equal(loaded(IMAGES), model(IMAGES))


def test_a_classifier_of_as_many_classes_keeps_their_names(tmp_path):
    model = create_model("srnn_test_resnet", num_classes=2)
    model.pretrained_cfg["label_names"] = ("cat", "dog")
    model.fc = nn.Linear(model.num_features, 2)
    assert class_names(again(model, tmp_path)) == ["cat", "dog"]


def test_tied_tensors_come_back_equal(tmp_path):
    model = create_model("srnn_test_resnet", num_classes=5, exits="separate").eval()
    model.exit_classifiers[0].weight = model.fc.weight
    loaded = again(model, tmp_path)
    for ours, theirs in zip(model.steps(IMAGES), loaded.steps(IMAGES), strict=True):
        assert torch.equal(ours.logits, theirs.logits)


def pruned(model):
    prune.l1_unstructured(model.fc, "weight", amount=0.5)


def parametrised(model):
    parametrizations.weight_norm(model.fc)


def sequential(model):
    model.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(model.num_features, 3))


def only_the_last(model):
    model.fc = nn.Linear(model.num_features, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pruned, r"fc\.weight_orig, .*make the pruning permanent first \(torch\.nn\.utils\.prune\.remove\)"),
        (parametrised, r"fc\.parametrizations\..*remove the parametrisation first"),
        (sequential, r"fc\.1\.weight, .*a classifier is one linear layer .* use model\.reset_classifier"),
        (
            only_the_last,
            r"exit_classifiers\.0\.weight, exit_classifiers\.0\.bias; a classifier is one linear layer for each exit",
        ),
        (
            lambda model: setattr(model.backbone, "extra", nn.Linear(2, 2)),
            r"backbone\.extra\..*make it by name",
        ),
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
    model = create_model("srnn_resnet18", stem_type="deep", stem_width=32, avg_down=True, num_classes=2).eval()
    assert torch.equal(again(model, tmp_path)(IMAGES), model(IMAGES))
