"""In which unit is each entry's error measured, and in which unit its sources?

The Newton-Kantorovich theorem (`kantorovich`) has two scales, entry by entry, both free:

- S, on the *rows*: the entries whose error matters, that is the inputs of curved ops and of ops
  that decide, and the gradients. A good S is the size that the error has, so that the scaled map
  has rows of length one: the size in random samples A (d * xi).
- T, on the *columns*: the entries where something arises, by rounding (d) or by curvature. A good
  T is d, so that nothing is injected that does not arise, and where the second-order term Q that S
  allows is larger than kappa d, it is Q / kappa: then the curvature constant is about 2 kappa.

Any S, T > 0 give a valid theorem. Several kappa are tried at once, as lanes of one batch of
tangents, and the one that promises the smallest h is kept. Nodes whose ops are far from the largest
curvature get a larger S, which makes beta smaller at no cost in K.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts, Walk, inputs_of, second_order, total
from numgeom.ops.balls import says_nothing
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OpTable, functional_name
from numgeom.recording import Program
from numgeom.semantics.tangents import push

# How large a second-order term may be beside the rounding of its entry before it enters T.
KAPPAS = (1e-9, 1e-11, 1e-13)
SAMPLES = 3  # of the error's size, for the scale only
NOTHING = 1e-60  # S of entries that no sample reaches
LEAST = 1e-95  # T of entries where nothing arises; NOTHING^2 / LEAST is small
NORMAL = 1e-290  # a smaller T would lose digits when a probe is multiplied by it
_LARGEST = 1e150
_PRODUCTS = frozenset(("mul", "mm", "bmm", "mv", "dot", "convolution"))  # of their first arguments
_LOOKED_AT = 512  # entries of a node, for the floor of its sizes
# Of the box for second-order terms, in units of S, per entry that rounds. The ball's radius is some
# 2 beta eta, each of the two about the root of a number of entries, and S may grow.
REACH = 200.0
_PARTS = (0.0, 0.25, 0.5, 0.75)  # of the way from one kappa to the next
_STRETCH = 1e3  # by what S may grow where curvature leaves room
_STRETCH_AT_KINKS = 10.0  # the radius there decides whether the kink is clear


@dataclass(frozen=True)
class Scale:
    """S and T.

    Attributes:
        rows: S, by node.
        columns: T, by node; 0 where nothing arises.
        beta: About ||S^-1 A T||, from one sample: its Frobenius norm.
        curvature: About K.
        h: What they promise.
        block: About ||P A J T w|| at all gradients, for a probe w.
    """

    rows: dict[fx.Node, Tensor]
    columns: dict[fx.Node, Tensor]
    beta: float
    curvature: float
    h: float
    block: float


# -- samples -----------------------------------------------------------------------------


def sampled_errors(
    program: Program, facts: Facts, ops: OpTable, device: Any, draws: Draws
) -> dict[fx.Node, Tensor]:
    """Root mean squares of A (d * xi), xi random with variance 1, floored.

    By node, for those that a call reads which may bend or decide. Sizes are floored within the node
    at the rms of the smallest quarter of the nonzeros; entries that no sample reaches stay 0.
    """
    sizes: dict[fx.Node, Tensor] = {}
    read = {n for node in program.graph.nodes if _matters(node, facts, ops)
            for n in node.all_input_nodes}  # fmt: skip

    def inject(node: fx.Node, value: Tensor) -> Tensor | None:
        d = facts.sources.get(node)
        if d is None:
            return None
        return draws.times(d * math.sqrt(3), SAMPLES, value)

    def visit(node: fx.Node, e: Tensor) -> None:
        if node in read:
            squares = e[0].square()
            for sample in e[1:]:
                squares.addcmul_(sample, sample)
            sizes[node] = _floored(squares.div_(SAMPLES).sqrt_())

    push(program, SAMPLES, inject, visit, device=device)
    return sizes


def _matters(node: fx.Node, facts: Facts, ops: OpTable) -> bool:
    """Whether a call may bend or decide; its radii are asked for."""
    if "call" not in node.meta:
        return False
    target: Any = node.target
    op = ops.lookup(target)
    if op is None or op.kinks != "none":
        return True
    if functional_name(target) in _PRODUCTS:
        moving = [a for a in node.args if isinstance(a, fx.Node) and a not in facts.exact]
        return len(moving) > 1
    return not says_nothing(op.second_order)


def _floored(e: Tensor) -> Tensor:
    if not bool(e.sum() < _LARGEST):
        e = torch.nan_to_num_(e, posinf=_LARGEST).clamp_(max=_LARGEST)
    few = e.reshape(-1)[:: max(1, e.numel() // _LOOKED_AT)]
    few = few[few > 0]
    if few.numel() < 2:
        return e
    least = few.sort().values[: max(1, few.numel() // 4)]
    floor = float(torch.linalg.vector_norm(least)) / math.sqrt(least.numel())
    nothing = e == 0
    return e.clamp_(min=floor).masked_fill_(nothing, 0.0)


# -- second-order terms ------------------------------------------------------------------


@dataclass
class _Curved:
    """Second-order terms over a box, and who reads what.

    Attributes:
        terms: Q times twice the multiplicity, by the node that holds the result.
        rows: The nodes that curved ops read.
        kinks: The nodes that ops with kinks read.
        shapes: Of what the nodes hold.
    """

    terms: dict[fx.Node, Tensor] = field(default_factory=dict)
    rows: set[fx.Node] = field(default_factory=set)
    kinks: set[fx.Node] = field(default_factory=set)
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)


class _SecondOrder(Walk):
    """Takes the sizes of the errors for the radii."""

    def __init__(
        self,
        program: Program,
        ops: OpTable,
        device: Any,
        facts: Facts,
        sizes: dict[fx.Node, Tensor],
    ) -> None:
        super().__init__(program, ops, device)
        self._facts = facts
        self._sizes = sizes
        self._reach = REACH * max(1, sum(d.numel() for d in facts.sources.values()))
        self.found = _Curved()

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        holders = self.holders(node, part)
        spreads = any(map(self._facts.is_column, holders))
        second = self._second_order(op, call, part) if spreads else None
        y = call.y if part is None else call.y[part]
        for holder in holders:
            self.found.shapes[holder] = y.shape
        if second is not None:
            self.found.rows.update(node.all_input_nodes)
            term = torch.nan_to_num(second.expand(y.shape) * (2 * op.multiplicity(call)))
            for holder in filter(self._facts.is_column, holders):
                self.found.terms[holder] = term.clamp_(max=_LARGEST)
        if op.kinks != "none":
            self.found.kinks.update(node.all_input_nodes)
        if node in self._facts.exact:
            return None
        size = self._sizes.get(holders[0]) if holders else None
        return torch.full_like(y, NOTHING) if size is None else size.clamp(min=NOTHING)

    def _second_order(self, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        """Q over a box of the size that the theorem's ball will have, for a box of size S."""
        wide = {key: _times(radius, self._reach) for key, radius in call.radii.items()}
        far = second_order(op, replace(call, radii=wide), part)
        if far is None:
            return None
        far = far / self._reach**2
        if total(far) < math.inf:
            return far
        near = second_order(op, call, part)  # far out, f may be undefined
        return far if near is None else torch.where(torch.isfinite(far), far, near)

    def run_node(self, node: fx.Node, values: Any) -> Any:
        enclosure = super().run_node(node, values)
        target: Any = node.target
        if "call" in node.meta and not _is_real(enclosure.value):  # a decision: `settle` is not
            op = self._ops.lookup(target)  # asked about it
            if op is not None and op.kinks != "none":
                self.found.kinks.update(node.all_input_nodes)
        return enclosure


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _times(radius: Any, factor: float) -> Any:
    if isinstance(radius, (list, tuple)):
        return [_times(r, factor) for r in radius]
    return None if radius is None else radius * factor


