"""How wrong is the gradient of this training step?"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from numgeom.arithmetic.assumptions import broken_assumptions, explain
from numgeom.arithmetic.printing import upper
from numgeom.certificate.bounds import (
    METHODS,
    Radii,
    agreeing,
    assumed,
    find_radii,
    vanishing,
    with_bound,
    with_total_bound,
)
from numgeom.certificate.circumstances import circumstances
from numgeom.certificate.decisions import decisions_of, differing, note_on_reads
from numgeom.certificate.given import fitting
from numgeom.certificate.kinks import Kink
from numgeom.certificate.nonfinite import NonFinite, first_nonfinite, kinds_of
from numgeom.certificate.refusals import failed
from numgeom.certificate.result import Certificate, CertificateError
from numgeom.certificate.sources import Origin
from numgeom.errors import ReplayError
from numgeom.failures import answers, is_our_fault
from numgeom.recording import MISSING, Program, Recording, digest, program_of, tensor_digest
from numgeom.recording.program import OnCall
from numgeom.results.accuracy import GradientAccuracy, measure, total
from numgeom.results.guarantee import Guarantee, weakest
from numgeom.results.origins import remember

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many calls are done (0: unknown)."""


ASSUMPTIONS = (
    "Arithmetic in float64 on the replay device is IEEE 754, rounded to nearest, without "
    "flush-to-zero.",
    "The error of the float64 reference itself is small beside the observed error. It is not "
    "bounded here.",
    "Python control flow, what Python did with numbers that it read from tensors, random draws and "
    "integer inputs are those of the recorded run.",
    "An op means what its documentation defines; plain references of fused ops are equal to them "
    "over the reals.",
)


_UNCHECKED = (
    "The recorded calls are the computation; a replay in the recorded formats, which would show "
    "it, was not asked for."
)


