"""Image files: each becomes an upright RGB image of the right values, or one sentence that says why not."""

import io
import os
import random
import struct
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from srnn_zoo.datasets.images import ImageError, Skipped, find_images, open_image, open_or_skip

ROWS, COLUMNS = np.mgrid[0:24, 0:32]
COLOURS = np.stack([ROWS * 10, COLUMNS * 8, 255 - ROWS * 5 - COLUMNS * 4], axis=-1).astype(np.uint8)
GREYS = COLOURS[..., 1]
GREY = Image.fromarray(GREYS)
PHOTO = Image.fromarray(COLOURS)
ALPHA = (COLUMNS * 8).astype(np.uint8)
ON_WHITE = COLOURS * (ALPHA[..., None] / 255) + 255.0 - ALPHA[..., None]
PALETTE = PHOTO.quantize(16)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def values(image):
    return np.asarray(image).astype(float)


def thrice(greys):
    """Greys as RGB."""
    return np.repeat(np.asarray(greys)[..., None], 3, axis=-1).astype(float)


def with_alpha(image, alpha):
    image = image.copy()
    image.putalpha(Image.fromarray(np.broadcast_to(alpha, GREYS.shape).astype(np.uint8)))
    return image


def reason_against(path):
    """What is said after the path, in one line."""
    name, _, reason = open_or_skip(path).reason.partition(": ")
    assert name == os.fspath(path)
    assert len(reason.splitlines()) == 1
    return reason


SEE_THROUGH = PALETTE.getpixel((0, 0))
PALETTE_ON_WHITE = np.where(np.asarray(PALETTE)[..., None] == SEE_THROUGH, 255.0, values(PALETTE.convert("RGB")))
BITS = Image.fromarray(GREYS > 100)
FRAMES = encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180), PALETTE.rotate(90)])
PAGES = encoded(PHOTO, "TIFF", save_all=True, append_images=[PHOTO.rotate(180)])
WHITE = "transparent, shown on white"
TURNED = Image.Exif()
TURNED[0x0112] = 6
TURNED[0x011A] = TiffImagePlugin.IFDRational(72)
STORED = PHOTO.transpose(Image.Transpose.ROTATE_90)

KINDS = {
    "RGB": (encoded(PHOTO, "PNG"), values(PHOTO), ""),
    "JPEG": (encoded(PHOTO, "JPEG", quality=98), values(PHOTO), ""),
    "greyscale": (encoded(GREY, "PNG"), thrice(GREYS), "greyscale, converted to RGB"),
    "black and white": (encoded(BITS, "PNG"), thrice(BITS) * 255, "black and white, converted to RGB"),
    "palette": (encoded(PALETTE, "PNG"), values(PALETTE.convert("RGB")), ""),
    "palette, one colour transparent": (encoded(PALETTE, "PNG", transparency=SEE_THROUGH), PALETTE_ON_WHITE, WHITE),
    "palette GIF, one colour transparent": (encoded(PALETTE, "GIF", transparency=SEE_THROUGH), PALETTE_ON_WHITE, WHITE),
    "RGBA": (encoded(with_alpha(PHOTO, ALPHA), "PNG"), ON_WHITE, WHITE),
    "RGBA, opaque": (encoded(with_alpha(PHOTO, 255), "PNG"), values(PHOTO), ""),
    "LA": (encoded(with_alpha(GREY, ALPHA), "PNG"), thrice(GREYS * (ALPHA / 255) + 255.0 - ALPHA), WHITE),
    "LA, opaque": (encoded(with_alpha(GREY, 255), "PNG"), thrice(GREYS), ""),
    "CMYK JPEG": (encoded(PHOTO.convert("CMYK"), "JPEG", quality=98), values(PHOTO), "CMYK, converted to RGB"),
    "animation": (FRAMES, values(PALETTE.convert("RGB")), "the first of 3 frames"),
    "pages": (PAGES, values(PHOTO), "the first of 2 frames"),
}
for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
    KINDS[f"{kind} turned upright by its EXIF"] = (encoded(STORED, kind, exif=TURNED, lossless=True), values(PHOTO), "")
for shape in ((8, 8), (400, 8), (8, 400)):  # the smallest and the longest allowed
    KINDS[f"an image of {shape}"] = (encoded(Image.new("RGB", shape[::-1]), "PNG"), np.zeros((*shape, 3)), "")
