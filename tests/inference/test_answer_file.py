"""A file of answers: cut at any byte it goes on without losing or repeating a row, and only with the same settings."""

import copy
import csv
import io
import json
import resource
from types import SimpleNamespace
from unittest import mock

import pytest

from srnn_zoo.inference import answer_file
from srnn_zoo.inference.answer_file import AnswerFile, check_answer_file, fingerprint
from srnn_zoo.inference.rows import Row, csv_line, table_cells, table_columns

from .conftest import small_model

COLUMNS = {"path": str, "label": str, "probability": float, "stopped_at": int, "gmacs": float, "error": str}
NAMES = ["a.png", 'new\nline, "quoted".png', "caf\udce9.png", "re\rturn.png", "a.png", "é.png", "last.png"]
ALL = len(NAMES)
SETTINGS = {"topk": 1, "exit": None, "about": {"model": "net"}}


def row(name, is_json=False):
    """One that could not be read if its name is quoted."""
    error = f"{name}: no image" if '"' in name else ""
    answer = [None] * 4 if error else ["cat", 0.5, 1, 2.5]
    cells = dict(zip(COLUMNS, [name, *answer, error or None], strict=True))
    text = json.dumps(cells) + "\n" if is_json else csv_line(cells.values())
    return Row(text, error, None if error else 1, 0.0 if error else 2.5)


def write(path, upto=ALL, resume=False, multiple=1, settings=SETTINGS, names=NAMES):
    """Write up to so many rows; the rows that were kept."""
    file, kept = AnswerFile(path, COLUMNS, settings, names), []
    file.start(resume, multiple, kept.append)
    assert file.rows == (len(names) if file.complete else len(kept))
    if not file.complete:
        file.write(row(name, path.suffix == ".jsonl") for name in names[file.rows : upto])
        file.finish() if upto == len(names) else file.close()
    return kept


def names_in(path):
    if path.suffix == ".jsonl":
        return [json.loads(line)["path"] for line in path.read_text().splitlines()]
    text = path.read_bytes().decode(errors="surrogateescape")
    return [cells["path"] for cells in csv.DictReader(io.StringIO(text, newline=""))]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_cut_at_any_byte_it_goes_on_without_losing_or_repeating_a_row(suffix, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    write(whole)
    content = whole.read_bytes()
    assert names_in(whole) == NAMES
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, f"{whole.name}.settings.json"}
    path, partial = tmp_path / f"cut{suffix}", tmp_path / f"cut{suffix}.partial"
    write(path, upto=0)
    ends = [content.index(b"\n") + 1 if suffix == ".csv" else 0]
    for name in NAMES:
        ends.append(ends[-1] + len(row(name, suffix == ".jsonl").text.encode(errors="surrogateescape")))
    cuts = {*range(0, len(content), 3 if suffix == ".csv" else 7), *ends, *(end - 1 for end in ends if end)}
    for cut in sorted(cuts):
        multiple = 1 + 2 * (cut % 2)
        partial.write_bytes(content[:cut])
        kept = write(path, resume=True, multiple=multiple)
        there = sum(end <= cut for end in ends[1:])
        assert len(kept) == (there if there == len(NAMES) else there - there % multiple)
        assert [(each.error, each.stopped_at, each.gmacs) for each in kept] == [row(n)[1:] for n in NAMES[: len(kept)]]
        assert path.read_bytes() == content
        path.unlink()


def test_a_parquet_file_has_the_values_of_the_table(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "answers.parquet"
    write(path, upto=3)
    assert not path.exists()
    assert len(write(path, resume=True)) == 3
    table = pq.read_table(path)
    assert table.column("path").to_pylist() == [name.replace("\udce9", "\\xe9") for name in NAMES]
    assert [
        str(table.schema.field(name).type) for name in COLUMNS
    ] == "string string double int32 double string".split()
    assert table.column("probability").to_pylist() == [None if '"' in name else 0.5 for name in NAMES]
    assert table.column("error").null_count == len(NAMES) - 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.settings.json"]


def test_outputs_of_one_name_have_a_column_each():
    names = ["x", "x", "x_2", "x"]
    model = SimpleNamespace(task="regression")
    with mock.patch("srnn_zoo.inference.rows.class_names", return_value=names):
        columns = table_columns(model)
    assert list(columns)[1:5] == ["value: x", "value: x_2", "value: x_2_2", "value: x_3"]
    found = SimpleNamespace(
        path="a.png", answers=[SimpleNamespace(top=list(zip(names, [1.0, 2.0, 3.0, 4.0], strict=True)))], notes=()
    )
    assert list(table_cells(found, columns).values())[:5] == ["a.png", 1.0, 2.0, 3.0, 4.0]


def test_what_exists_is_kept_and_a_complete_file_is_not_written_again(tmp_path):
    path = tmp_path / "answers.csv"
    write(path, upto=2, resume=True)  # there is nothing yet: it begins
    with pytest.raises(
        FileExistsError, match=r"answers.csv.partial, of a run that was interrupted, exists: go on with"
    ):
        write(path)
    write(path, resume=True)
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"answers.csv exists: go on with --resume, or give another --output"):
        write(path)
    assert [kept.error for kept in write(path, resume=True)] == [row(name).error for name in NAMES]
    assert path.read_bytes() == content


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_rows_of_a_complete_file_are_counted_as_they_were_written(suffix, tmp_path):
    path = tmp_path / f"answers{suffix}"
    file = AnswerFile(path, COLUMNS, SETTINGS, NAMES)
    file.start()
    assert not file.complete
    file.close()
    assert not file.complete  # it is closed alone
    write(path, resume=True)
    again = AnswerFile(path, COLUMNS, SETTINGS, NAMES)
    kept = []
    again.start(resume=True, count=kept.append)
    assert again.complete
    assert kept == [row(name)._replace(text="") for name in NAMES]
    if suffix != ".parquet":
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(ValueError, match=r"was changed: it has 6 whole rows, and there are 7 images"):
            write(path, resume=True)


