"""Which call makes the first NaN or infinity that reaches the loss or a gradient, and why?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.certificate.nonfinite import NonFinite, first_nonfinite
from numgeom.diagnosis.loss_scales import present_scale
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import Observation, Trace, op_name, place, traits
from numgeom.diagnosis.wider import run_in_more_range
from numgeom.ops.table import traits_of
from numgeom.semantics.lockstep import Call


@dataclass(frozen=True)
class _Seen:
    """What a call that gave non-finite values was given."""

    from_finite: bool
    zero_divisor: bool
    divisor_vanished: bool
    without_entries: bool


class NonFiniteDetector:
    """Finds originators, never those who pass a value on; masks of -inf are no finding."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: dict[fx.Node, _Seen] = {}

    def see(self, call: Call, seen: Observation | None) -> None:
        """Note what a call was given that returns a non-finite value."""
        if call.rounded:
            return
        if seen is not None and not (seen.nonfinite or seen.reference_nonfinite):
            return
        if "call" not in call.node.meta or not _has_nonfinite((call.computed, call.reference)):
            return
        tensors = [b.computed for b in call.inputs.values() if isinstance(b.computed, Tensor)]
        poles = traits(call.node).poles
        critical = None if poles is None else call.argument(poles.argument)
        zero = vanished = False
        if poles is not None and poles.of_value and poles.entrywise and critical is not None:
            at_zero = _where_nonfinite(call.computed, critical.computed == 0)
            zero = bool(at_zero.any())
            lost = (critical.computed == 0) & (critical.reference != 0)
            vanished = zero and bool(_where_nonfinite(call.computed, lost).any())
        self._seen[call.node] = _Seen(
            not _has_nonfinite(tensors), zero, vanished, any(t.numel() == 0 for t in tensors)
        )

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield the origin, if the loss or a gradient is not finite."""
        if trace.is_finite:
            return
        found = first_nonfinite(trace.program, trace.result.reference)
        if found is None:
            return
        end = found
        if found.made_from is not None and self._kind(found.made_from, trace) is not None:
            found = found.made_from
        kind = self._kind(found, trace) or Kind.DOMAIN
        node = self._node(found)
        where: dict[str, Any] = {
            "op": found.name if found.origin == "operation" else "",
            "module": found.module,
            "source": found.source,
            "phase": found.phase,
        }
        reached = list(end.reached)
        evidence: dict[str, Any] = {
            "value": found.value,
            "seen_in": end.seen_in,
            "reached": reached,
        }
        if found.origin != "operation":
            evidence |= {"tensor": found.name, "role": found.origin}
        if end is not found:
            evidence["becomes_nan_in"] = end.name
        seen = self._seen.get(node) if node is not None else None
        if found.phase == "backward" and kind is Kind.DOMAIN:
            evidence["derivative_of"] = _poles_at(where, trace)
        if seen is not None and seen.divisor_vanished:
            evidence["zero_only_as_computed"] = True
        yield Finding(
            kind=kind,
            severity=Severity.ERROR,
            **where,
            evidence=evidence,
            explanation=end.describe(),
            remedy=self._remedy(trace, kind, where, node, end.seen_in),
        )

    def _remedy(
        self,
        trace: Trace,
        kind: Kind,
        where: dict[str, Any],
        node: fx.Node | None,
        seen_in: str,
    ) -> str:
        if kind is Kind.NONFINITE_INPUT:
            return "Check the data and the last update: assert torch.isfinite(x).all()."
        observed = trace.observations.get(node) if node is not None else None
        seen = self._seen.get(node) if node is not None else None
        wider = run_in_more_range(None if observed is None else observed.format)
        if seen is not None and seen.without_entries:
            return (
                "The batch or the selection is empty: skip the step when there is nothing to "
                "average."
            )
        if kind is Kind.OVERFLOW:
            backward = where["phase"] == "backward" and seen_in == "computed"
            if backward and present_scale(trace.program) > 1.0:
                return f"Lower the loss scale{wider}."
            if "exp" in where["op"]:
                return (
                    "Subtract the maximum first, or use the closed form: logsumexp, log_softmax, "
                    "softplus, sigmoid; clamp the exponent where none fits."
                )
            return f"Rescale or normalise before this call{wider}."
        if seen is not None and seen.divisor_vanished:
            return (
                "The number is not zero but too small for its format: scale the data before it is "
                "squared, multiplied or exponentiated, such as by dividing by the largest entry, "
                f"use torch.hypot for sqrt(x**2 + y**2), work with logarithms{wider}."
            )
        if where["phase"] == "backward":
            return (
                "The derivative has a pole here. Keep the argument away from it before the call: "
                "torch.sqrt(x + eps), x.clamp_min(eps); masking the result afterwards with "
                "torch.where does not help, mask the argument."
            )
        return "Keep the argument inside the domain: x.clamp_min(eps), or a mask on the argument."

    def _node(self, found: NonFinite) -> fx.Node | None:
        wanted = {"op": found.name, "module": found.module, "phase": found.phase}
        wanted["source"] = found.source
        matching = [node for node in self._seen if place(node) == wanted]
        alone = [node for node in matching if self._seen[node].from_finite]
        return next(iter(alone or matching), None)

    def _kind(self, found: NonFinite, trace: Trace) -> Kind | None:
        """What made the value; None if a person wrote it down on purpose."""
        if found.origin != "operation":
            return Kind.NONFINITE_INPUT
        node = self._node(found)
        name = op_name(node) if node is not None else ""
        if node is not None and _writes_infinity(node):
            return None
        if found.value == "NaN":
            return Kind.DOMAIN
        poles = traits_of(name).poles
        if poles is None or not poles.of_value:
            return Kind.OVERFLOW
        seen = self._seen[node] if node is not None else None
        if poles.may_overflow and seen is not None:
            return Kind.DOMAIN if seen.zero_divisor else Kind.OVERFLOW
        return Kind.DOMAIN


def _poles_at(where: dict[str, Any], trace: Trace) -> list[str]:
    """The forward calls of a line whose derivative can be infinite."""
    found = [place(n) for n in trace.program.graph.nodes if traits(n).poles is not None]
    return [
        p["op"] for p in found if p["phase"] == "forward" and p["source"] == where["source"] != ""
    ]


def _writes_infinity(node: fx.Node) -> bool:
    given = [*node.args, *node.kwargs.values()]
    return any(isinstance(a, float) and a in (float("inf"), -float("inf")) for a in given)


def _where_nonfinite(y: Tensor, condition: Tensor) -> Tensor:
    """A condition on the argument, at the entries where the result is not finite."""
    return condition.broadcast_to(y.shape)[~torch.isfinite(y.float())]


def _has_nonfinite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(torch.isfinite(value.float()).all())
    return isinstance(value, (list, tuple)) and any(_has_nonfinite(item) for item in value)
