"""In which unit is each entry's error measured, and how large are the local facts in it?

The scale S of the Newton-Kantorovich theorem is entry by entry. Any S > 0 gives a valid theorem;
a good one makes beta small and K tiny at once. It is the largest of (1) the size that the error has
in random samples A (d * xi), (2) the entry's own rounding d, (3) Q / kappa, Q the second-order term
that the parents' scales allow. An entry that no sample reaches gets a tiny scale, so that it drops
out unless something does reach it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import add_up, div_up, mul_up
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OpTable
from numgeom.recording import Program
from numgeom.semantics.ball import BallWalk
from numgeom.semantics.sensitivity import Linearization
from numgeom.semantics.twins import Twins

# How large a second-order term may be beside its entry's scale; each is tried, and the scale that
# promises the smallest h is kept.
KAPPAS = (1e-11, 1e-13, 1e-9, 1e-7)
SAMPLES = 4  # of the error's size, for the scale only
NOTHING = 1e-60  # scale of entries that no sample reaches


@dataclass(frozen=True)
class Facts:
    """What the calls of a program say about themselves.

    Attributes:
        rounding: d, entry by entry, of every node that holds a floating-point tensor and is not a
            constant; None where the call is exact.
        unbounded: Name of a call whose rounding has no bound; "" if all have one.
    """

    rounding: dict[fx.Node, Tensor | None]
    unbounded: str


class _Walk(BallWalk):
    """A walk that knows the nodes behind the parts of calls with several outputs."""

    def __init__(self, program: Program, ops: OpTable, device: Any) -> None:
        super().__init__(program, ops, device)
        self.parts = parts_of(program)

    def holders(self, node: fx.Node, part: int | None) -> list[fx.Node]:
        """The nodes that hold this output."""
        return [node] if part is None else self.parts.get((node, part), [])


def parts_of(program: Program) -> dict[tuple[fx.Node, int], list[fx.Node]]:
    """The `getitem` nodes of calls with several outputs."""
    found: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and "call" not in node.meta:
            found.setdefault((node.args[0], node.args[1]), []).append(node)
    return found


# -- rounding ----------------------------------------------------------------------------


class _Rounding(_Walk):
    def __init__(self, program: Program, ops: OpTable, device: Any) -> None:
        super().__init__(program, ops, device)
        self.rounding: dict[fx.Node, Tensor | None] = {}
        self.unbounded = ""

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        rounding = op.rounding(call)
        if part is not None and rounding is not None:
            rounding = rounding[part]
        y = call.y if part is None else call.y[part]
        if rounding is not None:
            rounding = rounding.expand(y.shape)
            if not bool(torch.isfinite(rounding).all()):
                self.unbounded = self.unbounded or f"{node.target} in {node.meta['call'].module!r}"
        for holder in self.holders(node, part):
            self.rounding[holder] = rounding
        return None


def local_errors(program: Program, ops: OpTable, device: Any) -> tuple[Facts, Counter[str]]:
    """Collect the rounding of every call, and count the ops without an entry."""
    walk = _Rounding(program, ops, device)
    walk.evaluate()
    return Facts(walk.rounding, walk.unbounded), Counter(walk.unknown)


# -- scale -------------------------------------------------------------------------------


def choose_scale(
    program: Program,
    facts: Facts,
    squares: dict[fx.Node, Tensor],
    ops: OpTable,
    device: Any,
    *,
    kappa: float,
) -> dict[fx.Node, Tensor]:
    """S for every node but the constants.

    Args:
        program: The opened program.
        facts: Its local errors.
        squares: Mean squares of sampled errors, by node (`sampled_errors`).
        ops: The facts to use.
        device: Where to run.
        kappa: How large a second-order term may be beside its entry's scale.
    """
    walk = _Scaling(program, ops, device, facts, squares, kappa)
    walk.evaluate()
    return walk.scale


def sampled_errors(linear: Linearization, facts: Facts, *, seed: int) -> dict[fx.Node, Tensor]:
    """Mean squares of A (d * xi), xi Gaussian: how large the error of each entry may be."""
    generator = torch.Generator().manual_seed(seed)
    squares: dict[fx.Node, Tensor] = {}
    for _ in range(SAMPLES):

        def visit(node: fx.Node, e: Tensor) -> None:
            if node in facts.rounding:
                part = e.square() / SAMPLES
                squares[node] = squares[node] + part if node in squares else part

        linear.jvp(
            {
                node: d
                * torch.randn(d.shape, generator=generator, dtype=torch.float64).to(d.device)
                for node, d in facts.rounding.items()
                if d is not None
            },
            visit,
        )
    return squares


class _Scaling(_Walk):
    """Carries the scale in place of the radius, so that the parents' scales are at hand."""

    def __init__(
        self,
        program: Program,
        ops: OpTable,
        device: Any,
        facts: Facts,
        squares: dict[fx.Node, Tensor],
        kappa: float,
    ) -> None:
        super().__init__(program, ops, device)
        self._kappa = kappa
        self._facts = facts
        self._squares = squares
        self.scale: dict[fx.Node, Tensor] = {}

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        y = call.y if part is None else call.y[part]
        second = op.second_order(call)
        if part is not None and second is not None:
            second = second[part]
        scale = torch.full_like(y, NOTHING)
        for holder in self.holders(node, part):
            if holder in self._squares:
                scale = torch.maximum(scale, _typical(self._squares[holder].sqrt()))
            rounding = self._facts.rounding.get(holder)
            if rounding is not None:
                scale = torch.maximum(scale, rounding)
        if second is not None:
            scale = torch.maximum(scale, torch.nan_to_num(second.expand(y.shape) / self._kappa))
        scale = scale.clamp(max=1e150)
        for holder in self.holders(node, part):
            self.scale[holder] = scale
        return scale


