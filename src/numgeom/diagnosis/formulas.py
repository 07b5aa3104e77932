"""Where does a step use a formula that has a stable form, and does the stable form help?

Formulas whose stable form is a drop-in replacement are reported wherever they stand; others where
the numbers of this step show that they suffer. A form that is another function on these data or on
data near them is not proposed (`numgeom.diagnosis.same_function`). The stable form is put in the
place of the call, the step differentiated again in the recorded formats, and the errors before and
after compared: a remedy is verified if it is the same function and the error falls.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.diagnosis.cures import cures
from numgeom.diagnosis.match import Match
from numgeom.diagnosis.patterns import matches
from numgeom.diagnosis.poles import at_a_pole
from numgeom.diagnosis.rederive import rederive
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.same_function import agreement
from numgeom.diagnosis.trace import (
    Observation,
    Trace,
    compare,
    norm,
    op_name,
    phase_of,
    place,
)
from numgeom.recording import Replay
from numgeom.semantics.lockstep import Call

_SUFFERS = 100.0  # error of the formula's result in units of the format's u
_TOP = 0.75  # an exponential beyond largest ** _TOP is about to overflow
_POLES_TRIED = 8
_AGREES = 1e-2  # the step differentiated again may differ so much from the recorded one


@dataclass(frozen=True)
class _Quotient:
    amplification: float
    smallest: float


class FormulaDetector:
    """Finds unstable formulas, exponentials about to overflow and tiny denominators."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._matches: list[Match] = []
        self._wanted: frozenset[fx.Node] | None = None
        self._values: dict[fx.Node, Any] = {}
        self._exponentials: dict[fx.Node, float] = {}
        self._quotients: dict[fx.Node, _Quotient] = {}
        self._poles: list[Match] = []

    def see(self, call: Call, seen: Observation | None) -> None:
        """Recognise formulas in the forward pass, and keep what their stable forms read."""
        if not call.rounded:
            self._recognise(call, seen)
        if seen is None or phase_of(call.node) != "forward":
            return
        name = op_name(call.node)
        if name in ("exp", "exp2", "cosh", "sinh") and seen.largest > seen.format.largest**_TOP:
            self._exponentials[call.node] = seen.largest
        if name in ("div", "reciprocal"):
            self._divide(call, seen)

    def _recognise(self, call: Call, seen: Observation | None) -> None:
        if self._wanted is None:
            self._wanted = _wanted(call.node.graph)
        if call.node in self._wanted:
            self._values[call.node] = call.computed
        if seen is None or phase_of(call.node) != "forward":
            return
        found = matches(call.node)
        if found is not None:
            self._matches.append(found)
        pole = at_a_pole(call.node)
        if pole is not None and _holds_zero(call, pole):
            self._poles.append(pole)

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield the formulas that are worth replacing, with the trial of their stable form."""
        told: set[tuple[str, str]] = set()
        values, self._values = self._values, {}
        for match in self._matches:
            key = (match.name, place(match.node)["source"])
            if key in told:
                continue
            error = _error_of(match, values)
            u = trace.observations[match.node].format.unit_roundoff
            if not match.always and not error > _SUFFERS * u:
                continue
            compared = agreement(trace.program, match)
            if compared.differs:
                continue  # the formula only looks like the one that has this stable form
            told.add(key)
            same = [m for m in self._matches if (m.name, place(m.node)["source"]) == key]
            trial = _try(trace, same)
            cured = trial is not None and cures(trial.before, trial.after)
            yield _finding(same, error, trial, verified=compared.is_same and cured)
        if trace.is_finite:
            yield from self._at_the_edge(trace)
        else:
            yield from self._at_poles(trace)

    def _at_poles(self, trace: Trace) -> Iterator[Finding]:
        """Yield the call at a pole of it, if keeping away from it cures the step.

        Where the reference is at the pole, too, a finite step is a cure; where rounding or
        underflow alone led there, the error against the reference must fall.
        """
        known = {match.node for match in self._matches}
        poles = [match for match in self._poles if match.node not in known]
        at_reference_too = not _is_finite(trace.result.reference)
        for match in poles[:_POLES_TRIED]:
            if not agreement(trace.program, match).is_same:
                continue
            trial = _try(trace, [match])
            if trial is None or not trial.is_finite:
                continue
            if at_reference_too or cures(trial.before, trial.after):
                yield _finding([match], math.nan, trial, verified=True)
                return

    def _divide(self, call: Call, seen: Observation) -> None:
        above, below = call.argument(0), call.argument(1)
        if op_name(call.node) == "reciprocal":
            above, below = None, above
        if below is None or not isinstance(below.computed, Tensor) or seen.nonfinite:
            return
        smallest = float(below.computed.double().abs().min()) if below.computed.numel() else 1.0
        largest = 1.0
        if above is not None and isinstance(above.computed, Tensor):
            largest = float(above.computed.double().abs().max()) if above.computed.numel() else 0.0
        limit = 1.0 / min(seen.format.unit_roundoff, 1e-4)
        if largest > 0.0 and seen.largest > limit * largest:
            self._quotients[call.node] = _Quotient(seen.largest / largest, smallest)

    def _at_the_edge(self, trace: Trace) -> Iterator[Finding]:
        for node, largest in list(self._exponentials.items())[:1]:
            top = trace.observations[node].format.largest
            yield Finding(
                kind=Kind.OVERFLOW_RISK,
                severity=Severity.WARNING,
                **place(node),
                evidence={"largest": largest, "headroom_binades": math.log2(top / largest)},
                explanation="An exponential without a bound is near the end of its format's range: "
                "a few units more in the exponent and it is infinite.",
                remedy="Bound the exponent, x.clamp(max=...), subtract the maximum, or use the "
                "closed form (logsumexp, softmax, softplus).",
            )
        for node, found in list(self._quotients.items())[:1]:
            yield Finding(
                kind=Kind.UNSTABLE_FORMULA,
                severity=Severity.WARNING,
                **place(node),
                evidence={
                    "formula": "x / tiny",
                    "smallest_denominator": found.smallest,
                    "amplification": found.amplification,
                },
                explanation="A division by a tiny number: the quotient is larger than the "
                "numerators by more than the format's precision, and its derivative by the square.",
                remedy="Bound the denominator from below: x / d.clamp_min(eps), F.normalize(x).",
            )


def _holds_zero(call: Call, pole: Match) -> bool:
    value = call.inputs[pole.reads[0]].computed
    if pole.name.startswith("norm"):
        return bool((call.computed == 0).any())
    return isinstance(value, Tensor) and bool((value == 0).any())


# -- the trial -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """The relative error of a step without and with a stable form; infinite where not finite."""

    before: float
    after: float
    is_finite: bool  # with it


def _try(trace: Trace, same: list[Match]) -> _Trial | None:
    """Differentiate the step again with the stable form; None if that cannot be compared.

    Both runs are compared with the stable form in float64, since there too the formula itself may
    fail.
    """
    program = trace.program
    replaced = {match.node: match.stable for match in same}
    if trace.is_finite:
        again = rederive(program, dtype=torch.float64)
        if again is None or compare(again, trace.result.reference).gradient > _AGREES:
            return None  # the recorded backward pass is another function's
    reference = rederive(program, dtype=torch.float64, replaced=replaced)
    after = rederive(program, dtype=None, replaced=replaced)
    if after is None or reference is None:
        return None
    before = _error(trace.result.computed, reference)
    return _Trial(before, _error(after, reference), _is_finite(after))


def _error(computed: Replay, reference: Replay) -> float:
    if not _is_finite(computed):
        return math.inf
    errors = compare(computed, reference)
    values = (errors.of_gradients, errors.loss)
    return math.inf if any(math.isnan(v) for v in values) else max(values)


def _is_finite(run: Replay) -> bool:
    tensors = [t for t in (run.loss, *run.gradients.values()) if t is not None]
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def _finding(same: list[Match], error: float, trial: _Trial | None, *, verified: bool) -> Finding:
    match = same[0]
    evidence: dict[str, Any] = {"formula": match.name, "times": len(same)}
    if not math.isnan(error):
        evidence["rel_error_of_result"] = error
    if trial is not None:
        evidence |= {"error_before": trial.before, "error_after": trial.after}
    return Finding(
        kind=Kind.UNSTABLE_FORMULA,
        severity=Severity.WARNING,
        **place(match.node),
        evidence=evidence,
        explanation=f"{match.name} overflows, underflows, cancels or meets a pole where its "
        "stable form does not.",
        remedy=f"Write {match.advice}.",
        verified=verified,
    )


# -- how wrong the formula's own result is ---------------------------------------------------


def _wanted(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes between what the stable forms read and the formulas' results."""
    forward = [node for node in graph.nodes if op_name(node) and phase_of(node) == "forward"]
    found = [match for match in map(matches, forward) if match is not None]
    return frozenset(node for match in found for node in (match.node, *_read(match)))


def _read(match: Match) -> set[fx.Node]:
    """Everything between the values that the stable form reads and the formula's result."""
    pending, seen = [match.node], set(match.reads)
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                if op_name(source):
                    pending.append(source)
        if len(seen) > 40:
            break
    return seen


def _error_of(match: Match, values: dict[fx.Node, Tensor]) -> float:
    """Relative error of the formula's result against its stable form in float64."""
    wide = {
        n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for n, v in values.items()
    }
    with torch.no_grad():
        try:
            stable = match.stable(wide).double()
        except (RuntimeError, KeyError, TypeError):
            return math.nan
        got = values[match.node].double()
    if got.shape != stable.shape:
        return math.nan
    finite = torch.isfinite(stable)
    if bool((~torch.isfinite(got) & finite).any()):
        return math.inf
    zero = stable.new_zeros(())
    size = norm(torch.where(finite, stable, zero))
    missed = norm(torch.where(finite, got - stable, zero))
    return missed / size if size > 0.0 else (math.inf if missed > 0.0 else 0.0)