RAMP = np.linspace(0, 65535, 24 * 32).reshape(24, 32)
DEEP = {  # what is scaled to 8 bits, and not clipped: numbers, format, what becomes black and white, and the name of it
    "16-bit PNG": ((RAMP / 2).astype(np.uint16), "PNG", 0, 65535, "16-bit greyscale"),
    "16-bit TIFF": (RAMP.astype("<u2"), "TIFF", 0, 65535, "16-bit greyscale"),
    "big-endian 16-bit TIFF": (RAMP.astype(">u2"), "TIFF", 0, 65535, "16-bit greyscale"),
    "32-bit TIFF": (RAMP.astype(np.int32), "TIFF", 0, 65535, "32-bit greyscale"),
    "32-bit TIFF up to 255": ((RAMP / 257).astype(np.int32), "TIFF", 0, 255, "32-bit greyscale"),
    "32-bit TIFF above 16 bits": ((RAMP * 1000).astype(np.int32), "TIFF", 0, 65535000, "32-bit greyscale"),
    "32-bit TIFF below 0": ((RAMP - 65535).astype(np.int32), "TIFF", -65535, 65535, "32-bit greyscale"),
    "float TIFF up to 1": ((RAMP / 65535).astype(np.float32), "TIFF", 0, 1, "floating-point greyscale"),
    "float TIFF up to 255": ((RAMP / 257).astype(np.float32), "TIFF", 0, 255, "floating-point greyscale"),
    "dark float TIFF up to 255": ((RAMP / 1000).astype(np.float32), "TIFF", 0, 255, "floating-point greyscale"),
    "float TIFF of 16 bits": ((RAMP / 2).astype(np.float32), "TIFF", 0, 65535, "floating-point greyscale"),
    "float TIFF around 0": ((RAMP / 32767.5 - 1).astype(np.float32), "TIFF", -1, 1, "floating-point greyscale"),
}
for deep, (numbers, suffix, black, white, name) in DEEP.items():
    expected = thrice((numbers - black) / (white - black) * 255)
    KINDS[deep] = (encoded(Image.fromarray(numbers), suffix), expected, f"{name}, scaled to 8 bits")
DEEP_TURNED = encoded(Image.fromarray(RAMP.astype(np.uint16)).transpose(Image.Transpose.ROTATE_90), "PNG", exif=TURNED)
KINDS["16-bit PNG turned upright"] = (DEEP_TURNED, thrice(RAMP / 257), "16-bit greyscale, scaled to 8 bits")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb_with_a_note_of_what_was_done(kind, tmp_path):
    content, expected, note = KINDS[kind]
    path = tmp_path / "image"  # without a suffix: the content alone says what it is
    path.write_bytes(content)
    image, notes = open_image(path)
    assert (image.mode, notes) == ("RGB", (note,) if note else ())
    assert np.abs(values(image) - expected).max() <= (12 if "JPEG" in kind else 1)


def blank(width, height):
    return encoded(Image.new("RGB", (width, height)), "PNG")


def float_tiff(odd_value):
    return encoded(Image.fromarray(np.where(ROWS + COLUMNS == 3, odd_value, 0.5).astype(np.float32)), "TIFF")


def overwritten(kind, start, new):
    content = encoded(PHOTO, kind)
    return content[:start] + new + content[start + len(new) :]


