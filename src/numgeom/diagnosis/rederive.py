"""What would the gradients be if a call of the forward pass had another formula?

The calls that the loss depends on run again, some of them replaced, and torch differentiates what
ran. So a remedy is tried on the very step that needs it; and without any replacement the result
shows whether the recorded backward pass is the derivative of the recorded forward pass.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.diagnosis.trace import ancestors, outputs
from numgeom.errors import ReplayError
from numgeom.recording import Program, Replay
from numgeom.recording.replay import ProgramInterpreter

Values = Mapping[fx.Node, Any]
Formula = Callable[[Values], Any]


def rederive(
    program: Program,
    *,
    dtype: torch.dtype | None,
    replaced: Mapping[fx.Node, Formula] | None = None,
) -> Replay | None:
    """Differentiate the program's loss anew.

    Args:
        program: The recorded step.
        dtype: Format of all calls; None: the recorded ones.
        replaced: Formulas for calls: each gets the values of all earlier nodes.

    Returns:
        Loss and gradients; None if the program has no single loss or a call on the way to it
        cannot be differentiated again.
    """
    if not isinstance(outputs(program)["loss"], fx.Node):
        return None
    try:
        return _Rederived(program, dtype, replaced or {}).evaluate()
    except (ReplayError, RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


class _Rederived(ProgramInterpreter):
    def __init__(
        self, program: Program, dtype: torch.dtype | None, replaced: Mapping[fx.Node, Formula]
    ) -> None:
        super().__init__(program, dtype=dtype)
        self._replaced = replaced
        self._leaves: dict[str, Tensor] = {}

    def constant(self, node: fx.Node) -> Tensor:
        value = super().constant(node)
        if node.meta["role"] != "parameter" or not value.is_floating_point():
            return value
        return self._leaves.setdefault(node.meta["name"], value.detach().requires_grad_())

    def run_node(self, node: fx.Node, values: Values) -> Any:
        formula = self._replaced.get(node)
        return super().run_node(node, values) if formula is None else formula(values)

    def _run(self) -> Any:
        found = outputs(self.program)
        needed = ancestors([found["loss"]])
        values: dict[fx.Node, Any] = {}
        for node in self.program.graph.nodes:
            if node in needed:
                values[node] = self.run_node(node, values)
        loss: Tensor = values[found["loss"]]
        names = [name for name in found["gradients"] if name in self._leaves]
        leaves = [self._leaves[name] for name in names]
        given = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaf) if grad is None else grad
            for name, leaf, grad in zip(names, leaves, given, strict=True)
        }
        for name in found["gradients"]:
            if name not in gradients:
                gradients[name] = torch.zeros_like(self.program.recorded.gradients[name])
        return {"gradients": gradients, "loss": loss.detach(), "updates": {}}
