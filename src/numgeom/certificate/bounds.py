"""Which method bounds the reference's own error, and what does it give?

|computed - exact| <= |computed - reference| + |reference - exact|. The first term is measured entry
by entry; the second is the radius, by ball arithmetic where that is sharp enough (PROVED), else by
the Newton-Kantorovich theorem (CERTIFIED). Where exact ties were told by random labels, ball
arithmetic is CERTIFIED, too.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from numgeom.arithmetic.assumptions import broken_assumptions, explain
from numgeom.arithmetic.lower_bounds import norm_down, sub_down
from numgeom.arithmetic.printing import upper
from numgeom.arithmetic.reliance import relying, support
from numgeom.arithmetic.rounding import add_up, difference_up, div_up, norm_up
from numgeom.certificate.kantorovich import kantorovich
from numgeom.certificate.kinks import Kink, kink_of_decision
from numgeom.certificate.refusals import complex_gradients
from numgeom.certificate.structure import pruned
from numgeom.functionals import walk
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program
from numgeom.results.accuracy import GradientAccuracy
from numgeom.results.guarantee import Guarantee
from numgeom.semantics.ball import enclose
from numgeom.semantics.decisions import Judged
from numgeom.semantics.twins import COLLISION_PROBABILITY
from numgeom.visible import visible

METHODS = ("auto", "ball", "kantorovich", "functional", "reference")

USEFUL = 0.1  # a larger ball radius, relative to the gradient, would say nothing worth saying
# Walks that label entries: ball arithmetic's, and those that look for a ball of the theorem, two
# for each bound of beta and one with what is known of single entries.
LABELS = 10 * COLLISION_PROBABILITY
# How far two float64 evaluations of one gradient may differ before they count as two gradients: by
# so many radii, this part of the gradient, and this part of all gradients together (a gradient that
# is nothing but rounding has no size of its own to compare with).
AS_FAR = 10.0
LARGEST_DISAGREEMENT = 1e-9
LOST_IN_TOTAL = 1e-15
NEGLIGIBLE = 1e-12  # so is one below this part of the gradient, whatever error was observed
SHARP = 0.1  # a ball radius up to this part of the observed error is sharp enough

ASSUMPTIONS = (
    "Arithmetic in float64 on the CPU is IEEE 754, rounded to nearest, without flush-to-zero.",
    "Sums and products of the replay are accumulated in float64, in any order, with or without "
    "fused multiply-add.",
    "Elementary functions are off by at most the ulps of the accuracy table that comes with the "
    "package (measured densely against arbitrary precision, not proved).",
    "Python control flow, what Python did with numbers that it read from tensors, random draws and "
    "integer inputs are those of the recorded run.",
    "An op means what its documentation defines; references of fused ops and decompositions are "
    "identities over the reals.",
)


@dataclass(frozen=True)
class Radii:
    """Bounds on |reference - exact|.

    Attributes:
        method: "ball", "kantorovich" or "functional"; "" where there are no bounds.
        guarantee: PROVED or CERTIFIED; ESTIMATED where there are no bounds, and where they rest on
            accuracies that were not measured with the kernels of this process.
        midpoints: The references that the radii are about, float64 on the CPU.
        entries: Entry-wise radii, by parameter.
        norms: 2-norm radii, by parameter.
        total: 2-norm radius of all gradients as one vector.
        unknown_ops: Ops without a rule, with the number of their calls.
        kinks: Units that may cross their kink within the radius.
        notes: What a reader must know, such as why there is no bound.
        constants: The constants of the theorem, as text.
        margin: Of the program's decisions, see `numgeom.certificate.decisions`; NaN without bounds.
    """

    method: str = ""
    guarantee: Guarantee = Guarantee.ESTIMATED
    midpoints: Mapping[str, Tensor] = field(default_factory=dict)
    entries: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    total: float = math.inf
    unknown_ops: Counter[str] = field(default_factory=Counter)
    kinks: tuple[Kink, ...] = ()
    notes: tuple[str, ...] = ()
    constants: Mapping[str, str] = field(default_factory=dict)
    margin: float = math.nan


def find_radii(
    program: Program,
    method: str,
    error_norm: float,
    *,
    failure_probability: float = 1e-9,
    seed: int = 0,
    ops: OpTable = OPS,
    progress: Callable[[str], None] | None = None,
) -> Radii:
    """Bound the reference's own error.

    Args:
        program: The recorded step.
        method: "auto" takes ball arithmetic where its radius is at most a tenth of the observed
            error, else Newton-Kantorovich, else what ball arithmetic gave. "functional" bounds
            the computed gradient itself, by composition; see `numgeom.functionals`.
        error_norm: Observed error of the whole gradient, absolute 2-norm.
        failure_probability: Of Newton-Kantorovich, over its own probes and labels.
        seed: Of the probes.
        ops: The facts to use.
        progress: Told what is being done.

    Returns:
        The radii; without a bound the notes say why.

    Raises:
        ReplayError: a call could not be run in float64 on the CPU.
    """
    broken = broken_assumptions("cpu")
    if broken:
        return Radii(guarantee=Guarantee.NONE, notes=(f"No bound: {explain(broken)}",))
    if refusal := complex_gradients(program):
        return Radii(guarantee=Guarantee.NONE, notes=(refusal,))
    with relying() as used:
        radii = _find_radii(
            program, method, error_norm, failure_probability, seed, ops, progress or _silent
        )
    if not radii.method:
        return radii
    ground = support(used)
    if ground.holds:
        return dataclasses.replace(radii, notes=(*radii.notes, *ground.notes))
    return dataclasses.replace(
        radii, guarantee=Guarantee.ESTIMATED, notes=(*radii.notes, *ground.notes)
    )


def _silent(text: str) -> None:
    del text


def _find_radii(
    program: Program,
    method: str,
    error_norm: float,
    failure_probability: float,
    seed: int,
    ops: OpTable,
    say: Callable[[str], None],
) -> Radii:
    if method == "functional":
        say("error functionals")
        return _functional(program, ops, seed)
    say("opening composite ops")
    opened = pruned(program.decompose(device="cpu"))
    ball = Radii()
    if method in ("auto", "ball"):
        say("ball arithmetic")
        ball = _ball(opened, ops, seed)
        size = math.hypot(*(float(m.norm()) for m in ball.midpoints.values()))
        sharp = max(SHARP * error_norm, NEGLIGIBLE * size)
        if method == "ball" or ball.unknown_ops or ball.total <= sharp:
            return ball
    # The rest is for labels of exact ties.
    # A step below what is asked for, so that the decimal number that was asked for is a bound, too.
    allowed, chance = math.nextafter(failure_probability, 0.0), repr(failure_probability)
    probes = allowed - LABELS
    if probes < allowed / 2:
        probes, chance = allowed / 2, repr(failure_probability / 2 + LABELS)
    result = kantorovich(
        opened,
        failure_probability=probes,
        seed=seed,
        wanted=SHARP / 2 * error_norm,
        ops=ops,
        progress=say,
    )
    constants = {
        "h": repr(result.h),
        "eta": repr(result.eta),
        "beta": repr(result.beta),
        "curvature": repr(result.curvature),
        "rho": repr(result.rho),
        "failure probability": chance,
        "probe seed": str(result.seed),
    }
    if result.holds:
        return Radii(
            "kantorovich",
            Guarantee.CERTIFIED,
            result.midpoints,
            result.entry_radii,
            result.norm_radii,
            result.total_radius,
            constants=constants,
            margin=result.margin,
        )
    failed = f"No Newton-Kantorovich certificate: {result.reason}."
    if ball.method:
        return dataclasses.replace(ball, notes=(*ball.notes, failed), constants=constants)
    return Radii(
        unknown_ops=result.unknown_ops,
        kinks=result.unresolved,
        notes=(failed, *ball.notes),
        constants=constants,
    )


def _functional(program: Program, ops: OpTable, seed: int) -> Radii:
    """Bound the recorded gradients by composition; the midpoints are these gradients."""
    found = walk(program, ops=ops, seed=seed)
    if found.unknown_ops:
        names = ", ".join(f"{name} ({n})" for name, n in found.unknown_ops.items())
        note = f"Ops without a rule, so there is no bound: {names}."
        return Radii(unknown_ops=found.unknown_ops, notes=(note,), guarantee=Guarantee.NONE)
    if found.undecided:
        return _undecided("Error functionals", found.undecided)
    total = float(norm_up(torch.tensor(list(found.norms.values()), dtype=torch.float64)))
    if not math.isfinite(total):
        note = "Error functionals give no bound: composed along the step they become infinite."
        if found.doubtful:
            note += f" {found.doubtful} decisions were in doubt on the way."
        return Radii(notes=(note,))
    guarantee, constants = Guarantee.PROVED, {}
    if found.twins:
        guarantee = Guarantee.CERTIFIED
        constants["failure probability"] = repr(COLLISION_PROBABILITY)
    return Radii(
        "functional",
        guarantee,
        found.midpoints,
        found.radii,
        found.norms,
        total,
        constants=constants,
        margin=found.margin,
    )


def _ball(opened: Program, ops: OpTable, seed: int) -> Radii:
    found = enclose(opened, ops=ops, twins=True, seed=seed)
    if found.unknown_ops:
        names = ", ".join(f"{name} ({n})" for name, n in found.unknown_ops.items())
        note = f"Ops without a rule, so there is no bound: {names}."
        return Radii(unknown_ops=found.unknown_ops, notes=(note,), guarantee=Guarantee.NONE)
    if found.undecided:
        return _undecided("Ball arithmetic", found.undecided)
    norms = {name: float(norm_up(r)) for name, r in found.radii.items()}
    total = float(norm_up(torch.tensor(list(norms.values()), dtype=torch.float64)))
    size = math.hypot(*(float(m.norm()) for m in found.midpoints.values()))
    if not (total <= USEFUL * size and math.isfinite(total)):
        note = "Ball arithmetic gives no useful bound: its radii grow too much with depth."
        if found.doubtful:
            note += f" {sum(found.doubtful.values())} decisions were in doubt on the way."
        return Radii(notes=(note,), total=total)
    guarantee, constants = Guarantee.PROVED, {}
    if found.twins:
        guarantee = Guarantee.CERTIFIED
        constants["failure probability"] = repr(COLLISION_PROBABILITY)
    return Radii(
        "ball",
        guarantee,
        found.midpoints,
        found.radii,
        norms,
        total,
        constants=constants,
        margin=found.margin,
    )


def _undecided(method: str, judged: Iterable[Judged]) -> Radii:
    """No bound: the step may be another one over the reals."""
    kinks = tuple(map(kink_of_decision, judged))
    note = (
        f"{method} gives no bound: {sum(kink.count for kink in kinks)} values that decided what "
        "the step did may decide otherwise over the reals."
    )
    return Radii(kinks=kinks, notes=(note,))


def agreeing(radii: Radii, reference: Mapping[str, Tensor]) -> Radii:
    """Keep the radii only if the opened program is the recorded one, as far as numbers can tell.

    Two float64 evaluations of one step differ by rounding. A larger difference means that opening
    the composite ops changed what is computed, or that a decision fell out differently. Each
    gradient is compared by itself: each has a bound of its own.
    """
    if not radii.method:
        return radii
    size = math.hypot(*(float(m.norm()) for m in radii.midpoints.values()))
    for name, midpoint in radii.midpoints.items():
        difference = float((reference[name].cpu() - midpoint).norm())
        own = float(midpoint.norm())
        # Two evaluations differ by about as much as each of them may be off, a part of the radius.
        allowed = AS_FAR * radii.norms[name] + LARGEST_DISAGREEMENT * own + LOST_IN_TOTAL * size
        if not difference <= allowed:
            note = (
                "No bound: the opened program and the recorded one do not agree in float64 (their "
                f"gradients of {visible(name)} differ by {upper(difference, 2)} of "
                f"{upper(own, 2)}); please report it."
            )
            return Radii(notes=(note,), constants=radii.constants)
    return radii


def assumed(radii: Radii, seed: int) -> tuple[str, ...]:
    """What the bounds rest on; where they are CERTIFIED, also how likely they fail."""
    chance = radii.constants.get("failure probability")
    if chance is None:
        return ASSUMPTIONS
    return (
        *ASSUMPTIONS,
        f"With a probability of at most {chance} over random probes and labels of our own (seed "
        f"{seed}), all bounds together, this certificate is wrong. Nothing is assumed random about "
        "the rounding.",
    )


def vanishing(rows: Iterable[GradientAccuracy], entrywise: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Absolute bounds of the gradients that may be exactly zero, for which no relative one exists.

    Args:
        rows: All gradients, with their bounds.
        entrywise: Their entry-wise bounds.
    """
    found = [
        f"{visible(row.name)} at most {upper(float(norm_up(entrywise[row.name])))}"
        for row in rows
        if row.error_bound == math.inf and row.radius is not None and math.isfinite(row.radius)
    ]
    if not found:
        return ()
    shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return (
        "The exact gradient may be zero, so that its relative error has no bound; 2-norm of the "
        f"absolute error: {shown}.",
    )


