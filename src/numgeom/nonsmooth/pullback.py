"""What does a frozen backward pass make of a gradient that starts at a kink, rounding included?

Every value of the backward pass is carried in float64 with a bound on its rounding
(`numgeom.semantics.ball`); the frozen forward values are exact. `Pullback.reference` runs the whole
pass, `Pullback.from_kink` the linear part behind one kink, for a gradient given there: the
directional part of the Jacobian that one choice at that kink controls.

Sums on a common grid are exact (`numgeom.nonsmooth.grids`). That makes differences that cancel
exact zeros, not just small numbers.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from numgeom.arithmetic.rounding import add_up, gamma_up, mul_up
from numgeom.nonsmooth.backward import FrozenStep, TiedCall
from numgeom.nonsmooth.grids import common_grid, spacing
from numgeom.nonsmooth.kinks import AbstractKink
from numgeom.nonsmooth.sites import Site
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.selection import SelectionError, op_name
from numgeom.ops.table import OPS, traits_of
from numgeom.recording.decompose import decompositions
from numgeom.recording.references import REFERENCES
from numgeom.semantics.ball import BallWalk, Enclosure

Ball = tuple[Tensor, Tensor]  # value and radius
Chosen = Mapping[TiedCall, tuple[AbstractKink, Tensor]]

_UNIT_ROUNDOFF = 2.0**-53


class Pullback:
    """The backward pass of a frozen step on balls.

    Args:
        step: The step.
    """

    def __init__(self, step: FrozenStep) -> None:
        """Prepare; nothing runs yet."""
        if step.ties and step.differentiates_a_gradient:
            raise SelectionError(
                "the loss of this step depends on a gradient (double backward); a recorded program "
                "has no gradient for other choices at its kinks"
            )
        self.step = step
        self._opened: dict[fx.Node, fx.GraphModule] = {}
        self._kept: dict[fx.Node, Enclosure] = {}
        self._chosen: Chosen = {}
        self._frozen: dict[fx.Node, Enclosure] = {}

    def reference(
        self, chosen: Chosen | None = None, *, moving: Chosen | None = None
    ) -> dict[str, Ball]:
        """Run the whole backward pass.

        Args:
            chosen: Derivatives at tied units; torch's at all others.
            moving: For tied units, how far each number may be from the chosen one: the radii
                then cover all such choices, independently of each other.

        Returns:
            Every parameter's gradient in float64, and a bound on its distance from the exact
            gradient of the same backward pass.
        """
        walk = _Walk(self, chosen or {}, moving or {})
        walk.evaluate()
        if not moving:
            self._kept, self._chosen = walk.kept, chosen or {}
        return {name: (walk.midpoints[name], walk.radii[name]) for name in walk.midpoints}

    def upstream(self, site: Site) -> Ball:
        """The gradient that arrived at a kink's output in the last reference pass."""
        return _ball(self.kept(site.upstream))

    def from_kink(
        self, starts: Mapping[Site, Tensor], asked: Iterable[fx.Node]
    ) -> tuple[dict[str, Ball], dict[fx.Node, Ball]]:
        """Pull gradients at a kink's inputs back to the parameters, as in the last reference pass.

        Args:
            starts: The gradients where the kink's own sites end; all others are zero.
            asked: Nodes of the backward pass whose values are wanted too.

        Returns:
            The gradients of the parameters, and the values of the asked nodes, where they are not
            zero for lack of a path.
        """
        begin = {site.last: (site, g) for site, g in starts.items()}
        walk = _Walk(self, self._chosen, {}, begin)
        walk.evaluate()
        found = {name: (walk.midpoints[name], walk.radii[name]) for name in walk.midpoints}
        inner = {node: _ball(walk.kept[node]) for node in asked if node in walk.kept}
        return found, inner

    def opened(self, node: fx.Node, args: Any, kwargs: Any) -> fx.GraphModule:
        """A call without a rule in terms of simpler ones, traced once."""
        if node not in self._opened:
            target: Any = node.target
            reference = REFERENCES.get(target)
            function = target if reference is None else reference.compute
            flat = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]

            def compute(*tensors: Tensor) -> Any:
                waiting = iter(tensors)
                given = [next(waiting) if isinstance(a, Tensor) else a for a in args]
                named = {
                    k: next(waiting) if isinstance(a, Tensor) else a for k, a in kwargs.items()
                }
                return function(*given, **named)

            trace = make_fx(compute, decomposition_table=dict(decompositions()))
            self._opened[node] = trace(*flat)
        return self._opened[node]

    def kept(self, node: fx.Node) -> Enclosure:
        """A node's value in the last reference pass."""
        if node in self._kept:
            return self._kept[node]
        return self.frozen(node)

    def frozen(self, node: fx.Node) -> Enclosure:
        """A forward value, in float64."""
        if node not in self._frozen:
            self._frozen[node] = Enclosure(_wide(self.step.values[node]))
        return self._frozen[node]


