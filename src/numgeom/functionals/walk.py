"""How far can the computed gradient be from the exact one, by composition alone?

A walk over the opened program with the values as they were computed. At every value that the run
produced, the walk knows three things: the computed value, an entry-wise radius, and a bound of the
error's 2-norm. A call contributes

- what it makes of the errors of its inputs: entry by entry (the op's spread) and in the norm
  (`stretch`), of which the smaller counts;
- its own error: |computed - f(computed inputs)|, by evaluating f in float64 on the inputs that the
  call really got, plus the bound of that evaluation's own rounding.

So casts, accumulation in a wider or narrower format, TF32, underflow and overflow are seen as they
happened; nothing is assumed about the kernels that ran. The bounds hold for this run. PROVED, or
CERTIFIED where labels of equal entries decided ties.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.accuracy import Accuracy
from numgeom.arithmetic.formats import format_of
from numgeom.arithmetic.reliance import relying
from numgeom.arithmetic.rounding import add_up, difference_up, div_up, mul_up, norm_up, sum_up
from numgeom.functionals.softmax import Shifted, bound_softmax, find_softmax
from numgeom.functionals.stretch import Position, Stretch, stretch_of
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.promotion import converts
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program, decompose_anchored
from numgeom.semantics.ball import BallWalk, Enclosure
from numgeom.semantics.decisions import Judged
from numgeom.semantics.twins import Twins


@dataclass(frozen=True)
class Local:
    """The error functional of one value: error <= sum_p stretch[p] * error_p + added.

    Attributes:
        stretch: By the node that holds an input.
        added: The call's own error, jumps at kinks within reach, and what has no stretch.
        own: The call's own error alone.
        composed: Whether the stretches cover the inputs; else `added` does, for the errors of this
            run.
    """

    stretch: Mapping[fx.Node, float]
    added: float
    own: float
    composed: bool = True


@dataclass(frozen=True, eq=False)
class Walk:
    """What one walk found.

    Attributes:
        program: The opened program; its nodes are the keys below.
        midpoints: Gradients as they were computed, as float64, by parameter.
        radii: Entry-wise bounds of their errors.
        norms: Bounds of the 2-norms of their errors.
        errors: Bound of the error's 2-norm, by node.
        sizes: 2-norm of the value, by node.
        locals: Error functional of every call.
        gradients: The node of each gradient, by parameter.
        loss: The node of the loss, if there is one.
        units: Unit roundoff of the format that a value was computed in, by node.
        unknown_ops: Ops without a rule, with the number of their calls.
        overflow: The first call whose computed value is infinite where exact inputs were finite.
        doubtful: How many decisions may be other ones over the reals.
        used: The measured accuracies that the bounds rest on.
        twins: Whether labels of equal entries decided ties. The bounds then fail with a probability
            of at most `numgeom.semantics.twins.COLLISION_PROBABILITY`, over our own draws.
        undecided: Decisions of the program that may be taken otherwise over the reals.
        margin: Of the others, see `numgeom.semantics.decisions`.
    """

    program: Program
    midpoints: Mapping[str, Tensor]
    radii: Mapping[str, Tensor]
    norms: Mapping[str, float]
    errors: Mapping[fx.Node, float]
    sizes: Mapping[fx.Node, float]
    locals: Mapping[fx.Node, Local]
    gradients: Mapping[str, fx.Node]
    loss: fx.Node | None
    units: Mapping[fx.Node, float] = field(default_factory=dict)
    unknown_ops: Counter[str] = field(default_factory=Counter)
    overflow: fx.Node | None = None
    doubtful: int = 0
    twins: bool = False
    undecided: tuple[Judged, ...] = ()
    margin: float = math.inf
    used: frozenset[Accuracy] = frozenset()


def walk(
    program: Program,
    *,
    ops: OpTable = OPS,
    input_error: float = 0.0,
    twins: bool = True,
    seed: int = 0,
) -> Walk:
    """Bound every value's error in a recorded step, by composition.

    Args:
        program: The recorded step, as it was recorded.
        ops: The facts to use.
        input_error: Relative error of every floating-point constant of the step: parameters and
            data. 0: they are exact.
        twins: Where maxima are in doubt, look for exact ties (`numgeom.semantics.twins`).
        seed: Of the labels that this takes.

    Raises:
        ReplayError: a call could not be run in float64, or as it was recorded.
    """
    with relying() as used:
        found = _walk(program, ops, input_error, twins=twins, seed=seed)
    return replace(found, used=frozenset(used))


def _walk(program: Program, ops: OpTable, input_error: float, *, twins: bool, seed: int) -> Walk:
    opened, anchors = decompose_anchored(program, device="cpu")
    first: dict[fx.Node, fx.Node] = {}
    for closed, place in anchors.items():
        first.setdefault(place, closed)  # of a value and its cast, the value itself
    wanted = set(first.values())
    kept: dict[fx.Node, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node in wanted and isinstance(value, Tensor):
            kept[node] = value.detach().cpu()

    program.replay(None, on_call=keep)
    computed = {place: kept[closed] for place, closed in first.items() if closed in kept}
    units = {place: format_of(value.dtype).unit_roundoff for place, value in computed.items()
             if value.is_floating_point()}  # fmt: skip
    walker = _FunctionalWalk(opened, ops, computed, input_error)
    walker.evaluate()
    informed = False
    if twins and walker.undecided:
        again = _FunctionalWalk(opened, ops, computed, input_error)
        again.twins = Twins(walker.undecided, seed=seed)
        again.evaluate()
        informed = again.undecided != walker.undecided
        walker = again if informed else walker
    output: Any = next(n for n in opened.graph.nodes if n.op == "output").args[0]
    gradients: dict[str, fx.Node] = dict(output["gradients"])
    radii, norms = walker.radii, {name: walker.errors[node] for name, node in gradients.items()}
    if walker.judged:  # the exact program may be another one
        radii = {name: torch.full_like(r, math.inf) for name, r in radii.items()}
        norms = dict.fromkeys(norms, math.inf)
    return Walk(
        opened,
        walker.midpoints,
        radii,
        norms,
        walker.errors,
        walker.sizes,
        walker.locals,
        gradients,
        output["loss"],
        units,
        Counter(walker.unknown),
        walker.overflow,
        sum(walker.doubtful.values()),
        informed,
        tuple(walker.judged.values()),
        walker.margin,
    )


class _FunctionalWalk(BallWalk):
    def __init__(
        self,
        program: Program,
        ops: OpTable,
        computed: dict[fx.Node, Tensor],
        input_error: float,
    ) -> None:
        super().__init__(program, ops, torch.device("cpu"))
        self._computed = computed
        self._input_error = input_error
        # Calls being settled, with their spreads and roundings: of one output, or of several.
        self._calls: dict[fx.Node, tuple[Op, Evaluation, Any, Any]] = {}
        self.errors: dict[fx.Node, float] = {}
        self.sizes: dict[fx.Node, float] = {}
        self.locals: dict[fx.Node, Local] = {}
        self.overflow: fx.Node | None = None
        self._shifted: dict[fx.Node, Shifted] = {}
        self._nonpositive: set[fx.Node] = set()
        self._through: dict[fx.Node, dict[fx.Node, float]] = {}

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        if node not in self._calls:  # a call with several outputs is settled part by part
            self._calls[node] = (op, call, op.spread_of(call), op.rounding_of(call))
        _, _, spread, rounding = self._calls[node]
        evaluated = replace(op, spread=lambda _: spread, rounding=lambda _: rounding)
        return super().settle(node, evaluated, call, part)

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        found: Enclosure = super().run_node(node, values)
        value = found.value
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return found
        if node.op == "get_attr":
            return self._constant(node, found)
        whole: fx.Node = node
        part: int | None = None
        if "call" not in node.meta:  # a part of a call with several outputs
            first, index = node.args[0], node.args[1]
            assert isinstance(first, fx.Node)
            assert isinstance(index, int)
            whole, part = first, index
        radius = found.radius
        inherited = 0.0 if radius is None else float(norm_up(radius))
        stretch, rounded = None, 0.0
        known = self._calls.get(whole)
        if known is not None:
            op, call, _, rounding = known
            rounding = rounding if part is None or rounding is None else rounding[part]
            rounded = 0.0 if rounding is None else float(norm_up(rounding))
            inputs = self._inputs(whole)
            errors = {p: self.errors.get(n, math.inf) for p, n in inputs.items()}
            errors = {p: e for p, e in errors.items() if e > 0.0}
            finite = all(math.isfinite(e) for e in errors.values()) and math.isfinite(inherited)
            if finite and not converts(call):  # no stretch knows what became of an integer

                def run(again: Evaluation) -> Any:
                    return self.call(whole, again.args, dict(again.kwargs))

                stretch = stretch_of(op, call, errors, run, part)
            if stretch is not None:
                inherited = min(inherited, add_up(_propagated(stretch, errors), rounded))
        if part is None:
            self._calls.pop(node, None)
        radius, inherited, stretch, rounded = self._composite(
            node, values, found, (inherited, stretch, rounded)
        )
        value, radius, own = self._recentred(node, value, radius)
        error = add_up(inherited, own)
        if radius is not None:
            radius = torch.clamp_max(radius, error)
        self.errors[node] = error
        self.sizes[node] = float(value.norm())
        self._note(node, whole, stretch, add_up(rounded, own), error)
        return replace(found, value=value, radius=radius)

    def _composite(
        self,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        found: Enclosure,
        known: tuple[float, Stretch | None, float],
    ) -> tuple[Tensor | None, float, Stretch | None, float]:
        """Use what is known of a softmax that ends here, or of an exp that belongs to one.

        Returns the radius, its norm or less, the stretch, and the norm of the rounding.
        """
        radius, (inherited, stretch, rounded) = found.radius, known
        if str(node.target) == "aten.exp.default":
            argument: Any = node.args[0]
            given = values[argument]
            self._shifted[node] = Shifted(given.value, given.radius, self.errors[argument])
            if argument in self._nonpositive and radius is not None:
                # The exact power lies between 0 and 1.
                radius = torch.minimum(radius, torch.clamp_min(found.value.abs(), 1.0))
                inherited = min(inherited, float(norm_up(radius)))
            return radius, inherited, stretch, rounded
        softmax = find_softmax(node)
        if softmax is None or softmax.power not in self._shifted:
            return radius, inherited, stretch, rounded
        if softmax.log:
            self._nonpositive.add(node)
        if any(inner in self._computed for inner in softmax.inner):
            return radius, inherited, stretch, rounded  # not evaluated from its argument
        s = self._shifted[softmax.power]
        whole, factor, rounding = bound_softmax(softmax, s, found.value)
        if radius is None or not math.isfinite(rounding):
            return radius, inherited, stretch, rounded
        radius = torch.minimum(radius, whole)
        error = min(float(norm_up(radius)), add_up(mul_up(factor, s.error), rounding))
        if error < inherited and math.isfinite(s.error):
            argument = softmax.power.args[0]
            assert isinstance(argument, fx.Node)
            self._through[node] = {argument: factor}
            return radius, error, Stretch({}), rounding
        return radius, inherited, stretch, rounded

    def _constant(self, node: fx.Node, found: Enclosure) -> Enclosure:
        exact = self._input_error == 0.0 or node.meta["role"] == "drawn"
        radius = None if exact else mul_up(found.value.abs(), self._input_error)
        self.errors[node] = 0.0 if radius is None else float(norm_up(radius))
        self.sizes[node] = float(found.value.norm())
        return found if radius is None else replace(found, radius=radius)

    def _recentred(
        self, node: fx.Node, value: Tensor, radius: Tensor | None
    ) -> tuple[Tensor, Tensor | None, float]:
        """Move the midpoint to the value that the run produced; the distance is the own error."""
        given = self._computed.get(node)
        if given is None or given.shape != value.shape:
            return value, radius, 0.0
        computed = given.to(torch.float64)
        own = difference_up(computed, value).masked_fill(computed == value, 0.0)
        if self.overflow is None and bool((computed.isinf() & value.isfinite()).any()):
            self.overflow = node
        distance = float(norm_up(own))
        if distance == 0.0:
            return value, radius, 0.0
        return computed, own if radius is None else add_up(radius, own), distance

    def _inputs(self, node: fx.Node) -> dict[Position, fx.Node]:
        found: dict[Position, fx.Node] = {}
        for key, argument in (*enumerate(node.args), *node.kwargs.items()):
            if isinstance(argument, fx.Node) and argument in self.errors:
                found[key] = argument
            elif isinstance(argument, (list, tuple)) and isinstance(key, int):
                for i, item in enumerate(argument):
                    if isinstance(item, fx.Node) and item in self.errors:
                        found[key, i] = item
        return found

    def _note(
        self, node: fx.Node, whole: fx.Node, stretch: Stretch | None, own: float, error: float
    ) -> None:
        """Write down the functional of one value."""
        if stretch is None:
            self.locals[node] = Local({}, error, own, composed=error == own)
            return
        inputs = self._inputs(whole)
        factors = dict(self._through.get(node, {}))
        for p, factor in stretch.factors.items():
            factors[inputs[p]] = add_up(factors.get(inputs[p], 0.0), factor)
        if stretch.curvature > 0.0 and factors:
            # Second order: at t times the errors it is t^2 times as large, so a share of the
            # largest error's stretch covers it for all t <= 1.
            largest = max(factors, key=lambda n: self.errors[n])
            share = div_up(stretch.curvature, self.errors[largest])
            factors[largest] = add_up(factors[largest], share)
        self.locals[node] = Local(factors, add_up(stretch.jumps, own), own)


def _propagated(stretch: Stretch, errors: Mapping[Position, float]) -> float:
    terms = [mul_up(factor, errors[p]) for p, factor in stretch.factors.items()]
    return sum_up([*terms, stretch.curvature, stretch.jumps])
