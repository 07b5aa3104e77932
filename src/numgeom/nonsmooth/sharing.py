"""How is work on numbered pieces divided among processes, here and under torchrun?"""

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass
class Share:
    """One process's part of work that several processes do together.

    Every process makes the same calls in the same order. As a context manager it makes the process
    group that it needs, unless there is one, and takes it down again.

    Attributes:
        rank: Number of this process.
        world: Number of processes.
    """

    rank: int = 0
    world: int = 1
    _owns_group: bool = False

    @classmethod
    def of_torchrun(cls) -> "Share":
        """The part of a process that `torchrun` started, or that is in a process group; else all.

        Several machines need a shared folder only for the state file, not for the work.
        """
        if not distributed.is_available():
            return cls()
        if distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        if distributed.is_torchelastic_launched():
            _make_group()
            return cls(distributed.get_rank(), distributed.get_world_size(), True)
        return cls()

    def __enter__(self) -> "Share":
        """Nothing more to do: the group exists."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take the process group down if it was made here."""
        if self._owns_group:
            distributed.destroy_process_group()

    def part(self, pieces: Sequence[int]) -> list[int]:
        """Every world-th piece, from the rank on."""
        return list(pieces[self.rank :: self.world])

    def agreed(self, pieces: Sequence[int]) -> list[int]:
        """The pieces that no process has, in order."""
        if self.world == 1:
            return list(pieces)
        missing = [set(found) for found in self._gathered(list(pieces))]
        return sorted(set.intersection(*missing))

    def joined(self, found: dict[int, Any]) -> dict[int, Any]:
        """The pieces of all processes."""
        if self.world == 1:
            return found
        whole: dict[int, Any] = {}
        for part in self._gathered(found):
            whole |= part
        return whole

    def _gathered(self, mine: Any) -> list[Any]:
        collected: list[Any] = [None] * self.world
        distributed.all_gather_object(collected, mine)
        return collected


def spread_over(
    work: Callable[[int], Any], pieces: Sequence[int], *, workers: int = 0
) -> Iterator[tuple[int, Any]]:
    """Do pieces of work, in this process or in others, and yield each when it is done.

    Args:
        work: Gets the number of a piece; picklable if there are workers.
        pieces: The numbers.
        workers: Number of processes, one thread each; 0: this process.
    """
    if workers < 1 or len(pieces) < 2:
        for piece in pieces:
            yield piece, work(piece)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread)
    with pool:
        try:
            waiting = {pool.submit(work, piece): piece for piece in pieces}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def is_first_process() -> bool:
    """Whether this process is the one of several that prints: `torchrun`'s rank 0, or the only."""
    if not distributed.is_available():
        return True
    if distributed.is_initialized():
        return distributed.get_rank() == 0
    return not distributed.is_torchelastic_launched() or int(os.environ.get("RANK", "0")) == 0


# torchrun's store outlives a group: what a later group writes there needs names of its own.
_GROUPS = itertools.count()


def _make_group() -> None:
    # Here, since a torch that was built without distributed has no such modules.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    store = PrefixStore(f"numgeom-{next(_GROUPS)}", store)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)


def _one_thread() -> None:
    torch.set_num_threads(1)
