"""Is a step healthy, as far as its reference and what the run itself produced tell?

A full diagnosis evaluates a program twice, in its recorded formats and in float64. Most steps are
healthy, and a look at the reference alone shows it, at less than half of the cost:

- Errors of the loss and of the gradients are known exactly without a second run: what the user's
  run produced was recorded. Whatever goes wrong inside of a step, by rounding, underflow,
  overflow or chance, matters only where it shows there.
- Findings about where values lie (saturation, dead units, vanishing and exploding cotangents,
  values near the end of the range) are decided on the reference's values, each rounded once to
  its recorded format. A value and its rounded reference differ by rounding errors; where these
  are large, the outputs show it.
- Formulas that are recognised by their shape are there or not, before anything runs.

Where any of these gives rise to suspicion, the full diagnosis is made, and only what it finds is
told. Infos, which need no computed values, are the exception.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from numgeom.arithmetic.formats import Format
from numgeom.diagnosis.differences import difference_step
from numgeom.diagnosis.nondeterminism import may_not_repeat
from numgeom.diagnosis.patterns import matches
from numgeom.diagnosis.ranges import victims
from numgeom.diagnosis.result import Finding, Severity
from numgeom.diagnosis.trace import (
    FORMATS,
    Detector,
    Observation,
    Trace,
    argument,
    compare,
    is_rearrangement,
    norm,
    op_name,
    phase_of,
)
from numgeom.recording import Program
from numgeom.semantics.alone import alone, recorded_formats
from numgeom.semantics.lockstep import Call, LockstepResult

_SAMPLE = 4096  # entries; underflow is a statistic here, lost gradients are seen in the outputs


def glance(program: Program, detectors: Iterable[Detector]) -> tuple[Trace, list[Finding]] | None:
    """Look at the reference alone.

    Args:
        program: The recorded step.
        detectors: Fresh detectors.

    Returns:
        What was seen and the infos that were found; None if the step needs a closer look.

    Raises:
        ReplayError: a call cannot be run in float64.
    """
    if _has_suspicious_formulas(program) or not _is_finite(program):
        return None
    detectors = list(detectors)
    trace = take_alone(program, detectors)
    errors = trace.errors
    if not trace.is_finite or victims(trace)[0]:
        return None
    if errors.of_gradients > trace.tolerance or errors.loss > trace.tolerance:
        return None
    found: list[Finding] = []
    for detector in detectors:
        for finding in detector.findings(trace):
            if finding.severity is not Severity.INFO:
                return None
            found.append(finding)
    return trace, found


def take_alone(program: Program, detectors: Iterable[Detector]) -> Trace:
    """Run the reference of a program and show every call to the detectors.

    What is called computed in the trace is what the recorded run gave, but for steps that may
    give other bits when they run again: these are replayed.
    """
    detectors = list(detectors)
    observations: dict[fx.Node, Observation] = {}

    def visit(call: Call) -> None:
        node = call.node
        source = argument(node, 0) if is_rearrangement(node) else None
        seen = observations.get(source) if source is not None else None
        if seen is None:
            seen = _observe(program, call, observations)
        if seen is not None:
            observations[node] = seen
        for detector in detectors:
            detector.see(call, seen)

    reference = alone(program, visit)
    computed = program.replay(None) if may_not_repeat(program) else program.recorded
    result = LockstepResult(computed, reference)
    return Trace(program, observations, result, compare(computed, reference))


def _has_suspicious_formulas(program: Program) -> bool:
    """Whether a formula stands in the program that is reported, or tried on computed values."""
    for node in program.calls:
        phase = phase_of(node)
        if phase == "forward" and matches(node) is not None:
            return True
        if phase == "backward" and op_name(node) == "sub" and difference_step(node) is not None:
            return True
    return False


def _is_finite(program: Program) -> bool:
    run = program.recorded
    found = (run.loss, *run.gradients.values(), *run.updates.values())
    tensors = [t for t in found if t is not None and t.numel() and t.is_floating_point()]
    return all(math.isfinite(torch.linalg.vector_norm(t.detach(), math.inf)) for t in tensors)


def _observe(
    program: Program, call: Call, known: Mapping[fx.Node, Observation]
) -> Observation | None:
    """Measure the reference of one node; None if it is no single real floating-point tensor.

    The error is 0 where the value is exact: a constant, or what a call makes of exact values if
    its format holds it. It is NaN, unknown, anywhere else.
    """
    reference = call.reference
    if not isinstance(reference, Tensor) or not reference.is_floating_point():
        return None
    dtype = recorded_formats(program, call.node).get(())
    if dtype not in FORMATS:
        return None
    found = FORMATS[dtype]
    x = reference.detach()
    if x.dtype is not torch.float64:
        x = x.double()
    count = x.numel()
    if count == 0:
        return Observation(found, 0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0)
    low, high = (float(end) for end in torch.aminmax(x))
    nonfinite = 0
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = torch.isfinite(x)
        nonfinite = count - int(torch.count_nonzero(finite))
        x = torch.where(finite, x, x.new_zeros(()))
        low, high = (float(end) for end in torch.aminmax(x))
    whole = norm(x)
    exact = call.node.op == "get_attr"
    flushed = subnormal = 0
    if not exact and -found.smallest_normal < high and low < found.smallest_normal:
        flushed, subnormal = _below_normal(x, found)
    if not exact and _has_exact_inputs(call.node, known):
        exact = bool((x.to(dtype) == x).all())
    return Observation(
        format=found,
        entries=count,
        largest=max(-low, high),
        norm=whole,
        rms=whole / math.sqrt(count),
        rel_error=0.0 if exact else math.nan,
        nonfinite=nonfinite,
        reference_nonfinite=nonfinite,
        flushed=flushed,
        subnormal=subnormal,
    )


def _has_exact_inputs(node: fx.Node, known: Mapping[fx.Node, Observation]) -> bool:
    """Whether all inputs are exact numbers; whole numbers and conditions are."""
    return all(source not in known or known[source].rel_error == 0.0
               for source in node.all_input_nodes)  # fmt: skip


def _below_normal(x: Tensor, found: Format) -> tuple[int, int]:
    """Numbers of entries that a format rounds to zero and to subnormal numbers, by a sample."""
    flat = x.reshape(-1) if x.is_contiguous() or x.numel() <= _SAMPLE else x.flatten()
    part = flat[:: flat.numel() // _SAMPLE | 1].abs()
    nonzero = int(torch.count_nonzero(part))
    normal = int(torch.count_nonzero(part >= found.smallest_normal))
    if normal == nonzero:
        return 0, 0
    kept = int(torch.count_nonzero(part > 0.5 * found.smallest_subnormal))
    scale = flat.numel() / part.numel()
    return round((nonzero - kept) * scale), round((kept - normal) * scale)