class _Walk(BallWalk):
    """One backward pass on balls."""

    def __init__(
        self,
        owner: Pullback,
        chosen: Chosen,
        moving: Chosen,
        starts: Mapping[fx.Node, tuple[Site, Tensor]] | None = None,
    ) -> None:
        super().__init__(owner.step.program, OPS, None)
        self._owner = owner
        self._step = owner.step
        self._starts = starts
        self.kept: dict[fx.Node, Enclosure] = {}
        by_node: dict[fx.Node, list[tuple[AbstractKink, Tensor, Tensor | None]]] = {}
        for tie in {**chosen, **moving}:
            kink, numbers = chosen[tie]
            by_node.setdefault(tie.node, []).append(
                (kink, numbers, moving[tie][1] if tie in moving else None)
            )
        self._changed = by_node
        begun = starts or {}
        self._sites = {
            site.last: site
            for site in self._step.sites.found
            if site.forward in by_node and site.last not in begun
        }

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Enclose one node; forward values are exact."""
        step = self._step
        source = step.sites.origin.get(node, node)
        if source in step.values:
            return self._owner.frozen(source)
        if node not in step.needed or node in step.sites.origin:
            return Enclosure(None)
        if self._starts is None:
            found = self._evaluated(node, values)
            if node in self._sites:
                found = self._chosen(self._sites[node], found)
            self.kept[node] = found
            return found
        return self._pulled(node, values)

    def finish(self, found: Any) -> Any:
        """Collect the gradients that the walk reached."""
        for name, known in found["gradients"].items():
            if isinstance(known, Enclosure) and not isinstance(known, _Outside):
                self.midpoints[name], self.radii[name] = _ball(known)
        return {"gradients": self.midpoints, "loss": None, "updates": {}}

    def settle(self, node: fx.Node, op: Op, call: Evaluation, part: int | None) -> Tensor | None:
        """The ball's radius; without the rounding where all terms lie on one grid."""
        y = call.y if part is None else call.y[part]
        rounding = op.rounding_of(call)
        rounding = rounding if part is None or rounding is None else rounding[part]
        if rounding is not None and not any(_is_wide(r) for r in call.radii.values()):
            largest = float(rounding.max()) if rounding.numel() else 0.0
            if largest < common_grid(call, part):
                return None
        found = super().settle(node, op, call, part)
        return None if found is None else found.expand(y.shape)

    # -- ways to find a value ------------------------------------------------------------

    def _evaluated(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Enclosure:
        if node.op != "call_function" or node.target is operator.getitem:
            return super().run_node(node, values)
        target: Any = node.target
        if self._ops.lookup(target) is not None:
            return super().run_node(node, values)
        return self._open(node, values)

    def _open(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Enclosure:
        """Evaluate a call without a rule by what it is made of."""
        known = [values[n] for n in _tensor_order(node)]
        args = map_arg(node.args, lambda n: values[n].value)
        kwargs = map_arg(node.kwargs, lambda n: values[n].value)
        if any(isinstance(a, (list, tuple)) and _has_tensors(a) for a in args):
            return super().run_node(node, values)  # nothing is known of it
        module = self._owner.opened(node, args, kwargs)
        inner: dict[fx.Node, Any] = {}
        waiting = iter(known)
        for n in module.graph.nodes:
            if n.op == "placeholder":
                inner[n] = next(waiting)
            elif n.op == "get_attr":
                inner[n] = Enclosure(_wide(getattr(module, str(n.target))))
            elif n.op == "output":
                result: Any = n.args[0]
                if isinstance(result, fx.Node):
                    return inner[result]
                parts = [inner.get(r, Enclosure(None)) for r in result]
                return Enclosure(
                    tuple(p.value for p in parts),
                    tuple(p.radius for p in parts),
                    tuple(p.doubt for p in parts),
                )
            elif n.target is operator.getitem:
                inner[n] = super().run_node(n, inner)
            else:
                inner[n] = self._found(n, inner)
        raise AssertionError("a traced graph has an output")

    def _pulled(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Enclosure:
        """The part of a value that comes from the starts; other values as in the reference."""
        assert self._starts is not None
        if node in self._starts:
            site, g = self._starts[node]
            found = Enclosure(g)
            if site.part is not None:
                whole = self._owner.kept(node).value
                parts = [torch.zeros_like(v) if isinstance(v, Tensor) else v for v in whole]
                parts[site.part] = g
                found = Enclosure(tuple(parts), (None,) * len(parts), (None,) * len(parts))
            self.kept[node] = found
            return found
        moved = [n for n in node.all_input_nodes if n in self.kept]
        if not moved:
            whole = self._owner.kept(node)
            return _Outside(whole.value, whole.radius, whole.doubt)
        given: dict[fx.Node, Any] = {n: values[n] for n in node.all_input_nodes}
        for n in self._summands(node):
            value = given[n].value
            if n not in self.kept and isinstance(value, Tensor) and value.is_floating_point():
                given[n] = Enclosure(torch.zeros_like(value))
        found = self._evaluated(node, given)
        site = self._sites.get(node)
        if site is not None and site.upstream in self.kept:
            found = self._chosen(site, found)
        self.kept[node] = found
        return found

    @staticmethod
    def _summands(node: fx.Node) -> list[fx.Node]:
        """Gradients that a call joins: where one does not come from the kink, it adds nothing."""
        target: Any = node.target
        if target is operator.getitem:
            return []
        traits = traits_of(op_name(target))
        joins = traits.moves is not None and (traits.moves.joins or traits.moves.data != (0,))
        if joins or len(traits.linear_in) > 1:
            return list(node.all_input_nodes)
        product = traits.product
        if product is not None and product.added == 0 and isinstance(node.args[0], fx.Node):
            return [node.args[0]]
        return []

    # -- kinks ---------------------------------------------------------------------------

    def _chosen(self, site: Site, found: Enclosure) -> Enclosure:
        part = site.part
        value = found.value if part is None else found.value[part]
        radius = found.radius if part is None or found.radius is None else found.radius[part]
        given = self.kept.get(site.upstream)
        if given is None:  # the start of the backward pass
            given = self._owner.frozen(site.upstream)
        up, up_radius = _ball(given)
        radius = torch.zeros_like(value) if radius is None else radius
        for kink, numbers, moves in self._changed[site.forward]:
            value, radius = _redone(
                kink,
                site.slot,
                numbers=numbers,
                moves=moves,
                native=(value, radius),
                upstream=(up, up_radius),
            )
        if part is None:
            return Enclosure(value, radius)
        values = (*found.value[:part], value, *found.value[part + 1 :])
        radii: list[Any] = list(found.radius or (None,) * len(values))
        radii[part] = radius
        return Enclosure(values, tuple(radii), found.doubt)


class _Outside(Enclosure):
    """A value of the reference pass that a pullback may use as a coefficient."""


def _redone(
    kink: AbstractKink,
    slot: int,
    *,
    numbers: Tensor,
    moves: Tensor | None,
    native: Ball,
    upstream: Ball,
) -> Ball:
    """Write chosen derivatives into a gradient, on balls."""

    def write(chosen: Tensor, into: Tensor, given: Tensor) -> Tensor:
        slots: list[Tensor | None] = [None] * (slot + 1)
        slots[slot] = into
        found = kink.redo(chosen, tuple(slots), (given,))[slot]
        assert found is not None
        return found

    (value, radius), (up, up_radius) = native, upstream
    zeros, sizes = torch.zeros_like(value), numbers.abs()
    touched = write(torch.ones_like(numbers), zeros, torch.ones_like(up)) != 0
    # Each entry is a sum of at most as many products as there are entries upstream.
    terms = up.numel() + 2
    cover = 1 + gamma_up(terms, _UNIT_ROUNDOFF) * 2
    bound = mul_up(write(sizes, zeros, up_radius), cover)
    if bool(((sizes != 0) & (sizes != 1)).any()) or getattr(kink, "taken", None) is not None:
        size = mul_up(write(sizes, zeros, up.abs()), cover)
        grid = spacing(numbers) * spacing(up)
        if not (size.numel() and float(size.max()) < grid / _UNIT_ROUNDOFF):
            bound = add_up(bound, mul_up(size, 2 * gamma_up(terms, _UNIT_ROUNDOFF)))
    if moves is not None:
        bound = add_up(bound, mul_up(write(moves, zeros, add_up(up.abs(), up_radius)), cover))
    return write(numbers, value, up), torch.where(touched, bound, radius)


def _wide(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_wide(v) for v in value)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    return value


def _ball(known: Enclosure) -> Ball:
    value = known.value
    radius = known.radius
    return value, torch.zeros_like(value) if radius is None else radius


def _tensor_order(node: fx.Node) -> list[fx.Node]:
    return [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]


def _is_wide(radius: Any) -> bool:
    if isinstance(radius, (list, tuple)):
        return any(_is_wide(r) for r in radius)
    return radius is not None and bool((radius != 0).any())


def _has_tensors(items: Any) -> bool:
    return any(isinstance(item, Tensor) for item in items)