def with_bound(
    row: GradientAccuracy, computed: Tensor, radii: Radii
) -> tuple[GradientAccuracy, Tensor]:
    """Add the bound to one parameter's row; also return its entry-wise bound.

    |computed - exact| <= |computed - reference| + radius, rounded outward, and relative to a lower
    bound of the exact gradient's norm: ||reference|| - radius.
    """
    midpoint, radius = radii.midpoints[row.name], radii.norms[row.name]
    difference = difference_up(computed.detach().cpu(), midpoint)
    entrywise = add_up(difference, radii.entries[row.name])
    error = min(float(norm_up(entrywise)), add_up(float(norm_up(difference)), radius))
    bound = _relative(error, midpoint, radius)
    bounded = dataclasses.replace(row, error_bound=bound, radius=radius, guarantee=radii.guarantee)
    return bounded, entrywise


def with_total_bound(
    row: GradientAccuracy,
    rows: list[GradientAccuracy],
    computed: Mapping[str, Tensor],
    radii: Radii,
) -> GradientAccuracy:
    """Add the bound to the row of all gradients as one vector."""
    differences = [
        float(norm_up(difference_up(computed[r.name].detach().cpu(), radii.midpoints[r.name])))
        for r in rows
    ]
    error = add_up(float(norm_up(torch.tensor(differences, dtype=torch.float64))), radii.total)
    everything = torch.cat([radii.midpoints[r.name].reshape(-1) for r in rows])
    bound = _relative(error, everything, radii.total)
    return dataclasses.replace(
        row, error_bound=bound, radius=radii.total, guarantee=radii.guarantee
    )


def _relative(error: float, midpoint: Tensor, radius: float) -> float:
    """An error relative to the exact norm; infinite where that may be zero, 0 for no error."""
    if error == 0.0:
        return 0.0
    exact_norm = sub_down(norm_down(midpoint), radius)
    return div_up(error, exact_norm) if exact_norm > 0.0 else math.inf
