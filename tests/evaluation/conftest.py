"""A folder of fruit, and small models whose answers on it differ from image to image."""

import numpy as np
import pytest
import torch
from PIL import Image

import srnn_zoo

FRUIT = tuple("fig kiwi lime mango olive peach plum".split())


@pytest.fixture(scope="session")
def fruit(tmp_path_factory):
    """Five images of each of five classes; the other two of the models' classes are missing."""
    folder = tmp_path_factory.mktemp("fruit")
    random = np.random.default_rng(0)
    for name in FRUIT[1:6]:
        (folder / name).mkdir()
        for number in range(5):
            blocks = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(blocks).resize((60 + 10 * number, 80), Image.Resampling.NEAREST)
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def make(fruit):
    """Make a model of levels of 32 and 64 with random weights everywhere."""

    def make(variant="half_gru", seed=0, names=FRUIT, **options):
        torch.manual_seed(0)
        options = {"img_size": 64, "num_classes": len(names), **options}
        model = srnn_zoo.create_model("srnn_test_resnet", variant=variant, **options).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in [*model.cell.parameters(), *(model.backbone.parameters() if seed else ())]:
                parameter.add_(0.05 * torch.randn_like(parameter))
            levels = list(zip(*pyramids(model, fruit).values(), strict=True))
            for index, classifier in enumerate([*model.exit_classifiers[:-1], model.fc]):
                features = model.cell.pooled(model.level_features(torch.cat(levels[index]), index))
                torch.nn.init.normal_(classifier.weight, std=8.0)  # pyright: ignore
                classifier.bias.copy_(-classifier.weight @ features.mean(dim=0))  # pyright: ignore
        model.pretrained_cfg["label_names"] = names
        return model

    return make


@pytest.fixture(scope="session")
def model(make):
    """half_gru. Do not change it."""
    return make()


def pyramids(model, folder):
    """The levels of every image, each a batch of one, by its path."""
    transform = srnn_zoo.create_transform(model)
    return {path: [level[None] for level in transform(Image.open(path))] for path in sorted(folder.glob("*/*.png"))}
