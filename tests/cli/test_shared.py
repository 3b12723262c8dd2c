"""Processes that torchrun starts share the images of a command, and give what one process gives."""

import csv
import re

import pytest

from srnn_zoo import SRNN

from .command import COMMAND, TORCHRUN, python, run


def without_speed(path):
    """The rows of a table, without what is measured by a clock."""
    with path.open() as file:
        return [row[:-1] for row in csv.reader(file)]


def page(path):
    """A report without its speeds and the names inside its drawings, which are new each time."""
    return re.sub(r"(?s)<svg.*?</svg>|<td>[\d.]+</tr>|images/s[^\n]*", "", path.read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("broken")
def test_two_processes_evaluate_calibrate_and_measure_as_one(place, saved, images, tmp_path):
    def commands(name):
        folder = tmp_path / name
        folder.mkdir()
        return [
            f"evaluate {images} {place / 'a'} {place / 'b'} --batch-size 2 --output {folder / 'out'} "
            f"--report {folder / 'report.html'} --exit confidence:0.6",
            f"calibrate {images} -m {saved} --budget 0.01 --batch-size 2 --output {folder / 'model'}",
            f"pareto {images} -m {saved} --batch-size 2 --output {folder / 'points.csv'}",
        ]

    alone = [run(*command.split()) for command in commands("one")]
    shared = [python(*TORCHRUN, *COMMAND[1:], *command.split()) for command in commands("two")]
    one, two = tmp_path / "one", tmp_path / "two"
    for said in shared:
        assert said.stderr.count("skipped 1 of 13 images") == 1, said.stderr
        assert said.returncode == 1
    assert (two / "out" / "predictions.csv").read_text() == (one / "out" / "predictions.csv").read_text()
    assert len((two / "out" / "predictions.csv").read_text().splitlines()) == 13
    assert without_speed(two / "out" / "table.csv") == without_speed(one / "out" / "table.csv")
    assert page(two / "report.html") == page(one / "report.html")
    assert (two / "points.csv").read_text() == (one / "points.csv").read_text()
    exits = [SRNN.from_pretrained(folder / "model").metadata["exit"] for folder in (one, two)]
    assert exits[0] == exits[1]
    assert [said.stdout for said in shared[1:]] == [said.out for said in alone[1:]]
    assert ", one of 2 processes, batches of 2" in shared[0].stdout


@pytest.mark.slow
def test_more_processes_than_batches_and_what_only_one_may_say(place, images, tmp_path):
    said = python(*TORCHRUN, *COMMAND[1:], "evaluate", images / "red", place / "a")
    assert said.stderr.count("srnn-zoo: ") == 1, said.stderr
    options = ["evaluate", images, place / "a", "--batch-size", "50"]
    said = python(*TORCHRUN, *COMMAND[1:], *options, "--output", tmp_path / "two")
    assert said.returncode == 0, said.stderr
    run(*options, "--output", tmp_path / "one")
    assert without_speed(tmp_path / "two" / "table.csv") == without_speed(tmp_path / "one" / "table.csv")
