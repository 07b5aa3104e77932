"""Does a call leave the range of its format, below or above?

Below the smallest normal number of a format digits are lost one by one, below the smallest
subnormal one everything: the entry becomes zero (underflow). Above the largest number it becomes
infinite.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.arithmetic.printing import nearest_short, percent
from numgeom.diagnosis.loss_scales import present_scale
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.scaling import try_loss_scale
from numgeom.diagnosis.trace import Observation, Trace, ancestors, norm, outputs, phase_of, place
from numgeom.diagnosis.wider import run_in_more_range
from numgeom.semantics.lockstep import Call

# A value whose norm loses this part below the normal range of its format underflows.
_LOST_AT_CALL = 0.05
# A parameter whose gradient loses this part of its norm to zeros suffers from it.
_LOST_IN_GRADIENT = 0.1
_LOST_WHOLLY = 0.9
# Within one binade of the largest number: the next doubling overflows.
_HEADROOM = 0.5
# Entries at the very end of the range are masks (torch.finfo(dtype).min), written on purpose.
_MASK = 0.99


@dataclass(frozen=True)
class _Underflow:
    lost: float  # part of the norm of the exact result of this call
    flushed: float  # part of the entries that became zero


class RangeDetector:
    """Finds gradients lost to underflow and values about to overflow."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._underflows: dict[fx.Node, _Underflow] = {}
        self._near_top: dict[fx.Node, float] = {}

    def see(self, call: Call, seen: Observation | None) -> None:
        """Measure a call's own underflow, and how near it comes to the largest number."""
        if call.node.op == "get_attr" or seen is None or seen.entries == 0:
            return
        if seen.largest >= _HEADROOM * seen.format.largest:
            size = call.computed.double().abs()
            inside = size[size < _MASK * seen.format.largest]
            top = float(inside.max()) if inside.numel() else 0.0
            if top >= _HEADROOM * seen.format.largest:
                self._near_top[call.node] = math.log2(seen.format.largest / top)
        if call.rounded or (seen.flushed == 0 and seen.subnormal == 0):
            return
        local = call.local()
        if not isinstance(local, Tensor) or not bool(torch.isfinite(local).all()):
            return
        below = local.abs() < seen.format.smallest_normal
        missed = torch.where(below, local - call.computed.double(), local.new_zeros(()))
        size = norm(local)
        if size > 0.0 and norm(missed) > _LOST_AT_CALL * size:
            zeros = float(((call.computed == 0) & (local != 0)).double().mean())
            self._underflows[call.node] = _Underflow(norm(missed) / size, zeros)

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield the underflow that matters, and what is about to overflow."""
        yield from self._lost(trace)
        if not trace.is_finite:
            return
        for node, headroom in self._near_top.items():
            yield Finding(
                kind=Kind.OVERFLOW_RISK,
                severity=Severity.WARNING,
                **place(node),
                evidence={
                    "headroom_binades": headroom,
                    "format": str(trace.observations[node].format),
                },
                explanation="The largest entries are within a factor of two of the largest "
                "number of the format: a slightly larger batch or step makes them infinite.",
                remedy="Rescale or normalise before this call"
                f"{run_in_more_range(trace.observations[node].format)}"
                f"{'; or lower the loss scale' * (present_scale(trace.program) > 1.0)}.",
            )
            return  # the first one says it

    def _lost(self, trace: Trace) -> Iterator[Finding]:
        if not self._underflows:
            return
        ends, shares = victims(trace)
        if not ends:
            return
        known = ancestors(ends)
        causes = [node for node in self._underflows if node in known]
        if not causes:
            return
        heavy = [n for n in causes if self._underflows[n].lost >= 0.5] or causes
        node = min(heavy, key=trace.order.__getitem__)
        cause = self._underflows[node]
        worst = max(shares.values(), default=math.nan)
        evidence = {
            "lost_at_call_share": cause.lost,
            "entries_flushed_share": cause.flushed,
            "gradient_lost_share": worst,
            "parameters": list(shares),
        }
        severe = not shares or worst >= _LOST_WHOLLY
        verified = False
        wider = run_in_more_range(trace.observations[node].format)
        remedy = (
            "Rescale before this call, such as by dividing by the largest entry and multiplying "
            f"back, or work with logarithms{wider}."
        )
        if phase_of(node) == "backward":
            trial = try_loss_scale(trace)
            if trial is not None:
                evidence |= {
                    "loss_scale": trial.scale,
                    "error_before": trial.before,
                    "error_after": trial.after,
                }
                if trial.helps:
                    verified = True
                    scale = nearest_short(trial.scale, 17)
                    remedy = (
                        f"Scale the loss: torch.amp.GradScaler(init_scale={scale}), or "
                        "(loss * scale).backward() and divide the gradients by scale."
                    )
        where = place(node)
        explanation = (
            f"{percent(cause.lost, 0)} of this call's result lies below the range of its format "
            "and is lost; "
            + (f"{percent(worst, 0)} of a gradient with it." if shares else "it becomes zero.")
        )
        severity = Severity.ERROR if severe else Severity.WARNING
        yield Finding(Kind.UNDERFLOW, severity, **where, evidence=evidence,
                      explanation=explanation, remedy=remedy, verified=verified)  # fmt: skip
        if verified:
            yield Finding(Kind.LOSS_SCALING, severity, **where, evidence=evidence,
                          explanation="Gradients are lost that a loss scale brings back.",
                          remedy=remedy, verified=True)  # fmt: skip


def victims(trace: Trace) -> tuple[list[fx.Node], dict[str, float]]:
    """The output nodes that suffer, and which part of each gradient is computed as zero."""
    found = outputs(trace.program)
    ends, shares = [], {}
    computed, reference = trace.result.computed, trace.result.reference
    for name, value in computed.gradients.items():
        if trace.errors.parameters.get(name, 0.0) < _LOST_IN_GRADIENT:
            continue  # what is lost is part of the error
        want = reference.gradients[name].double()
        if not bool(torch.isfinite(want).all()):
            continue
        size = norm(want)
        share = norm(want[value == 0]) / size if size > 0.0 else 0.0
        wrong = norm(want - value.double()) / size if size > 0.0 else 0.0
        if share >= _LOST_IN_GRADIENT or (wrong >= 0.5 and share > 0.0):
            shares[name] = share
            ends.append(found["gradients"][name])
    for name, node in found["gradients"].items():
        if not bool(torch.isfinite(computed.gradients[name]).all()):
            ends.append(node)
    loss = computed.loss
    if loss is not None and (not bool(torch.isfinite(loss)) or trace.errors.loss >= 0.5):
        ends.append(found["loss"])
    return [end for end in ends if isinstance(end, fx.Node)], shares
