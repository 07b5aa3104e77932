"""What does the gradient lose when activations are computed again, with roundings of their own?

Checkpointing runs the forward pass a second time for the backward pass. Other kernels, other
shapes or another order of additions make a mismatch: here every call of the forward pass has a
twin that rounds by itself, and the backward pass reads the twins.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from numgeom.precision.noisy import NoisyReplay
from numgeom.precision.storage import stored_values
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter


class RecomputedReplay(ProgramInterpreter):
    """One sample of the gradients where the backward pass reads recomputed activations.

    Args:
        program: A program as it was recorded.
        seed: Decides the errors inside the kernels.
        dtype: As for `NoisyReplay`.
    """

    def __init__(self, program: Program, *, seed: int, dtype: torch.dtype = torch.float64) -> None:
        """Prepare a sample."""
        super().__init__(program, dtype=dtype)
        self._first = NoisyReplay(program, seed=seed, dtype=dtype)
        self._second = NoisyReplay(program, seed=seed + (1 << 31), dtype=dtype)
        self._stored = stored_values(program)
        self._twins: dict[fx.Node, Any] = {}
        self._forward = _forward_nodes(program)

    def run_node(self, node: fx.Node, values: Any) -> Any:
        """Run a node, and in the forward pass its twin too."""
        if node.op == "get_attr":
            return self.constant(node)

        def again(n: fx.Node) -> Any:
            return self._twins.get(n, values[n])

        def read(n: fx.Node) -> Any:
            return again(n) if n in self._stored else values[n]

        if node not in self._forward:
            return self._run_as(self._first, node, read)
        self._twins[node] = self._run_as(self._second, node, again)
        return self._run_as(self._first, node, values.__getitem__)

    def _run_as(self, replay: NoisyReplay, node: fx.Node, value: Any) -> Any:
        return replay.call(node, map_arg(node.args, value), map_arg(node.kwargs, value))


def _forward_nodes(program: Program) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "call_function":
            whole: Any = node
            while "call" not in whole.meta:  # a part of a call
                whole = whole.args[0]
            if whole.meta["call"].phase == "forward":
                found.add(node)
    return found


def gradients_recomputed(program: Program, *, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """One sample of the gradients, by parameter."""
    return RecomputedReplay(program, seed=seed, dtype=dtype).evaluate().gradients
