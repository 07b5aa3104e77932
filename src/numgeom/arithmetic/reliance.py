"""On which measured accuracies does a bound rest, and were they measured on this processor?

A rule that uses the accuracy of an elementary function asks for it by `accuracy_of`. Whoever makes
a bound lets it be computed within `relying`, and then weakens its guarantee by `support`: a bound
is only as good as the measurements below it, and a measurement is worth nothing for kernels that it
did not see.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from numgeom.arithmetic import elementary
from numgeom.arithmetic.accuracy import Accuracy, AccuracyTable, default_table

# Rules are called far below the question that is asked, by interpreters that do not know which of
# them look into the table. A context variable is seen by this thread and this question alone.
_used: ContextVar[set[Accuracy] | None] = ContextVar("used accuracies", default=None)


@contextmanager
def relying() -> Iterator[set[Accuracy]]:
    """Collect the entries of the accuracy table that are used inside the block."""
    outer = _used.get()
    used: set[Accuracy] = set()
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)
        if outer is not None:
            outer |= used


def accuracy_of(function: str, dtype: torch.dtype, *, device: str = "cpu") -> Accuracy | None:
    """The accuracy that bounds may rely on, noted in the `relying` block around.

    None if the function was never measured in this format, on any processor.
    """
    entry = default_table().find(function, dtype, device=device)
    used = _used.get()
    if entry is not None and used is not None:
        used.add(entry)
    return entry


@dataclass(frozen=True)
class Support:
    """What the measurements below a bound are worth in this process.

    Attributes:
        holds: Whether every one of them, or the maker's documentation in its place, is about the
            kernels of this process. Otherwise the bound is an estimate.
        notes: What a reader must know, in plain sentences; none where all were measured here.
    """

    holds: bool
    notes: tuple[str, ...] = ()


def support(used: Collection[Accuracy], table: AccuracyTable | None = None) -> Support:
    """Tell whether the kernels that a bound rests on are those that were measured.

    Args:
        used: The entries that it rests on.
        table: What they are entries of; None for the table that comes with the package.
    """
    table = default_table() if table is None else table
    here = table.architecture == elementary.architecture()
    foreign = [
        entry for entry in used if not (here and entry.runs_here()) and not entry.is_one_operation()
    ]
    unknown = [entry for entry in foreign if not entry.is_documented_here()]
    documented = [entry for entry in foreign if entry not in unknown]
    notes = []
    if unknown:
        notes.append(
            f"The bounds rest on how accurate torch computes {_names(unknown)}, which was never "
            f"measured with the kernels that run here (torch {torch.__version__}, "
            f"{elementary.architecture()}, {elementary.capability()}), so they are estimates. "
            "benchmarks/accuracy.py measures them."
        )
    if documented:
        notes.append(
            f"The kernels of {_names(documented)} that run here are others than those measured; "
            f"the bounds rely on the {elementary.DOCUMENTED_ULPS} ulp that Intel documents for "
            "its vector mathematics."
        )
    return Support(not unknown, tuple(notes))


def _names(entries: list[Accuracy]) -> str:
    names = sorted({entry.function for entry in entries})
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more functions"
