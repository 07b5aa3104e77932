"""What does the float64 reference of a program show without a second run beside it?

In place of the value that a run in the recorded formats gave stands the reference, rounded once
to that format, and only where somebody asks for it. It tells where values lie: their size, their
zeros, how flat an activation is. It tells nothing of errors that add up from call to call; these
show in the outputs, where those of the recorded run are known. It costs half of what
`lockstep` does, or less.
"""

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from numgeom.recording import Program, Replay
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.lockstep import Both, Call, Visit

Formats = Mapping[tuple[int, ...], torch.dtype]


def alone(program: Program, visit: Visit, *, device: torch.device | str | None = None) -> Replay:
    """Run a program in float64 and show every call with its value rounded.

    Values are freed after their last use; `visit` must not keep them.

    Args:
        program: What to run.
        visit: Called with every node, in program order.
        device: Where to run, None for where each call ran.

    Returns:
        Gradients, loss and updates, those of `Program.replay(torch.float64)`.

    Raises:
        ReplayError: names the call that could not run.
    """
    return _Alone(program, visit, device).evaluate()


def recorded_formats(program: Program, node: fx.Node) -> Formats:
    """The format of every tensor that a node held in the recorded run, by its position."""
    if node.op == "get_attr":
        return {(): program.constants[str(node.target)].dtype}
    path: tuple[int, ...] = ()
    while node.target is operator.getitem:
        source, position = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(position, int)
        node, path = source, (position, *path)
    metas: Mapping[tuple[int, ...], Any] = node.meta["tensors"]
    if not path:
        return {at: meta.dtype for at, meta in metas.items()}
    n = len(path)
    return {at[n:]: meta.dtype for at, meta in metas.items() if at[:n] == path}


class _Alone(ProgramInterpreter):
    def __init__(self, program: Program, visit: Visit, device: Any) -> None:
        super().__init__(program, dtype=torch.float64, device=device)
        self._visit = visit

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        value = super().run_node(node, values)

        def itself() -> Any:
            return value

        inputs = _Inputs(self.program, node, values)
        both = _Rounded(self.program, node, value)
        self._visit(Call(node, both, inputs, itself, rounded=True))
        return value


class _Rounded:
    """A reference value, and what it is in the recorded format."""

    __slots__ = ("_node", "_program", "reference")

    def __init__(self, program: Program, node: fx.Node, reference: Any) -> None:
        self._program = program
        self._node = node
        self.reference = reference

    @property
    def computed(self) -> Any:
        return _round(self.reference, recorded_formats(self._program, self._node))


class _Inputs(Mapping[fx.Node, Both]):
    """What a node reads, put together where it is asked for."""

    def __init__(self, program: Program, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        self._program = program
        self._node = node
        self._values = values

    def __getitem__(self, source: fx.Node) -> Both:
        if source not in self._node.all_input_nodes:
            raise KeyError(source)
        return _Rounded(self._program, source, self._values[source])

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self._node.all_input_nodes)

    def __len__(self) -> int:
        return len(self._node.all_input_nodes)


def _round(value: Any, to: Formats, path: tuple[int, ...] = ()) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(to.get(path, value.dtype))
    if isinstance(value, (list, tuple)):
        return [_round(item, to, (*path, i)) for i, item in enumerate(value)]
    return value
