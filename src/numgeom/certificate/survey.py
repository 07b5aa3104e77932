"""What do the calls of a program round, how large do errors get, and how much do calls bend?

One walk asks everything that a scale is chosen from. It evaluates each call in float64, asks its
facts, and pushes random changes forward beside the values, some of the size of the local errors d
alone, and one for each kappa that is tried (`scale`). What a call bends follows from the sizes of
its inputs' errors, which have come by before it; what it rounds and bends is injected there and
then. So no call is evaluated twice, and later walks have the values.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF
from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts, parts_of, second_order, total
from numgeom.certificate.sizes import LARGEST, NOTHING, floored, sizes_of
from numgeom.certificate.structure import structure
from numgeom.errors import ReplayError
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.promotion import converts, has_unconvertible_number, local_error, prepared
from numgeom.ops.table import OpTable
from numgeom.ops.tangents import Pushed, Stack
from numgeom.recording import Program
from numgeom.semantics.tangents import Moving, Pusher

SAMPLES = 2  # of the error's size, for the scale only
# How large a second-order term may be beside the rounding of its entry before it enters T.
KAPPAS = (1e-9, 1e-13)
# A pass may round an entry by this part of its T, before T is raised, and to this part it is then.
_SEEN, _RAISED = 1e5, 1e7
LEAST = 1e-95  # T of entries where nothing arises; NOTHING^2 / LEAST is small
NORMAL = 1e-290  # a smaller T would lose digits when a probe is multiplied by it
# Of the box for second-order terms, in units of S, per entry that rounds. The ball's radius is some
# 2 beta eta, each of the two about the root of a number of entries, and S may grow.
REACH = 200.0


@dataclass
class Survey:
    """What one walk found.

    Attributes:
        facts: What the calls say about themselves.
        unknown: Ops without facts, with the number of their calls.
        failure: Why changes could not be pushed forward; "" if they could.
        sizes: Sizes of errors, of the nodes that a call reads which may bend or decide.
        terms: Second-order terms over a box times twice the multiplicity, by the node that holds
            the result.
        rows: The nodes that curved ops read.
        kinks: The nodes that ops with kinks read.
        floors: The least T of entries that rounding of the passes needs, by node.
        squares: By node, squares of the norms of its changes in units of its size, for each kappa.
        blocks: Squares of the norms of the changes of all gradients together, for each kappa.
    """

    facts: Facts
    unknown: Counter[str]
    failure: str = ""
    sizes: dict[fx.Node, Tensor] = field(default_factory=dict)
    terms: dict[fx.Node, Tensor] = field(default_factory=dict)
    rows: set[fx.Node] = field(default_factory=set)
    kinks: set[fx.Node] = field(default_factory=set)
    floors: dict[fx.Node, Tensor] = field(default_factory=dict)
    squares: dict[fx.Node, Tensor] = field(default_factory=dict)
    blocks: Tensor = field(default_factory=lambda: torch.zeros(len(KAPPAS), dtype=torch.float64))


def survey(program: Program, ops: OpTable, device: Any, draws: Draws) -> Survey:
    """Ask all calls of a pruned program for their facts, and look at sizes of errors.

    Args:
        program: The opened program, pruned.
        ops: The facts to use.
        device: Where to run.
        draws: Random numbers that are used for nothing else.
    """
    walk = _Surveyor(program, ops, device, draws)
    walk.push()
    return walk.found


def column(d: Tensor | None, q: Tensor | None, kappa: Tensor | float) -> Tensor:
    """T: max(d, Q / kappa), and next to nothing where both are 0 but S allows for more."""
    if q is None:
        assert d is not None
        if d.numel() and bool(d.amin() >= NORMAL):
            return d
        return torch.where(d > 0, d.clamp(min=NORMAL), 0.0)
    t = (q / kappa).clamp_(min=LEAST)
    return t if d is None else torch.maximum(t, d, out=t if t.shape == d.shape else None)


class _Surveyor(Pusher):
    """Carries samples of errors in the first lanes, and one lane for each kappa."""

    def __init__(self, program: Program, ops: OpTable, device: Any, draws: Draws) -> None:
        super().__init__(program, SAMPLES + len(KAPPAS), device, ops=ops)
        self._draws = draws
        self._parts = parts_of(program)
        self._structure = structure(program)
        self._inexact: set[fx.Node] = set()
        self._gradients = set(self._structure.gradients.values())
        self._read = set(filter(self._is_column, _read(program, ops)))
        self._reach = REACH * max(1, _entries(program, ops, self._is_column))
        self.found = Survey(Facts({}, "", self._structure, {}), Counter())
        self.found.kinks.update(decision.value for decision in program.decisions)
        self._rounding: dict[fx.Node, Tensor | None] = {}
        self._unbounded = ""
        self._trace: dict[fx.Node, Any] = {}
        self._each = torch.tensor(KAPPAS, dtype=torch.float64, device=device)

    # -- values --------------------------------------------------------------------------

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Evaluate a node, and remember its value and whether it is exact."""
        found = super().run_node(node, values)
        self._trace[node] = found.value
        if not self._inexact.isdisjoint(node.all_input_nodes) or self.found.unknown:
            self._inexact.add(node)
        return found

    def _pushed(
        self, node: fx.Node, values: Mapping[fx.Node, Any], args: Any, kwargs: Any, y: Any
    ) -> Any:
        if self.found.failure:
            return None
        if node in self._structure.tails:  # the samples are done with
            values = {n: self._without_samples(values[n]) for n in node.all_input_nodes}
        try:
            found = super()._pushed(node, values, args, kwargs, y)
        except ReplayError as error:  # an op without derivatives in forward mode
            self.found.failure = str(error)
            return None
        if self.foreign and not self._structure.connected.isdisjoint((node, *node.users)):
            self.found.failure = next(iter(self.foreign.values()))
        return found

    def _without_samples(self, moving: Any) -> Any:
        if moving.stack is None or len(moving.stack.lanes) != self._count:
            return moving
        return Moving(moving.value, Stack(moving.stack.lanes[SAMPLES:]))

    def arrived(self, node: fx.Node, value: Tensor, pushed: Pushed) -> None:
        """See to it that T is far above what a pass rounds, wherever it rounds.

        What passes round is estimated from these samples. Most entries have a d that is far above
        it; the others get a T of their own, which is still far below the errors that arrive there.
        """
        if len(pushed.lanes) != self._count or not self._is_column(node):
            return
        d, bends = self._rounding.get(node), node in self.found.terms
        if pushed.rounding is None and d is None and not bends:
            return
        size = Stack(pushed.lanes).size
        bound = None if pushed.rounding is None else pushed.rounding(size)
        if bends or d is not None:  # what arises there is added
            own = size * UNIT_ROUNDOFF
            own = own if bends or d is None else torch.where(d > 0, own, 0.0)
            bound = own if bound is None else bound + own
        if bound is None:
            return
        low = bound * _SEEN > (0.0 if d is None else d)
        if bool(low.any()):
            floor = (bound * _RAISED).clamp_(min=NORMAL)
            self.found.floors[node] = torch.where(low & torch.isfinite(floor), floor, 0.0)

    def finish(self, found: Any) -> Any:
        """Put the facts together."""
        gradients = self._structure.gradients.items()
        self.found.facts = Facts(
            self._rounding,
            self._unbounded,
            self._structure,
            {name: self._trace[node] for name, node in gradients},
            frozenset(self.program.graph.nodes) - self._inexact,
            self._trace,
        )
        return super().finish(found)

    # -- facts ---------------------------------------------------------------------------

    def evaluated(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> None:
        """Ask a call for its rounding, and for its second-order terms over a box."""
        target: Any = node.target
        op = self._ops.lookup(target)
        call = Evaluation("" if op is None else op.name, tuple(args), dict(kwargs), value)
        if op is None or not op.applies_to(call):
            name = str(target) if op is None else f"{target} of complex numbers"
            self.found.unknown[name] += 1
            return
        if op.kinks.may_occur(node.args, node.kwargs):
            self.found.kinks.update(node.all_input_nodes)
        several = isinstance(value, (tuple, list))
        outputs = {i: y for i, y in enumerate(value if several else [value]) if _is_real(y)}
        call = prepared(call)
        if converts(call) or has_unconvertible_number(call):
            self._inexact.add(node)  # a decision about an integer that was rounded, too
        if not outputs:
            return
        rounding, second = local_error(op, call), None
        spreads = any(self._is_column(h) for i in outputs for h in self._holders(node, i, several))
        moves = not self._inexact.isdisjoint(node.all_input_nodes)
        bends = moves and op.second_order is not None
        if has_unconvertible_number(call) or (bends and converts(call)):
            # The converted integer's error multiplies with others, which no fact bounds.
            self._unbounded = self._unbounded or _name(node)
        if spreads and bends:
            second = self._second_order(node, op, call)
        for i, y in outputs.items():
            holders = self._holders(node, i, several)
            self._round(node, holders, rounding[i] if several and rounding else rounding, y)
            if second is not None:
                term = second[i] if several else second
                if term is not None:
                    self._bend(node, op, call, holders, term, y)

    def _holders(self, node: fx.Node, part: int, several: bool) -> list[fx.Node]:
        return self._parts.get((node, part), []) if several else [node]

    def _is_column(self, node: fx.Node) -> bool:
        return node in self._structure.connected and node not in self._structure.tails

    def _round(self, node: fx.Node, holders: list[fx.Node], d: Tensor | None, y: Tensor) -> None:
        if d is not None:
            d = d.expand(y.shape)
            size = total(d)
            if not size < math.inf and not self._structure.connected.isdisjoint(holders):
                self._unbounded = self._unbounded or _name(node)
            elif size == 0.0:
                d = None
        if d is not None:
            self._inexact.add(node)
        for holder in holders:
            self._rounding[holder] = d

    def _second_order(self, node: fx.Node, op: Op, call: Evaluation) -> Any:
        """Q over a box of the size that the theorem's ball will have, for a box of size S."""
        sizes: dict[int | str, Any] = {}
        for key, argument in (*enumerate(node.args), *node.kwargs.items()):
            if isinstance(argument, (list, tuple)):
                each = [self._size(a) for a in argument]
                size = each if any(s is not None for s in each) else None
            else:
                size = self._size(argument)
            if size is not None:
                sizes[key] = size
        factors = _factors(node, op)
        if factors is not None and sum(self._size(factor) is not None for factor in factors) < 2:
            return None  # linear in the one factor that is inexact
        several = isinstance(call.y, (tuple, list))
        parts = range(len(call.y)) if several else [None]
        far = replaced(call, {key: times(size, self._reach) for key, size in sizes.items()})
        found = []
        for part in parts:
            term = second_order(op, far, part)
            if term is not None:
                term = term / self._reach**2
                if not total(term) < math.inf:  # far out, f may be undefined
                    near = second_order(op, replaced(call, sizes), part)
                    if near is not None:
                        term = torch.where(torch.isfinite(term), term, near)
            found.append(term)
        return found if several else found[0]

    def _size(self, node: Any) -> Tensor | None:
        """The size of a node's errors; None where it is exact."""
        if not isinstance(node, fx.Node) or node not in self._inexact:
            return None
        value = self._trace[node]
        if not _is_real(value):
            return None
        size = self.found.sizes.get(node)
        if size is None:
            return torch.full_like(value, NOTHING, dtype=torch.float64)
        return size

    def _bend(
        self, node: fx.Node, op: Op, call: Evaluation, holders: list[fx.Node], q: Tensor, y: Tensor
    ) -> None:
        self.found.rows.update(node.all_input_nodes)
        term = torch.nan_to_num(q.expand(y.shape) * (2 * op.multiplicity(call)))
        for holder in filter(self._is_column, holders):
            self.found.terms[holder] = term.clamp_(max=LARGEST)

    # -- changes -------------------------------------------------------------------------

    def arising(self, node: fx.Node, value: Tensor) -> Tensor | None:
        """Draw errors of size d, and changes of size T for each kappa."""
        if self.found.failure or not self._is_column(node):
            return None
        d, q = self._rounding.get(node), self.found.terms.get(node)
        if d is None and q is None:
            return None
        plain = None if d is None else column(d, None, 1.0)
        if q is None:
            assert plain is not None
            return self._draws.times(plain, self._count, value)
        found = torch.empty((self._count, *value.shape), dtype=torch.float64, device=value.device)
        if plain is None:
            found[:SAMPLES] = 0.0
        else:
            self._draws.times(plain, SAMPLES, value, out=found[:SAMPLES])
        each = column(d, q, self._each.reshape(-1, *[1] * value.dim()))
        self._draws.times(each, len(KAPPAS), value, out=found[SAMPLES:])
        return found

    def passed(self, node: fx.Node, tangents: Tensor) -> None:
        """Look at the size of what passes a node that matters, and at the gradients."""
        found = self.found
        if node in self._read:
            size = found.sizes[node] = floored(sizes_of(tangents[:SAMPLES]))
            found.squares[node] = 3 * _squares(tangents[SAMPLES:] / size)
        if node in self._gradients:
            some = tangents if len(tangents) == len(KAPPAS) else tangents[SAMPLES:]
            found.blocks += _squares(some)


def _name(node: fx.Node) -> str:
    return f"{node.target} in {node.meta['call'].module!r}"


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _squares(e: Tensor) -> Tensor:
    return torch.linalg.vector_norm(e.reshape(len(e), -1), dim=1).square().cpu()


def replaced(call: Evaluation, radii: dict[int | str, Any]) -> Evaluation:
    """The call with other radii of its inputs."""
    return Evaluation(call.name, call.args, call.kwargs, call.y, radii, call.doubts, call.labels)


def times(radius: Any, factor: float) -> Any:
    """A radius, or a list of radii, times a number."""
    if isinstance(radius, (list, tuple)):
        return [times(r, factor) for r in radius]
    return None if radius is None else radius * factor


def _read(program: Program, ops: OpTable) -> set[fx.Node]:
    """The nodes that a call reads which may bend or decide; their errors' sizes are asked for."""
    still: set[fx.Node] = set()  # constants, and what is made of them without rounding
    found = {decision.value for decision in program.decisions}
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            still.add(node)
        if "call" not in node.meta:
            continue
        target: Any = node.target
        op = ops.lookup(target)
        if op is not None and op.rounding is None and still.issuperset(inputs):
            still.add(node)
        if _matters(node, op, still):
            found.update(inputs)
    return found - still


def _matters(node: fx.Node, op: Op | None, still: set[fx.Node]) -> bool:
    if op is None or op.kinks.may_occur(node.args, node.kwargs):
        return True
    factors = _factors(node, op)
    if factors is not None:
        return all(isinstance(a, fx.Node) and a not in still for a in factors)
    return op.second_order is not None


def _factors(node: fx.Node, op: Op) -> tuple[Any, Any] | None:
    """The two arguments in each of which a call is linear, if there are two and both are given."""
    product = op.traits.product
    if product is None or max(product.left, product.right) >= len(node.args):
        return None
    return node.args[product.left], node.args[product.right]


def _entries(program: Program, ops: OpTable, is_column: Any) -> int:
    """About how many entries round and spread."""
    found = 0
    for node in program.graph.nodes:
        target: Any = node.target
        op = ops.lookup(target) if "call" in node.meta else None
        if op is None or op.rounding is None or not is_column(node):
            continue
        found += sum(math.prod(m.shape) for m in node.meta.get("tensors", {}).values())
    return found
