"""Sharing out: processes take whole batches in turn, and the first gets all answers in the order of the items."""

import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from srnn_zoo.inference.processes import Processes, in_order


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("items", [0, 1, 7, 8, 100, 1000])
def test_any_number_of_processes_makes_the_batches_of_one_and_the_answers_come_in_order(items, count):
    def run(processes):
        batches = []

        def answer(own):
            for start in range(0, len(own), 4):
                batches.append(own[start : start + 4])
                yield from batches[-1]

        return list(in_order(list(range(items)), answer, 4, processes)), batches

    rounds, of_one = run(SimpleNamespace(rank=0, count=1, gather=list))
    assert [item for answers in rounds for item in answers] == list(range(items))
    each = [run(SimpleNamespace(rank=rank, count=count, gather=list)) for rank in range(count)]
    found, batches = zip(*each, strict=True)
    assert {len(rounds) for rounds in found} == {len(found[0])}  # all meet as often
    assert [item for parts in zip(*found, strict=True) for part in parts for item in part] == list(range(items))
    assert sorted(batch for own in batches for batch in own) == of_one
    everywhere = list(
        in_order([1, 2], iter, 4, SimpleNamespace(rank=0, count=1, gather=None, share=list), everywhere=True)
    )
    assert everywhere == [[1, 2]]
    most = max(map(len, batches)) - min(map(len, batches))
    assert most <= max(8, items // 40)  # of batches, by which one has more than another


STARTED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def started(monkeypatch, **environment):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with mock.patch.dict(os.environ, STARTED | environment):
        return Processes()


def test_what_is_missing_in_the_environment_is_named(monkeypatch):
    for name in STARTED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Processes(alone=True).count == 1
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError, match=r"is 2 in the environment, but RANK, MASTER_ADDR not set: .*torchrun or acc"):
        Processes()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE must be a number in the environment; got 'two'"):
        Processes()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Connection closed by peer [127.0.0.1]:2", "has ended before its work was done"),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv", "did not answer in time"),
        ("wait timeout after 300000ms", "did not answer in time"),
    ],
)
def test_one_that_ended_and_one_that_is_slow_are_told_apart(said, reason, monkeypatch):
    processes = started(monkeypatch)
    monkeypatch.setattr(dist, "gather_object", mock.Mock(side_effect=RuntimeError(said)))
    with pytest.raises(ChildProcessError, match=reason):
        processes.gather([1])


def test_a_gpu_without_a_number_is_another_for_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    processes = started(monkeypatch, LOCAL_RANK="3", RANK="3", WORLD_SIZE="4")
    asked = (None, "cuda", "cuda:0", "cpu")
    assert [processes.device(name) for name in asked] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    assert [Processes(alone=True).device(name) for name in asked] == list(asked)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [processes.device(name) for name in asked] == list(asked)