# -- choice ------------------------------------------------------------------------------


def choose_scale(
    program: Program,
    facts: Facts,
    ops: OpTable,
    device: Any,
    draws: Draws,
) -> Scale:
    """The S and T that promise the smallest h, of those that are tried.

    Args:
        program: The opened program.
        facts: Its local errors.
        ops: The facts to use.
        device: Where to run.
        draws: Random numbers that are used for nothing else.
    """
    sizes = sampled_errors(program, facts, ops, device, draws)
    walk = _SecondOrder(program, ops, device, facts, sizes)
    walk.evaluate()
    curved = walk.found
    # B holds what arises at connected nodes only, so it bounds errors at them only.
    read = (curved.rows | curved.kinks) - facts.exact
    wanted = {node for node in read if facts.is_column(node)}
    rows = {
        node: sizes[node].clamp(min=NOTHING)
        if node in sizes
        else torch.full(curved.shapes[node], NOTHING, dtype=torch.float64, device=device)
        for node in facts.rounding
        if node in wanted
    }
    return _best(program, facts, curved, rows, device, draws)


def _best(
    program: Program,
    facts: Facts,
    curved: _Curved,
    rows: dict[fx.Node, Tensor],
    device: Any,
    draws: Draws,
) -> Scale:
    """Try some kappa in one batch, lane i injects T of the i-th, and interpolate between them."""
    sources = facts.sources
    ratios = {node: float(_ratio(q, sources.get(node)).max()) for node, q in curved.terms.items()}
    kappas = [a * (b / a) ** f for a, b in pairwise(KAPPAS) for f in _PARTS] + [KAPPAS[-1]]
    plans = [_stretched(curved, ratios, kappa, rows) for kappa in kappas]
    squares = {node: torch.zeros(len(KAPPAS), dtype=torch.float64) for node in rows}
    gradients, blocks = set(facts.gradients.values()), [torch.zeros(len(KAPPAS)).double()]
    limits = torch.tensor(KAPPAS, dtype=torch.float64, device=device)

    def inject(node: fx.Node, value: Tensor) -> Tensor | None:
        d, q = sources.get(node), curved.terms.get(node)
        if d is None and q is None:
            return None
        each = limits.reshape(-1, *[1] * value.dim())
        return draws.times(_column(d, q, each), len(KAPPAS), value)

    def visit(node: fx.Node, e: Tensor) -> None:
        if node in rows:
            scaled = torch.linalg.vector_norm((e / rows[node]).reshape(len(e), -1), dim=1)
            squares[node] = (3 * scaled.square()).cpu()
        if node in gradients:
            blocks.append(torch.linalg.vector_norm(e.reshape(len(e), -1), dim=1).cpu())

    push(program, len(KAPPAS), inject, visit, device=device)
    squares = {node: _between(s) for node, s in squares.items()}
    promises = []
    eta = math.sqrt(sum(int((d > 0).sum()) for d in sources.values()))  # d <= T
    for i, (stretch, k) in enumerate(plans):
        beta = math.sqrt(sum(float(s[i]) / stretch[n] ** 2 for n, s in squares.items()))
        h = 2 * beta * beta * k * eta
        promises.append((math.inf if math.isnan(h) else h, i, beta))
    h, best, beta = min(promises)
    stretch, k = plans[best]
    columns = {
        node: _column(sources.get(node), curved.terms.get(node), kappas[best])
        for node in facts.rounding
        if node in sources or node in curved.terms
    }
    block = math.sqrt(_between(torch.stack(blocks).square().sum(0))[best])
    return Scale({n: s * stretch[n] for n, s in rows.items()}, columns, beta, k, h, block)


