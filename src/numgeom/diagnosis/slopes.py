"""Does the loss change along a direction as the recorded gradients say?

L(theta + h v) - L(theta) = h <g, v> + O(h^2) in float64, for a step h so small that the second
term vanishes beside the first. One forward pass tells the recorded gradients from others that
differ by more than a small part, for nearly all directions v. No call is differentiated, so this
also looks at programs that torch could not differentiate again.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.diagnosis.directions import component, step_along_
from numgeom.diagnosis.partial import evaluate
from numgeom.diagnosis.trace import Trace, norm, outputs
from numgeom.errors import ReplayError
from numgeom.recording import Program

# The step changes the loss by this part: far above its rounding errors, 1e-16, far below 1.
_CHANGE = 1e-8


@dataclass(frozen=True)
class Slope:
    """The slope of the loss along a direction.

    Attributes:
        predicted: <g, v>, from the recorded gradients.
        measured: The quotient of differences.
        scale: |g|; both are compared in units of it, since v has independent entries of size 1.
    """

    predicted: float
    measured: float
    scale: float

    @property
    def mismatch(self) -> float:
        """How far the slopes differ, in units of the gradients' norm."""
        missed = abs(self.measured - self.predicted)
        return missed / self.scale if self.scale else (math.inf if missed else 0.0)


def slope(trace: Trace, *, names: Collection[str] | None = None, seed: int = 0) -> Slope | None:
    """Measure the slope along a seeded direction.

    Args:
        trace: The step and its reference.
        names: Parameters that move; None for all.
        seed: Decides the direction.

    Returns:
        The slope; None if the loss is unknown or the forward pass cannot be moved.
    """
    program, reference = trace.program, trace.result.reference
    if not isinstance(outputs(program)["loss"], fx.Node) or reference.loss is None:
        return None
    gradients = {
        name: g.double()
        for name, g in reference.gradients.items()
        if not g.is_complex() and (names is None or name in names)
    }
    whole = math.hypot(*(_size(trace, name) for name in reference.gradients))
    base = float(reference.loss)
    if not math.isfinite(whole) or not math.isfinite(base):
        return None
    if whole:
        step = _CHANGE * max(abs(base), 1e-3) / whole
    else:
        sizes = [norm(program.constants[str(n.target)]) for n in _leaves(program)]
        step = _CHANGE * max([*sizes, 1e-3])
    seeds = {name: seed + i for i, name in enumerate(gradients)}

    def move(node: fx.Node, value: Tensor) -> Tensor:
        way = seeds.get(node.meta["name"]) if node.meta["role"] == "parameter" else None
        if way is None:
            return value
        own = value is program.constants[str(node.target)]  # it was in float64 already
        return step_along_(value.clone() if own else value, way, step)

    end = outputs(program)["loss"]
    try:
        moved = evaluate(program, [end], dtype=torch.float64, change=move)[end]
    except ReplayError:  # an op that checks its inputs, and finds them moved
        return None
    predicted = sum(component(g, seeds[name]) for name, g in gradients.items())
    return Slope(predicted, (float(moved) - base) / step, whole)


def _size(trace: Trace, name: str) -> float:
    """The norm of a reference gradient, as it was observed."""
    seen = trace.observations.get(outputs(trace.program)["gradients"][name])
    if seen is None or seen.reference_nonfinite:
        return norm(trace.result.reference.gradients[name])
    return seen.norm


def _leaves(program: Program) -> list[fx.Node]:
    return [n for n in program.graph.nodes if n.op == "get_attr" and n.meta["role"] == "parameter"]
