"""How do a program as it was computed and its float64 reference differ, call by call?

One pass evaluates both: at every node the value in the recorded formats and the value in float64,
each from inputs of its own kind. A call's own rounding is what it adds to the errors of its
inputs: `Call.local()` runs it in float64 on the computed inputs, so that
computed - local is its own error and local - reference what it inherited.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx
from torch.fx.node import map_arg

from numgeom.recording import Program, Replay
from numgeom.recording.replay import ProgramInterpreter


class Both(Protocol):
    """A value as it was computed, and the reference's."""

    @property
    def computed(self) -> Any:
        """The value in the recorded formats."""
        ...

    @property
    def reference(self) -> Any:
        """The value in float64."""
        ...


@dataclass(frozen=True)
class Pair:
    """The values of two runs."""

    computed: Any
    reference: Any


@dataclass(frozen=True, eq=False)
class Call:
    """One node of the program at the moment when both runs have passed it.

    Attributes:
        node: The node: a call, a part of a call with several outputs, or a constant.
        value: Both values of it.
        inputs: Both values of every node that it reads.
        rounded: Whether no run but the reference was made: what is called computed is the
            reference, rounded once (`numgeom.semantics.alone`).
    """

    node: fx.Node
    value: Both = field(repr=False)
    inputs: Mapping[fx.Node, Both] = field(repr=False)
    _again: Callable[[], Any] = field(repr=False)
    rounded: bool = False

    @property
    def computed(self) -> Any:
        """Its value in the recorded formats."""
        return self.value.computed

    @property
    def reference(self) -> Any:
        """Its value in float64."""
        return self.value.reference

    def local(self) -> Any:
        """Run the call in float64 on the inputs as they were computed."""
        return self._again()

    def argument(self, position: int) -> Both | None:
        """Both values of a positional argument; None if it is no node or is missing."""
        if position >= len(self.node.args):
            return None
        given = self.node.args[position]
        return self.inputs[given] if isinstance(given, fx.Node) else None


Visit = Callable[[Call], None]


@dataclass(frozen=True)
class LockstepResult:
    """What the two runs produced in the end."""

    computed: Replay
    reference: Replay


def lockstep(
    program: Program,
    visit: Visit,
    *,
    device: torch.device | str | None = None,
    first: ProgramInterpreter | None = None,
) -> LockstepResult:
    """Run a program as it was computed and in float64, side by side.

    Values are freed after their last use; `visit` must not keep them.

    Args:
        program: What to run.
        visit: Called with every node, in program order.
        device: Where both run, None for where each call ran.
        first: How the first of the two runs evaluates calls; by default in the recorded formats.
            What is called "computed" is then what this interpreter makes of it.

    Returns:
        Gradients, loss and updates of both runs: those of `Program.replay(None)` and of
        `Program.replay(torch.float64)`.

    Raises:
        ReplayError: names the call that could not run.
    """
    walker = _Lockstep(program, visit, device, first)
    computed = walker.evaluate()
    return LockstepResult(computed, walker.reference)


class _Lockstep(ProgramInterpreter):
    """Drives two interpreters, that of the computed run and that of the reference."""

    def __init__(
        self, program: Program, visit: Visit, device: Any, first: ProgramInterpreter | None
    ) -> None:
        super().__init__(program, dtype=None if first is None else first.dtype, device=device)
        self._first = first or ProgramInterpreter(program, dtype=None, device=device)
        self._wide = ProgramInterpreter(program, dtype=torch.float64, device=device)
        self._visit = visit
        self.reference = Replay({}, None)

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Pair:
        if node.op == "get_attr":
            both = Pair(self._first.constant(node), self._wide.constant(node))
        else:
            computed = self._evaluate(self._first, node, values, _computed)
            reference = self._evaluate(self._wide, node, values, _reference)
            both = Pair(computed, reference)
        inputs = {source: values[source] for source in node.all_input_nodes}

        def again() -> Any:
            if node.op == "get_attr":
                return both.computed
            return self._evaluate(self._wide, node, inputs, _widened)

        self._visit(Call(node, both, inputs, again))
        return both

    def finish(self, found: Any) -> Any:
        """Collect the outputs of both runs."""
        self.reference = Replay(**_part(found, _reference))
        return _part(found, _computed)

    def _evaluate(
        self,
        interpreter: ProgramInterpreter,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        which: Callable[[Both], Any],
    ) -> Any:
        args = map_arg(node.args, lambda n: which(values[n]))
        kwargs = map_arg(node.kwargs, lambda n: which(values[n])) if node.kwargs else {}
        if interpreter is self._first:
            return interpreter.call(node, args, kwargs)
        # What a call makes out of integers alone takes the default dtype.
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return interpreter.call(node, args, kwargs)
        finally:
            torch.set_default_dtype(before)


def _computed(both: Both) -> Any:
    return both.computed


def _reference(both: Both) -> Any:
    return both.reference


def _widened(both: Both) -> Any:
    """The computed value with every floating-point entry as a float64 number."""
    return _map(both.computed, _wide)


def _wide(value: torch.Tensor) -> torch.Tensor:
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(torch.float64) if value.is_floating_point() else value


def _map(value: Any, by: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return by(value)
    if isinstance(value, (list, tuple)):
        return [_map(item, by) for item in value]
    return value


def _part(tree: Any, which: Callable[[Both], Any]) -> Any:
    if isinstance(tree, Pair):
        return which(tree)
    if isinstance(tree, Mapping):
        return {key: _part(value, which) for key, value in tree.items()}
    return tree
