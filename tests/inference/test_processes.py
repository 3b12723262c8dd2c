"""Sharing out: processes take whole batches in turn, and the first gets all answers in the order of the items."""

from types import SimpleNamespace

import pytest

from srnn_zoo.inference.processes import in_order


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
