"""What does a certificate say of decisions that the step took and no replay takes again?

Masks as indices, positions of what is not zero, numbers that Python read: a certificate is about
the step in which they came out as they did. So it counts them, and says how far the exact values
are from deciding otherwise. Where one may come out otherwise there is no bound, and the place is
among the unresolved kinks.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from numgeom.arithmetic.printing import lower_short
from numgeom.certificate.kinks import Kink, kink_of_decision
from numgeom.recording import Program
from numgeom.recording.calls import CallInfo
from numgeom.recording.decisions import READ
from numgeom.recording.program import Replay
from numgeom.recording.scalars import numbers_in
from numgeom.semantics.decisions import judge
from numgeom.visible import visible


@dataclass(frozen=True)
class Decisions:
    """Decisions that are part of the recorded step.

    Attributes:
        count: How many tensors decided.
        reads: How many of them hold real numbers and were read by Python (`item`, `tolist`,
            `numpy`). Of these only the signs are tested; what Python did with them is not known.
        margin: No decision changes while all error bounds are less than this many times as large
            as they are, a power of ten. Infinite where all of them are exact, NaN where they were
            not tested.
    """

    count: int
    reads: int
    margin: float

    def __str__(self) -> str:
        """Return one or two sentences."""
        text = f"Decisions as computed: {self.count}, "
        if math.isnan(self.margin):
            text += "not tested."
        elif math.isinf(self.margin):
            text += "all of them by exact values."
        else:
            text += f"smallest margin {lower_short(self.margin)} times the error bound."
        if self.reads:
            text += (
                f" {self.reads} of them are real numbers that Python read: their signs are "
                "decided, what the program did with them is taken as it was."
                if not math.isnan(self.margin)
                else f" {self.reads} of them are real numbers that Python read."
            )
        return text

    def check(self) -> None:
        """Raise ValueError where the counts do not fit."""
        if not 0 <= self.reads <= self.count:
            raise ValueError(f"{self.reads} reads among {self.count} decisions")
        if self.margin < 0.0:
            raise ValueError("the margin of decisions is negative")


def decisions_of(program: Program, margin: float) -> Decisions | None:
    """Count the decisions of a program; None where it has none.

    Args:
        program: As it was recorded.
        margin: As it was found; NaN if they were not tested.
    """
    found = program.decisions
    if not found:
        return None
    taken = [program.constants[str(decision.taken.target)] for decision in found]
    reads = sum(d.is_read and _is_real(t) for d, t in zip(found, taken, strict=True))
    return Decisions(len(found), reads, margin)


_SHOWN = 4  # places that a note names
_COMMON = (0.0, 1.0, -1.0, 2.0, 0.5)  # numbers that a program has without reading them


def note_on_reads(program: Program) -> tuple[str, ...]:
    """Name the real numbers that Python read, and the calls that got one of them as it was read.

    Args:
        program: As it was recorded.
    """
    taken = {d: program.constants[str(d.taken.target)] for d in program.decisions if d.is_read}
    reads = {d: t for d, t in taken.items() if _is_real(t)}
    if not reads:
        return ()
    places = [f"{d.op.removeprefix(READ)} {_place(d.info)}" for d in reads]
    note = (
        f"Python read real numbers: {_listed(places)}. What the program decided and computed by "
        "them is taken as it was; their own errors are part of no bound."
    )
    values = {float(t) for t in reads.values() if t.numel() == 1 and not t.is_complex()}
    again = [
        f"{node.target} {_place(node.meta['call'])}"
        for node in program.calls
        if any(x in values for x in numbers_in((node.args, node.kwargs)) if x not in _COMMON)
    ]
    if again:
        note += f" Computed with as they were read: {_listed(again)}."
    return (visible(note),)


def _place(info: CallInfo) -> str:
    return f"in {info.module or 'the model'} ({info.source})"


def _listed(places: list[str]) -> str:
    distinct = list(dict.fromkeys(places))
    more = len(distinct) - _SHOWN
    return ", ".join(distinct[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def differing(reference: Replay) -> tuple[Kink, ...]:
    """The decisions that a replay in float64 takes otherwise than the recorded run did.

    Args:
        reference: The replay.
    """
    found = (judge(d, d.value, None, None) for d in reference.decisions)
    return tuple(kink_of_decision(j) for j in found if bool(j.undecided.any()))


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
