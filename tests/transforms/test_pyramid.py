"""Pyramids: the levels built from a tensor, the rules they keep, and what breaks them."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as TF

from srnn_zoo import Pyramid, ScalePyramid, create_model, create_transform
from srnn_zoo.transforms.pyramid import INTERPOLATIONS, build_levels, level_size, resize, scale_ratios


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_levels_have_the_scales_sizes_and_the_last_is_the_image(interpolation: str) -> None:
    images = torch.rand(2, 3, 96, 64)
    levels = build_levels(images, scale_ratios((0.25, 0.5, 1.0)), interpolation)
    assert [tuple(x.shape) for x in levels] == [(2, 3, 24, 16), (2, 3, 48, 32), (2, 3, 96, 64)]
    assert levels[-1] is images


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_level_is_resized_from_the_image_never_from_another_level(interpolation: str) -> None:
    images = torch.rand(1, 3, 64, 64)
    three = build_levels(images, scale_ratios((0.25, 0.5, 1.0)), interpolation)
    two = build_levels(images, scale_ratios((0.25, 1.0)), interpolation)
    assert torch.equal(three[0], two[0])
    assert not torch.allclose(three[0], resize(three[1], [16, 16], interpolation), atol=1e-3)


@given(
    length=st.integers(1, 5000),
    scale=st.sampled_from([0.125, 0.25, 1 / 3, 0.5, 0.7071, 0.75, 0.9, 1.0]),
    multiple=st.sampled_from([1, 8, 14, 16, 32]),
)
def test_level_sizes_are_the_nearest_multiples(length: int, scale: float, multiple: int) -> None:
    size = level_size(length, *scale_ratios((scale, 1.0) if scale < 1 else (1.0,))[0], multiple)
    assert size % multiple == 0
    assert abs(size - length * scale) <= multiple / 2 + 1e-3 * length


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
)
def test_a_constant_image_stays_constant(height: int, width: int, target: tuple[int, int], interpolation: str) -> None:
    level = resize(torch.full((1, 2, height, width), 0.7, dtype=torch.float64), list(target), interpolation)
    assert level.shape == (1, 2, *target)
    assert torch.allclose(level, torch.tensor(0.7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resizing_and_normalising_commute(interpolation: str) -> None:
    images = torch.rand(2, 3, 50, 70, dtype=torch.float64)
    mean, std = torch.rand(2, 1, 3, 1, 1, dtype=torch.float64) + 0.1
    after = (resize(images, [20, 30], interpolation) - mean) / std
    before = resize((images - mean) / std, [20, 30], interpolation)
    assert torch.allclose(after, before, atol=1e-12)


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_gaussian_levels_are_a_gaussian_of_the_added_up_variance(reduction: int) -> None:
    """Against a direct two-dimensional sum: blur with σ² = (f² - 1) / 3, then sample between pixels."""
    size = 12 * reduction
    images = torch.rand(1, 1, size, size, dtype=torch.float64)
    sigma = math.sqrt((reduction**2 - 1) / 3)
    radius = math.ceil(4 * sigma)
    weights = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(-radius, radius + 1)]
    total = sum(weights)
    level = resize(images, [12, 12], "gaussian")

    def blurred(row: int, column: int) -> float:
        value = 0.0
        for (i, a), (j, b) in itertools.product(enumerate(weights, -radius), enumerate(weights, -radius)):
            y, x = (min(max(k, 0), size - 1) for k in (row + i, column + j))
            value += a * b / total**2 * images[0, 0, y, x].item()
        return value

    for row, column in [(0, 0), (5, 6), (11, 3)]:
        at = [(k + 0.5) * reduction - 0.5 for k in (row, column)]
        corners = itertools.product(*({math.floor(p), math.ceil(p)} for p in at))
        corners = list(corners)
        expected = sum(blurred(y, x) for y, x in corners) / len(corners)
        assert abs(level[0, 0, row, column].item() - expected) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_resized_in_float32_on_the_cpu(dtype: torch.dtype) -> None:
    images = torch.rand(1, 3, 32, 32).to(dtype)
    for interpolation in INTERPOLATIONS:
        level = resize(images, [16, 16], interpolation)
        assert level.dtype == dtype
        assert torch.allclose(level.float(), resize(images.float(), [16, 16], interpolation), atol=1e-2)


def test_another_interpolation_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTERPOLATIONS, "area", lambda images, size: F.interpolate(images, size, mode="area"))
    model = create_model("srnn_test_resnet", interpolation="area")
    images = torch.rand(1, 3, 32, 32)
    expected = F.avg_pool2d(images, 2)
    assert torch.allclose(model.levels(images)[0], expected)
    image = TF.to_pil_image(images[0])
    for kind, error in ((images[0], 1e-6), (TF.pil_to_tensor(image), 1.5), (image, 1.5)):
        (level,) = ScalePyramid((16,), "area")(kind)
        level = level if isinstance(level, torch.Tensor) else TF.pil_to_tensor(level)
        assert (level.float() - expected[0] * (1 if level.is_floating_point() else 255)).abs().max() <= error
    assert "interpolation='area'" in repr(create_transform(model, sizes=(16, 32)))
    with pytest.raises(ValueError, match="choose one of area, bicubic, bilinear, gaussian"):
        ScalePyramid((16,), "lanczos")


def test_bicubic_levels_are_torchs_antialiased_ones_and_keep_the_memory_format() -> None:
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    level = build_levels(images, scale_ratios((0.5, 1.0)))[0]
    expected = F.interpolate(images, (16, 16), mode="bicubic", antialias=True, align_corners=False)
    assert torch.equal(level, expected)
    assert level.is_contiguous(memory_format=torch.channels_last)


def test_a_pyramid_is_a_sequence_that_moves_pickles_and_collates() -> None:
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


def level(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least one level"),
        ([level(3, 8, 8)], r"\(B, C, H, W\); got shape \(3, 8, 8\)"),
        ([level(1, 3, 16, 16), level(1, 3, 8, 8)], "levels must grow, smallest first; got 16 x 16 then 8 x 8"),
        ([level(1, 3, 8, 8), level(1, 3, 8, 8)], "levels must grow"),
        ([level(1, 3, 8, 16), level(1, 3, 16, 8)], "levels must grow"),
        ([level(1, 3, 8, 8), level(2, 3, 16, 16)], "share B and C"),
        ([level(1, 3, 8, 8), level(1, 1, 16, 16)], "share B and C"),
        ([level(1, 3, 8, 8), level(1, 3, 16, 16, dtype=torch.float64)], "share device and dtype"),
    ],
)
def test_levels_that_are_no_pyramid_are_refused_in_one_sentence(levels: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pyramid(levels)


def test_a_level_that_is_no_tensor_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="must be tensors; got list"):
        Pyramid([[1, 2, 3]])  # pyright: ignore


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((), "at least one level"),
        ((1.0, 0.5), "must grow, smallest first"),
        ((0.5, 0.5, 1.0), "must grow"),
        ((0.0, 1.0), "must be positive"),
        ((-0.5, 1.0), "must be positive"),
        ((float("nan"), 1.0), "must be positive"),
        ((0.25, 0.5), "end with 1.0"),
        ((1.0, 2.0), "end with 1.0"),
        ((1e-5, 1.0), "make no levels"),
        ((0.9999, 1.0), "make no levels"),
        ("0.5,1", "a sequence of numbers"),
        (1.0, "a sequence of numbers"),
    ],
)
def test_scales_that_make_no_pyramid_are_refused_in_one_sentence(scales: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scale_ratios(scales)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (
            torch.rand(1, 3, 4, 4),
            {"scales": (0.1, 1.0)},
            r"4 x 4 is too small for scales \(0.1, 1\) .* 0 x 0 and 4 x 4",
        ),
        (torch.rand(1, 3, 16, 16), {"multiple": 16}, "too small for scales .* in steps of 16 pixels"),
        (torch.rand(1, 3, 16, 16), {"interpolation": "nearest"}, "unknown interpolation 'nearest'"),
        (torch.rand(3, 16, 16), {}, r"must be float \(B, C, H, W\); got torch.float32, shape \(3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), {}, "must be float"),
    ],
)
def test_images_that_make_no_pyramid_are_refused_in_one_sentence(
    images: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Pyramid.from_images(images, **options)
