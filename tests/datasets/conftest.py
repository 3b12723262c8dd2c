"""A folder of fruit, and models that know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import srnn_zoo
from srnn_zoo import SRNN

FRUIT = ("apple", "pear", "plum", "quince")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
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
def make_model() -> Callable[..., SRNN]:
    """A model with these names of its classes, or with none."""

    def make_model(names: tuple[str, ...] = (), num_classes: int = 4) -> SRNN:
        model = srnn_zoo.create_model("srnn_test_resnet", num_classes=num_classes, img_size=64).eval()
        model.pretrained_cfg |= {"label_names": names} if names else {}
        return model

    return make_model


@pytest.fixture(scope="module")
def named(make_model: Callable[..., SRNN]) -> SRNN:
    """A model of all four classes, not in alphabetical order."""
    return make_model(FRUIT[::-1])
