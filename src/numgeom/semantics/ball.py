"""How far can the float64 reference be from the exact gradient, entry by entry?

Midpoint-radius arithmetic (Rump 2010, sec. 9): next to every float64 value runs a radius such that
the exact value lies within it, whatever the order of summation. The radius of a call is how far
the radii of its inputs can move the result (`spread`) plus what the call's own rounding can add
(`rounding`). Nothing is estimated: where nothing is known the radius is infinite.

Radii grow with depth as products of norms do, so this serves shallow programs; see
`numgeom.certificate` for deep ones.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import add_up
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.promotion import Asked, has_ignored, has_unconvertible_number, prepared
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program
from numgeom.recording.decisions import Decision, decision_of
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.decisions import (
    Judged,
    deciding_calls,
    judge,
    margin_of_call,
    margin_of_sign,
)
from numgeom.semantics.twins import Twins


@dataclass(frozen=True)
class Enclosure:
    """A value with what is known of the exact one.

    Attributes:
        value: The float64 midpoint, or the decision (integers, booleans) that was taken; for a
            call with several outputs a tuple of them.
        radius: |exact - value| <= radius, entry by entry; None: exact. A tuple for several outputs.
        doubt: For a decision: True where the exact one may differ; None: nowhere.
        labels: Of entries: equal ones have equal exact values; None: not asked for.
    """

    value: Any
    radius: Any = None
    doubt: Any = None
    labels: Any = None


@dataclass(frozen=True)
class BallResult:
    """Enclosures of a program's gradients.

    Attributes:
        midpoints: Float64 gradients, by parameter.
        radii: Entry-wise bounds |exact - midpoint|, float64, by parameter; infinite entries where
            nothing is known.
        unknown_ops: Ops without a rule, with the number of their calls.
        doubtful: Calls whose decision may be another one over the reals, with the number of such
            entries.
        twins: Whether labels of equal entries were used. The bounds then fail with a probability
            of at most `COLLISION_PROBABILITY`, over our own draws.
        undecided: Decisions of the program that the exact tensors may take otherwise than the
            recorded run did; then the radii are about a program that is not the exact one.
        margin: Of the decisions, see `numgeom.semantics.decisions`.
    """

    midpoints: dict[str, Tensor]
    radii: dict[str, Tensor]
    unknown_ops: Counter[str]
    doubtful: dict[fx.Node, int] = field(default_factory=dict)
    twins: bool = False
    undecided: tuple[Judged, ...] = ()
    margin: float = math.inf


def enclose(
    program: Program,
    *,
    ops: OpTable = OPS,
    device: torch.device | str | None = None,
    twins: bool = False,
    seed: int = 0,
) -> BallResult:
    """Enclose the exact gradients of a decomposed program.

    Guarantee: PROVED, under the assumptions on float64 arithmetic and elementary functions;
    CERTIFIED where labels were used.

    Args:
        program: A program opened by `Program.decompose`; composite ops have no rule.
        ops: The facts to use.
        device: Where to run.
        twins: Where maxima are in doubt, look for exact ties (`numgeom.semantics.twins`).
        seed: Of the labels that this takes.

    Returns:
        Midpoints and radii. With unknown ops on the way the radii are infinite.

    Raises:
        ReplayError: a call could not be run in float64.
    """
    walker = BallWalk(program, ops, device)
    walker.evaluate()
    used = False
    if twins and walker.undecided:
        informed = BallWalk(program, ops, device)
        informed.twins = Twins(walker.undecided, seed=seed)
        informed.evaluate()
        used = informed.undecided != walker.undecided
        walker = informed if used else walker
    return BallResult(
        walker.midpoints,
        walker.radii,
        Counter(walker.unknown),
        dict(walker.doubtful),
        used,
        tuple(walker.judged.values()),
        walker.margin,
    )


class BallWalk(ProgramInterpreter):
    """Evaluates a program on enclosures; see `enclose`.

    Attributes:
        twins: Set it to label entries on the way.
        undecided: Calls in doubt that labels might decide, with the number of such entries.
        judged: Decisions of the program that may be taken otherwise, by the node that decides.
        margin: Of the others, see `numgeom.semantics.decisions`.
    """

    def __init__(self, program: Program, ops: OpTable, device: Any) -> None:
        super().__init__(program, dtype=torch.float64, device=device)
        self._ops = ops
        self.midpoints: dict[str, Tensor] = {}
        self.radii: dict[str, Tensor] = {}
        self.unknown: Counter[str] = Counter()
        self.doubtful: dict[fx.Node, int] = {}
        self.twins: Twins | None = None
        self.undecided: dict[fx.Node, int] = {}
        self.judged: dict[fx.Node, Judged] = {}
        self.margin = math.inf
        self._deciding = deciding_calls(program.decisions)

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Enclose the value of one node, given the enclosures of its inputs."""
        if node.op == "call_function" and "call" not in node.meta:
            # a part of a call with several outputs
            whole, i = values[node.args[0]], node.args[1]  # type: ignore[index]  # (node, int)
            parts = (_part(p, i) for p in (whole.radius, whole.doubt, whole.labels))
            return Enclosure(whole.value[i], *parts)
        found = self._found(node, values)
        if self.twins is None or node not in self.twins:
            return found
        args, kwargs = (_map(a, values, lambda e: e) for a in (node.args, node.kwargs))
        return replace(found, labels=self.twins.label(node, args, kwargs, found))

    def _found(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Enclosure:
        if node.op == "get_attr":
            return Enclosure(self.constant(node))
        args = _map(node.args, values, lambda e: e.value)
        kwargs = _map(node.kwargs, values, lambda e: e.value)
        y = self.call(node, args, kwargs)
        return self._enclosed(node, values, args, dict(kwargs), y)

    def finish(self, found: Any) -> Any:
        """Collect the gradients, and judge the decisions."""
        nodes = [decision.value for decision in self.program.decisions]
        for node, row in zip(nodes, found.get("decisions", ()), strict=True):
            self._judge(node, decision_of(row))
        for name, enclosure in found["gradients"].items():
            self.midpoints[name] = enclosure.value
            radius = enclosure.radius
            self.radii[name] = torch.zeros_like(enclosure.value) if radius is None else radius
        return {"gradients": self.midpoints, "loss": None, "updates": {}}

    def _judge(self, node: fx.Node, decision: Decision) -> None:
        """Compare a decision, its tensors as they were enclosed, with what was taken."""
        known, taken = decision.value, decision.taken.value
        found = judge(
            decision._replace(value=known.value, taken=taken),
            known.value,
            known.radius,
            known.doubt,
        )
        if bool(found.undecided.any()):
            self.judged[node] = found
        else:
            self.margin = min(self.margin, margin_of_sign(known.value, known.radius))

    def _weigh(self, node: fx.Node, op: Op, call: Evaluation) -> None:
        """Look how far a call that leads to a decision is from another one."""
        if node in self._deciding:
            self.margin = min(self.margin, margin_of_call(op, call))

    def _enclosed(
        self, node: fx.Node, values: Mapping[fx.Node, Any], args: Any, kwargs: Any, y: Any
    ) -> Enclosure:
        target: Any = node.target
        op = self._ops.lookup(target)
        several = isinstance(y, (tuple, list))
        radii, doubts = _collect(node, values, "radius"), _collect(node, values, "doubt")
        labels = {} if self.twins is None else _collect(node, values, "labels")
        call = Evaluation(
            "" if op is None else op.name, tuple(args), kwargs, y, radii, doubts, labels
        )
        if op is None or not op.applies_to(call):
            self.unknown[str(target) if op is None else f"{target} of complex numbers"] += 1
            parts = [_nothing_known(v) for v in (y if several else [y])]
            radius, doubt = [p[0] for p in parts], [p[1] for p in parts]
            return (
                Enclosure(y, tuple(radius), tuple(doubt))
                if several
                else Enclosure(y, radius[0], doubt[0])
            )
        call = prepared(call)
        call = replace(call, doubts=Asked(call.doubts))
        return self._several(node, op, call) if several else self._one(node, op, call)

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        """The radius to carry for a call's output (or for one part of several outputs).

        Evaluations that carry something else than the ball's radius override this.
        """
        del node
        spread, rounding = op.spread_of(call), op.rounding_of(call)
        return self.combined(
            spread, rounding if part is None else _part(rounding, part), call, part
        )

    def combined(
        self, spread: Any, rounding: Tensor | None, call: Evaluation, part: int | None
    ) -> Tensor | None:
        """The ball's radius of an output, from the spreads of all outputs and its own rounding."""
        if has_ignored(call) or has_unconvertible_number(call):
            return torch.full_like(call.y if part is None else call.y[part], torch.inf)
        return _sum(spread if part is None else _part(spread, part), rounding)

    def _one(self, node: fx.Node, op: Op, call: Evaluation) -> Enclosure:
        if not isinstance(call.y, Tensor):
            return Enclosure(call.y)
        if call.y.is_floating_point():
            radius = self.settle(node, op, call, None)
            self._count_doubts(node, call)
            return Enclosure(call.y, _checked(radius, call.y))
        decision = _decided(op.doubt_of(call), call.y, call)
        self._note_ties(node, op, decision)
        self._weigh(node, op, call)
        return Enclosure(call.y, None, decision)

    def _several(self, node: fx.Node, op: Op, call: Evaluation) -> Enclosure:
        radii: list[Any] = []
        found: list[Any] = []
        doubt = op.doubt_of(call)
        for i, y in enumerate(call.y):
            radius = decision = None
            if isinstance(y, Tensor) and y.is_floating_point():
                radius = _checked(self.settle(node, op, call, i), y)
            elif isinstance(y, Tensor):
                decision = _decided(_part(doubt, i), y, call)
                self._note_ties(node, op, decision)
            radii.append(radius)
            found.append(decision)
        self._count_doubts(node, call)
        self._weigh(node, op, call)
        return Enclosure(call.y, tuple(radii), tuple(found))

    def _note_ties(self, node: fx.Node, op: Op, decision: Tensor | None) -> None:
        if decision is not None and op.traits.reads_ties:
            self.undecided[node] = int(decision.sum())

    def _count_doubts(self, node: fx.Node, call: Evaluation) -> None:
        n = sum(int(d.sum()) for d in dict(call.doubts).values() if isinstance(d, Tensor))
        if n:
            self.doubtful[node] = n


def _map(tree: Any, values: Mapping[fx.Node, Any], by: Any) -> Any:
    """Copy arguments with nodes replaced by a part of their enclosures."""
    if isinstance(tree, fx.Node):
        return by(values[tree])
    if isinstance(tree, tuple):
        return tuple(_map(item, values, by) for item in tree)
    if isinstance(tree, list):
        return [_map(item, values, by) for item in tree]
    if isinstance(tree, Mapping):
        return {key: _map(item, values, by) for key, item in tree.items()}
    return tree


def _collect(node: fx.Node, values: Mapping[fx.Node, Any], what: str) -> dict[int | str, Any]:
    """Radii or doubts of the tensor arguments, by position or name, where there are any."""
    found: dict[int | str, Any] = {}
    for key, argument in (*enumerate(node.args), *node.kwargs.items()):
        if isinstance(argument, fx.Node):
            part = getattr(values[argument], what)
        elif isinstance(argument, (list, tuple)) and any(isinstance(a, fx.Node) for a in argument):
            part = [getattr(values[a], what) if isinstance(a, fx.Node) else None for a in argument]
            if all(p is None for p in part):
                part = None
        else:
            part = None
        if part is not None:
            found[key] = part
    return found


def _part(parts: Any, i: Any) -> Any:
    return None if parts is None else parts[i]


def _decided(doubt: Tensor | None, y: Tensor, call: Evaluation) -> Tensor | None:
    """The doubt about a decision; everything, if a doubtful input was not looked at."""
    if has_ignored(call) or has_unconvertible_number(call):
        return torch.ones_like(y, dtype=torch.bool)
    return doubt if doubt is not None and bool(doubt.any()) else None


def _sum(spread: Tensor | None, rounding: Tensor | None) -> Tensor | None:
    if spread is None or rounding is None:
        return rounding if spread is None else spread
    return add_up(spread, rounding)


def _nothing_known(y: Any) -> tuple[Any, Any]:
    """Radius and doubt of a result of which nothing is known."""
    if not isinstance(y, Tensor):
        return None, None
    if y.is_floating_point():
        return torch.full_like(y, torch.inf), None
    return None, torch.ones_like(y, dtype=torch.bool)


def _checked(radius: Tensor | None, y: Tensor) -> Tensor | None:
    """A radius in the shape of its value, with NaN read as infinity."""
    if radius is None:
        return None
    if radius.shape != y.shape:
        radius = radius.expand(y.shape)
    return torch.nan_to_num(radius, nan=torch.inf, posinf=torch.inf)
