"""What is read of an image: JPEG files at a fraction of their size, one part of it, and the grey levels of Pillow."""

import io
import pickle
import random

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from timm.data import resolve_model_data_config
from torchvision.transforms import CenterCrop, InterpolationMode, Resize
from torchvision.transforms.v2 import functional as TF

from srnn_zoo import ScalePyramid, create_model, create_transform
from srnn_zoo.datasets.images import Skipped, open_image, open_or_skip
from srnn_zoo.datasets.loader import ImageLoader
from srnn_zoo.datasets.readers import LabelledFiles, LabelledStream
from srnn_zoo.datasets.splits import ImageSplit
from srnn_zoo.inference.predict import predict
from srnn_zoo.transforms.presets import image_transform
from srnn_zoo.transforms.reading import Part, PartAsRead, as_tensor, first_step, read_by_each
from tests.conftest import SKIMAGE


@pytest.fixture(scope="module")
def photograph():
    """Of 1203 x 901 pixels: no multiples of 8."""
    with Image.open(SKIMAGE / "coffee.png") as image:
        return image.resize((1203, 901), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def net():
    """Levels of 32 and 64; C reads 73 pixels before the crop, so that 1203 x 901 is decoded at 1/4."""
    return create_model("srnn_test_resnet", img_size=64, num_classes=3).eval()


@pytest.fixture
def scales(monkeypatch):
    """By how much files were decoded smaller."""
    found, draft = [], JpegImagePlugin.JpegImageFile.draft

    def note(self, mode, size):
        before, result = self.size, draft(self, mode, size)
        found.append(round(before[0] / self.size[0]))
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", note)
    return found


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), quality=95, **options)
    return buffer


