"""What is numerically wrong with a training step, where, and what cures it?"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from numgeom.diagnosis.clipping import clipping
from numgeom.diagnosis.depth import DepthDetector
from numgeom.diagnosis.differences import DifferenceDetector
from numgeom.diagnosis.digits import DigitsDetector
from numgeom.diagnosis.formulas import FormulaDetector
from numgeom.diagnosis.glance import glance
from numgeom.diagnosis.loss_scales import LossScaleDetector
from numgeom.diagnosis.nondeterminism import NondeterminismDetector
from numgeom.diagnosis.nonfinite import NonFiniteDetector
from numgeom.diagnosis.ordering import OrderDetector
from numgeom.diagnosis.ranges import RangeDetector
from numgeom.diagnosis.recomputation import RecomputationDetector
from numgeom.diagnosis.result import Diagnosis, Finding, Kind, Severity
from numgeom.diagnosis.saturation import SaturationDetector
from numgeom.diagnosis.surrogates import SurrogateDetector
from numgeom.diagnosis.trace import Detector, Trace, take
from numgeom.diagnosis.updates import UpdateDetector
from numgeom.errors import NumgeomError
from numgeom.failures import answers
from numgeom.recording import MISSING, Program, Recording, program_of

# Entries at the very end of the range are masks (torch.finfo(dtype).min), written on purpose.
_MASK = 0.99


class DiagnosisError(NumgeomError):
    """A diagnosis was asked for something that it cannot look at."""


@answers("diagnose")
def diagnose(
    subject: nn.Module | Program | Recording | Callable[[], Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batch: Any = MISSING,
) -> Diagnosis:
    """Name what is numerically wrong with a training step.

    The step as it was computed is compared with its float64 reference, call by call. What is
    reported shows in these numbers: a NaN or infinity that reaches the loss or a gradient,
    gradients lost to underflow, digits lost in the loss or the gradients, activations that let no
    gradient through, cotangents that vanish or explode, parameters that an optimizer inside the
    step fails to move; and formulas that have a stable form.

    Args:
        subject: A model, with `loss_fn` and `batch`; or a function that runs forward and backward
            itself; or a recording, or a recorded program.
        loss_fn: `loss_fn(model, batch)` returns the loss.
        batch: Anything that `loss_fn` understands.

    Returns:
        The diagnosis; falsy if nothing is above "info".

    Raises:
        DiagnosisError: The arguments do not fit each other.
        RecordingError: The step could not be recorded.
        ReplayError: A call could not be run in float64.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 2)
        >>> bool(diagnose(model, lambda model, x: model(x).square().mean(), torch.ones(3, 2)))
        False
    """
    start = time.perf_counter()
    program = program_of(subject, loss_fn, batch, question="diagnose", error=DiagnosisError)
    return diagnose_program(program, start=start)


@answers("diagnose")
def diagnose_program(
    program: Program,
    *,
    detectors: Iterable[Detector] | None = None,
    start: float | None = None,
) -> Diagnosis:
    """Diagnose a recorded program.

    Without given detectors a glance at the float64 reference comes first (`glance`); both runs
    are made side by side only where that leaves a suspicion.

    Args:
        program: The recorded step.
        detectors: What looks at both runs; None for all detectors, after a glance.
        start: When the work on it began, as `time.perf_counter()` told.
    """
    start = time.perf_counter() if start is None else start
    seen = glance(program, all_detectors()) if detectors is None else None
    trace, found = _look(program, detectors) if seen is None else seen
    located = [f for f in found if f.op or f.severity is Severity.ERROR]
    if any(f.severity is not Severity.INFO for f in located):
        found = [f for f in found if f.op or f.kind is not Kind.PRECISION_LOSS]
    clip_factor, clipped = clipping(trace)
    found += [] if clipped is None else [clipped]
    return Diagnosis(
        tuple(sorted(found, key=_rank)),
        loss_error=trace.errors.loss,
        gradient_error=trace.errors.gradient,
        underflow_share=_underflow_share(trace),
        headroom_binades=_headroom(trace),
        clip_factor=clip_factor,
        seconds=time.perf_counter() - start,
    )


def _look(program: Program, detectors: Iterable[Detector] | None) -> tuple[Trace, list[Finding]]:
    """Run both sides and ask every detector."""
    chosen = all_detectors() if detectors is None else list(detectors)
    trace = take(program, chosen)
    return trace, [finding for detector in chosen for finding in detector.findings(trace)]


def _underflow_share(trace: Trace) -> float:
    """Part of the entries that calls flushed to zero."""
    seen = [o for n, o in trace.observations.items() if n.op != "get_attr"]
    entries = sum(o.entries for o in seen)
    return sum(o.flushed for o in seen) / entries if entries else math.nan


def _headroom(trace: Trace) -> float:
    """Powers of two between the largest value of a call and the end of its format."""
    left = [
        math.log2(o.format.largest) - math.log2(o.largest)
        for n, o in trace.observations.items()
        if n.op != "get_attr" and 0.0 < o.largest < _MASK * o.format.largest
    ]
    return min(left, default=math.nan)


def all_detectors() -> list[Detector]:
    """One fresh detector of each kind, in the order in which findings of equal weight appear."""
    return [
        NonFiniteDetector(),
        RangeDetector(),
        FormulaDetector(),
        DigitsDetector(),
        SaturationDetector(),
        DepthDetector(),
        OrderDetector(),
        RecomputationDetector(),
        NondeterminismDetector(),
        DifferenceDetector(),
        LossScaleDetector(),
        SurrogateDetector(),
        UpdateDetector(),
    ]


def _rank(finding: Finding) -> int:
    return -finding.severity.rank


__all__ = ["DiagnosisError", "Trace", "all_detectors", "diagnose", "diagnose_program"]