@answers("certify")
def certify(
    subject: nn.Module | Program | Recording | Callable[[], Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    method: str = "auto",
    computed: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    check_replay: bool = True,
    failure_probability: float = 1e-9,
    probe_seed: int = 0,
) -> Certificate:
    """Bound the error of the gradient of one training step.

    Forms: `certify(model, loss_fn, batch)` runs `loss_fn(model, batch)` and its backward
    pass; `certify(step)` calls a function that runs forward and backward on parameters that it
    owns; `certify(program)` and `certify(recording)` take a step that was recorded before. The
    model, its gradients, its buffers and the random state are left as they were.

    The gradient is compared with a float64 replay of the same step, the reference, and the
    reference's own error is bounded: |computed - exact| <= |computed - reference| + radius. The
    radius is PROVED by ball arithmetic or CERTIFIED by the Newton-Kantorovich theorem. Where there
    is no bound the guarantee is ESTIMATED, and NONE where the comparison says nothing: for
    gradients that are not finite, for those computed in float64, where an op has no rule, and for
    all of them if the recording does not reproduce the step.

    Args:
        subject: Model, step, recording, or program.
        loss_fn: Takes model and batch, returns the loss; with a model only.
        batch: Handed to `loss_fn`; with a model only.
        method: "auto" (ball arithmetic where it is sharp, else Newton-Kantorovich), "ball",
            "kantorovich", "functional" (error functionals composed along the step: PROVED, fast,
            loose for deep models), or "reference" (no bound: compare with the float64 replay only,
            which is by far the fastest).
        computed: Gradients to judge in place of the recorded ones, by parameter name: from
            another kernel, machine, or framework; tensors in any format, NumPy arrays, or arrays
            that support DLPack. None for a parameter without a gradient.
        device: Where the reference runs; None for where the step ran.
        progress: Told what is being done.
        check_replay: Also replay in the recorded formats and compare with the recorded
            gradients bit by bit, which shows that the recording is the computation.
        failure_probability: That a CERTIFIED bound fails, over random probes of our own.
        probe_seed: Of those probes.

    Returns:
        The certificate.

    Raises:
        CertificateError: if the arguments do not fit together; all problems at once.
        RecordingError: if the step cannot be recorded.
        ReplayError: if the program cannot be run in float64.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> certificate = certify(model, lambda model, x: model(x).sum(), torch.ones(2, 3))
        >>> certificate.guarantee
        <Guarantee.PROVED: 3>
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise CertificateError(f"Unknown method {method!r}; known: {', '.join(METHODS)}.")
    if not 0.0 < failure_probability < 1.0:
        raise CertificateError(
            f"failure_probability is {failure_probability!r}; give a number between 0 and 1, such "
            "as 1e-9."
        )
    report = progress or _silent
    report("recording", 0, 0)
    program = program_of(subject, loss_fn, batch, question="certify", error=CertificateError)
    recorded = program.recorded
    judged = recorded.gradients if computed is None else fitting(computed, recorded.gradients)
    run = _runner(program, report)
    reference = program.replay(torch.float64, device=device, on_call=run("reference in float64"))
    identical, differences = None, ()
    if check_replay:
        again = program.replay(None, on_call=run("replay in the recorded formats"))
        differences = _differences(recorded.gradients, again.gradients)
        identical = not differences
    rows = [measure(name, judged[name], reference.gradients[name]) for name in program.parameters]
    nonfinite = first_nonfinite(
        program, reference, device=device, on_call=run("looking for the origin of NaN or Inf")
    )
    if nonfinite is None and any(row.nonfinite_entries for row in rows):
        nonfinite = _given(rows, judged)
    overall = total(rows)
    devices = sorted({str(gradient.device) for gradient in recorded.gradients.values()})
    on_cpu = devices == ["cpu"]
    levels = [overall.guarantee]
    broken = () if method != "reference" else broken_assumptions(device or "cpu")
    if broken:  # the others are told by `find_radii`
        levels.append(Guarantee.NONE)
        rows = [_without_guarantee(row) for row in rows]
        overall = _without_guarantee(overall)
    if nonfinite is not None:  # where the loss is NaN, even a finite gradient means nothing
        levels.append(Guarantee.NONE)
    if differences and on_cpu:
        levels.append(Guarantee.NONE)
        rows = [_without_guarantee(row) for row in rows]
        overall = _without_guarantee(overall)
    radii, entrywise = Radii(), {}
    if method != "reference" and nonfinite is None and not (differences and on_cpu):
        try:
            radii = find_radii(
                program,
                method,
                overall.error_norm,
                failure_probability=failure_probability,
                seed=probe_seed,
                progress=lambda text: report(text, 0, 0),
            )
            radii = agreeing(radii, reference.gradients)
        except Exception as error:
            if not (isinstance(error, ReplayError) or is_our_fault(error)):
                raise
            radii = Radii(guarantee=Guarantee.NONE, notes=(failed(error),))
        if radii.method:
            bounded = [with_bound(row, judged[row.name], radii) for row in rows]
            overall = with_total_bound(overall, rows, judged, radii)
            rows = [row for row, _ in bounded]
            entrywise = {row.name: entries for row, entries in bounded}
            levels = [overall.guarantee]
        elif radii.guarantee is Guarantee.NONE:
            levels.append(Guarantee.NONE)
            rows = [_without_guarantee(row) for row in rows]
            overall = _without_guarantee(overall)
    kinks = radii.kinks or (() if radii.method else differing(reference))
    facts = {
        "program": digest(program),
        "step": program.digest(),
        "judged gradients": "recorded" if computed is None else tensor_digest(dict(judged)),
        "asked method": method,
        "asked failure probability": repr(failure_probability),
        "probe seed": str(probe_seed),
        "replay checked": str(check_replay),
        "replay device": "" if device is None else str(device),
    }
    without = _without_gradient(subject, recorded.gradients)
    certificate = Certificate(
        guarantee=weakest(*levels),
        method=radii.method or "reference",
        total=overall,
        parameters={row.name: row for row in rows},
        computed_loss=None if recorded.loss is None else float(recorded.loss),
        reference_loss=None if reference.loss is None else float(reference.loss),
        without_gradient=without,
        replay_is_identical=identical,
        first_nonfinite=nonfinite,
        unknown_ops=radii.unknown_ops,
        unresolved_kinks=kinks,
        decisions=decisions_of(program, radii.margin),
        assumptions=(
            *(assumed(radii, probe_seed) if radii.method else ASSUMPTIONS),
            *(() if check_replay else (_UNCHECKED,)),
        ),
        notes=(
            *radii.notes,
            *_otherwise(kinks, radii),
            *note_on_reads(program),
            *((f"The reference may be wrong: {explain(broken)}",) if broken else ()),
            *vanishing(rows, entrywise),
            *_notes(rows, without, differences, computed is not None, on_cpu),
        ),
        seconds=time.perf_counter() - start,
        provenance={
            "device": ", ".join(devices),
            **circumstances(),
            **facts,
            **radii.constants,
        },
        entrywise_bounds=entrywise,
    )
    remember(certificate, Origin(program))
    return certificate


def _without_gradient(subject: Any, gradients: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the model's parameters that ask for a gradient and got none."""
    if not isinstance(subject, nn.Module):
        return ()
    asking = (name for name, p in subject.named_parameters() if p.requires_grad)
    return tuple(name for name in asking if name not in gradients)


# -- the comparison ------------------------------------------------------------------------


def _differences(
    recorded: Mapping[str, Tensor], again: Mapping[str, Tensor]
) -> tuple[GradientAccuracy, ...]:
    """Return how far the replayed gradients are from the recorded ones, where bits differ."""
    return tuple(
        measure(name, again[name], gradient if gradient.is_complex() else gradient.double())
        for name, gradient in recorded.items()
        if not _same_bits(gradient, again[name])
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits; two NaNs count as the same."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_complex():
        return _same_bits(torch.view_as_real(a), torch.view_as_real(b))
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    same = a.contiguous().view(integer) == b.contiguous().view(integer)
    return bool((same | (a.isnan() & b.isnan())).all())


def _without_guarantee(row: GradientAccuracy) -> GradientAccuracy:
    return dataclasses.replace(row, guarantee=Guarantee.NONE)


def _given(rows: Iterable[GradientAccuracy], judged: Mapping[str, Tensor]) -> NonFinite:
    """Describe non-finite values that only the gradients given from elsewhere hold."""
    reached = tuple(row.name for row in rows if row.nonfinite_entries)
    kinds = frozenset().union(*(kinds_of(judged[name]) for name in reached))
    value = "NaN" if "NaN" in kinds else "Inf"
    return NonFinite(value, "given", reached=reached, seen_in="computed")


def _notes(
    rows: Iterable[GradientAccuracy],
    without: tuple[str, ...],
    differences: tuple[GradientAccuracy, ...],
    from_elsewhere: bool,
    on_cpu: bool,
) -> tuple[str, ...]:
    rows = list(rows)
    notes: list[str] = []
    if differences:
        notes.append(_replay_note(differences, on_cpu))
    if from_elsewhere:
        notes.append("The gradients that are judged were given, not computed by the recorded step.")
    exact = [
        row.name
        for row in rows
        if row.dtype in ("float64", "complex128") and row.error_bound is None
    ]
    if exact:
        notes.append(
            f"Computed in float64: {_shortened(exact)}. The float64 reference is no more accurate "
            "than that, so the comparison says nothing about the error."
        )
    zero = [row.name for row in rows if row.computed_norm == 0.0 == row.reference_norm]
    if zero:
        notes.append(f"Exactly zero, computed and reference: {_shortened(zero)}.")
    lost = [row.name for row in rows if row.computed_norm == 0.0 != row.reference_norm]
    if lost:
        notes.append(f"Zero as computed, but not in the reference: {_shortened(lost)}.")
    if without:
        notes.append(f"No gradient, the loss does not use them: {_shortened(without)}.")
    return tuple(notes)


def _otherwise(kinks: tuple[Kink, ...], radii: Radii) -> tuple[str, ...]:
    if not kinks or radii.kinks:
        return ()
    return (
        "The float64 replay takes decisions of the recorded step otherwise (see the unresolved "
        "kinks). It was made with the recorded ones.",
    )


def _replay_note(differences: tuple[GradientAccuracy, ...], on_cpu: bool) -> str:
    worst = total(differences).largest_entry_error
    names = _shortened([row.name for row in differences])
    text = (
        f"The recording does not reproduce the step: replayed in the recorded formats, "
        f"{len(differences)} gradients differ from the recorded ones by up to {upper(worst)} in an "
        f"entry ({names}). "
    )
    if on_cpu:
        return text + "So the reference may be one of another computation; please report it."
    return text + "Kernels of this device may add in another order at every run."


def _shortened(names: Iterable[str]) -> str:
    known = list(names)
    shown = ", ".join(known[:4])
    return shown if len(known) <= 4 else f"{shown} and {len(known) - 4} more"


# -- progress ------------------------------------------------------------------------------


def _runner(program: Program, report: Progress) -> Callable[[str], OnCall | None]:
    """Return a maker of `on_call` functions that report how far a replay has come."""
    count = len(program.graph.nodes)

    def make(what: str) -> OnCall | None:
        if report is _silent:
            return None
        done = 0

        def on_call(node: fx.Node, value: Any) -> None:
            nonlocal done
            del node, value
            done += 1
            report(what, done, count)

        return on_call

    return make


def _silent(what: str, done: int, count: int) -> None:
    del what, done, count
