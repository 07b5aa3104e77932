"""How far is the float64 reference from the exact gradient, at any depth?

The whole step is one triangular system z = f(z) + local errors. The reference z~ solves it up to
the rounding of each call, |delta_i| <= d_i. With A = (I - f')^-1 and the local second-order
remainder R, the error e = exact - reference satisfies e = A (R(e) - delta).

**Theorem** (Newton-Kantorovich for a recorded program). Let S = diag(s) > 0,
||e||_S = ||S^-1 e||_2 over all entries of all nodes, and

    eta >= ||S^-1 d||,   beta >= ||S^-1 A S||_2,
    ||S^-1 R(e)|| <= K/2 ||e||_S^2   for all e with ||e||_S <= rho.

If h = 2 beta^2 K eta < 1 then, with rho = 2 beta eta / (1 + sqrt(1 - h)), the exact solution has
||e||_S <= rho, and every block j of entries has ||e_j|| <= ||P_j A S||_2 (eta + K/2 rho^2).

*Proof.* Multiply the local errors by t in [0, 1]: z(t) solves z = f(z) - (1 - t) (f(z~) - z~), so
z(0) = z~ and z(1) is exact. While ||e(t)||_S <= rho no decision changes (see below), so e(t) is
continuous, and ||e||_S <= beta (eta + K/2 ||e||_S^2), a quadratic inequality that excludes the
open gap between its two roots, the smaller of which is rho. A continuous path that starts at 0
cannot cross the gap. The bound of a block is e_j = P_j A (R - delta). QED

Radii: on the path every entry also obeys the ball rule of its call, so that
r = min(rho s, ball radius from the parents' r) encloses it. It is r that decisions are tested with:
if no comparison, maximum or other kink can come out differently within r, none does. (Entries with
r = 0 are exactly as computed; they carry no error and have no kink.)

The norms are bounded with random probes of our own (`probes`); that is the only place where chance
enters, and the level is CERTIFIED.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import add_up, div_up, mul_up, norm_up
from numgeom.certificate.probes import LARGEST_GAP, ProbePlan
from numgeom.certificate.scale import (
    KAPPAS,
    Facts,
    choose_scale,
    curvature,
    local_errors,
    sampled_errors,
    tightened,
)
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program
from numgeom.semantics.sensitivity import Linearization

Progress = Callable[[str], None]

_WORTH_SHARPENING = 30.0  # a sharper bound of beta gains at most this factor in h


@dataclass(frozen=True)
class Kink:
    """A unit that might be on the other side of its kink.

    Attributes:
        op: The call that decides.
        module: Its module path.
        source: Its line.
        count: How many of its entries are in doubt.
    """

    op: str
    module: str
    source: str
    count: int


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
        midpoints: The float64 gradients, by parameter.
        norm_radii: 2-norm bounds |exact - midpoint|, by parameter.
        total_radius: The same for all gradients as one vector.
        entry_radii: Entry-wise bounds, by parameter.
        unresolved: Kinks that the radii do not clear.
        unknown_ops: Ops without facts, with the number of their calls.
        failure_probability: That a bound fails, over our own probes.
        seed: Of the probes.
    """

    holds: bool
    reason: str
    eta: float = math.inf
    beta: float = math.inf
    curvature: float = math.inf
    h: float = math.inf
    rho: float = math.inf
    midpoints: dict[str, Tensor] = field(default_factory=dict)
    norm_radii: dict[str, float] = field(default_factory=dict)
    total_radius: float = math.inf
    entry_radii: dict[str, Tensor] = field(default_factory=dict)
    unresolved: tuple[Kink, ...] = ()
    unknown_ops: Counter[str] = field(default_factory=Counter)
    failure_probability: float = 1e-9
    seed: int = 0


