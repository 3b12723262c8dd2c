"""Freed memory is kept in the command's process, and only where nobody else has decided about it."""

import sys

import pytest

import srnn_zoo
from tests.cli.command import python

FAULTS = """
import resource, torch, srnn_zoo

def faults():
    for _ in range(20):  # glibc needs up to ten until it has found a place for them
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
assert srnn_zoo.keep_freed_memory()
print(faults(), plain)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")


@pytest.mark.slow
def test_tensors_that_come_and_go_cost_few_page_faults(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    kept, plain = map(int, python(tmp_path / "faults.py").stdout.split())
    assert kept < plain / 10


def test_the_environments_own_settings_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not srnn_zoo.keep_freed_memory()
