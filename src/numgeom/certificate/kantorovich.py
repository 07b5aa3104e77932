"""How far is the float64 reference from the exact gradient, at any depth?

The whole step is one triangular system z = f(z) + local errors. The reference z~ solves it up to
the rounding of each call, |delta_i| <= d_i. With A = (I - f')^-1 and the local second-order
remainder R, the error e = exact - reference satisfies e = A (R(e) - delta).

R(e) depends on few of e's entries only, the *rows*: inputs of curved ops. And R - delta is zero but
at the *columns*: results of ops that round or bend. Let P and J select them, x = P e the error at
the rows (those at kinks are rows, too), and B = S^-1 P A J T.

**Theorem** (Newton-Kantorovich for a recorded program, two scales). Let S = diag(s) > 0 on the
rows, T = diag(t) > 0 on the columns, ||x||_S = ||S^-1 x||_2, and

    eta >= ||T^-1 d||,   beta >= ||B||_2,
    ||T^-1 R(x)|| <= K/2 ||x||_S^2   for all x with ||x||_S <= rho.

If h = 2 beta^2 K eta < 1 then, with rho = 2 beta eta / (1 + sqrt(1 - h)), the exact solution has
||x||_S <= rho, and every block j of entries has ||e_j|| <= ||P_j A J T||_2 (eta + K/2 rho^2).

*Proof.* Multiply the local errors by t in [0, 1]: z(t) solves z = f(z) - (1 - t) (f(z~) - z~), so
z(0) = z~ and z(1) is exact. While ||x(t)||_S <= rho no decision changes (see below), so x(t) is
continuous. S^-1 x = B T^-1 (R(x) - t delta), hence ||x||_S <= beta (eta + K/2 ||x||_S^2), a
quadratic inequality that excludes the open gap between its two roots, the smaller of which is rho.
A continuous path that starts at 0 cannot cross the gap. The bound of a block is
e_j = P_j A J (R - delta). QED

Where t = 0 nothing arises, and the entry is no column. Two scales are what makes it work: with
T = S, an error of the size that has *accumulated* at an entry would be injected there, and
amplified again by all that follows.

Tails (`structure`): a call whose result arrives at a gradient through movements and additions alone
reaches no row. It is no column either; its d, and its R at the radii below, are added to the bound
of the gradient as they are. The last product of most gradients is one.

Kinks that the ball does not clear get bounds of their own (`rows`).

Radii: on the path every entry also obeys the ball rule of its call, so that
r = min(rho s, ball radius from the parents' r) encloses it. It is r that decisions are tested with:
if no comparison, maximum or other kink can come out differently within r, none does. (Entries with
r = 0 are exactly as computed; they carry no error and have no kink.)

The norms are bounded with random probes of our own (`probes`); that is the only place where chance
enters, and the level is CERTIFIED. The passes that push the probes round, and that is part of the
proof: each returns what the exact map makes of a slightly other vector, and how far off that vector
is, is bounded along the pass (`passes`) by the tangent rule of every call, which is ours
(`numgeom.ops.tangents`). Nothing is assumed of reverse passes. Power steps and rows use them as
guesses, and forward passes of fresh vectors say how good these are (`witnesses`).
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.printing import upper
from numgeom.arithmetic.rounding import add_up, mul_up
from numgeom.certificate.curvature import Examined, examine
from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts
from numgeom.certificate.kinks import Kink
from numgeom.certificate.norms import KEPT, Probed, ScaledMap
from numgeom.certificate.probes import ProbePlan
from numgeom.certificate.rows import entry_radii
from numgeom.certificate.scale import Scale, choose_scale
from numgeom.certificate.structure import pruned
from numgeom.certificate.survey import survey
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program

Progress = Callable[[str], None]

_PROBES = range(8, 33)  # the fewest that do are drawn
_ROOM = 0.25  # for h, at the estimate of beta
_SPARE = 1.1  # for the radius, at its estimate
_MORE = 8  # probes that cost about as much as half a power step
_POWER = (8, 1), (16, 3)  # probes and power steps, where the others do not do

# Of the failure probability, a fifth each: for beta from plain probes; for beta from power steps,
# all attempts together; for the total radius; for the radii of all parameters together; and for
# the rows of single entries. Half of each of the first four is for the probes that are drawn first,
# half for these and `_MORE`, which are drawn where the first give too large a radius: which of the
# two bounds is used depends on the probes, so both have to hold. Power steps start from the first
# in any case. How many are drawn first depends on other random numbers alone.
_SHARE = 1 / 5 / 2


@dataclass(frozen=True)
class KantorovichResult:
    """What the theorem gives for one program.

    Attributes:
        holds: Whether its condition was met, so that the radii are bounds.
        reason: Where it was not: which constant is to blame.
        eta: Local rounding errors, in units of the scale.
        beta: Sensitivity of everything to everything, in units of the scale.
        curvature: K, in units of the scale.
        h: 2 beta^2 K eta; must be below 1.
        rho: Radius of the ball, in units of the scale.
        rounding: Eps_p: what the probe passes rounded, in units of a probe's entries.
        midpoints: The float64 gradients, by parameter.
        norm_radii: 2-norm bounds |exact - midpoint|, by parameter.
        total_radius: The same for all gradients as one vector.
        entry_radii: Entry-wise bounds, by parameter.
        unresolved: Kinks that the radii do not clear.
        unknown_ops: Ops without facts, with the number of their calls.
        failure_probability: That a bound fails, over our own probes.
        seed: Of the probes.
        margin: Of the program's decisions, see `numgeom.semantics.decisions`.
    """

    holds: bool
    reason: str
    eta: float = math.inf
    beta: float = math.inf
    curvature: float = math.inf
    h: float = math.inf
    rho: float = math.inf
    rounding: float = math.inf
    midpoints: dict[str, Tensor] = field(default_factory=dict)
    norm_radii: dict[str, float] = field(default_factory=dict)
    total_radius: float = math.inf
    entry_radii: dict[str, Tensor] = field(default_factory=dict)
    unresolved: tuple[Kink, ...] = ()
    unknown_ops: Counter[str] = field(default_factory=Counter)
    failure_probability: float = 1e-9
    seed: int = 0
    margin: float = math.nan


@torch.inference_mode(False)  # power steps differentiate, whatever the caller is in
def kantorovich(
    program: Program,
    *,
    failure_probability: float = 1e-9,
    seed: int = 0,
    wanted: float = math.inf,
    ops: OpTable = OPS,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> KantorovichResult:
    """Bound the error of the float64 gradients of a decomposed program.

    Guarantee: CERTIFIED, if the result holds.

    Args:
        program: A program opened by `Program.decompose`.
        failure_probability: Over the probes, for all bounds together.
        seed: Of the probes.
        wanted: A total radius that is small enough; more probes are drawn where that reaches it.
        ops: The facts to use.
        device: Where to run.
        progress: Told what is being done.

    Returns:
        The radii, or the reason why there are none. Nothing is bounded where it does not hold.
    """
    say = progress or (lambda text: None)
    say("local errors and sizes")
    program = pruned(program)
    surveyed = survey(program, ops, device, Draws(seed, purpose=0))
    facts, unknown = surveyed.facts, surveyed.unknown
    common = {"failure_probability": failure_probability, "seed": seed, "unknown_ops": unknown}
    if unknown:
        return KantorovichResult(False, f"ops without a rule: {', '.join(unknown)}", **common)
    if facts.unbounded:
        return KantorovichResult(False, f"no rounding bound for {facts.unbounded}", **common)
    if surveyed.failure:
        reason = f"no linearisation: {surveyed.failure}".rstrip(".")
        return KantorovichResult(False, reason, **common)
    say("choosing the scale")
    scale = choose_scale(surveyed)
    del surveyed
    solver = ScaledMap(program, facts, scale, device, Draws(seed, purpose=1), ops)
    eta = solver.eta()
    say("probing")
    share = failure_probability * _SHARE
    probes, enough = _how_many(share, solver.dimension, scale.h, wanted / (scale.block * eta or 1))
    found = solver.probe(probes, keep=0 if enough else KEPT)
    if ProbePlan(probes, share, solver.dimension).bound(found.total) * eta > wanted:
        found = found.joined(solver.probe(_MORE))
        probes += _MORE
    plan = ProbePlan(probes, share, solver.dimension)
    beta = plan.bound(found.rows, rounding=found.rounding)
    result: dict[str, Any] = {**common, "eta": eta, "rounding": found.rounding}
    if not found.rounding < plan.least:
        return KantorovichResult(False, _too_rough(found), **result, beta=beta)
    examined, h, rho = Examined(math.inf, None, {}), math.inf, math.inf
    ways: list[Callable[[float], float]] = [
        lambda chance: solver.pull(found, chance),
        *(lambda chance, how=how: solver.power(*how, chance) for how in _POWER),
    ]
    if enough:  # so nothing was kept
        ways = [lambda chance: beta, *ways[1:]]
    for number, way in enumerate(ways):
        if number or not enough:
            say("sensitivity")
        beta = min(beta, way(2 * share / len(ways)))
        say("curvature and kinks")
        examined, h, rho = _examine(program, facts, scale, beta, eta, ops, device, seed=seed)
        if h < 1 or math.isinf(h):
            break
    k = examined.curvature
    result |= {"beta": beta, "curvature": k, "h": h}
    if not h < 1:
        return KantorovichResult(False, _blame(eta, beta, examined, h), **result)
    if examined.crossing:
        say("rows of the units in doubt")
        known = entry_radii(
            program, facts, scale, examined.doubts, bending=_up(0.5 * k * rho * rho), eta=eta,
            failure_probability=2 * share, ops=ops, device=device, draws=Draws(seed, purpose=2),
        )  # fmt: skip
        if known:
            examined = examine(program, facts, scale, rho, ops, device, seed=seed, known=known)
    result |= {
        "rho": rho,
        "unresolved": tuple(examined.crossing.values()),
    }
    if examined.crossing:
        n = sum(kink.count for kink in examined.crossing.values())
        return KantorovichResult(False, f"{n} units may cross a kink within the radius", **result)
    if not all(torch.equal(value, examined.values[name]) for name, value in facts.values.items()):
        reason = "two evaluations of the program in float64 gave gradients of different bits"
        return KantorovichResult(False, reason, **result)
    each = ProbePlan(probes, share / max(1, len(facts.gradients)), solver.dimension)
    rounding = found.rounding
    factor = _up(eta + 0.5 * k * rho * rho)
    own = {name: add_up(size, examined.own[name]) for name, size in facts.own().items()}
    norm_radii = {
        name: _up(
            add_up(
                own[name],
                each.bound(found.blocks[name], rounding=rounding, beside=found.own[name]) * factor,
            )
        )
        if name in found.blocks
        else 0.0
        for name in facts.values
    }
    radii = examined.radii
    entries = {
        name: torch.minimum(radii[name], torch.full_like(radii[name], norm_radii[name]))
        for name in norm_radii
    }
    everything = plan.bound(found.total, rounding=rounding, beside=found.beside)
    total = _up(add_up(math.hypot(*own.values()) * (1 + 1e-12), everything * factor))
    if not math.isfinite(total):
        return KantorovichResult(False, "the radius of the gradient is infinite", **result)
    return KantorovichResult(
        True,
        "",
        midpoints=facts.values,
        norm_radii=norm_radii,
        total_radius=total,
        entry_radii=entries,
        margin=examined.margin,
        **result,
    )


def _how_many(share: float, dimension: int, promised: float, room: float) -> tuple[int, bool]:
    """The fewest probes whose inflation leaves h below 1 and the radius small, by the estimates.

    Also returns whether h is expected to be; where that takes many more probes than the radius,
    power steps are cheaper, and the radius alone counts.

    Args:
        share: Failure probability of beta, and of the total radius.
        dimension: Of a probe.
        promised: h, for the Frobenius norm; a probe measures it times sqrt(1/3).
        room: By what the estimate of the total radius may be inflated.
    """
    inflation = {k: ProbePlan(k, share, dimension).inflation() for k in _PROBES}
    radius = next((k for k in _PROBES if _SPARE * inflation[k] <= room), _PROBES[-1])
    h = next((k for k in _PROBES if inflation[k] ** 2 / 3 * promised < _ROOM), None)
    if h is None or h > radius + _MORE:
        return radius, False
    return max(h, radius), True


def _examine(
    program: Program,
    facts: Facts,
    scale: Scale,
    beta: float,
    eta: float,
    ops: OpTable,
    device: torch.device | str | None,
    *,
    seed: int,
) -> tuple[Examined, float, float]:
    """K and the doubts within a ball, h, and a radius that the ball covers.

    The ball's size follows from h, and h from K in this ball: it is guessed, and taken as large as
    it can get where the guess was too small.
    """
    guess = min(1.0, 2 * beta * beta * scale.curvature * eta)
    wide = 2 * beta * eta / (1 + math.sqrt(max(0.0, 1 - 1.5 * guess))) * 1.01
    for size in (wide, 2.001 * beta * eta):
        examined = examine(program, facts, scale, size, ops, device, seed=seed)
        h = _up(2 * beta * beta * examined.curvature * eta)
        if not h < 1:
            if not math.isfinite(h):
                break
            continue
        rho = _up(2 * beta * eta / (1 + math.sqrt(max(0.0, 1 - h) * (1 - 1e-12))))
        if rho <= size:
            return examined, h, rho
    return examined, max(h, 1.0), math.inf


def _up(x: float) -> float:
    """A few operations on positive floats, rounded up with room to spare."""
    return mul_up(add_up(x, 0.0), 1 + 1e-12)


def _too_rough(found: Probed) -> str:
    """Why the probes say nothing: what they were pushed through rounds too much."""
    size = upper(found.rounding, 2)
    text = f"the probe passes round too much to tell how errors spread (eps_p = {size}"
    if found.worst is None:
        return text + ")"
    node: Any = found.worst if "call" in found.worst.meta else found.worst.args[0]
    info = node.meta["call"]
    place = f"{node.target} in {info.module or 'the model'} ({info.source})"
    return f"{text}, most of it at {place})"


def _blame(eta: float, beta: float, examined: Examined, h: float) -> str:
    k = examined.curvature
    parts = {"curvature K": k, "sensitivity beta": beta, "rounding eta": eta}
    shown = ", ".join(f"{name} = {upper(value, 2)}" for name, value in parts.items())
    worst = "curvature K" if not k < 1e-6 else "sensitivity beta"
    if not math.isfinite(eta):
        worst = "rounding eta"
    at = ""
    if worst == "curvature K" and examined.bent is not None:
        info = examined.bent.meta["call"]
        at = f", largest at {examined.bent.target} in {info.module or 'the model'} ({info.source})"
    return f"h = {upper(h, 2)} is not below 1 ({shown}); the {worst} is to blame{at}"
