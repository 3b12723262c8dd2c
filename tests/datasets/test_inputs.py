"""Images to answer: files, folders, tars, lists and data sets become one list, where damage stands in its place."""

import io
import os
import tarfile

import pytest
from PIL import Image

from srnn_zoo.datasets.images import ImageError, Skipped
from srnn_zoo.datasets.inputs import Source, find_inputs, name_of, read_list
from srnn_zoo.datasets.readers import LabelledFiles, LabelledImages, LabelledStream, register_reader
from srnn_zoo.transforms.rgb import upright_rgb

SIZE = (20, 30)


def encoded(colour):
    file = io.BytesIO()
    Image.new("RGB", SIZE, colour).save(file, "png")
    return file.getvalue()


@pytest.fixture
def shard(tmp_path):
    """A tar of three images, with labels and what is no image."""
    path = tmp_path / "shard-000.tar"
    files = {"a/1.png": encoded("red"), "a/1.cls": b"3", "2.PNG": encoded("blue"), ".hidden.png": b"", "3.jpg": b"no"}
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def read(items):
    """What every image is: the colour of its first pixel, or why it cannot be read."""
    found = {}
    for item in items:
        opened = Skipped("", "a path") if isinstance(item, str) else item.read(upright_rgb)
        found[name_of(item)] = opened.reason if isinstance(opened, Skipped) else opened.image.getpixel((0, 0))
    return found


def test_a_tar_gives_its_images_in_their_order_without_their_labels(shard):
    assert read(find_inputs([str(shard)])) == {
        f"{shard}/a/1.png": (255, 0, 0),
        f"{shard}/2.PNG": (0, 0, 255),
        f"{shard}/3.jpg": f"{shard}/3.jpg: not an image that Pillow can read",
    }


@pytest.mark.parametrize("damage", ["cut", "overwritten", "compressed", "gone"])
def test_a_damaged_tar_gives_what_can_be_read_and_one_item_that_says_so(shard, damage, tmp_path):
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        third = tar.getmembers()[2].offset
    damaged = {"cut": content[: third + 100], "overwritten": content[:third] + b"x" * 512 + content[third + 512 :]}
    (tmp_path / "good.png").write_bytes(encoded("green"))
    items = find_inputs([str(shard), str(tmp_path / "good.png")])
    if damage == "gone":
        shard.unlink()
        reasons = {text for text in read(items).values() if isinstance(text, str) and "shard" in text}
        assert reasons == {f"{shard}/{name}: No such file or directory" for name in ("a/1.png", "2.PNG", "3.jpg")}
        return
    if damage == "compressed":
        with tarfile.open(shard, "w:gz") as tar:
            tar.add(tmp_path / "good.png")
    else:
        shard.write_bytes(damaged[damage])
    items = find_inputs([str(shard), str(tmp_path / "good.png")])
    where = "from its first byte on" if damage == "compressed" else "after a/1.png"
    whole = {} if damage == "compressed" else {f"{shard}/a/1.png": (255, 0, 0)}
    reason = f"{shard}: no tar file, or one that is damaged {where} (or compressed)"
    assert read(items) == {**whole, str(shard): reason, str(tmp_path / "good.png"): "a path"}


def test_files_folders_tars_and_data_sets_come_in_the_order_in_which_they_are_given(shard, tmp_path, monkeypatch):
    monkeypatch.setattr("srnn_zoo.datasets.readers._READERS", {})
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        (folder / name).write_bytes(encoded("red"))
    asked = []

    @register_reader("rows/", "files/", ".list")
    def open_rows(name, split, data_dir):
        asked.append((split, data_dir))
        if name == "rows/stream":
            return LabelledStream([], name, None)
        if name == "rows/own":
            return LabelledImages([(Image.new("RGB", SIZE, "red"), 0), (io.BytesIO(b"no"), 1)], name, None)
        return LabelledFiles([("x.png", 0), ("y.png", 1)], name, None)

    (tmp_path / "my.list").touch()
    given = ["no file.png", "rows/own", str(folder), str(tmp_path / "my.list"), str(shard), "files/own"]
    items = find_inputs(given, Source("test", "here"))
    assert [name_of(item) for item in items] == [
        *("no file.png", "rows/own[0]", "rows/own[1]", str(folder / "a.png"), str(folder / "b.png")),
        *("x.png", "y.png", f"{shard}/a/1.png", f"{shard}/2.PNG", f"{shard}/3.jpg", "x.png", "y.png"),
    ]
    assert asked == [("test", "here"), ("test", None), ("test", "here")]
    found = read(items[1:3])
    assert found == {"rows/own[0]": (255, 0, 0), "rows/own[1]": "rows/own[1]: not an image that Pillow can read"}
    with pytest.raises(ValueError, match="rows/stream is a stream, whose images cannot be counted or shared out"):
        find_inputs(["rows/stream"])
    with pytest.raises(ValueError, match="a split or data_dir goes with a data set such as hfds/food101; none is"):
        find_inputs([str(folder)], Source(split="test"))
    for empty in (tmp_path / "empty", tmp_path / "empty.tar"):
        tarfile.open(empty, "w").close() if empty.suffix else empty.mkdir()
        with pytest.raises(ImageError, match="no images in this"):
            find_inputs([str(empty)])


def test_a_list_has_one_path_a_line_or_a_zero_byte_after_each():
    odd = "caf\udce9.png" if os.name == "posix" else "café.png"
    assert read_list(io.BytesIO(os.fsencode(f"a b.png\r\n\n{odd}\nlast.png"))) == ["a b.png", odd, "last.png"]
    assert read_list(io.BytesIO(b"new\nline.png\0b.png\0")) == ["new\nline.png", "b.png"]
    with pytest.raises(ValueError, match="the list on standard input is empty"):
        read_list(io.BytesIO(b"\n"))
