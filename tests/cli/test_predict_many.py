"""`predict` for many images: a file of answers that an interrupted run goes on with, from any source, by any number."""

import csv
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from itertools import islice
from unittest import mock

import pytest

from srnn_zoo.datasets.inputs import BytesItem
from srnn_zoo.inference import predict as module

from .command import COMMAND, TORCHRUN, python, refused, run


@pytest.fixture
def model(place):
    return ("-m", place / "a", "--batch-size", "4", "--topk", "2")


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def stopped_after(count, error=KeyboardInterrupt):
    """Predictions end with an error after so many images."""
    whole = module.predict

    def predict(*args, **options):
        yield from islice(whole(*args, **options), count)
        raise error

    return mock.patch.object(module, "predict", predict)


def test_a_row_an_image_has_its_best_classes_or_why_it_cannot_be_read(images, model, broken, tmp_path):
    content = (images / "red" / "0.png").read_bytes()
    header = content[12:16] + struct.pack(">II", 20000, 10000) + content[24:29]
    (images / "red" / "huge.png").write_bytes(
        content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    )
    try:
        said = run("predict", images, *model, "-o", tmp_path / "a.csv", "--exit", "confidence:0.5")
        assert run("predict", images, *model, "-o", tmp_path / "a.jsonl", "--exit", "confidence:0.5").code == 1
        as_json = run("predict", images, *model, "--json", "--exit", "confidence:0.5")
        again = run("predict", images, *model, "-o", tmp_path / "a.csv", "--exit", "confidence:0.5", "--resume")
    finally:
        (images / "red" / "huge.png").unlink()
    assert (said.code, said.out) == (1, "")
    assert f"{tmp_path / 'a.csv'}: 14 rows" in said.err
    assert again == said._replace(err=said.err.replace("a.csv: 14", "a.csv was complete already: 14"))
    assert said.err.splitlines()[-3:-1] == ["skipped 2 of 14 images:", f"  {broken}: not an image that Pillow can read"]
    assert "huge.png: refused as a decompression bomb (Image size (200000000 pixels)" in said.err
    rows = table(tmp_path / "a.csv")
    objects = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [each["path"] for each in objects]
    assert [each for each in objects if "error" not in each] == list(map(json.loads, as_json.out.splitlines()))
    for row, each in zip(rows, objects, strict=True):
        if "error" in each:
            assert (row["error"], row["label"], row["gmacs"]) == (each["error"], "", "")
            continue
        first, second = each["levels"][-1]["top"]
        assert (row["label"], row["label_2"], row["stopped_at"]) == (
            first["label"],
            second["label"],
            str(each["stopped_at"]),
        )
        assert float(row["probability_2"]) == pytest.approx(second["probability"], rel=1e-5)
        assert (row["notes"], row["error"]) == ("", "")


def test_an_interrupted_run_goes_on_and_gives_what_one_run_gives(images, model, tmp_path):
    whole, output = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    assert run("predict", images, *model, "-o", whole).code == 0
    for done, error, code, reason in (
        (6, KeyboardInterrupt, 130, "interrupted"),
        (5, ChildProcessError("a process that reads images was killed"), 1, "a process that reads images was killed"),
    ):
        with stopped_after(done, error):
            said = run("predict", images, *model, "-o", output, "--resume")
        assert (said.code, said.out) == (code, "")
        kept, last = said.err.splitlines()
        rows = 4 if error is KeyboardInterrupt else 8  # whole batches
        assert f"{rows} of 12 rows are kept in {output}.partial" in kept
        assert last == f"srnn-zoo: {reason}"
    other = refused("predict", images, *model, "-o", output, "--resume", "--topk", 1, "--sizes", "32,48")
    assert "cannot be resumed with other settings: topk 1, was 2; sizes 32x32,48x48, was 32x32,64x64" in other
    assert "SHA-256 of their paths" in refused("predict", images / "red", *model, "-o", output, "--resume")
    assert "--output: " in (reason := refused("predict", images, *model, "-o", output))
    assert "of a run that was interrupted, exists: go on with --resume" in reason
    said = run("predict", images, *model, "-o", output, "--resume")
    assert (said.code, said.err) == (0, f"{output}: 12 rows\n")
    assert output.read_bytes() == whole.read_bytes()
    said = run("predict", images, *model, "-o", output, "--resume")
    assert (said.code, said.err) == (0, f"{output} was complete already: 12 rows\n")
    assert len(list(tmp_path.iterdir())) == 4  # two files with their settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--resume", "--resume goes on with a file: give --output too"),
        ("-o a.xlsx", "--output: a.xlsx must end with .csv, .jsonl or .parquet"),
        ("-o a.csv --json", "--json is for standard output: give --output a name that ends with .jsonl instead"),
        ("-o nowhere/a.csv", "--output: there is no folder nowhere"),
        ("--split test", "a split or data_dir goes with a data set"),
        ("- -", "standard input (-) can be read once"),
    ],
)
def test_what_makes_no_sense_is_refused(images, model, options, message):
    assert message in refused("predict", images, *model, *options.split())


