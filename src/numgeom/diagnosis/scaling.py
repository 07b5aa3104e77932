"""Would a loss scale bring lost gradients back?

The program is replayed in its recorded formats with the first cotangents multiplied by a power of
two, and the gradients divided by it afterwards: multiplication by a power of two is exact.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from numgeom.diagnosis.cures import cures
from numgeom.diagnosis.trace import Trace, compare, op_name, outputs, phase_of
from numgeom.recording import Program, Replay
from numgeom.recording.replay import ProgramInterpreter

_LARGEST_EXPONENT = 24  # torch.amp.GradScaler starts at 2**16
_ROOM = 8.0  # left below the largest number


@dataclass(frozen=True)
class ScaleTrial:
    """A loss scale, and the relative error of the gradients without and with it."""

    scale: float
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether the error becomes clearly smaller, and small."""
        return cures(self.before, self.after)


def try_loss_scale(trace: Trace) -> ScaleTrial | None:
    """Try the largest loss scale that leaves room; None if there is no place to put one."""
    seeds = loss_seeds(trace.program)
    backward = [
        o for n, o in trace.observations.items() if phase_of(n) == "backward" and o.largest > 0.0
    ]
    if not seeds or not backward:
        return None
    room = min(o.format.largest / o.largest for o in backward) / _ROOM
    exponent = min(_LARGEST_EXPONENT, math.floor(math.log2(room)))
    if exponent < 1:
        return None
    return try_scale(trace, 2.0**exponent)


def try_scale(trace: Trace, scale: float) -> ScaleTrial:
    """Run the step with the first cotangents times `scale`, a power of two."""
    scaled = _Scaled(trace.program, loss_seeds(trace.program), scale).evaluate()
    back = {n: g.double() / scale for n, g in scaled.gradients.items()}
    after = compare(Replay(back, scaled.loss), trace.result.reference)
    return ScaleTrial(scale, trace.errors.of_gradients, after.of_gradients)


def loss_seeds(program: Program) -> frozenset[fx.Node]:
    """The nodes that hold the cotangent of the loss, a one."""
    loss = outputs(program)["loss"]
    if not isinstance(loss, fx.Node):
        return frozenset()
    return frozenset(user for user in loss.users if op_name(user) in ("ones_like", "full_like"))


class _Scaled(ProgramInterpreter):
    def __init__(self, program: Program, seeds: frozenset[fx.Node], scale: float) -> None:
        super().__init__(program, dtype=None)
        self._seeds = seeds
        self._scale = scale

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        value = super().run_node(node, values)
        if node in self._seeds and isinstance(value, Tensor):
            return value * self._scale
        return value
