"""Which gradients are quotients of differences instead of derivatives?

The pattern: two results of the same calls, on arguments that differ by a step h, are subtracted
and divided by h, in a backward pass. The derivative by autograd is then tried in its place.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from numgeom.diagnosis.cures import cures
from numgeom.diagnosis.reading import source_of
from numgeom.diagnosis.rederive import rederive
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import Observation, Trace, argument, compare, op_name, phase_of, place
from numgeom.semantics.lockstep import Call

_DEPTH = 40
_LARGEST_STEP = 0.25


class DifferenceDetector:
    """Finds finite differences that stand in for a derivative."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._found: dict[fx.Node, float] = {}

    def see(self, call: Call, seen: Observation | None) -> None:
        """Recognise a difference of equal calls in the backward pass."""
        if seen is None or op_name(call.node) != "sub" or phase_of(call.node) != "backward":
            return
        step = difference_step(call.node)
        if step is not None and _is_divided(call.node, step):
            self._found[call.node] = step

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield the first difference, with the error of the gradients and that of autograd's."""
        for node, step in list(self._found.items())[:1]:
            evidence: dict[str, Any] = {"step": step, "times": len(self._found)}
            verified = False
            exact = rederive(trace.program, dtype=torch.float64)
            again = rederive(trace.program, dtype=None)
            if exact is not None and again is not None and trace.is_finite:
                before = compare(trace.result.computed, exact).of_gradients
                after = compare(again, exact).of_gradients
                evidence |= {"error_before": before, "error_after": after}
                verified = cures(before, after)
            yield Finding(
                kind=Kind.FINITE_DIFFERENCE,
                severity=Severity.WARNING,
                **place(node),
                evidence=evidence,
                explanation="The backward pass divides a difference of function values by a small "
                "step: half of the digits are lost to cancellation or to truncation.",
                remedy="Let autograd differentiate the forward pass, or write the derivative down "
                "and check it with torch.autograd.gradcheck.",
                verified=verified,
            )


def difference_step(node: fx.Node) -> float | None:
    """The step h if a call is f(x + h) - f(x), or f(x + h) - f(x - h); else None."""
    steps: set[float] = set()
    if not _alike(argument(node, 0), argument(node, 1), steps, _DEPTH) or len(steps) != 1:
        return None
    step = steps.pop()
    # x + h against x itself is no function of it.
    direct = source_of(argument(node, 0))[0], source_of(argument(node, 1))[0]
    if any(_shifted(a)[1] for a in direct) and not _calls_below(direct):
        return None
    return step if 0.0 < step <= _LARGEST_STEP else None


def _calls_below(pair: tuple[fx.Node, fx.Node]) -> bool:
    return all(op_name(n) not in ("add", "sub", "") for n in pair)


def _alike(a: Any, b: Any, steps: set[float], depth: int) -> bool:
    """Whether two values come from the same calls, up to shifts of an argument."""
    if a is b:
        return True
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return type(a) is type(b) and a == b
    (base_a, shift_a), (base_b, shift_b) = _shifted(a), _shifted(b)
    if base_a is base_b and shift_a != shift_b:
        steps.add(abs(shift_a - shift_b))
        return True
    if depth == 0 or not op_name(a) or a.target is not b.target or a.kwargs != b.kwargs:
        return False
    if len(a.args) != len(b.args):
        return False
    return all(_alike(x, y, steps, depth - 1) for x, y in zip(a.args, b.args, strict=True))


def _shifted(node: fx.Node) -> tuple[fx.Node, float]:
    """X and h of x + h; the node itself and 0 if it is no such sum."""
    x, h = argument(node, 0), argument(node, 1)
    if op_name(node) in ("add", "sub") and isinstance(x, fx.Node) and isinstance(h, (int, float)):
        return x, float(h) if op_name(node) == "add" else -float(h)
    return node, 0.0


def _is_divided(node: fx.Node, step: float, depth: int = 4) -> bool:
    """Whether the difference is divided by its step, perhaps after other factors."""
    for user in node.users:
        name, by = op_name(user), argument(user, 1)
        if isinstance(by, (int, float)) and abs(_over_step(name, float(by), step) - 1.0) < 1e-3:
            return True
        moved = name in ("mul", "div", "neg", "_to_copy", "sum", "view")
        if depth and moved and _is_divided(user, step, depth - 1):
            return True
    return False


def _over_step(name: str, by: float, step: float) -> float:
    return {"div": by / step, "mul": by * step}.get(name, 0.0)
