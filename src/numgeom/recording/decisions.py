"""Which values decided what a step did, outside of what a replay computes again?

A replay repeats the recorded calls. Where a value chose which calls there are, or of what shape,
the choice is part of the recording: positions that a boolean index picked, a number that Python
read and branched on. A decision keeps the tensor that chose, so that an evaluation can ask whether
the exact tensor would have chosen the same.
"""

from typing import Any, NamedTuple

from torch import Tensor, fx

from numgeom.recording.calls import CallInfo, Phase
from numgeom.recording.seen import Seen
from numgeom.recording.sources import Place

READ = "Tensor."  # how the ops of decisions begin whose values left the program
UNSEEN = "an unseen number in "  # and of constants that came from nowhere


class Decision(NamedTuple):
    """One tensor that decided.

    Attributes:
        value: What holds the tensor in the program.
        taken: The constant that holds what it was in the recorded run.
        op: The call that took the decision, "aten.nonzero.default"; or what read the tensor into
            Python, "Tensor.item".
        info: Where that happened.
    """

    value: Any
    taken: Any
    op: str
    info: CallInfo

    @property
    def is_read(self) -> bool:
        """Whether Python got the values; what it used them for is not known."""
        return self.op.startswith(READ)

    @property
    def is_unseen(self) -> bool:
        """Whether nobody saw what decided, so that the decision is never certain."""
        return self.op.startswith(UNSEEN)


class Decided(NamedTuple):
    """A decision as it is noted while the step runs.

    Attributes:
        call: Number of the call that was noted next.
        seen: The tensor.
        taken: A copy of it.
        op: The call, or what read it; see `Decision`.
        place: Where; None for that of the call.
    """

    call: int
    seen: Seen
    taken: Tensor
    op: str
    place: Place | CallInfo | None


def row_of(decision: Decision) -> tuple[Any, ...]:
    """The decision as it is kept in the output of a graph, which holds plain tuples alone."""
    return decision.value, decision.taken, decision.op, *decision.info


def decision_of(row: Any) -> Decision:
    """Undo `row_of`."""
    value, taken, op, phase, module, source = row
    return Decision(value, taken, op, CallInfo(_phase(phase), module, source))


def _phase(text: Any) -> Phase:
    if text not in ("forward", "backward", "update"):
        raise ValueError(f"unknown phase {text!r}")
    return text


def decisions_of(graph: fx.Graph) -> tuple[Decision, ...]:
    """The decisions of a program's graph, their tensors as nodes."""
    end = next(node for node in reversed(graph.nodes) if node.op == "output")
    results: Any = end.args[0]
    return tuple(map(decision_of, results.get("decisions", ())))
