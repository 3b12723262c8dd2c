"""Resizing where a graph is captured: matrix products that compute what torch's kernels do."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srnn_zoo.transforms import resizing
from srnn_zoo.transforms.resizing import INTERPOLATIONS, resize

LENGTH = st.integers(2, 130)  # torch's antialiased kernels are wrong for images of one pixel's width
SIZE = st.tuples(LENGTH, LENGTH)


def as_captured(images, size, interpolation):
    with mock.patch.object(resizing, "is_captured", return_value=True):
        return resize(images, size, interpolation)


@given(size=SIZE, target=SIZE, interpolation=st.sampled_from(sorted(INTERPOLATIONS)))
def test_matrix_products_are_the_kernels_for_any_two_sizes(size, target, interpolation):
    images = torch.rand(1, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = resize(images, list(target), interpolation)
    assert (as_captured(images, list(target), interpolation) - kernel).abs().max() <= 1e-11
    single = as_captured(images.float(), list(target), interpolation)
    assert (single - kernel).abs().max() <= 5e-6
    assert (single - resize(images.float(), list(target), interpolation)).abs().max() <= 2e-5  # of it, the kernel's own


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("size", "target"), [((448, 448), (224, 224)), ((641, 427), (321, 214)), ((90, 33), (630, 9))])
def test_in_float32_they_are_nearer_to_float64_than_the_kernels(size, target, interpolation):
    images = torch.rand(1, 1, *size)
    exact = resize(images.double(), list(target), interpolation)
    kernel, captured = (how(images, list(target), interpolation) for how in (resize, as_captured))
    assert (captured - exact).abs().max() <= min(2e-6, (kernel - exact).abs().max() + 1e-6)
    assert (captured - kernel).abs().max() <= 3e-5
    half = as_captured(images.bfloat16(), list(target), interpolation)
    assert half.dtype == torch.bfloat16
    assert (half - kernel).abs().max() <= 0.02
