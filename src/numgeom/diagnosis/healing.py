"""How wrong would the step be if one call, or some, had the reference's result?

The program runs in its recorded formats, and goes on at the chosen calls with the values of the
float64 reference, rounded to the recorded format. What all rounding before such a call did is
undone there; so the fall of the error shows how much of it comes through this call.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, fx

from numgeom.diagnosis.trace import Errors, Trace, compare
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.lockstep import Call, lockstep


class Healer:
    """Runs a program with the reference's values at some calls.

    Args:
        trace: The program and its reference.
        nodes: All calls that may be healed; their values are kept.
    """

    def __init__(self, trace: Trace, nodes: Collection[fx.Node]) -> None:
        """Fetch the reference's values."""
        self._trace = trace
        self._values: dict[fx.Node, Tensor] = {}
        wanted = frozenset(nodes)

        def keep(call: Call) -> None:
            if call.node in wanted and isinstance(call.computed, Tensor):
                self._values[call.node] = call.reference.to(call.computed.dtype)

        lockstep(trace.program, keep)

    def heal(self, nodes: Collection[fx.Node]) -> Errors:
        """Return the errors of a run in which the given calls have the reference's result."""
        chosen = {node: self._values[node] for node in nodes if node in self._values}
        computed = _Healed(self._trace.program, chosen).evaluate()
        return compare(computed, self._trace.result.reference)


class _Healed(ProgramInterpreter):
    def __init__(self, program: Program, chosen: Mapping[fx.Node, Tensor]) -> None:
        super().__init__(program, dtype=None)
        self._chosen = chosen

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        found = self._chosen.get(node)
        return super().run_node(node, values) if found is None else found