def grey_levels(ours, pillows, std=0.5):
    """Greatest and mean difference of normalised levels, in grey levels of 255."""
    differences = torch.cat([(a - b).abs().flatten() for a, b in zip(ours, pillows, strict=True)]) * 255 * std
    return differences.max().item(), differences.mean().item()


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 700), st.integers(1, 700), st.integers(0, 99))
def test_twice_the_pixels_are_left_on_each_side_and_no_more_than_libjpeg_can_spare(height, width, rows, columns, top):
    part = Part(top, 0, height, width, (rows, columns), InterpolationMode.BICUBIC)
    scale = part.scale()
    assert scale in (1, 2, 4, 8)
    if scale > 1:
        assert height >= 2 * scale * rows
        assert width >= 2 * scale * columns
    assert scale == 8 or height < 4 * scale * rows or width < 4 * scale * columns
    small = part.scaled(scale)
    for edge, full in ((small.top, top), (small.top + small.height, top + height), (small.width, width)):
        assert abs(edge - full / scale) <= 0.5
    assert min(small.height, small.width) >= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_decoded_smaller_to_the_same_levels_and_stays_as_it_is(net, photograph, scales, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = jpeg(photograph, exif=exif)
    image = Image.open(file)
    fast = create_transform(net)(image)
    assert scales == [4]
    assert (image.size, len(image.tile)) == ((1203, 901), 1)  # not decoded
    pillows = create_transform(net, exact=True)(image)
    assert scales == [4]
    greatest, mean = grey_levels(fast, pillows)
    assert greatest < 24
    assert mean < 1
    loaded = create_transform(net)(image)  # decoded by now, in full
    greatest, mean = grey_levels(loaded, pillows)
    assert greatest <= 2.01
    assert mean < 0.02


@pytest.mark.parametrize("kind", ["L", "CMYK", "MPO", "progressive", "4:4:4"])
def test_every_kind_of_jpeg_is_decoded_smaller(net, photograph, scales, kind):
    options = {"MPO": {"format": "MPO", "save_all": True, "append_images": [photograph.rotate(180)]}}
    options |= {"progressive": {"progressive": True}, "4:4:4": {"subsampling": 0}}
    file = jpeg(photograph.convert(kind) if kind in ("L", "CMYK") else photograph, **options.get(kind, {}))
    fast = create_transform(net)(Image.open(file))
    assert scales == [4]
    assert grey_levels(fast, create_transform(net, exact=True)(Image.open(file)))[1] < 1


def test_what_is_decoded_drafted_or_closed_already_or_no_jpeg_is_read_as_it_is(net, photograph, scales):
    transform, exact = create_transform(net), create_transform(net, exact=True)
    png = jpeg(photograph, format="PNG")
    for image in (Image.open(png), photograph, Image.open(jpeg(photograph.resize((200, 150))))):
        assert grey_levels(transform(image), exact(image))[0] <= 2.01
    assert scales == []
    drafted = Image.open(jpeg(photograph))
    drafted.draft(None, (601, 450))
    assert transform(drafted)[1].shape == (3, 64, 64)
    assert scales == [2]
    closed = Image.open(jpeg(photograph))
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        transform(closed)


@pytest.mark.parametrize(
    "options", [{}, {"auto_augment": "rand-m9"}, {"color_jitter": 0.0}, {"train_crop_mode": "rkrc"}]
)
def test_training_draws_the_same_crops_and_a_small_crop_needs_more_of_the_image(net, photograph, scales, options):
    file, found = jpeg(photograph), []
    for seed in range(6):
        for exact in (False, True):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            found.append(create_transform(net, train=True, exact=exact, **options)(Image.open(file)))
        assert grey_levels(*found[-2:])[1] < (8 if "auto_augment" in options else 3)
    assert ("train_crop_mode" in options) == (scales == [])  # timm's other crops read the whole image
    scales.clear()
    for area in (1.0, 0.1, 0.01):
        image_transform(net, train=True, scale=(area, area), ratio=(1.33, 1.34))(Image.open(file))
    assert scales == [4, 2]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_exact_is_timms_transform_and_then_pillow_and_the_default_close_to_it(photograph, crop_mode, size):
    model = create_model("srnn_test_resnet", img_size=size)
    model.pretrained_cfg |= {"crop_mode": crop_mode, "crop_pct": 0.93}
    config = {**resolve_model_data_config(model), "interpolation": "bicubic"}  # the model's own
    large = timm.data.create_transform(**{**config, "input_size": (3, *size)}, normalize=False)(photograph)
    small = TF.to_pil_image(large).resize((size[1] // 2, size[0] // 2), Image.Resampling.BICUBIC)
    exact = create_transform(model, exact=True)(photograph)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    for level, expected in zip(exact, (TF.pil_to_tensor(small), large), strict=True):
        assert torch.equal((255 * (level * std + mean)).round().to(torch.uint8), expected)
    greatest, average = grey_levels(create_transform(model)(photograph), exact)
    assert greatest <= 2.01
    assert average < 0.02


def test_every_command_reads_a_file_as_the_transform_does(net, photograph, tmp_path, scales):
    path = tmp_path / "1.jpg"
    path.write_bytes(jpeg(photograph).getvalue())
    expected = create_transform(net)(Image.open(path))
    whole = create_transform(net, exact=True)(Image.open(path))
    assert not torch.equal(expected[1], whole[1])
    for exact, wanted in ((False, expected), (True, whole)):
        transform = create_transform(net, exact=exact)
        [(levels, _)] = ImageLoader([(Image.open(path), 0)], net, exact=exact)
        assert all(torch.equal(level[0], other) for level, other in zip(levels, wanted, strict=True))
        split = ImageSplit(LabelledFiles([(str(path), 1)], "two", ["a", "b"]))
        split.transform = image_transform(net, exact=exact)
        image, target = split[0]
        assert target == 1
        assert torch.equal(image, wanted[1])
        for given_image in (path, path.read_bytes(), Image.open(path)):
            [answer] = predict(net, given_image, exact=exact)
            for level, other in zip(transform.transforms[-1](answer.levels), wanted, strict=True):
                assert torch.equal(level, other)
    assert set(scales) == {4}


def test_several_transforms_read_one_file_as_if_each_were_the_only_one(net, photograph):
    wide = create_model("srnn_test_resnet", img_size=256)
    transforms = [create_transform(net, exact=True), create_transform(wide), create_transform(net)]
    file = jpeg(photograph)
    steps = [first_step(transform) for transform in transforms]
    image = open_image(io.BytesIO(file.getvalue()), "1", read_by_each([read for read, _ in steps])).image
    for part, (_, then), transform in zip(image, steps, transforms, strict=True):
        for level, expected in zip(then(part), transform(Image.open(file)), strict=True):
            assert torch.equal(level, expected)
    stream = LabelledStream([(io.BytesIO(file.getvalue()), 0)], "one", ["a"])
    [item] = stream.read(first_step(transforms[1])[0])
    assert torch.equal(item.image, image[1])


def test_a_truncated_jpeg_is_skipped_with_one_reason_however_it_is_read(net, photograph):
    content = jpeg(photograph).getvalue()
    read, _ = first_step(create_transform(net))
    reasons = [open_or_skip(io.BytesIO(content[:-9000]), "1", *how).reason for how in ((), (read,))]
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith("1: truncated or damaged")
    five, _ = first_step(create_transform(create_model("srnn_test_resnet", in_chans=5)))
    with pytest.raises(TypeError, match="reads 5 channels"):
        open_or_skip(io.BytesIO(content), "1", five)
    assert not isinstance(open_or_skip(io.BytesIO(content), "1", read), Skipped)


def test_tensors_are_pillows_pixels_and_any_other_transform_reads_the_whole_image(photograph):
    for image in (photograph, photograph.convert("L")):
        assert torch.equal(as_tensor(image), TF.pil_to_tensor(image))
    assert as_tensor(tensor := torch.rand(3, 4, 4)) is tensor
    read, then = first_step(CenterCrop(8))
    assert np.array_equal(read(photograph)[0], photograph)
    assert then(photograph).size == (8, 8)
    step = pickle.loads(pickle.dumps(PartAsRead(3, Resize((16, 24)))))
    assert repr(step).startswith("PartAsRead('RGB', Resize(size=(16, 24)")
    assert step(torch.rand(2, 3, 40, 50)).shape == (2, 3, 16, 24)


def test_a_variable_pyramid_reads_the_whole_image_on_which_its_height_depends(net, photograph, scales):
    variable = ScalePyramid.variable(32, max_height=2)
    fast, exact = (create_transform(net, sizes=variable, exact=exact)(Image.open(jpeg(photograph))) for exact in (0, 1))
    assert [level.shape[-1] for level in fast] == [32, 64]
    greatest, mean = grey_levels(fast, exact)
    assert greatest <= 2.01
    assert mean < 0.02
    assert scales == []
