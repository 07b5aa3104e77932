"""How curved is a program in units of its scale, and which decisions are in doubt within a radius?

One walk over the opened program answers both. It carries, for every value, the radius within which
the exact one lies on the way to it: rho s where the theorem's ball bounds an entry, the ball rule
of the call from its parents' radii, whichever is less.

Most programs need less. A first walk takes rho s alone, asks for ball radii only where a decision
or a gradient needs them and rho s does not bound them, and says of all other values that nothing is
known. Its radii are wider, so what it clears is clear; the full walk is for what it does not clear.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import (
    add_up,
    div_up,
    mul_up,
    next_up,
    sqrt_up,
)
from numgeom.certificate.facts import Facts, Walk, fast_norm_up, second_order, total
from numgeom.certificate.kinks import Kink, kink_of, kink_of_decision
from numgeom.certificate.scale import Scale
from numgeom.certificate.structure import last_readers
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OpTable
from numgeom.recording import Program
from numgeom.semantics.ball import Enclosure
from numgeom.semantics.twins import Twins

_LITTLE = 1e-30  # beside a radius that is no zero's


@dataclass(frozen=True)
class Examined:
    """What holds within the ball ||e||_S <= rho.

    Attributes:
        curvature: K.
        bent: The call whose own curvature is largest.
        radii: Entry-wise radii of the gradients, by parameter; as long as nothing is crossing.
        crossing: The calls that may decide otherwise, with their units in doubt.
        own: 2-norms of the second-order terms in the tails of the gradients, by parameter.
        values: The gradients, by parameter, as they were evaluated on the way.
        doubts: Masks over the units of the calls that may decide otherwise.
        margin: Of the program's decisions, see `numgeom.semantics.decisions`.
    """

    curvature: float
    bent: fx.Node | None
    radii: dict[str, Tensor]
    crossing: dict[fx.Node, Kink] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    doubts: dict[fx.Node, Tensor] = field(default_factory=dict)
    margin: float = math.inf


def examine(
    program: Program,
    facts: Facts,
    scale: Scale,
    rho: float,
    ops: OpTable,
    device: Any,
    *,
    seed: int = 0,
    known: Mapping[fx.Node, Tensor] | None = None,
) -> Examined:
    """Bound the curvature K and find the decisions in doubt.

    K: ||T^-1 R(e)|| <= K/2 ||e||_S^2 for all e with ||e||_S <= rho. Of a call, |R| <= Q (|e|/r)^2
    entry by entry, Q the second-order bound at r = rho s, so that ||T^-1 R_i|| <= K_i/2 sum_p
    ||e_p||_S^2 over its parents p, with K_i = 2 m_i max Q / (rho^2 t_i), m_i the multiplicity; for
    a call with several outputs K_i^2 is the sum of their squares.
    Calls that share parents add up: K = sqrt(max over p of sum of K_i^2 over the calls i that p
    feeds), since sum_i (sum_p a_p)^2 K_i^2 <= (sum_p a_p) max_p (sum_i K_i^2) (sum_p a_p).

    Where maxima are in doubt, labels tell exact ties from others (`numgeom.semantics.twins`); the
    bounds then fail with a probability of at most `COLLISION_PROBABILITY` more. On the way from
    the reference to the exact solution equal entries may be passed in any order, so let the path
    belong to the program that takes, at such a tie, the recorded entry by its place. That is
    linear, and its solution is the exact program's too: call by call, no other entry is larger,
    those that are equal come later, and the first of them is taken.

    Args:
        program: The opened program.
        facts: Its local errors.
        scale: S and T.
        rho: Radius of the ball, in units of S.
        ops: The facts to use.
        device: Where to run.
        seed: Of the labels.
        known: Bounds of single entries, by node, besides those that follow here.
    """
    if known is None:
        quick = _Quick(program, ops, device, facts, scale, rho, {})
        quick.evaluate()
        k, bent = quick.curvature()
        if math.isfinite(k) and not quick.crossing and not quick.may_be_sharper():
            return _examined(quick, k, bent)
    walk = _Examination(program, ops, device, facts, scale, rho, known or {})
    walk.evaluate()
    k, bent = walk.curvature()
    if walk.undecided:
        labels = Twins(walk.undecided, seed=seed)
        walk = _Examination(program, ops, device, facts, scale, rho, known or {})
        walk.twins = labels
        walk.evaluate()
    return _examined(walk, k, bent)


class _Examination(Walk):
    """Carries min(rho s, ball radius); asks for curvature at rho s."""

    def __init__(
        self,
        program: Program,
        ops: OpTable,
        device: Any,
        facts: Facts,
        scale: Scale,
        rho: float,
        known: Mapping[fx.Node, Tensor],
    ) -> None:
        super().__init__(program, ops, device)
        self._facts = facts
        self._scale = scale
        self._known = known
        self._rho = rho
        self._rho_up = max(rho, 1e-100) * (1 + 1e-15)
        self._wide: dict[fx.Node, Tensor] = {}
        self._of_each: dict[fx.Node, float] = {}
        self._last_reader = last_readers(program)
        self.crossing: dict[fx.Node, Kink] = {}
        self.doubts: dict[fx.Node, Tensor] = {}
        self._decided: dict[fx.Node, tuple[Kink, Tensor]] = {}
        self.own = dict.fromkeys(facts.values, 0.0)

    def curvature(self) -> tuple[float, fx.Node | None]:
        """K, and the call that bends most."""
        squares: dict[fx.Node, float] = {}
        for node, k in self._of_each.items():
            for parent in self._scale.rows.keys() & set(node.all_input_nodes):
                squares[parent] = add_up(squares.get(parent, 0.0), mul_up(k, k))
        worst = max(self._of_each, key=self._of_each.__getitem__, default=None)
        if any(math.isinf(k) for k in self._of_each.values()):
            return math.inf, worst
        # Q(t r) <= t^2 Q(r) holds for the facts up to their own outward rounding, some 1e-13.
        return sqrt_up(max(squares.values(), default=0.0)) * (1 + 1e-6), worst

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        """The radius to carry; on the way, note what bends and what may decide otherwise."""
        doubt = op.doubt_of(call)
        self._cross(node, doubt if doubt is None or part is None else doubt[part], call)
        self._use(node, call)
        holders = self.holders(node, part)
        if any(map(self._facts.is_column, holders)):
            self._bend(node, op, call, part)
        for holder in holders:
            if holder in self._facts.structure.tails:
                self._arrive(holder, op, call, part)
        if node in self._facts.exact or not holders:
            return None
        return self._radius(holders, op, call, part)

    def finish(self, found: Any) -> Any:
        """Collect the gradients; decisions that may be taken otherwise are crossing."""
        results = super().finish(found)
        for node, judged in self.judged.items():
            origin = _call_of(node)
            known = self._decided.get(origin)
            self.crossing[origin] = kink_of_decision(judged)
            self.doubts[origin] = judged.undecided if known is None else known[1]
        return results

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The value that is known already."""
        del args, kwargs
        return self._facts.trace[node]

    def constant(self, node: fx.Node) -> Tensor:
        """The value that is known already."""
        return self._facts.trace[node]

    def _ball(
        self, holders: list[fx.Node], op: Op, call: Evaluation, part: int | None
    ) -> Tensor | None:
        """The ball rule of a call; its rounding is known already."""
        return self.combined(op.spread_of(call), self._facts.rounding[holders[0]], call, part)

    def _radius(self, holders: list[fx.Node], op: Op, call: Evaluation, part: int | None) -> Tensor:
        """The lesser of what the ball rule says and rho s."""
        ball = self._ball(holders, op, call, part)
        if ball is None:
            ball = torch.zeros_like(call.y if part is None else call.y[part])
        for holder in holders:
            row = self._scale.rows.get(holder)
            if row is not None:
                wide = row * self._rho_up  # S is far from the least normal number
                # An entry with a ball radius of 0 is exactly as computed; it carries no error.
                self._wide[holder] = torch.where(ball > 0, wide, 0.0)
                ball = torch.minimum(ball, wide)
            if holder in self._known:
                ball = torch.minimum(ball, self._known[holder])
        return ball

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        enclosure = super().run_node(node, values)
        for done in self._last_reader.get(node, ()):
            self._wide.pop(done, None)
        return enclosure

    def _bend(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> None:
        """Record K_i, from the second-order term at r = rho s."""
        wide = dict(call.radii)
        for key, argument in (*enumerate(node.args), *node.kwargs.items()):
            if key not in wide:
                continue
            if isinstance(argument, fx.Node) and argument in self._wide:
                wide[key] = self._wide[argument]
            else:  # no row: nothing bounds it
                wide[key] = _unbounded(wide[key])
        second = second_order(op, replace(call, radii=wide), part)
        if second is None or total(second) == 0.0:
            return
        squared = self._rho * self._rho * (1 - 1e-12)
        for holder in filter(self._facts.is_column, self.holders(node, part)):
            column = self._scale.columns.get(holder)
            k = math.inf if column is None else div_up(_largest_ratio(second, column), squared)
            k = mul_up(2 * op.multiplicity(call), k)
            self._of_each[node] = hypot_up(k, self._of_each.get(node, 0.0))

    def _arrive(self, holder: fx.Node, op: Op, call: Evaluation, part: int | None) -> None:
        """Record what a call in a tail adds by its second-order term, at the radii carried."""
        second = second_order(op, call, part)
        if second is not None:
            size = fast_norm_up(second)
            for name, count in self._facts.structure.tails[holder].items():
                self.own[name] = add_up(self.own[name], mul_up(size, float(count)))

    def _one(self, node: fx.Node, op: Op, call: Evaluation) -> Enclosure:
        enclosure = super()._one(node, op, call)
        if isinstance(enclosure.doubt, Tensor):
            self._decided[node] = kink_of(node, enclosure.doubt, call), enclosure.doubt
        return enclosure

    def _several(self, node: fx.Node, op: Op, call: Evaluation) -> Enclosure:
        enclosure = super()._several(node, op, call)
        for doubt in enclosure.doubt:
            if isinstance(doubt, Tensor) and bool(doubt.any()):
                self._decided[node] = kink_of(node, doubt), doubt
        return enclosure

    def _cross(self, node: fx.Node, doubt: Any, call: Evaluation) -> None:
        """A real function that may be on another of its branches."""
        if isinstance(doubt, Tensor) and bool(doubt.any()):
            self.crossing[node], self.doubts[node] = kink_of(node, doubt, call), doubt

    def _use(self, node: fx.Node, call: Evaluation) -> None:
        """Decisions in doubt count where real numbers depend on them, and not before.

        A doubt may also be covered on the way: by a mask that is certain, say.
        """
        keyed = (*enumerate(node.args), *node.kwargs.items())
        for argument, doubt in ((a, call.doubts[k]) for k, a in keyed if k in call.doubts):
            several = isinstance(argument, (list, tuple))
            pairs = zip(argument, doubt, strict=True) if several else ((argument, doubt),)
            for source, mask in pairs:
                if isinstance(mask, Tensor) and bool(mask.any()):
                    origin = _call_of(source)
                    found = self._decided.get(origin) or (kink_of(origin, mask), mask)
                    self.crossing[origin], self.doubts[origin] = found


class _Quick(_Examination):
    """Carries rho s, a ball radius where one is asked for, and else nothing."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._asked = _asked(self.program, self._ops, self._facts, self._scale)

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if "call" not in node.meta or not self._is_plain(node):
            return super().run_node(node, values)
        value = self._facts.trace[node]
        if node in self._facts.exact:
            return Enclosure(value)
        found = Enclosure(value, self._without_ball([node], value))
        for done in self._last_reader.get(node, ()):
            self._wide.pop(done, None)
        return found

    def may_be_sharper(self) -> bool:
        """Whether a ball may say more: that a radius is finite, or that a zero is exact.

        A zero is exact where no sample of the errors arrives; its radius is next to nothing here.
        """
        for name, radius in self.radii.items():
            if not total(radius) < math.inf:
                return True
            little = (self.midpoints[name] == 0) & (radius > 0)
            if bool(little.any()) and bool((radius[little] < _LITTLE * radius.amax()).any()):
                return True
        return False

    def _is_plain(self, node: fx.Node) -> bool:
        """Whether a call neither bends nor decides nor arrives, so that its facts do not matter."""
        target: Any = node.target
        op = self._ops.lookup(target)
        if op is None or node in self._facts.structure.tails:
            return False
        if op.kinks.may_occur(node.args, node.kwargs):
            return False
        if node in self._asked and node not in self._scale.rows and node not in self._facts.exact:
            return False
        value = self._facts.trace[node]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        moving = [n for n in node.all_input_nodes if n not in self._facts.exact]
        if not all(_is_real(self._facts.trace[n]) for n in moving):
            return False
        return op.second_order is None or not self._facts.is_column(node) or not moving

    def _radius(self, holders: list[fx.Node], op: Op, call: Evaluation, part: int | None) -> Tensor:
        y = call.y if part is None else call.y[part]
        if not self._asked.isdisjoint(holders) and self._scale.rows.keys().isdisjoint(holders):
            ball = self._ball(holders, op, call, part)
            return torch.zeros_like(y) if ball is None else ball
        return self._without_ball(holders, y)

    def _without_ball(self, holders: list[fx.Node], y: Tensor) -> Tensor:
        found = y.new_full((), math.inf).expand(y.shape)
        for holder in holders:
            row = self._scale.rows.get(holder)
            if row is not None:
                found = self._wide[holder] = row * self._rho_up  # S is no subnormal number
        return found


def _examined(walk: _Examination, k: float, bent: fx.Node | None) -> Examined:
    found = walk.crossing, walk.own, walk.midpoints, walk.doubts, walk.margin
    return Examined(k, bent, walk.radii, *found)


def _asked(program: Program, ops: OpTable, facts: Facts, scale: Scale) -> set[fx.Node]:
    """The nodes whose radii decisions and gradients need; rows have theirs from the theorem."""
    found = set(facts.gradients.values())
    found.update(decision.value for decision in program.decisions)
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node in facts.exact:
            continue
        target: Any = node.target
        op = ops.lookup(target) if "call" in node.meta else None
        value = facts.trace[node]
        parts = value if isinstance(value, (list, tuple)) else [value]
        decides = op is not None and (
            op.kinks.may_occur(node.args, node.kwargs) or not all(map(_is_real, parts))
        )
        if decides or (node in found and node not in scale.rows):
            found.update(node.all_input_nodes)
    return found


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _call_of(node: Any) -> fx.Node:
    """The call that a node holds the result of, or a part of it."""
    return node if "call" in node.meta else node.args[0]


def _unbounded(radius: Any) -> Any:
    """Infinite radii, but where a radius is 0 or missing."""
    if isinstance(radius, (list, tuple)):
        return [_unbounded(r) for r in radius]
    return None if radius is None else torch.where(radius > 0, math.inf, 0.0)


def _largest_ratio(q: Tensor, t: Tensor) -> float:
    """Upper bound of max q / t, not all q being 0; infinite where t alone is 0."""
    found = float((q / t).amax())
    if math.isnan(found):  # 0 / 0, which is nothing, or inf / inf
        found = float(torch.where(q > 0, torch.where(t > 0, q / t, math.inf), 0.0).amax())
    return math.inf if math.isnan(found) else next_up(found)


def hypot_up(a: float, b: float) -> float:
    """Upper bound of the length of (a, b)."""
    return sqrt_up(add_up(mul_up(a, a), mul_up(b, b)))
