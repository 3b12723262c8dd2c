"""A folder of fruit, and models that know it."""

import pytest
from PIL import Image

import srnn_zoo

FRUIT = ("apple", "pear", "plum", "quince")


@pytest.fixture
def folder(tmp_path):
    """Two splits; the second lacks two classes, and has a broken image."""
    for split, names in {"train": FRUIT, "val": ("pear", "quince")}.items():
        for number, name in enumerate(names):
            (tmp_path / "fruit" / split / name / "deeper").mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (20, 30), (60 * number, index, 0)).save(
                    tmp_path / "fruit" / split / name / ("deeper" if index else ".") / f"{index}.png"
                )
    (tmp_path / "fruit" / "val" / "pear" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "fruit" / "val" / "pear" / "notes.txt").write_text("no image either")
    return tmp_path / "fruit"


@pytest.fixture(scope="module")
def make_model():
    """A model with these names of its classes, or with none."""

    def make_model(names=(), num_classes=4):
        model = srnn_zoo.create_model("srnn_test_resnet", num_classes=num_classes, img_size=64).eval()
        model.pretrained_cfg |= {"label_names": names} if names else {}
        return model

    return make_model


@pytest.fixture(scope="module")
def named(make_model):
    """A model of all four classes, not in alphabetical order."""
    return make_model(FRUIT[::-1])