def _between(squares: Tensor) -> Tensor:
    """Squares of sizes at all kappa, from those that were tried.

    Linear in 1 / kappa^2: T^2 = max(d^2, Q^2 / kappa^2) is convex in it, so this is no less.
    """
    found = []
    for i, (a, b) in enumerate(pairwise(KAPPAS)):
        for part in _PARTS:
            weight = ((b / a) ** (-2 * part) - 1) / ((b / a) ** -2 - 1)
            found.append(squares[i] + weight * (squares[i + 1] - squares[i]))
    return torch.stack([*found, squares[-1]])


def _column(d: Tensor | None, q: Tensor | None, kappa: Tensor | float) -> Tensor:
    """T: max(d, Q / kappa), and next to nothing where both are 0 but S allows for more."""
    if q is None:
        assert d is not None
        return torch.where(d > 0, d.clamp(min=NORMAL), 0.0)
    t = (q / kappa).clamp(min=LEAST)
    return t if d is None else torch.maximum(t, d)


def _ratio(q: Tensor, d: Tensor | None) -> Tensor:
    """Q / d; infinite where only d is 0."""
    if d is None:
        return torch.where(q > 0, math.inf, 0.0)
    return torch.where(q > 0, q / d, 0.0)


def _stretched(
    curved: _Curved,
    ratios: dict[fx.Node, float],
    kappa: float,
    rows: Iterable[fx.Node],
) -> tuple[dict[fx.Node, float], float]:
    """By what S can grow at each row, and about the K that results.

    With T = max(d, Q / kappa) a call's K_i is min(kappa, max Q/d). A row that is read by calls with
    a small K_i may grow by the square root of what is left to the largest.
    """
    per_row: dict[fx.Node, float] = {}
    for node, ratio in ratios.items():
        for parent in inputs_of(node):
            per_row[parent] = per_row.get(parent, 0.0) + min(kappa, ratio) ** 2
    largest = math.sqrt(max(per_row.values(), default=0.0))
    stretch = {}
    for node in rows:
        k = math.sqrt(per_row.get(node, 0.0))
        room = math.sqrt(largest / k) if k > 0 else _STRETCH
        stretch[node] = min(room, _STRETCH_AT_KINKS if node in curved.kinks else _STRETCH)
    return stretch, largest
