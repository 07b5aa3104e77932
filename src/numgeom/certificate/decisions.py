"""What does a certificate say of decisions that the step took and no replay takes again?

Masks as indices, positions of what is not zero, numbers that Python read: a certificate is about
the step in which they came out as they did. So it counts them, and says how far the exact values
are from deciding otherwise. Where one may come out otherwise there is no bound, and the place is
among the unresolved kinks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from numgeom.arithmetic.printing import lower_short
from numgeom.certificate.kinks import Kink, kink_of_decision
from numgeom.recording import Program
from numgeom.recording.program import Replay
from numgeom.results import store
from numgeom.semantics.decisions import judge


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

    def to_document(self) -> dict[str, Any]:
        """Return the fields as they are written to a file."""
        margin = store.encode_number(self.margin)
        return {"count": self.count, "reads": self.reads, "margin": margin}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Decisions":
        """Read what `to_document` returned; a wrong document raises a plain Python error."""
        count, reads = int(document["count"]), int(document["reads"])
        if not 0 <= reads <= count:
            raise ValueError(f"{reads} reads among {count} decisions")
        return cls(count, reads, store.decode_number(document["margin"]))


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


def differing(reference: Replay) -> tuple[Kink, ...]:
    """The decisions that a replay in float64 takes otherwise than the recorded run did.

    Args:
        reference: The replay.
    """
    found = (judge(d, d.value, None, None) for d in reference.decisions)
    return tuple(kink_of_decision(j) for j in found if bool(j.undecided.any()))


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