def test_a_list_and_a_tar_give_the_answers_of_the_files_themselves(images, model, tmp_path, monkeypatch):
    files = sorted(images.glob("red/*.png"))
    with tarfile.open(tmp_path / "red.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    expected = run("predict", *files, *model, "--json").out
    listed = "\n".join(map(str, files)).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert run("predict", "-", *model, "--json").out == expected
    said = run("predict", tmp_path / "red.tar", tmp_path / "bad.tar", *model, "--json")
    assert said.code == 1
    assert said.out.replace(f"{tmp_path / 'red.tar'}/", f"{images / 'red'}/") == expected
    assert f"  {tmp_path / 'bad.tar'}: no tar file, or one that is damaged from its first byte on" in said.err


def test_an_image_of_a_data_set_is_called_by_its_number_so_a_run_goes_on_with_the_same_split(
    images, model, tmp_path, monkeypatch
):
    found = [BytesItem("hfds/own[0]", (images / "red" / "0.png").read_bytes())]
    monkeypatch.setattr("srnn_zoo.datasets.inputs.find_inputs", lambda *_: found)
    command = ("predict", "hfds/own", *model, "-o", tmp_path / "a.csv", "--resume", "--split")
    assert run(*command, "train", "--data-dir", tmp_path).code == 0
    assert run(*command, "train", "--data-dir", tmp_path / "b" / "..").code == 0
    assert "split test, was train" in refused(*command, "test", "--data-dir", tmp_path)
    assert f"data_dir none, was {tmp_path}" in refused(*command, "train")


def test_processes_that_read_give_the_same_and_one_that_is_killed_costs_no_row(images, model, tmp_path, broken):
    outputs = tmp_path / "threads.csv", tmp_path / "workers.csv"
    for output, workers in zip(outputs, (0, 2), strict=True):
        assert run("predict", images, *model, "-o", output, "--workers", workers).code == 1
    assert outputs[0].read_text() == outputs[1].read_text()
    me, whole = os.getpid(), module.ReadLevels.__call__

    def read(self, item):
        if item[0] == str(images / "green" / "1.png") and os.getpid() != me:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, item)

    outputs[1].unlink()
    with mock.patch.object(module.ReadLevels, "__call__", read):
        said = run("predict", images, *model, "-o", outputs[1], "--workers", 1)
    assert said.code == 1
    assert re.match("[04] of 13 rows are kept", said.err)
    assert "srnn-zoo: a process that reads images was killed, often for want of memory" in said.err
    assert run("predict", images, *model, "-o", outputs[1], "--resume").code == 1  # one image is broken
    assert outputs[0].read_text() == outputs[1].read_text()


@pytest.mark.slow
def test_two_processes_give_the_file_of_one_also_where_they_go_on_after_it(images, model, broken, tmp_path):
    options = [images, images, *model, "--batch-size", "2", "--exit", "confidence:0.5"]
    single, shared, resumed = (tmp_path / name for name in ("single.csv", "shared.csv", "resumed.csv"))
    alone = run("predict", *options, "-o", single)
    done = python(*TORCHRUN, *COMMAND[1:], "predict", *options, "-o", shared)
    assert done.stderr.count("shared.csv: 26 rows") == 1
    assert alone.err.splitlines()[:2] == [
        line for line in done.stderr.splitlines() if "stopped at" in line or "GM" in line
    ]
    assert shared.read_text() == single.read_text()
    with stopped_after(10):
        run("predict", *options, "-o", resumed)
    listed = "\n".join(map(str, sorted(images.rglob("*.*")) * 2))
    command = [sys.executable, *TORCHRUN, *COMMAND[1:], "predict", "-", *map(str, options[2:]), "-o", str(resumed)]
    options = {"input": listed, "text": True, "check": False, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    subprocess.run([*command, "--resume"], **options)
    assert resumed.read_text() == single.read_text()


@pytest.mark.slow
def test_killed_three_times_and_resumed_every_image_has_one_row(images, model, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for number in range(1500):
        (links / f"{number:04}.png").symlink_to(images / "red" / f"{number % 4}.png")
    output, partial = tmp_path / "a.csv", tmp_path / "a.csv.partial"
    command = [*COMMAND, "predict", links, *model, "-o", output, "--resume"]
    rows = 0
    for _ in range(3):
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while not partial.exists() or partial.read_text().count("\n") < rows + 100:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.kill()
        assert partial.read_text().count("\n") > rows
        rows = partial.read_text().count("\n")
        assert not output.exists()
    assert run(*command[3:]).code == 0
    assert [row["path"] for row in table(output)] == sorted(map(str, links.iterdir()))