BOMB = overwritten("BMP", 18, struct.pack("<ii", 60000, 60000))  # claims a size, and has no such pixels
UNKNOWN_DDS = overwritten("DDS", 80, struct.pack("<I", 512))  # Pillow's reader raises NotImplementedError
BAD = {
    "half.jpg": (encoded(PHOTO.resize((200, 200)), "JPEG")[:-900], "truncated or damaged (image file is truncated"),
    "half.png": (encoded(PHOTO, "PNG")[:-60], "truncated or damaged ("),
    "header.jpg": (encoded(PHOTO, "JPEG")[:20], "not an image that Pillow can read"),
    "empty.jpg": (b"", "an empty file"),
    "text.jpg": (b"this is no image\n" * 50, "not an image that Pillow can read"),
    "bomb.bmp": (BOMB, "refused as a decompression bomb (Image size (3600000000 pixels)"),
    "line.png": (blank(100, 1), "100 x 1 pixels; an image needs at least 8 on each side"),
    "column.png": (blank(7, 100), "7 x 100 pixels; an image needs at least 8 on each side"),
    "ribbon.png": (blank(401, 8), "401 x 8 pixels; one side is over 50 times the other"),
    "nan.tif": (float_tiff(np.nan), "has values that are not finite"),
    "infinite.tif": (float_tiff(-np.inf), "has values that are not finite"),
    "unknown.dds": (UNKNOWN_DDS, "truncated or damaged (Unknown pixel format flags 512)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_usable_image_is_refused_in_one_line(name, tmp_path):
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert reason_against(path).startswith(reason)
    assert open_or_skip(str(path)) == Skipped(str(path), f"{path}: {reason_against(str(path))}")
    if content:
        assert open_or_skip(io.BytesIO(content), "7") == Skipped("7", f"7: {reason_against(path)}")
        assert open_or_skip(io.BytesIO(content)) == Skipped("an image", f"an image: {reason_against(path)}")


def test_what_the_file_system_refuses_is_said_in_one_line(tmp_path):
    (tmp_path / "file.png").write_bytes(blank(8, 8))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert reason_against(tmp_path / "missing.jpg") == "no such file"
    assert reason_against(tmp_path) == "a folder, not an image"
    assert reason_against(tmp_path / "file.png" / "inside.png") == "Not a directory"
    assert "symbolic links" in reason_against(tmp_path / "loop.png")
    assert "too long" in reason_against(tmp_path / f"{'long' * 100}.png")


def test_whatever_a_decoder_raises_but_an_interruption_is_said_in_one_line(monkeypatch):
    for error, reason in (
        (PermissionError(13, "Permission denied"), "no permission to read it"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (RuntimeError("first line\nsecond line"), "truncated or damaged (first line second line)"),
        (EOFError(), "truncated or damaged (EOFError)"),
    ):
        monkeypatch.setattr(Image, "open", Mock(side_effect=error))
        assert reason_against("image.png") == reason
    monkeypatch.setattr(Image, "open", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_image("image.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
@pytest.mark.filterwarnings("error")
def test_pillow_warns_of_nothing_below_what_is_refused(kind, tmp_path, monkeypatch):
    path = tmp_path / "big"
    path.write_bytes(encoded(PHOTO, kind))
    half = PHOTO.width * PHOTO.height // 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", half)
    assert open_image(path).image.size == PHOTO.size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", half - 1)
    assert reason_against(path).startswith("refused as a decompression bomb")


def test_reading_in_threads_leaves_the_warning_filters_as_they_were(tmp_path):
    PHOTO.save(path := tmp_path / "image.png")
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(open_image, [path] * 300))
        assert warnings.filters == before
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("kind", "JPEG PNG GIF WEBP TIFF BMP DDS BLP AVIF".split())
@pytest.mark.filterwarnings("ignore")
def test_no_damage_raises_anything_but_an_image_error(kind, tmp_path):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    original = encoded(PALETTE if kind == "BLP" else PHOTO, kind, exif=TURNED)
    chance = random.Random(kind)
    path = tmp_path / f"damaged.{kind}"
    reasons = []
    for _ in range(150):
        path.write_bytes(damaged(original, chance))
        if isinstance(open_or_skip(path), Skipped):
            reasons.append(reason_against(path))
    assert len(reasons) > 15  # the damage is real


def damaged(content, chance):
    """Cut off, cut out or overwritten, the header more often than the rest."""
    data = bytearray(content)
    start, way = chance.randrange(len(data)), chance.randrange(4)
    if way < 2:
        del data[start : start + chance.randrange(1, 40) if way else None]
        return bytes(data)
    for _ in range(chance.choice([1, 2, 8])):
        position = chance.randrange(min(len(data), chance.choice([200, len(data)])))
        data[position] = chance.choice([0, 1, 128, 255, chance.randrange(256)])
    return bytes(data)


def test_folders_give_their_images_sorted_and_named_files_stay_as_they_are(tmp_path):
    folder = tmp_path / "folder"
    images = ["a.JPG", "b.png", "photos.old/c.jpeg", "photos.old/deep/d.tif", "z.webp"]
    others = ["notes.txt", "report.pdf", "film.mpg", "data.h5", ".DS_Store", "._a.jpg", ".thumbnails/a.png", "Makefile"]
    for path in (folder / name for name in images + others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "looks like.png").mkdir()
    inside = [folder / name for name in images]
    assert find_images([str(folder), folder]) == inside + inside
    named = ["z.png", "missing.jpg", "notes.txt", f"{'long' * 100}.png"]  # open_image says what is wrong with them
    assert find_images([*named, folder]) == [*map(Path, named), *inside]
    assert find_images([folder / ".thumbnails"]) == [folder / ".thumbnails" / "a.png"]
    with pytest.raises(ImageError, match=r"looks like\.png: no images in this folder$"):
        find_images([folder / "looks like.png"])


def test_linked_folders_are_followed_as_torchvision_does_and_loops_end(tmp_path):
    for file in ("one/a.png", "two/b.png"):
        (tmp_path / file).parent.mkdir()
        PHOTO.save(tmp_path / file)
    (tmp_path / "one" / "more").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "back").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "self").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "lost.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "album").symlink_to(tmp_path / "one")
    assert find_images([tmp_path / "album"]) == [tmp_path / "album" / name for name in ("a.png", "more/b.png")]


@pytest.mark.parametrize(
    ("file", "what", "package"), [("1.HEIC", "a HEIC image", "pillow-heif"), ("1.cr2", "a camera's raw file", "rawpy")]
)
def test_files_that_need_another_package_name_it_and_are_read_with_it(file, what, package, tmp_path, monkeypatch):
    PHOTO.save(path := tmp_path / file, "PNG")  # what Pillow alone would show, a raw file's thumbnail
    module = package.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)
    assert find_images([tmp_path]) == [path]
    assert reason_against(path) == f"{what} needs the package {package}: pip install {package}"
    fake = MagicMock()
    fake.imread.return_value.__enter__.return_value.postprocess.return_value = 255 - COLOURS
    monkeypatch.setitem(sys.modules, module, fake)
    is_raw = package == "rawpy"
    assert np.array_equal(open_image(path).image, 255 - COLOURS if is_raw else COLOURS)
    assert fake.register_heif_opener.called != is_raw
