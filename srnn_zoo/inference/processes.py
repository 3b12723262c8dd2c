"""The processes that `torchrun` or `accelerate launch` starts: the first decides and writes, all share the work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

MOST_BATCHES = 8  # that a process works on between two meetings


class Processes:
    """This process among those that share a run; one alone where nothing has started several.

    Attributes:
        rank: 0 for the first.
        count: how many there are.
        local_rank: 0 for the first on this machine, which the first GPU is for.

    Args:
        alone: that this process shares nothing, whatever has started it.

    Raises:
        ValueError: if WORLD_SIZE is set in the environment, and what goes with it is not.
        ChildProcessError: if the others do not come.
    """

    def __init__(self, alone: bool = False) -> None:
        known = {} if alone else os.environ
        self.rank, self.count, self.local_rank = (
            _number(known, name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        if self.count > 1 and not dist.is_initialized():
            if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in known]:
                raise ValueError(
                    f"WORLD_SIZE is {self.count} in the environment, but {', '.join(missing)} not set: start the "
                    "processes with torchrun or accelerate launch, which set them all, or unset WORLD_SIZE"
                )
            _together(dist.init_process_group, "gloo")  # text goes between them, no tensors of a GPU

    @property
    def is_first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def device(self, asked: str | None = None) -> str | None:
        """A GPU of its own, if there are several processes and any GPUs; else, or if another was asked for, that."""
        gpus = torch.cuda.device_count() if self.count > 1 and asked in (None, "cuda") else 0
        return f"cuda:{self.local_rank % gpus}" if gpus else asked

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process. If it fails there, the others end quietly, as it says why."""
        if self.count == 1:
            return work()
        try:
            said: list[Any] = [work() if self.is_first else None, True]
        except BaseException:
            with contextlib.suppress(RuntimeError):  # where they are gone
                dist.broadcast_object_list([None, False])
            raise
        _together(dist.broadcast_object_list, said)
        if not said[1]:
            raise SystemExit(1)
        return said[0]

    def first_then_all(self, work: Callable[[], T]) -> T:
        """`work` in every process, once the first has done it: it may fetch a file that the others then find."""
        done: list[T] = []
        self.first(lambda: done.append(work()) if self.is_first else None)
        return done[0] if done else work()

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes in order, in the first; none in the others."""
        if self.count == 1:
            return items
        found: list[Any] | None = [None] * self.count if self.is_first else None
        _together(dist.gather_object, items, found)
        return [item for part in found or () for item in part]

    def share(self, items: list[T]) -> list[T]:
        """The items of all processes in order, in all of them."""
        if self.count == 1:
            return items
        found: list[Any] = [None] * self.count
        _together(dist.all_gather_object, found, items)
        return [item for part in found for item in part]

    def end(self) -> None:
        """Leave the others."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def in_order(
    items: Sequence[Any],
    answer: Callable[[list[Any]], Iterable[T]],
    batch_size: int,
    processes: Processes,
    everywhere: bool = False,
) -> Iterator[list[T]]:
    """What `answer` makes of items, shared out among processes; the first gets it in the order of the items.

    Processes take whole batches in turn, the same that one process makes, so that all answers are the same.

    Args:
        items: the same in all processes.
        answer: gives one answer for every item.
        batch_size: items in a batch.
        processes: that share the items.
        everywhere: whether all processes get it.

    Yields:
        the next answers; if not `everywhere`, empty lists in the other processes.
    """
    batches = -(-len(items) // batch_size)
    alone = processes.count == 1
    block = batch_size * (1 if alone else max(1, min(MOST_BATCHES, batches // (MOST_BATCHES * processes.count))))
    starts = range(0, len(items), block)
    own = [item for start in starts[processes.rank :: processes.count] for item in items[start : start + block]]
    answers = iter(answer(own))
    collect = processes.share if everywhere else processes.gather
    for _ in starts[:: processes.count]:
        yield collect(list(islice(answers, block)))


def _number(known: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(known.get(name, default))
    except ValueError:
        raise ValueError(f"{name} must be a number in the environment; got {known[name]!r}") from None


def _together(collective: Callable[..., Any], *arguments: Any) -> None:
    try:
        collective(*arguments)
    except RuntimeError as error:  # gloo's
        said = str(error).lower()
        if "timed out" in said or "timeout" in said:
            raise ChildProcessError(
                "another process of this run did not answer in time: it hangs, cannot be reached, or its images take "
                "far longer than those of the others"
            ) from error
        raise ChildProcessError("another process of this run has ended before its work was done") from error
