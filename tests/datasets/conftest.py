"""A folder of fruit, and models that know it."""

import pytest
from PIL import Image

import srnn_zoo

FRUIT = ("apple", "pear", "plum", "quince")


@pytest.fixture
def folder(tmp_path):
    """Two splits; the second lacks two classes, and has a broken image."""
    root = tmp_path / "fruit"
    for split, names in {"train": FRUIT, "val": ("pear", "quince")}.items():
        for number, name in enumerate(names):
            (root / split / name / "deeper").mkdir(parents=True)
            for index, file in enumerate(("0.png", "deeper/1.png")):
                Image.new("RGB", (20, 30), (60 * number, index, 0)).save(root / split / name / file)
    (root / "val" / "pear" / "broken.jpg").write_bytes(b"no image")
    (root / "val" / "pear" / "notes.txt").write_text("no image either")
    return root


def nameless(num_classes=4):
    return srnn_zoo.create_model("srnn_test_resnet", num_classes=num_classes, img_size=64).eval()


@pytest.fixture(scope="module")
def named():
    """A model of all four classes, not in alphabetical order."""
    model = nameless()
    model.pretrained_cfg["label_names"] = FRUIT[::-1]
    return model
