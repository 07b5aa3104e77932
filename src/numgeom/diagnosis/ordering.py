"""Do the gradients change when the terms of a sum are added in another order?

Sums whose terms are so much larger than their result that the order can matter are added once more
with their terms in a seeded random order, in the recorded formats; the change of the loss and of
the gradients shows whether it does. A healthy step has no such sum, or one that weighs nothing.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.diagnosis.cures import cures
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import (
    Errors,
    Observation,
    Trace,
    ancestors,
    argument,
    compare,
    op_name,
    outputs,
    place,
    traits,
)
from numgeom.errors import ReplayError
from numgeom.recording import Program, Replay
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.lockstep import Call

_TRIALS = 6


class OrderDetector:
    """Finds sums whose order decides the result."""

    def see(self, call: Call, seen: Observation | None) -> None:
        """Nothing is read from single calls; the norms in the trace are enough."""
        del call, seen

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield the sum that matters most, if the order of its terms does."""
        if not trace.is_finite:
            return
        candidates = _candidates(trace)
        if not candidates or _change(trace, candidates) <= trace.tolerance:
            return
        changes = {node: _change(trace, [node]) for node in candidates[:_TRIALS]}
        node = max(changes, key=changes.__getitem__)
        if changes[node] <= trace.tolerance:
            return
        before = _largest(trace.errors)
        wide = _run(_Reordered(trace.program, [node], widen=True))
        after = math.inf if wide is None else _largest(compare(wide, trace.result.reference))
        verified = cures(before, after)
        yield Finding(
            kind=Kind.ORDER_DEPENDENCE,
            severity=Severity.WARNING,
            **place(node),
            evidence={
                "change_by_another_order": changes[node],
                "terms_over_result": _leverage(trace, node),
                "error_before": before,
                "error_after": after,
            },
            explanation="Adding the same terms in another order changes the result by this much: "
            "a kernel, device or number of threads that sums otherwise gives other gradients.",
            remedy="Add in a wider format, x.sum(dtype=torch.float64), or remove what cancels "
            "before it is added.",
            verified=verified,
        )


def _candidates(trace: Trace) -> list[fx.Node]:
    """The sums whose order could matter by their norms, the most exposed first."""
    found = outputs(trace.program)
    ends = [*found["gradients"].values(), found["loss"]]
    reach = ancestors([n for n in ends if isinstance(n, fx.Node)])
    exposed: dict[fx.Node, float] = {}
    for node in trace.program.calls:
        if node in reach and node in trace.observations:
            u = trace.observations[node].format.unit_roundoff
            leverage = _leverage(trace, node)
            if leverage * u > trace.tolerance:
                exposed[node] = leverage
    return sorted(exposed, key=lambda n: -exposed[n])


def _leverage(trace: Trace, node: fx.Node) -> float:
    """A bound of the sum of the terms' magnitudes, over the norm of the result."""
    known, result = traits(node), trace.observations[node]
    product = known.product
    if product is not None and product.is_matrix:
        places = (product.left, product.right)
        factors = [trace.observations.get(argument(node, i)) for i in places]
        size = math.prod(f.norm for f in factors if f is not None)
    elif known.sums and argument(node, 0) in trace.observations:
        given = trace.observations[argument(node, 0)]
        count = given.entries / max(result.entries, 1)
        if count < 3.0:
            return 0.0  # two terms have one order
        size = math.sqrt(count) * given.norm / (count if op_name(node) == "mean" else 1.0)
    else:
        return 0.0
    return size / result.norm if result.norm else (math.inf if size else 0.0)


def _change(trace: Trace, nodes: Collection[fx.Node]) -> float:
    moved = _run(_Reordered(trace.program, nodes))
    return 0.0 if moved is None else _largest(compare(moved, trace.result.computed))


def _largest(errors: Errors) -> float:
    known = [e for e in (errors.of_gradients, errors.loss) if not math.isnan(e)]
    return max(known, default=0.0)


def _run(interpreter: ProgramInterpreter) -> Replay | None:
    try:
        return interpreter.evaluate()
    except ReplayError:
        return None


class _Reordered(ProgramInterpreter):
    """Adds the terms of some sums in another order, or in float64."""

    def __init__(
        self, program: Program, nodes: Collection[fx.Node], *, widen: bool = False
    ) -> None:
        super().__init__(program, dtype=None)
        self._nodes = frozenset(nodes)
        self._widen = widen

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node not in self._nodes:
            return super().call(node, args, kwargs)
        if self._widen:
            wide = tuple(_wide(a) for a in args)
            named = {k: torch.float64 if k == "dtype" else v for k, v in kwargs.items()}
            target: Any = node.target
            dtype = next(iter(node.meta["tensors"].values())).dtype
            return target(*wide, **named).to(dtype)
        return super().call(node, _reordered(node, args), kwargs)


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _reordered(node: fx.Node, args: Any) -> tuple[Any, ...]:
    """The arguments with the terms in another order; what is added stays the same."""
    given = list(args)
    product = traits(node).product
    if product is not None and product.is_matrix:
        i, j = product.left, product.right
        a, b = given[i], given[j]
        order = _order(a.shape[-1], a.device)
        given[i] = a.index_select(a.dim() - 1, order)
        given[j] = b.index_select(max(b.dim() - 2, 0), order)
        return tuple(given)
    x: Tensor = given[0]
    dims = given[1] if len(given) > 1 else None
    if not isinstance(dims, (list, tuple)) or not dims:
        flat = x.reshape(-1)
        given[0] = flat[_order(flat.numel(), x.device)].reshape(x.shape)
        return tuple(given)
    for d in dims:
        x = x.index_select(d, _order(x.shape[d], x.device))
    given[0] = x
    return tuple(given)


def _order(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(count)
    return torch.randperm(count, generator=generator).to(device)
