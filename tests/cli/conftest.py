"""Small images of three colours, and small models that know four."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import srnn_zoo

COLOURS = {"blue": (20, 40, 200), "green": (20, 160, 60), "red": (200, 30, 30)}
NAMES = ("black", *COLOURS)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """`data/test/<colour>/<0-3>.png`, none of black, and untrained models at 32 + 64 pixels whose answers differ."""
    place = tmp_path_factory.mktemp("place")
    (place / "empty").mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, colour in COLOURS.items():
        (place / "data" / "test" / name).mkdir(parents=True)
        for number in range(4):
            noise = torch.randint(-60, 60, (70, 80, 3), generator=generator)
            pixels = (torch.tensor(colour) + noise).clamp(0, 255).byte()
            Image.fromarray(pixels.numpy()).save(place / "data" / "test" / name / f"{number}.png")
    variants = {"a": "vanilla", "b": "half_gru", "c": "half_gru", "once": "concat"}
    for seed, (name, variant) in enumerate(variants.items()):
        torch.manual_seed(seed)
        model = srnn_zoo.create_model("srnn_test_resnet", variant=variant, num_classes=4, img_size=64)
        torch.nn.init.normal_(model.fc.weight, std=2.0)  # pyright: ignore
        model.save_pretrained(place / name, label_names=NAMES)
    srnn_zoo.create_model("srnn_test_vit").save_pretrained(place / "vit")
    return place


@pytest.fixture
def images(place):
    """Twelve images, four for each of three colours."""
    return place / "data" / "test"


@pytest.fixture
def saved(place, tmp_path):
    """A saved model that a test may change."""
    return Path(shutil.copytree(place / "b", tmp_path / "model"))


@pytest.fixture
def broken(images):
    """One more file among the images, which is none."""
    path = images / "red" / "broken.jpg"
    path.write_bytes(b"no image")
    yield path
    path.unlink()