def kantorovich(
    program: Program,
    *,
    failure_probability: float = 1e-9,
    seed: int = 0,
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
        ops: The facts to use.
        device: Where to run.
        progress: Told what is being done.

    Returns:
        The radii, or the reason why there are none. Nothing is bounded where it does not hold.
    """
    say = progress or (lambda text: None)
    say("local errors")
    facts, unknown = local_errors(program, ops, device)
    common = {"failure_probability": failure_probability, "seed": seed, "unknown_ops": unknown}
    if unknown:
        return KantorovichResult(False, f"ops without a rule: {', '.join(unknown)}", **common)
    if facts.unbounded:
        return KantorovichResult(False, f"no rounding bound for {facts.unbounded}", **common)
    say("linearising")
    linear = Linearization(program, device=device)
    say("choosing the scale")
    scale = _best_scale(program, linear, facts, ops, device, seed=seed)
    solver = _Solver(linear, facts, scale, torch.Generator().manual_seed(seed + 1))
    eta = solver.eta()
    n_blocks = len(linear.outputs) + 1
    result: dict[str, Any] = {**common, "eta": eta}
    h, beta, k, rho_max = math.inf, math.inf, math.inf, 0.0
    # A cheap bound of beta first; a sharp one where that would decide.
    for probes, steps in ((4, 1), (12, 3)):
        say("sensitivity")
        plan = ProbePlan(probes, steps, failure_probability / 4)
        beta, gap = solver.beta(plan)
        if not gap <= LARGEST_GAP:
            reason = f"the passes are inaccurate (adjoint gap {gap:.1e})"
            return KantorovichResult(False, reason, **result, beta=beta)
        rho_max = 2.001 * beta * eta
        say("curvature")
        k = curvature(program, scale, rho_max, ops, device)
        h = _up(2 * beta * beta * k * eta)
        if h < 1 or not h < _WORTH_SHARPENING:
            break
    result |= {"beta": beta, "curvature": k, "h": h}
    if not h < 1:
        return KantorovichResult(False, _blame(eta, beta, k, h), **result)
    rho = min(_up(2 * beta * eta / (1 + math.sqrt(max(0.0, 1 - h) * (1 - 1e-12)))), rho_max)
    say("kinks")
    radii, doubtful = tightened(program, scale, rho, ops, device, seed=seed)
    result |= {"rho": rho, "unresolved": tuple(_kink(n, count) for n, count in doubtful.items())}
    if doubtful:
        n = sum(doubtful.values())
        return KantorovichResult(False, f"{n} units may cross a kink within the radius", **result)
    say("radii of the gradients")
    plan = ProbePlan(10, 0, failure_probability / 2 / n_blocks)
    factor = _up(eta + 0.5 * k * rho * rho)
    norms, total = solver.blocks(plan)
    norm_radii = {name: _up(v * factor) for name, v in norms.items()}
    entries = {
        name: torch.minimum(radii[name], torch.full_like(radii[name], norm_radii[name]))
        for name in norm_radii
    }
    return KantorovichResult(
        True,
        "",
        midpoints={name: linear.values[node] for name, node in linear.outputs.items()},
        norm_radii=norm_radii,
        total_radius=_up(total * factor),
        entry_radii=entries,
        **result,
    )


def _best_scale(
    program: Program,
    linear: Linearization,
    facts: Facts,
    ops: OpTable,
    device: torch.device | str | None,
    *,
    seed: int,
) -> dict[fx.Node, Tensor]:
    """The scale with the smallest estimated h; its probes are not used again."""
    squares = sampled_errors(linear, facts, seed=seed)
    best: tuple[float, dict[fx.Node, Tensor]] | None = None
    for i, kappa in enumerate(KAPPAS):
        scale = choose_scale(program, facts, squares, ops, device, kappa=kappa)
        rng = torch.Generator().manual_seed(seed + 1000 + i)
        solver = _Solver(linear, facts, scale, rng)
        beta = solver.estimate()
        h = 2 * beta * beta * 2 * kappa * solver.eta()
        if best is None or h < best[0]:
            best = h, scale
        if h < 1e-2:
            break
    assert best is not None
    return best[1]


class _Solver:
    """The scaled map B = S^-1 A S and its blocks, probed."""

    def __init__(
        self,
        linear: Linearization,
        facts: Facts,
        scale: dict[fx.Node, Tensor],
        rng: torch.Generator,
    ) -> None:
        self._linear = linear
        self._facts = facts
        self._scale = scale
        self._rng = rng

    def eta(self) -> float:
        """||S^-1 d||, rounded up."""
        parts = [
            float(norm_up(div_up(d, self._scale[node])))
            for node, d in self._facts.rounding.items()
            if d is not None and d.numel()
        ]
        return float(norm_up(torch.tensor(parts, dtype=torch.float64))) if parts else 0.0

    def estimate(self) -> float:
        """About ||B||, from one probe and one power step."""
        y = self._forward(self._gaussian())
        size = _norm(y)
        if not 0 < size < math.inf:
            return math.inf
        y = {n: t / size for n, t in y.items()}
        return 3 * (size * _norm(self._forward(self._reverse(y)))) ** (1 / 3)

    def beta(self, plan: ProbePlan) -> tuple[float, float]:
        """An upper bound of ||B||, and the largest relative gap of <B w, B w> and <w, B^T B w>."""
        results, worst = [], 0.0
        for _ in range(plan.probes):
            w = self._gaussian()
            log_norm = 0.0
            y = self._forward(w)
            for _ in range(plan.power_steps):
                size = _norm(y)
                log_norm += math.log(size) if size else -math.inf
                y = {n: t / size for n, t in y.items()}
                x = self._reverse(y)
                z = self._forward(x)
                worst = max(worst, _gap(x, x, z, y))
                y = z
            log_norm += math.log(_norm(y)) if _norm(y) else -math.inf
            results.append(math.exp(log_norm / (2 * plan.power_steps + 1)))
        return plan.bound(results), worst

    def blocks(self, plan: ProbePlan) -> tuple[dict[str, float], float]:
        """Upper bounds of ||P_j A S|| for every parameter's gradient, and for all together."""
        results: dict[str, list[float]] = {name: [] for name in self._linear.outputs}
        totals: list[float] = []
        for _ in range(plan.probes):
            y = self._forward(self._gaussian(), scaled=False)
            squares = 0.0
            for name, node in self._linear.outputs.items():
                size = float(y[node].norm()) if node in y else 0.0
                results[name].append(size)
                squares += size * size
            totals.append(math.sqrt(squares))
        return {name: plan.bound(r) for name, r in results.items()}, plan.bound(totals)

    def _gaussian(self) -> dict[fx.Node, Tensor]:
        return {
            node: torch.randn(s.shape, generator=self._rng, dtype=torch.float64).to(s.device)
            for node, s in self._scale.items()
        }

    def _forward(self, w: dict[fx.Node, Tensor], *, scaled: bool = True) -> dict[fx.Node, Tensor]:
        """B w, or without the last scaling A S w at the gradients."""
        found: dict[fx.Node, Tensor] = {}
        wanted = set(self._linear.outputs.values())

        def visit(node: fx.Node, e: Tensor) -> None:
            if scaled and node in self._scale:
                found[node] = e / self._scale[node]
            elif not scaled and node in wanted:
                found[node] = e.clone()

        self._linear.jvp({n: t * self._scale[n] for n, t in w.items()}, visit)
        return found

    def _reverse(self, v: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """B^T v."""
        a = self._linear.vjp({n: t / self._scale[n] for n, t in v.items()})
        return {n: t * self._scale[n] for n, t in a.items() if n in self._scale}


def _norm(y: dict[fx.Node, Tensor]) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in y.values()))


def _gap(w: dict, x: dict, z: dict, y: dict) -> float:
    """Relative difference of <w, x> (x = B^T y) and <z, y> (z = B w)."""
    left = sum(float((w[n] * x[n]).sum()) for n in x if n in w)
    right = sum(float((z[n] * y[n]).sum()) for n in y if n in z)
    return abs(left - right) / max(abs(left), abs(right), 1e-300)


def _up(x: float) -> float:
    """A few operations on positive floats, rounded up with room to spare."""
    return mul_up(add_up(x, 0.0), 1 + 1e-12)


def _blame(eta: float, beta: float, k: float, h: float) -> str:
    parts = {"curvature K": k, "sensitivity beta": beta, "rounding eta": eta}
    shown = ", ".join(f"{name} = {value:.1e}" for name, value in parts.items())
    worst = "curvature K" if not math.isfinite(k) else "sensitivity beta"
    if not math.isfinite(eta):
        worst = "rounding eta"
    return f"h = {h:.1e} is not below 1 ({shown}); the {worst} is to blame"


def _kink(node: fx.Node, count: int) -> Kink:
    info = node.meta["call"]
    return Kink(str(node.target), info.module, info.source, count)