def test_other_settings_other_images_and_a_changed_file_are_refused_with_what_differs(tmp_path):
    path = tmp_path / "answers.csv"
    write(path, upto=3)
    partial = tmp_path / "answers.csv.partial"
    content = partial.read_bytes()
    other = {"topk": 5, "exit": "level:0", "about": {"model": "moved"}, "new": [1.0]}
    with pytest.raises(
        ValueError, match=r"with other settings: topk 5, was 1; exit level:0, was none; new \[1.0\], was"
    ):
        write(path, resume=True, settings=other)
    assert write(path, upto=3, resume=True, settings={**SETTINGS, "about": {"model": "moved"}})
    with pytest.raises(ValueError, match=r"row 1 is of a.png, and the image of b.png"):
        write(path, resume=True, names=["b.png", *NAMES[1:]])
    assert partial.read_bytes() == content
    partial.write_text("path,other\na.png,1\n" * 9)
    with pytest.raises(ValueError, match="its first line does not name the columns"):
        write(path, resume=True)
    partial.write_bytes(content)
    (tmp_path / "answers.csv.settings.json").unlink()
    with pytest.raises(ValueError, match=r"answers.csv.settings.json, which says what made it, is missing"):
        write(path, resume=True)


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "answers.csv"
    first = AnswerFile(path, COLUMNS, SETTINGS, NAMES)
    first.start()
    with pytest.raises(FileExistsError, match=r"another process is writing .*answers.csv.partial"):
        write(path, resume=True)
    said = (tmp_path / "answers.csv.settings.json").read_bytes()
    with pytest.raises(FileExistsError, match="another process is writing"):
        AnswerFile(path, COLUMNS, {**SETTINGS, "topk": 99}, NAMES).start(resume=True)
    assert (tmp_path / "answers.csv.settings.json").read_bytes() == said
    first.close()
    write(path, resume=True)


def test_a_full_disk_keeps_the_rows_that_it_has_room_for(tmp_path):
    path = tmp_path / "answers.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = AnswerFile(path, COLUMNS, SETTINGS, NAMES)
    file.start()
    file.write([row(NAMES[0])])
    size = (tmp_path / "answers.csv.partial").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))  # room for a part of a row
        with pytest.raises(OSError, match=r"answers.csv.partial cannot be written: File too large"):
            file.write([row(NAMES[1])])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.rows == 1
    file.close()
    assert len(write(path, resume=True)) == 1
    assert names_in(path) == NAMES


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    for path, error, reason in (
        (tmp_path / "answers.xlsx", ValueError, r"answers.xlsx must end with .csv, .jsonl or .parquet"),
        (tmp_path / "no" / "answers.csv", FileNotFoundError, "there is no folder"),
    ):
        with pytest.raises(error, match=reason):
            check_answer_file(path)
    monkeypatch.setattr(answer_file, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'a Parquet file needs pyarrow: pip install "srnn-zoo\[table\]"'):
        check_answer_file("answers.parquet")


def test_a_fingerprint_is_of_all_that_answers_follow_from():
    model = small_model()
    own = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == own

    def changed(change):
        other = copy.deepcopy(model)
        change(other)
        return fingerprint(other)

    changes = [
        lambda m: m.get_parameter("fc.bias").data.add_(1),
        lambda m: m.metadata.update(temperatures=[1.0, 2.0, 3.0]),
        lambda m: m.pretrained_cfg.update(mean=(0.1, 0.2, 0.3)),
        lambda m: m.pretrained_cfg.update(label_names=tuple("abcdefghij")),
        lambda m: setattr(m, "about", SimpleNamespace(format="onnx")),
    ]
    assert len({own, *map(changed, changes)}) == len(changes) + 1
