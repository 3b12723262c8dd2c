"""Pyramids: the levels built from a tensor, the rules they keep, and what breaks them."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.filters import gaussian
from torch.nn import functional as F
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as TF

from srnn_zoo import Pyramid, ScalePyramid, create_model, create_transform
from srnn_zoo.transforms.levels import build_levels, level_size, scale_ratios
from srnn_zoo.transforms.resizing import INTERPOLATIONS, resize

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_levels_have_the_scales_sizes_and_each_is_resized_from_the_image_itself(interpolation):
    images = torch.rand(2, 3, 96, 64)
    three = build_levels(images, scale_ratios((0.25, 0.5, 1.0)), interpolation)
    assert [tuple(x.shape) for x in three] == [(2, 3, 24, 16), (2, 3, 48, 32), (2, 3, 96, 64)]
    assert three[-1] is images
    assert torch.equal(three[0], build_levels(images, scale_ratios((0.25, 1.0)), interpolation)[0])
    assert not torch.allclose(three[0], resize(three[1], [24, 16], interpolation), atol=1e-3)


@given(
    length=st.integers(1, 5000),
    scale=st.sampled_from([0.125, 0.25, 1 / 3, 0.5, 0.7071, 0.75, 0.9, 1.0]),
    multiple=st.sampled_from([1, 8, 14, 16, 32]),
)
def test_level_sizes_are_the_nearest_multiples(length, scale, multiple):
    size = level_size(length, *scale_ratios((scale, 1.0) if scale < 1 else (1.0,))[0], multiple)
    assert size % multiple == 0
    assert abs(size - length * scale) <= multiple / 2 + 1e-3 * length


@given(size=SIZES, target=SIZES, interpolation=st.sampled_from(sorted(INTERPOLATIONS)))
def test_resizing_and_normalising_commute_and_a_constant_image_stays_constant(size, target, interpolation):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    level = resize(images, list(target), interpolation)
    assert level.shape == (2, 3, *target)
    std = torch.tensor([0.3, 0.0, 2.0], dtype=torch.float64).view(3, 1, 1)  # and 0 for a constant channel
    assert torch.allclose(resize(std * images + 0.7, list(target), interpolation), std * level + 0.7, atol=1e-12)


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_gaussian_levels_are_a_gaussian_of_the_added_up_variance(reduction):
    """Blur with σ² = (f² - 1) / 3, edges repeated, then the mean of the pixels around each sampled point."""
    size = 12 * reduction
    images = torch.rand(1, 1, size, size, dtype=torch.float64)
    sigma = math.sqrt((reduction**2 - 1) / 3)
    blurred = gaussian(images[0, 0].numpy(), sigma, mode="nearest", truncate=math.ceil(4 * sigma) / sigma)
    points = (np.arange(12) + 0.5) * reduction - 0.5
    around = [np.ix_(y, x) for y in (np.floor(points), np.ceil(points)) for x in (np.floor(points), np.ceil(points))]
    expected = sum(blurred[tuple(i.astype(int) for i in place)] for place in around) / 4
    assert np.abs(resize(images, [12, 12], "gaussian")[0, 0].numpy() - expected).max() <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_resized_in_float32_on_the_cpu(dtype):
    images = torch.rand(1, 3, 32, 32).to(dtype)
    for interpolation in INTERPOLATIONS:
        level = resize(images, [16, 16], interpolation)
        assert level.dtype == dtype
        assert torch.allclose(level.float(), resize(images.float(), [16, 16], interpolation), atol=1e-2)


def test_another_interpolation_is_one_entry(monkeypatch):
    monkeypatch.setitem(INTERPOLATIONS, "area", lambda images, size: F.interpolate(images, size, mode="area"))
    model = create_model("srnn_test_resnet", interpolation="area")
    images = torch.rand(1, 3, 32, 32)
    expected = F.avg_pool2d(images, 2)
    assert torch.allclose(model.levels(images)[0], expected)
    (level,) = ScalePyramid((16,), "area")(TF.to_pil_image(images[0]))
    assert (TF.pil_to_tensor(level) - 255 * expected[0]).abs().max() <= 1.5
    assert "interpolation='area'" in repr(create_transform(model, sizes=(16, 32)))
    with pytest.raises(ValueError, match="choose one of area, bicubic, bilinear, gaussian"):
        ScalePyramid((16,), "lanczos")


def test_bicubic_levels_are_torchs_antialiased_ones_and_keep_the_memory_format():
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    level = build_levels(images, scale_ratios((0.5, 1.0)))[0]
    expected = F.interpolate(images, (16, 16), mode="bicubic", antialias=True, align_corners=False)
    assert torch.equal(level, expected)
    assert level.is_contiguous(memory_format=torch.channels_last)


def test_a_pyramid_is_a_sequence_that_moves_pickles_and_collates():
    pyramid = Pyramid.from_images(torch.rand(2, 3, 32, 48), scales=(0.5, 1.0))
    assert (len(pyramid), pyramid.height, pyramid.batch_size) == (2, 2, 2)
    assert pyramid.sizes == [(16, 24), (32, 48)]
    assert [x.shape for x in pyramid] == [pyramid[0].shape, pyramid[-1].shape]
    assert pyramid[:1].sizes == [(16, 24)]
    assert pyramid.to(torch.float64)[0].dtype == torch.float64
    assert torch.equal(pickle.loads(pickle.dumps(pyramid))[1], pyramid[1])
    assert repr(pyramid) == "Pyramid(height=2, sizes=[(16, 24), (32, 48)], batch_size=2)"
    images = [[torch.rand(3, 8, 8), torch.rand(3, 16, 16)] for _ in range(4)]
    assert Pyramid(default_collate(images)).sizes == [(8, 8), (16, 16)]


def level(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def test_what_makes_no_pyramid_is_refused_in_one_sentence():
    for call, argument, message in (
        (Pyramid, [], "at least one level"),
        (Pyramid, [level(3, 8, 8)], r"\(B, C, H, W\); got shape \(3, 8, 8\)"),
        (Pyramid, [level(1, 3, 16, 16), level(1, 3, 8, 8)], "levels must grow, smallest first; got 16 x 16 then 8 x 8"),
        (Pyramid, [level(1, 3, 8, 8), level(1, 3, 8, 8)], "levels must grow"),
        (Pyramid, [level(1, 3, 8, 16), level(1, 3, 16, 8)], "levels must grow"),
        (Pyramid, [level(1, 3, 8, 8), level(2, 3, 16, 16)], "share B and C"),
        (Pyramid, [level(1, 3, 8, 8), level(1, 1, 16, 16)], "share B and C"),
        (Pyramid, [level(1, 3, 8, 8), level(1, 3, 16, 16, dtype=torch.float64)], "share device and dtype"),
        (Pyramid, [[1, 2, 3]], "must be tensors; got list"),
        (scale_ratios, (), "at least one level"),
        (scale_ratios, (1.0, 0.5), "must grow, smallest first"),
        (scale_ratios, (0.5, 0.5, 1.0), "must grow"),
        (scale_ratios, (0.0, 1.0), "must be positive"),
        (scale_ratios, (float("nan"), 1.0), "must be positive"),
        (scale_ratios, (1.0, 2.0), "end with 1.0"),
        (scale_ratios, (1e-5, 1.0), "make no levels"),
        (scale_ratios, (0.9999, 1.0), "make no levels"),
        (scale_ratios, "0.5,1", "a sequence of numbers"),
        (scale_ratios, 1.0, "a sequence of numbers"),
        (partial(Pyramid.from_images, scales=(0.1, 1.0)), level(1, 3, 4, 4), "4 x 4 is too .* 0 x 0 and 4 x 4"),
        (partial(Pyramid.from_images, multiple=16), level(1, 3, 16, 16), "too small for scales .* in steps of 16 pix"),
        (partial(Pyramid.from_images, interpolation="nearest"), level(1, 3, 9, 9), "unknown interpolation 'nearest'"),
        (Pyramid.from_images, level(3, 16, 16), r"float \(B, C, H, W\); got torch.float32, shape \(3, 16, 16\)"),
        (Pyramid.from_images, level(1, 3, 16, 16, dtype=torch.uint8), "must be float"),
    ):
        with pytest.raises(TypeError if "tensors" in message else ValueError, match=message):
            call(argument)
