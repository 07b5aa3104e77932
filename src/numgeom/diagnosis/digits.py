"""At which call do the loss or the gradients lose their digits?

Suspects are the calls whose result has a far larger relative error than their inputs (digits
cancel), and additions that change nothing (a small addend is absorbed). A suspect is believed only
after a trial: the program runs again with the reference's value at this call, and the error of
the loss or of the gradients must fall. Then the step's conditioning tells whether another
algorithm could have done better.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.diagnosis.conditioning import Conditioning, condition, exposed_change
from numgeom.diagnosis.healing import Healer
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import (
    NOWHERE,
    Errors,
    Observation,
    Trace,
    ancestors,
    op_name,
    outputs,
    place,
    traits,
)
from numgeom.semantics.lockstep import Call

_JUMP = 20.0  # relative error out over relative error in (at least u) of a suspect
_ABSORBED = 0.5  # part of the entries that an addition leaves as they were
_SENSITIVE = 0.05  # change of the gradients by rounding the inputs, from which on it is told
_HIDDEN = 0.1  # part of it that the first calls must show, or the conditioning is not measured
_TRIALS = 16
_SAMPLE = 4096  # entries
_CURED = 0.35  # a trial cures if less than this part of the error remains


@dataclass(frozen=True)
class _Suspect:
    nodes: tuple[fx.Node, ...]
    jump: float
    order: int


class DigitsDetector:
    """Finds cancellation, absorption and other losses of digits, where they matter."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._absorbing: dict[fx.Node, float] = {}

    def see(self, call: Call, seen: Observation | None) -> None:
        """Note additions that change nothing."""
        if call.rounded or seen is None or not _adds_two(call.node):
            return
        terms = [call.argument(0), call.argument(1)]
        values = [t.computed for t in terms if t is not None and isinstance(t.computed, Tensor)]
        others = [a for a in call.node.args[:2] if isinstance(a, (int, float))]
        if len(values) + len(others) != 2 or not isinstance(call.computed, Tensor):
            return
        if any(not t.is_floating_point() and not t.is_complex() for t in values):
            values = [t.to(call.computed.dtype) for t in values]  # as the addition takes masks
        left, right = [*values, *(torch.tensor(float(x)) for x in others)]
        y = call.computed
        if y.numel() > _SAMPLE and y.is_contiguous():  # a sample tells whether a look is worth it
            part = [t.expand(y.shape).reshape(-1)[:: y.numel() // _SAMPLE] for t in (y, left, right)
                    if t.dim() == 0 or t.is_contiguous()]  # fmt: skip
            if len(part) == 3 and _share_kept(*part) < 0.5 * _ABSORBED:
                return
        share = _share_kept(y, left, right)
        if share >= _ABSORBED:
            self._absorbing[call.node] = share

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield the calls whose loss of digits is seen in the loss or the gradients."""
        errors = trace.errors
        bad_gradient = errors.of_gradients > trace.tolerance
        bad_loss = errors.loss > trace.tolerance
        if not trace.is_finite:
            return
        limit = max(_SENSITIVE, trace.tolerance)
        hidden = _HIDDEN * limit
        if not (bad_gradient or bad_loss) and exposed_change(trace, least=hidden) < hidden:
            return
        known = condition(trace, samples=3 if bad_gradient or bad_loss else 1)
        if not bad_gradient and known.gradient > limit:
            yield self._sensitive(trace, known)
        if not (bad_gradient or bad_loss):
            return
        if not bad_gradient and known.explains_loss(errors):
            return
        ill = bad_gradient and known.explains_gradient(errors)
        told = ""
        if bad_gradient:
            found = self._locate(trace, "gradient", known, ill)
            told = f"{found.op} {found.source} {found.phase}"
            yield found
        if bad_loss and not ill and not known.explains_loss(errors):
            found = self._locate(trace, "loss", known, ill=False)
            where = f"{found.op} {found.source} {found.phase}"
            if where != told and (found.op or not bad_gradient):
                yield found

    def _locate(self, trace: Trace, about: str, known: Conditioning, ill: bool) -> Finding:
        found = self._believed(trace, about)
        if found is None:
            return self._unlocated(trace, about, known, ill)
        suspect, after = found
        return self._finding(trace, suspect, about, after, known, ill)

    # -- trials ----------------------------------------------------------------------------

    def _believed(self, trace: Trace, about: str) -> tuple[_Suspect, float] | None:
        """The earliest suspect that cures the error when healed; else the best if all do."""
        before = _error(trace.errors, about)
        suspects = self._suspects(trace, about)
        healer = Healer(trace, [node for suspect in suspects for node in suspect.nodes])
        best: tuple[float, _Suspect] | None = None
        for suspect in suspects:
            after = _error(healer.heal(suspect.nodes), about)
            if after < _CURED * before:
                return suspect, after
            if best is None or after < best[0]:
                best = after, suspect
        if len(suspects) < 2 or best is None:
            return None
        together = [node for suspect in suspects for node in suspect.nodes]
        after = _error(healer.heal(together), about)
        return (best[1], after) if after < _CURED * before else None

    def _suspects(self, trace: Trace, about: str) -> list[_Suspect]:
        """Suspects by line and operation, the earliest first; at most as many as are tried."""
        found = outputs(trace.program)
        ends = list(found["gradients"].values()) if about == "gradient" else [found["loss"]]
        reach = ancestors([n for n in ends if isinstance(n, fx.Node)])
        groups: dict[tuple[str, ...], list[tuple[float, fx.Node]]] = {}
        for node, seen in trace.observations.items():
            if node not in reach or not op_name(node):
                continue
            jump = _jump(trace, node, seen)
            crossed = seen.rel_error > trace.tolerance / 2 and jump > 2.0
            if jump < _JUMP and node not in self._absorbing and not crossed:
                continue
            if node not in self._absorbing and seen.rel_error < trace.tolerance / 4:
                continue
            groups.setdefault(tuple(place(node).values()), []).append((jump, node))
        suspects = [
            _Suspect(
                tuple(node for _, node in members),
                max(jump for jump, _ in members),
                min(trace.order[node] for _, node in members),
            )
            for members in groups.values()
        ]
        suspects.sort(key=lambda s: -s.jump)
        return sorted(suspects[:_TRIALS], key=lambda s: s.order)

    # -- findings --------------------------------------------------------------------------

    def _finding(
        self,
        trace: Trace,
        suspect: _Suspect,
        about: str,
        after: float,
        known: Conditioning,
        ill: bool,
    ) -> Finding:
        node = max(suspect.nodes, key=lambda n: trace.observations[n].rel_error)
        kind, node = self._kind(trace, node, suspect)
        if ill:
            kind = Kind.ILL_CONDITIONED
        seen = trace.observations[node]
        before = _error(trace.errors, about)
        moved = known.gradient if about == "gradient" else known.loss
        given = max((_rel_error(trace, n) for n in node.all_input_nodes), default=0.0)
        return Finding(
            kind=kind,
            severity=Severity.ERROR if before > 1.0 and not ill else Severity.WARNING,
            **place(node),
            evidence={
                f"{about}_error": before,
                f"{about}_error_without_it": after,
                "rel_error_of_inputs": given,
                "rel_error_of_result": seen.rel_error,
                "digits_lost": _digits_lost(max(given, seen.format.unit_roundoff), seen.rel_error),
                "condition_number": moved / known.unit_roundoff,
                "best_possible_error": moved,
                "times": len(suspect.nodes),
            },
            explanation=_EXPLANATIONS[kind],
            remedy=_REMEDIES[kind],
            verified=False,
        )

    def _kind(self, trace: Trace, node: fx.Node, suspect: _Suspect) -> tuple[Kind, fx.Node]:
        """What the loss of digits is called, and the call that it is blamed on."""
        absorbed = [n for n in suspect.nodes if n in self._absorbing]
        if absorbed and _jump(trace, node, trace.observations[node]) < _JUMP:
            return Kind.ABSORPTION, absorbed[-1]
        if traits(node).adds:
            return Kind.CANCELLATION, node
        for source in _producers(node):
            if _absorbs_small_term(trace, source):
                return Kind.ABSORPTION, source
        return Kind.PRECISION_LOSS, node

    def _sensitive(self, trace: Trace, known: Conditioning) -> Finding:
        """The gradients as computed are right, for data that must be right to the last bit."""
        return Finding(
            kind=Kind.ILL_CONDITIONED,
            severity=Severity.WARNING,
            **(NOWHERE if known.where is None else place(known.where)),
            evidence={
                "condition_number": known.gradient / known.unit_roundoff,
                "change_by_rounding_the_inputs": known.gradient,
                "gradient_error": trace.errors.gradient,
                "condition_number_of_call": known.stretch,
            },
            explanation="Rounding parameters and inputs once changes the gradients by this much, "
            "although the arithmetic is right: the problem is sensitive, no formula cures it.",
            remedy=_REMEDIES[Kind.ILL_CONDITIONED],
        )

    def _unlocated(self, trace: Trace, about: str, known: Conditioning, ill: bool) -> Finding:
        kind = Kind.ILL_CONDITIONED if ill else Kind.PRECISION_LOSS
        moved = known.gradient if about == "gradient" else known.loss
        return Finding(
            kind=kind,
            severity=Severity.WARNING,
            **(place(known.where) if ill and known.where is not None else NOWHERE),
            evidence={
                f"{about}_error": _error(trace.errors, about),
                "condition_number": moved / known.unit_roundoff,
                "best_possible_error": moved,
            },
            explanation=_EXPLANATIONS[kind],
            remedy=_REMEDIES[kind],
        )


_EXPLANATIONS = {
    Kind.CANCELLATION: "Nearly equal numbers are subtracted: their leading digits cancel and the "
    "rounding errors of the operands are left.",
    Kind.ABSORPTION: "A small number is added to a large one and its digits are lost.",
    Kind.PRECISION_LOSS: "The result has far fewer correct digits than the format could hold.",
    Kind.ILL_CONDITIONED: "The result is this wrong because the problem is sensitive: rounding its "
    "inputs alone moves it as far, so no other formula helps in this format unless the inputs are "
    "exact.",
}
_REMEDIES = {
    Kind.CANCELLATION: "Rewrite the difference so that nothing cancels: expm1, log1p, "
    "2*sin(x/2)**2 for 1-cos(x), x.var() for a mean of squares minus a squared mean, "
    "(a-b)*(a+b) for a*a-b*b; or run this part in a wider format.",
    Kind.ABSORPTION: "Keep the small term apart (log1p(x) for log(1+x), expm1), sum in float32 or "
    "pairwise (torch.stack(terms).sum()), or keep a compensation term (Kahan).",
    Kind.PRECISION_LOSS: "Run this part in a wider format: x.float(), or autocast(enabled=False).",
    Kind.ILL_CONDITIONED: "Use a wider format for data and computation, or change the problem: "
    "shorter horizons, regularisation, better scaled inputs.",
}


def _share_kept(y: Tensor, left: Tensor, right: Tensor) -> float:
    """Part of the entries of a sum that equal one term although the other is not zero."""
    y, a, b = y.abs(), left.abs(), right.abs()
    kept = ((y == a) & (b != 0)) | ((y == b) & (a != 0))
    return float(kept.double().mean()) if kept.numel() else 0.0


def _error(errors: Errors, about: str) -> float:
    return errors.of_gradients if about == "gradient" else errors.loss


def _rel_error(trace: Trace, node: fx.Node) -> float:
    seen = trace.observations.get(node)
    return 0.0 if seen is None else seen.rel_error


def _jump(trace: Trace, node: fx.Node, seen: Observation) -> float:
    given = max((_rel_error(trace, n) for n in node.all_input_nodes), default=0.0)
    return seen.rel_error / max(given, seen.format.unit_roundoff)


def _digits_lost(given: float, result: float) -> float:
    return 0.0 if result <= given else math.log10(min(result, 1.0) / min(given, 1.0))


def _producers(node: fx.Node) -> list[fx.Node]:
    """Calls that made the inputs, seen through those that move or cast numbers only."""
    found: list[fx.Node] = []
    pending = list(node.all_input_nodes)
    while pending:
        source = pending.pop()
        if traits(source).only_moves:
            pending.extend(source.all_input_nodes[:1])
        else:
            found.append(source)
    return found


def _adds_two(node: fx.Node) -> bool:
    """Whether a call adds two terms, or subtracts one, entry by entry."""
    known = traits(node)
    return known.adds and known.entrywise and known.product is None and len(node.args) == 2


def _absorbs_small_term(trace: Trace, node: fx.Node) -> bool:
    """Whether an addition adds something far smaller than its result."""
    if not _adds_two(node) or node not in trace.observations:
        return False
    result = trace.observations[node]
    terms = [trace.observations[n].rms for n in node.all_input_nodes if n in trace.observations]
    terms += [abs(float(a)) for a in node.args[:2] if isinstance(a, (int, float))]
    small = min(terms, default=math.inf)
    return 0.0 < small <= math.sqrt(result.format.unit_roundoff) * result.rms