def _typical(e: Tensor) -> Tensor:
    """Sampled sizes, floored within the node at the rms of the smallest quarter of the nonzeros."""
    nonzero = e[(e > 0) & torch.isfinite(e)]
    if nonzero.numel() < 2:
        return torch.nan_to_num(e)
    least = nonzero.sort().values[: max(1, nonzero.numel() // 4)]
    floor = least.square().mean().sqrt()
    return torch.where(e > 0, torch.maximum(e, floor), e).nan_to_num()


# -- curvature ---------------------------------------------------------------------------


def curvature(
    program: Program,
    scale: dict[fx.Node, Tensor],
    rho: float,
    ops: OpTable,
    device: Any,
) -> float:
    """K: ||S^-1 R(e)|| <= K/2 ||e||_S^2 for all e with ||e||_S <= rho.

    For one call, |R| <= Q (|e| / r)^2 entry by entry, Q the second-order bound at r = rho s, so
    that ||S^-1 R_i|| <= K_i/2 sum_p ||e_p||_S^2 over its parents p, with K_i = 2 m_i max Q /
    (rho^2 s_i), m_i the multiplicity. Calls that share parents add up:
    K = sqrt(max over p of sum of K_i^2 over the calls i that p feeds).
    """
    walk = _Curvature(program, ops, device, scale, rho)
    walk.evaluate()
    squares: dict[fx.Node, float] = {}
    for (node, _), k in walk.found.items():
        for parent in scale.keys() & set(node.all_input_nodes):
            squares[parent] = add_up(squares.get(parent, 0.0), mul_up(k, k))
    if not squares:
        return 0.0
    # Q(t r) <= t^2 Q(r) holds for the facts up to their own outward rounding, some 1e-13.
    return max(squares.values()) ** 0.5 * (1 + 1e-6)


class _Carried(_Walk):
    """Carries r = rho s, zero where the entry is exactly as computed."""

    def __init__(
        self, program: Program, ops: OpTable, device: Any, scale: dict[fx.Node, Tensor], rho: float
    ) -> None:
        super().__init__(program, ops, device)
        self._scale = scale
        self._rho = rho

    def reach(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Any:
        """(rho s, radius by the ball rule) of an output."""
        ball = super().settle(node, op, call, part)
        y = call.y if part is None else call.y[part]
        if ball is None:
            ball = torch.zeros_like(y)
        holders = self.holders(node, part)
        if not holders:
            return ball, ball
        return mul_up(self._scale[holders[0]], self._rho), ball


class _Curvature(_Carried):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found: dict[tuple[fx.Node, int | None], float] = {}

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        second = op.second_order(call)
        if part is not None and second is not None:
            second = second[part]
        holders = self.holders(node, part)
        if second is not None and holders and second.numel():
            s = mul_up(self._scale[holders[0]], self._rho * self._rho)
            relative = div_up(second.expand(s.shape), s * (1 - 1e-15))
            k = mul_up(2 * op.multiplicity(call), float(relative.amax()))
            self.found[node, part] = k
        wide, ball = self.reach(node, op, call, part)
        return torch.where(ball > 0, wide, 0.0)


# -- kinks -------------------------------------------------------------------------------


def tightened(
    program: Program,
    scale: dict[fx.Node, Tensor],
    rho: float,
    ops: OpTable,
    device: Any,
    *,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[fx.Node, int]]:
    """Entry-wise radii of the gradients, and the calls that may decide otherwise within them.

    Where maxima are in doubt, labels tell exact ties from others (`numgeom.semantics.twins`); the
    bounds then fail with a probability of at most `COLLISION_PROBABILITY` more. On the way from
    the reference to the exact solution equal entries may be passed in any order, so let the path
    belong to the program that takes, at such a tie, the recorded entry by its place. That is
    linear, and its solution is the exact program's too: call by call, no other entry is larger,
    those that are equal come later, and the first of them is taken.

    Args:
        program: The opened program.
        scale: S.
        rho: Radius of the ball, in units of the scale.
        ops: The facts to use.
        device: Where to run.
        seed: Of the labels.
    """
    walk = _Tightened(program, ops, device, scale, rho)
    walk.evaluate()
    if walk.undecided:
        labels = Twins(walk.undecided, seed=seed)
        walk = _Tightened(program, ops, device, scale, rho)
        walk.twins = labels
        walk.evaluate()
    return walk.radii, walk.crossing


class _Tightened(_Carried):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.crossing: dict[fx.Node, int] = {}

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        doubt = op.doubt(call)
        if part is not None and doubt is not None:
            doubt = doubt[part]
        self._note(node, doubt)
        wide, ball = self.reach(node, op, call, part)
        return torch.minimum(wide, ball)

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        enclosure = super().run_node(node, values)
        if "call" in node.meta:
            doubts = enclosure.doubt if isinstance(enclosure.doubt, tuple) else (enclosure.doubt,)
            for doubt in doubts:
                self._note(node, doubt)
        return enclosure

    def _note(self, node: fx.Node, doubt: Any) -> None:
        n = int(doubt.sum()) if isinstance(doubt, Tensor) else 0
        if n:
            self.crossing[node] = max(n, self.crossing.get(node, 0))
