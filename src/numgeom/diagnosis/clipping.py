"""Did the step clip its gradients, and does clipping act on every step of a run?

`torch.nn.utils.clip_grad_norm_` multiplies the gradients by min(1, limit / norm), and
`clip_grad_value_` cuts their entries off at -limit and limit; where one runs inside the recorded
step, its calls come after the backward pass.
"""

from torch import fx

from numgeom.arithmetic.printing import nearest_short
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import Trace, argument, op_name, phase_of, place

_RUN = 10  # steps looked at, one after the other, all of them clipped


def clipping(trace: Trace) -> tuple[float, Finding | None]:
    """The factor that gradients were multiplied with, and an info if it is below 1.

    Where entries are cut off, the factor of the largest one. NaN if the step does not clip.
    """
    cut = _cut_off(trace)
    if cut is not None:
        node, factor = cut
        return factor, None if factor >= 1.0 else Finding(
            kind=Kind.CLIPPING,
            severity=Severity.INFO,
            **place(node),
            evidence={"clip_factor": factor},
            explanation=f"Entries of the gradients were cut off, the largest to "
            f"{nearest_short(factor)} times its size; the gradient's direction changes with that.",
            remedy="Nothing to do if it happens now and then; clip_grad_norm_ keeps the direction.",
        )
    for node, seen in trace.observations.items():
        if phase_of(node) != "update" or op_name(node) not in ("clamp", "clamp_max"):
            continue
        limit = argument(node, 2) if op_name(node) == "clamp" else argument(node, 1)
        if limit != 1.0 or seen.entries != 1 or seen.nonfinite:
            continue
        factor = seen.largest
        if factor >= 1.0:
            return factor, None
        return factor, Finding(
            kind=Kind.CLIPPING,
            severity=Severity.INFO,
            **place(node),
            evidence={"clip_factor": factor},
            explanation=f"The gradients were clipped to {nearest_short(factor)} times their norm.",
            remedy="Nothing to do if it happens now and then.",
        )
    return float("nan"), None


def _cut_off(trace: Trace) -> tuple[fx.Node, float] | None:
    """The call that cuts entries off from below, and limit / largest entry, at most 1."""
    found: tuple[fx.Node, float] | None = None
    for node in trace.program.graph.nodes:
        if node.op != "call_function" or "call" not in node.meta or phase_of(node) != "update":
            continue
        if op_name(node) not in ("clamp", "clamp_min", "_foreach_clamp_min"):
            continue
        limit, given = argument(node, 1), node.args[0]
        if not isinstance(limit, (int, float)) or not limit < 0.0:
            continue
        for each in given if isinstance(given, (list, tuple)) else (given,):
            seen = trace.observations.get(each) if isinstance(each, fx.Node) else None
            if seen is None or seen.nonfinite:
                continue
            factor = min(1.0, -limit / seen.largest) if seen.largest > 0.0 else 1.0
            if found is None or factor < found[1]:
                found = node, factor
    return found


class ClippingRun:
    """Counts steps, one after the other, whose gradients were clipped."""

    def __init__(self) -> None:
        """Start with no step seen."""
        self._count = 0

    def see(self, factor: float, last: Finding | None) -> Finding | None:
        """Count a step; a warning when enough steps in a row were clipped."""
        self._count = self._count + 1 if factor < 1.0 and last is not None else 0
        if self._count != _RUN or last is None:
            return None
        return Finding(
            kind=Kind.CLIPPING,
            severity=Severity.WARNING,
            op=last.op,
            module=last.module,
            source=last.source,
            phase=last.phase,
            evidence={"clip_factor": factor, "steps_clipped_in_a_row": self._count},
            explanation="Gradient clipping acted on every step that was looked at: the step's "
            "length is set by the limit, not by the gradient.",
            remedy="Raise max_norm above the usual norm of the gradients, or lower the learning "
            "rate and look for what makes them large.",
        )
