"""Which gradients are not the derivative of their forward pass, on purpose or by mistake?

The loss is differentiated anew, in float64, and compared with the recorded backward pass replayed
in float64: no rounding is left that could explain a difference. Straight-through estimators,
`detach` and custom functions show here. None of them is an error of arithmetic.
"""

from collections.abc import Iterator

import torch
from torch import fx

from numgeom.diagnosis.rederive import rederive
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.scaling import loss_seeds
from numgeom.diagnosis.trace import (
    NOWHERE,
    Observation,
    Trace,
    norm,
    op_name,
    phase_of,
    place,
)
from numgeom.semantics.lockstep import Call

_DIFFERENT = 1e-4  # relative; both sides are float64
_WRITES = frozenset({"as_strided_scatter", "as_strided"})
_STEPS = frozenset({"round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside", "argmax", "gt",
                    "ge", "lt", "le", "bernoulli", "one_hot"})  # fmt: skip


class SurrogateDetector:
    """Tells surrogate gradients apart from wrong ones: always an info."""

    def see(self, call: Call, seen: Observation | None) -> None:
        """Nothing is read from single calls."""
        del call, seen

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield an info if the backward pass is not the derivative of the forward pass."""
        if not trace.is_finite or len(loss_seeds(trace.program)) != 1:
            return
        if any(op_name(node) in _WRITES for node in trace.program.calls):
            return  # torch cannot differentiate all writes into views that kernels make
        derived = rederive(trace.program, dtype=torch.float64)
        if derived is None:
            return
        recorded = trace.result.reference.gradients
        whole = norm(torch.tensor([norm(g) for g in recorded.values()], dtype=torch.float64))
        differing = {
            name: norm(value - derived.gradients[name])
            for name, value in recorded.items()
            if not value.is_complex()
        }
        floor = max(trace.tolerance**2, _DIFFERENT) * whole
        names = [name for name, size in differing.items() if size > floor]
        if not names:
            return
        node = _step(trace)
        where = NOWHERE if node is None else place(node)
        size = max(differing[name] for name in names)
        yield Finding(
            kind=Kind.SURROGATE,
            severity=Severity.INFO,
            **where,
            evidence={
                "parameters": names,
                "largest_difference_relative": size / whole if whole else float("inf"),
            },
            explanation="The backward pass that ran is not the derivative of the forward pass: a "
            "straight-through estimator, detach(), or a custom backward. It is no rounding error.",
            remedy="Nothing to do if it is meant; else check the custom backward with "
            "torch.autograd.gradcheck and look for detach() and no_grad().",
        )


def _step(trace: Trace) -> fx.Node | None:
    """A call of a backward written by hand, or the first forward call without a derivative.

    Calls of a hand-written backward stand on lines of their own; all others carry the line of the
    forward call that they differentiate.
    """
    calls = [(node, place(node)) for node in trace.program.calls]
    forward = {where["source"] for _, where in calls if where["phase"] == "forward"}
    for node, where in calls:
        if where["phase"] == "backward" and where["source"] and where["source"] not in forward:
            return node
    for node in trace.program.graph.nodes:
        if op_name(node) in _STEPS and phase_of(node) == "forward":
            return node
    return None
