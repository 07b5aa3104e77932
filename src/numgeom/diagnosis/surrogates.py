"""Which gradients are not the derivative of their forward pass, on purpose or by mistake?

The slope of the loss in float64 is compared with what the recorded gradients say of it. Where they
differ the loss is differentiated anew, in float64, and compared with the recorded backward pass
replayed in float64: no rounding is left that could explain a difference. Straight-through
estimators, `detach` and custom functions show here. None of them is an error of arithmetic.
"""

from collections.abc import Iterator

import torch
from torch import fx

from numgeom.diagnosis.rederive import rederive
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.scaling import loss_seeds
from numgeom.diagnosis.slopes import slope
from numgeom.diagnosis.trace import (
    NOWHERE,
    Observation,
    Trace,
    norm,
    op_name,
    phase_of,
    place,
    traits,
)
from numgeom.semantics.lockstep import Call

_DIFFERENT = 1e-4  # relative; both sides are float64
# Below it a slope agrees. A random direction hides a difference of _DIFFERENT with probability 8 %.
_AGREES = 1e-5
# Above it, along a single parameter, a slope differs: curvature and rounding stay below.
_DIFFERS = 1e-2
_PARAMETERS_TRIED = 16
# torch cannot differentiate all writes into views that kernels make.
_WRITES = frozenset({"as_strided_scatter", "as_strided"})


class SurrogateDetector:
    """Tells surrogate gradients apart from wrong ones: always an info."""

    def see(self, call: Call, seen: Observation | None) -> None:
        """Nothing is read from single calls."""
        del call, seen

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield an info if the backward pass is not the derivative of the forward pass."""
        if not trace.is_finite or len(loss_seeds(trace.program)) != 1:
            return
        along = slope(trace)
        if along is None or along.mismatch < _AGREES:
            return
        found = _by_slopes(trace) if _writes_views(trace) else _by_derivative(trace)
        if not found:
            return
        node = _step(trace)
        where = NOWHERE if node is None else place(node)
        yield Finding(
            kind=Kind.SURROGATE,
            severity=Severity.INFO,
            **where,
            evidence={
                "parameters": list(found),
                "largest_difference_relative": max(found.values()),
            },
            explanation="The backward pass that ran is not the derivative of the forward pass: a "
            "straight-through estimator, detach(), or a custom backward. It is no rounding error.",
            remedy="Nothing to do if it is meant; else check the custom backward with "
            "torch.autograd.gradcheck and look for detach() and no_grad().",
        )


def _writes_views(trace: Trace) -> bool:
    return any(op_name(node) in _WRITES for node in trace.program.calls)


def _by_derivative(trace: Trace) -> dict[str, float]:
    """Parameters whose gradient differs from torch's derivative, with the relative difference."""
    derived = rederive(trace.program, dtype=torch.float64)
    if derived is None:
        return {}
    recorded = trace.result.reference.gradients
    whole = norm(torch.tensor([norm(g) for g in recorded.values()], dtype=torch.float64))
    floor = max(trace.tolerance**2, _DIFFERENT) * whole
    sizes = {
        name: norm(value - derived.gradients[name])
        for name, value in recorded.items()
        if not value.is_complex()
    }
    return {
        name: size / whole if whole else float("inf")
        for name, size in sizes.items()
        if size > floor
    }


def _by_slopes(trace: Trace) -> dict[str, float]:
    """Parameters along which the loss has another slope than the gradient says, twice over."""
    found: dict[str, float] = {}
    for name in list(trace.result.reference.gradients)[:_PARAMETERS_TRIED]:
        both = [slope(trace, names=[name], seed=seed) for seed in (1, 2)]
        sizes = [s.mismatch for s in both if s is not None]
        if len(sizes) == len(both) and min(sizes) > _DIFFERS:
            found[name] = max(sizes)
    return found


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
    moving: set[fx.Node] = set()  # what depends on a parameter
    for node in trace.program.graph.nodes:
        own = node.op == "get_attr" and node.meta["role"] == "parameter"
        if not own and moving.isdisjoint(node.all_input_nodes):
            continue
        moving.add(node)
        if phase_of(node) == "forward" and traits(node).piecewise_constant:
            return node
    return None
