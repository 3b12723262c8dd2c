"""Views: levels that show a part of the image."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from srnn_zoo import Pyramid, ScalePyramid, create_model, create_transform
from srnn_zoo.training import image_transform
from srnn_zoo.transforms.views import cut, nearest, view_size

LENGTHS = st.integers(8, 60)


def pixels(level):
    return np.asarray(level) if isinstance(level, Image.Image) else level.permute(1, 2, 0).numpy()


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(LENGTHS, LENGTHS, st.sampled_from([1.0, 1.25, 1.6, 2.0, 2.5]), st.data())
def test_views_are_the_pixels_around_their_centres_moved_into_the_image(height, width, zoom, data):
    images = torch.randn(3, 2, height, width)
    share = zoom_share(zoom)
    h, w = view_size(height, width, share)
    assert (abs(h - height / zoom) <= 0.5, abs(w - width / zoom) <= 0.5) == (True, True)
    wanted = torch.tensor([[data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))] for _ in images])
    centers = nearest(wanted, share)
    for image, view, (y, x) in zip(images, cut(images, share, centers), centers.tolist(), strict=True):
        top = min(max(int(np.floor(y * height - h / 2 + 1e-6)), 0), height - h)
        left = min(max(int(np.floor(x * width - w / 2 + 1e-6)), 0), width - w)
        offsets = [(top - a, left - b) for a in (0, 1) for b in (0, 1)]  # float32 centres may fall on either side
        boxes = [image[:, a : a + h, b : b + w] for a, b in offsets if a >= 0 and b >= 0]
        assert any(torch.equal(view, box) for box in boxes)
    top, left = (height - h) // 2, (width - w) // 2
    assert torch.equal(cut(images, share), images[..., top : top + h, left : left + w])


def zoom_share(zoom):
    numerator, denominator = zoom.as_integer_ratio() if zoom != 1.6 else (8, 5)
    return denominator, numerator


@pytest.mark.parametrize("make", [lambda i: i, lambda i: torch.from_numpy(np.array(i)).permute(2, 0, 1)])
@pytest.mark.parametrize("size", [(90, 120), (121, 77)])
def test_a_zoom_of_one_is_the_plain_level_and_others_are_the_middle_resized(make, size):
    image = make(noise(*size))
    plain, zoomed = ScalePyramid((32, 64))(image), ScalePyramid((32, 64), zooms=(1.0, 1.6))(image)
    for one, other in zip(plain, ScalePyramid((32, 64), zooms=(1.0, 1.0))(image), strict=True):
        assert np.array_equal(pixels(one), pixels(other))
    assert np.array_equal(pixels(plain[0]), pixels(zoomed[0]))
    height, width = view_size(*size, (5, 8))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    middle = make(noise(*size).crop((left, top, left + width, top + height)))
    assert np.array_equal(pixels(zoomed[1]), pixels(ScalePyramid((64,))(middle)[0]))


def test_the_finest_level_is_a_part_of_the_cropped_image_as_it_is():
    transform = ScalePyramid((40, 40, 60), zooms=(1.0, 2.5, 1.25))
    assert transform.image_size == (100, 100)
    frame = noise(100, 100)
    whole, finest, larger = transform(frame)
    assert np.array_equal(pixels(finest), pixels(frame)[30:70, 30:70])
    assert (whole.size, larger.size) == ((40, 40), (60, 60))
    images = torch.rand(2, 3, 100, 100)
    pyramid = Pyramid.from_images(images, zooms=(1.0, 2.5))
    assert (pyramid.sizes, pyramid.zooms) == ([(40, 40), (40, 40)], (1.0, 2.5))
    assert torch.equal(pyramid[1], images[..., 30:70, 30:70])
    for same in (pyramid[1:], pyramid.to(torch.float64)[1:]):
        assert (same.sizes, same.zooms) == ([(40, 40)], (2.5,))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("zooms", [(1.0, 1.6), (1.6, 1.0), (1.0, 1.25, 2.0)])
def test_on_the_device_and_in_the_transform_levels_show_the_same(train, zooms):
    """One crop decides all of them, by chance too: a drawn target is at the same place of every level."""
    model = create_model("srnn_test_resnet", zooms=zooms, num_classes=5, img_size=round(64 * max(zooms)))
    image = Image.new("RGB", (300, 200), "black")
    image.paste("white", (140, 90, 164, 110))
    levels, whole = create_transform(model, train=train), image_transform(model, train=train)
    found = []
    for transform in (levels, whole):
        random.seed(3)
        torch.manual_seed(3)
        found.append(transform(image))
    on_device = model.levels(found[1][None])
    assert len(found[0]) == len(on_device) == len(zooms)
    for given_level, made in zip(found[0], on_device, strict=True):
        assert given_level.shape == made[0].shape == (3, 64, 64)
        assert (given_level - made[0]).abs().max() < 0.25  # grey levels are whole in the transform
        assert train or given_level.max() > 0.9  # the target is there


@pytest.mark.parametrize(
    ("zooms", "message"),
    [
        ((1.0,), r"one zoom for each of 2 levels; got 1: \(1.0,\)"),
        ((1.0, 0.5), r"a zoom is 1, which shows the whole image, or more; got \(1.0, 0.5\)"),
        ((1.0, float("nan")), "or more; got"),
        (2.0, "zooms must be a sequence of numbers such as"),
        ("ab", "zooms must be a sequence of numbers such as"),
    ],
)
def test_zooms_that_make_no_views_are_refused(zooms, message):
    for make in (
        lambda: ScalePyramid((32, 32), zooms=zooms),
        lambda: Pyramid([torch.rand(1, 3, 8, 8)] * 2, zooms=zooms),
        lambda: create_model("srnn_test_resnet", scales=(1.0, 1.0), zooms=zooms),
    ):
        with pytest.raises(ValueError, match=message):
            make()
