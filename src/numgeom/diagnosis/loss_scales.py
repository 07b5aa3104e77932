"""Is the loss scale so high that cotangents overflow?

Scales that are too low show as gradients lost to underflow (`ranges`); here the backward pass is
run again with the first cotangents divided by powers of two until all gradients are finite.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from numgeom.arithmetic.printing import lower_short, nearest_short
from numgeom.diagnosis.cures import cures
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.scaling import loss_seeds, try_scale
from numgeom.diagnosis.trace import Observation, Trace, argument, op_name, outputs, phase_of, place
from numgeom.recording import Program
from numgeom.semantics.lockstep import Call

_EXPONENTS = range(2, 41, 2)


class LossScaleDetector:
    """Finds loss scales that make the backward pass overflow."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._first: fx.Node | None = None

    def see(self, call: Call, seen: Observation | None) -> None:
        """Note the first backward call that is infinite only as computed."""
        if seen is None or self._first is not None or phase_of(call.node) != "backward":
            return
        if seen.nonfinite and not seen.reference_nonfinite:
            self._first = call.node

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield a finding if a lower scale makes the gradients finite."""
        computed, reference = trace.result.computed, trace.result.reference
        if self._first is None or trace.is_finite or not loss_seeds(trace.program):
            return
        if computed.loss is None or not bool(torch.isfinite(computed.loss)):
            return
        if not all(bool(torch.isfinite(g).all()) for g in reference.gradients.values()):
            return
        for exponent in _EXPONENTS:
            trial = try_scale(trace, 2.0**-exponent)
            if not cures(math.inf, trial.after):
                continue
            now = present_scale(trace.program)
            yield Finding(
                kind=Kind.LOSS_SCALING,
                severity=Severity.ERROR,
                **place(self._first),
                evidence={
                    "present_loss_scale": now,
                    "loss_scale": now * trial.scale,
                    "error_before": math.inf,
                    "error_after": trial.after,
                },
                explanation="The loss is scaled so high that cotangents leave the range of their "
                f"format; {nearest_short(trial.scale, 17)} times the scale keeps them inside.",
                remedy="Lower the scale: torch.amp.GradScaler skips such a step and halves its "
                f"scale; a fixed scale should be at most {lower_short(now * trial.scale, 17)}.",
                verified=True,
            )
            return


def present_scale(program: Program) -> float:
    """The constant that the loss was multiplied with last; 1 if there is none."""
    loss = outputs(program)["loss"]
    if not isinstance(loss, fx.Node) or op_name(loss) != "mul":
        return 1.0
    for i in (0, 1):
        factor = argument(loss, i)
        if isinstance(factor, (int, float)):
            return float(factor)
        if isinstance(factor, fx.Node) and factor.op == "get_attr":
            value: Tensor = program.constants[str(factor.target)]
            if value.numel() == 1 and factor.meta["role"] != "parameter":
                return float(value)
    return 1.0
