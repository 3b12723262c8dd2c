"""Transforms: ScalePyramid on every kind of image, and the presets that belong to a model."""

import io
import math
import pickle
from functools import partial

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import resolve_model_data_config
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from srnn_zoo import ScalePyramid, create_model, create_transform
from srnn_zoo.datasets.images import open_image
from srnn_zoo.transforms.presets import image_transform
from tests.datasets.test_images import KINDS


@pytest.fixture
def image():
    """A smooth image with some noise, 96 wide and 64 high."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 96)[None, :, None] * np.linspace(0.3, 1, 64)[:, None, None]
    return Image.fromarray((ramp + rng.uniform(0, 20, (64, 96, 3))).clip(0, 255).astype(np.uint8))


def test_pillow_uint8_and_float_levels_agree_within_the_stated_bounds(image, imagenet_sample):
    """The bounds that docs/pyramids.md states; benchmarks/resize_agreement.py measures the distances themselves."""
    photos = [Image.open(path).convert("RGB") for path in imagenet_sample[:12]]
    for images, sizes, interpolation, of_uint8, of_float in (
        (photos, (64, 128), "bicubic", 2, 16),  # Pillow clamps bicubic's overshoot between its two passes
        (photos, (64, 128), "bilinear", 2, 1.5),
        *(([image], (16, 32), interpolation, 1, 1.5) for interpolation in ("bicubic", "bilinear", "gaussian")),
    ):
        pyramid = ScalePyramid(sizes, interpolation)
        for uint8, of_pil in ((TF.pil_to_tensor(picture), pyramid(picture)) for picture in images):
            for pil, integer, floating in zip(of_pil, pyramid(uint8), pyramid(uint8 / 255), strict=True):
                assert (pil.mode, integer.dtype, floating.dtype) == ("RGB", torch.uint8, torch.float32)
                assert (integer.float() - TF.pil_to_tensor(pil)).abs().max() <= of_uint8
                distance = ((floating * 255).clamp(0, 255) - TF.pil_to_tensor(pil)).abs()
                assert distance.max() <= of_float
                assert distance.mean() <= 0.5


def test_a_size_is_a_short_side_or_a_height_and_width_and_small_images_are_upsampled_to_it_if_asked(image):
    levels = ScalePyramid((16, (40, 50)))(image)
    assert [(x.height, x.width) for x in levels] == [(16, 24), (40, 50)]
    portrait = image.transpose(Image.Transpose.ROTATE_90)
    assert [(x.height, x.width) for x in ScalePyramid((16,))(portrait)] == [(24, 16)]
    batch = torch.rand(2, 5, 3, 64, 96)
    for interpolation in ("bicubic", "gaussian"):
        assert ScalePyramid((16,), interpolation)(batch)[0].shape == (2, 5, 3, 16, 24)
    small, large = Image.new("RGB", (30, 20)), Image.new("RGB", (500, 400))
    assert [x.size for x in ScalePyramid.variable(32, small="upsample")(small)] == [(32, 32)]
    two = ScalePyramid.variable(32, max_height=2, min_height=2, small="upsample")
    assert [x.size for x in two(small)] == [x.size for x in two(large)] == [(32, 32), (64, 64)]


def test_the_eval_preset_is_timms_crop_whose_levels_the_model_builds_as_well(lite0, image):
    small, large = create_transform(lite0, exact=True)(image)
    assert (small.shape, large.shape) == ((3, 224, 224), (3, 448, 448))
    assert torch.allclose(large, timm.data.create_transform(**resolve_model_data_config(lite0))(image), atol=1e-6)
    assert torch.equal(image_transform(lite0, exact=True)(image), large)
    gray = 1.5 * 2 / 255  # uint8 rounding, between the two passes too, in units of std 0.5
    assert (small - TF.resize(large, [224, 224], InterpolationMode.BICUBIC)).abs().max() <= gray
    built = lite0.levels(large[None])
    assert torch.equal(built[1][0], large)
    assert (built[0][0] - small).abs().max() <= gray


def test_the_train_preset_takes_one_crop_for_all_levels(model, image):
    transform = create_transform(model, train=True, sizes=(32, 64))
    first, second = transform(image), transform(image)
    assert not torch.equal(first[1], second[1])
    for small, large in (first, second):
        assert (small - TF.resize(large, [32, 32], InterpolationMode.BICUBIC)).abs().max() <= 1.5 / 255 / 0.225
    assert all(step in repr(transform) for step in ("RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter"))
    assert "RandAugment" in repr(create_transform(model, train=True, auto_augment="rand-m9"))


def test_presets_follow_the_models_scales_and_channels_and_statistics_and_interpolation_can_be_replaced(model, image):
    levels = create_transform(create_model("srnn_test_resnet", scales=(0.25, 0.5, 1.0), in_chans=1))(image)
    assert [tuple(x.shape) for x in levels] == [(1, 160, 160), (1, 320, 320), (1, 640, 640)]
    five = create_model("srnn_test_resnet", in_chans=5)
    assert create_transform(five)(torch.rand(5, 64, 64))[0].shape == (5, 160, 160)
    text = repr(create_transform(model, mean=(0.1,) * 3, std=(0.2,) * 3, interpolation="bilinear", crop_pct=0.5))
    assert "mean=(0.1, 0.1, 0.1), std=(0.2, 0.2, 0.2)" in text
    assert text.count("bilinear") == 2
    assert "Resize(size=640" in text


@pytest.mark.parametrize("in_chans", [1, 3])
def test_whatever_image_comes_in_is_seen_as_open_image_sees_it(in_chans, image):
    transform = create_transform(create_model("srnn_test_resnet", in_chans=in_chans, img_size=64))
    for kind, (content, *_) in KINDS.items():
        with Image.open(io.BytesIO(content)) as read:
            seen = open_image(io.BytesIO(content)).image
            assert torch.equal(transform(read)[-1], transform(seen)[-1]), kind
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)  # of no file
    assert torch.equal(transform(deep)[-1], transform(image.convert("L"))[-1])


def test_what_makes_no_levels_is_refused_in_one_sentence(model, image):
    transform, uint8 = create_transform(model, sizes=(32, 64)), TF.pil_to_tensor(image)
    assert (transform(uint8)[-1] - transform(uint8 / 255)[-1]).abs().max() <= 1.5 / 255 / 0.225
    five = create_transform(create_model("srnn_test_resnet", in_chans=5))
    of_32 = ScalePyramid.variable(32, min_height=2)
    for read, given_image, error, message in (
        (transform, uint8.long(), ValueError, "uint8, from 0 to 255, or float, from 0 to 1; got int64 from 0 to 255"),
        (transform, uint8 > 9, ValueError, "got bool from 0 to 1"),
        (transform, uint8.float(), ValueError, "got float32 from 0 to 255"),
        (transform, uint8 / 255 * float("nan"), ValueError, "got float32 from nan to nan"),
        (transform, uint8 / 64 - 2, ValueError, "got float32 from -2 to 1.98"),
        (transform, "cat.jpg", TypeError, r"a PIL image or a tensor \(C, H, W\); got str: open it with PIL.Image.open"),
        (transform, np.asarray(image), TypeError, "a PIL image or a tensor .*; got ndarray$"),
        (five, image, TypeError, r"reads 5 channels, and image files have 1 or 3: give a tensor \(5, H, W\)"),
        (ScalePyramid((8,)), np.zeros((8, 8, 3)), TypeError, "a PIL image or a tensor; got ndarray"),
        (ScalePyramid((8,), "gaussian"), image.convert("P"), ValueError, "needs an L or RGB image; got mode P"),
        (of_32, torch.rand(3, 20, 30), ValueError, r"20 x 30 is too small for .* pixels: .* small=\"upsample\""),
        (of_32, torch.rand(3, 40, 50), ValueError, "40 x 50 is too small for levels of 32 and 64 pixels"),
        (ScalePyramid.variable(32, small="upsample"), torch.rand(3, 0, 5), ValueError, "at least one pixel; got 0 x 5"),
        (partial(create_transform, train=True, re_prob=0.5), model, ValueError, "random erasing is not part"),
    ):
        with pytest.raises(error, match=message):
            read(given_image)


@given(
    height=st.integers(60, 4000),
    width=st.integers(60, 4000),
    base=st.sampled_from([60, 112, 224]),
    factor=st.sampled_from([1.25, 2**0.5, 2.0, 3.0]),
    max_height=st.sampled_from([1, 3, 4, None]),
    aspect=st.booleans(),
)
def test_as_many_levels_as_the_image_has_pixels_for_and_none_upsampled(height, width, base, factor, max_height, aspect):
    transform = ScalePyramid.variable(base, factor, max_height, keep_aspect=aspect)
    native = min(height, width)
    if native < base:
        with pytest.raises(ValueError, match=f"{height} x {width} is too small for levels of {base} pixels: leave it"):
            transform.level_sizes(height, width)
        return
    sizes = transform.level_sizes(height, width)
    assert all(h <= height and w <= width for h, w in sizes)
    assert [min(size) for size in sizes] == [round(base * factor**s) for s in range(len(sizes))]
    assert len(sizes) == max_height or round(base * factor ** len(sizes)) > native
    first = max(sizes[0])
    assert first == base if not aspect else first in (base, first // 32 * 32)
    assert first <= base * max(height, width) / native < (first + 32 if aspect else math.inf)
    assert (sizes[0][0] <= sizes[0][1]) == (height <= width or not aspect or first == base)


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("interpolation", ["bicubic", "gaussian"])
def test_variable_levels_show_one_centre_crop_resized_from_the_image(image, interpolation, keep_aspect):
    options = {"keep_aspect": keep_aspect, "multiple": 5, "interpolation": interpolation}
    transform = ScalePyramid.variable(16, max_height=3, **options)
    part = image.crop((8, 0, 88, 64) if keep_aspect else (16, 0, 80, 64))  # 16 x 24 is rounded down to 16 x 20
    uint8 = TF.pil_to_tensor
    for kind, cropped in ((image, part), (uint8(image), uint8(part)), (uint8(image) / 255, uint8(part) / 255)):
        levels = transform(kind)
        assert [tuple(TF.get_size(level)) for level in levels] == transform.level_sizes(64, 96)
        for level in levels:
            (expected,) = ScalePyramid((TF.get_size(level),), interpolation)(cropped)
            difference = np.asarray(level, dtype=float) - np.asarray(expected, dtype=float)
            assert np.abs(difference).max() <= 1


def test_variable_levels_are_built_in_sequence_or_flipped_and_jittered_at_native_resolution(model, image):
    at_once = create_transform(model, sizes=ScalePyramid.variable(16))(image)
    lazily = create_transform(model, sizes=ScalePyramid.variable(16, levels_in_sequence=True))(image)
    assert repr(lazily) == "LazyLevels(sizes=[(16, 16), (32, 32), (64, 64)])"
    for levels in (lazily, pickle.loads(pickle.dumps(lazily)), lazily[:3]):
        assert all(torch.equal(a, b) for a, b in zip(levels, at_once, strict=True))
    assert lazily[1] is not lazily[1]
    transform = create_transform(model, train=True, sizes=ScalePyramid.variable(16, max_height=2))
    found = [step in repr(transform) for step in ("RandomHorizontalFlip", "ColorJitter", "Crop")]
    assert found == [True, True, False]
    first, second = transform(image), transform(image)
    assert not torch.equal(first[1], second[1])
    assert [level.shape for level in first] == [(3, 16, 16), (3, 32, 32)]


def test_options_that_make_no_pyramid_are_refused_in_one_sentence():
    for options, message in (
        ({"sizes": ()}, "at least one level"),
        ({"sizes": (64, 32)}, "must grow, smallest first"),
        ({"sizes": (32, 32)}, "must grow"),
        ({"sizes": (0, 32)}, "must be positive"),
        ({"sizes": 224}, "must be a sequence such as"),
        ({"sizes": (100.5, 200)}, r"a whole number or \(height, width\); got 100.5"),
        ({"sizes": ((1, 2, 3), (4, 5, 6))}, r"a whole number or \(height, width\); got \(1, 2, 3\)"),
        ({"base_size": 0}, "base_size must be a whole number of 1 or more; got 0"),
        ({"base_size": 22.5}, "base_size must be a whole number"),
        ({"max_height": 0}, "max_height must be a whole number of 1 or more; got 0"),
        ({"max_height": 2, "min_height": 3}, "max_height must be at least min_height, 3; got 2"),
        ({"factor": 1.0}, "factor must make a level larger than one of 224; got 1.0"),
        ({"factor": 1.001}, "factor must make a level larger"),
        ({"factor": float("inf")}, "factor must make a level larger"),
        ({"small": "pad"}, 'small must be "refuse" or "upsample"; got \'pad\''),
        ({"multiple": 0}, "multiple must be a whole number"),
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'; did you mean 'bicubic'"),
    ):
        with pytest.raises(ValueError, match=message):
            (ScalePyramid if "sizes" in options else ScalePyramid.variable)(**options)
