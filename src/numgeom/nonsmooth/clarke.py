"""Which derivatives does Clarke's Jacobian hold at a tied unit, as points and edges of a set?

At each unit it is the convex hull of a few vertices (or, at the zero of a norm, a ball). One vertex
is the reference: the first active place of a window, the lower slope of a corner, the first of two
equal arguments, the centre of a ball. An *edge* leads from it to another vertex and is given by the
entries of the call's input gradient that it changes, per unit of upstream gradient. Places that are
one function of the parameters (`numgeom.nonsmooth.functions`) count as one place: the edge between
them changes no gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from numgeom.nonsmooth.backward import TiedCall
from numgeom.nonsmooth.choices import First, Minimal, Random, Uniform
from numgeom.nonsmooth.kinks import AbstractKink, Apexes, Contests, Corners, Windows
from numgeom.nonsmooth.sites import op_arguments

# (position among the differentiable arguments, flat index, coefficient)
Edge = tuple[tuple[int, int, float], ...]

_PARTS = 2.0**20


@dataclass(frozen=True)
class Unit:
    """A tied unit whose choices may change a gradient.

    Attributes:
        number: Its position among the units of its kink.
        output: Flat index of its output entry, where its upstream gradient is.
        edges: From the reference vertex to the others.
        order: p, if the set is the unit ball of the norm dual to the p-norm, of which the edges
            are the axes; None for a polytope.
    """

    number: int
    output: int
    edges: tuple[Edge, ...]
    order: float | None = None


def tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """The tensor arguments of a call, in the order in which kinks count them."""
    return [n for n in op_arguments(node).values() if isinstance(n, fx.Node)]


def units_of(tie: TiedCall, labels: Mapping[fx.Node, Tensor | None]) -> list[Unit]:
    """The units of a tied call that are not the same function on all sides.

    Args:
        tie: The tied units of one call.
        labels: Function labels of its arguments.
    """
    of = [labels.get(node) for node in tensor_arguments(tie.node)]
    kink = tie.kink
    if isinstance(kink, Windows):
        return _windows(kink, _flat(of, 0))
    if isinstance(kink, Corners):
        return _corners(tie, kink, _flat(of, 0))
    if isinstance(kink, Contests):
        return _contests(kink, of)
    assert isinstance(kink, Apexes)
    return _apexes(kink, _flat(of, 0))


def reference(tie: TiedCall) -> Tensor:
    """The numbers of the reference vertex at each unit, as `AbstractKink.redo` takes them."""
    kink = tie.kink
    if isinstance(kink, Windows):
        return _signed(kink, First().weights(kink.active, torch.Generator()))
    if isinstance(kink, Corners):
        return _slopes(kink, _constant(kink, _lowest(tie)))
    if isinstance(kink, Contests):
        return torch.stack([_constant(kink, 1.0), _constant(kink, 0.0)], dim=1)
    assert isinstance(kink, Apexes)
    return torch.zeros_like(kink.positions, dtype=torch.float64)


def least(tie: TiedCall) -> Tensor:
    """The Clarke derivative of least Euclidean norm at each unit, as `redo` takes it."""
    kink = tie.kink
    if isinstance(kink, Windows):
        return _signed(kink, Minimal().weights(kink.active, torch.Generator()))
    if isinstance(kink, Contests):
        return _constant(kink, 0.5)[:, None].repeat(1, 2)
    if isinstance(kink, Corners):
        ends = [_slopes(kink, _constant(kink, s)) for s in (_lowest(tie), 1.0)]
        return torch.minimum(*ends).clamp_min(0) + torch.maximum(*ends).clamp_max(0)
    return reference(tie)


def draw(tie: TiedCall, generator: torch.Generator, *, vertices: bool = False) -> Tensor:
    """A random Clarke derivative at each unit, independently of the other units.

    Args:
        tie: The tied units of one call.
        generator: Source of random numbers, on the CPU.
        vertices: Whether to draw vertices only (of a ball: points of its sphere).

    Returns:
        Numbers that `FrozenStep.gradients` takes as the weights of this call.
    """
    kink = tie.kink
    choice = Random() if vertices else Uniform()
    if isinstance(kink, Windows):
        return _signed(kink, _shared(choice.weights(kink.active, generator), kink.active))
    if isinstance(kink, Contests):
        pair = torch.ones(len(kink.units), 2, dtype=torch.bool, device=kink.units.device)
        return _shared(choice.weights(pair, generator), pair)
    if isinstance(kink, Corners):
        s = torch.rand(kink.units.shape, generator=generator, dtype=torch.float64)
        s = s.round() if vertices else s.mul(_PARTS).floor() / _PARTS
        return _slopes(kink, (_lowest(tie) + s * (1 - _lowest(tie))).to(kink.mask.device))
    assert isinstance(kink, Apexes)
    v = torch.randn(kink.positions.shape, generator=generator, dtype=torch.float64)
    dual = float("inf") if kink.order == 1 else 1 / (1 - 1 / kink.order)
    v = v / torch.linalg.vector_norm(v, dual, dim=1, keepdim=True)
    # A hair inside: the quotient may be rounded to a vector of norm above 1.
    size = 1.0 if vertices else torch.rand(len(v), 1, generator=generator, dtype=torch.float64)
    return (v * size * (1 - 1e-15 * v.shape[1])).to(kink.positions.device)


def restricted(kink: AbstractKink, keep: Tensor) -> AbstractKink:
    """A kink with some of its units only; the others keep torch's derivative.

    Args:
        kink: The kink.
        keep: Which units, bool [T].
    """
    if isinstance(kink, Windows):
        signs = None if kink.signs is None else kink.signs[keep]
        return replace(
            kink,
            output=kink.output[keep],
            positions=kink.positions[keep],
            active=kink.active[keep],
            first=kink.first[keep],
            signs=signs,
        )
    if isinstance(kink, Corners):
        return replace(kink, mask=_kept(kink.mask, keep))
    if isinstance(kink, Contests):
        parts = keep.split([int(c.mask.sum()) for c in kink.contests])
        pairs = zip(kink.contests, parts, strict=True)
        return replace(
            kink, contests=tuple(replace(c, mask=_kept(c.mask, part)) for c, part in pairs)
        )
    assert isinstance(kink, Apexes)
    return replace(kink, output=kink.output[keep], positions=kink.positions[keep])


def _shared(weights: Tensor, active: Tensor) -> Tensor:
    """Weights in parts of 2^-20, so that they sum to 1 exactly."""
    weights = (weights * _PARTS).floor() / _PARTS
    first = active.int().argmax(dim=1, keepdim=True)
    rest = 1 - weights.sum(dim=1, keepdim=True)
    return weights.scatter_add(1, first, rest)


def _windows(kink: Windows, labels: Tensor | None) -> list[Unit]:
    positions = kink.positions.cpu()
    keys = positions if labels is None else labels[positions]
    if kink.signs is not None:  # |x|: entries of opposite sign move against each other
        signs = torch.where(kink.active, kink.signs, kink.signs.gather(1, kink.first)).cpu()
        keys = torch.where(keys == 0, 0, keys * 2 + (signs < 0))
    firsts = kink.first.cpu()
    moving = (keys != keys.gather(1, firsts)).any(dim=1).nonzero()[:, 0].tolist()
    found = []
    for t in moving:
        first = int(firsts[t])
        classes = {int(keys[t, first]): first}
        for place in kink.active[t].nonzero()[:, 0].tolist():
            classes.setdefault(int(keys[t, place]), place)
        start = (0, int(positions[t, first]), -_sign(kink, t, first))
        edges = tuple(
            ((0, int(positions[t, place]), _sign(kink, t, place)), start)
            for place in classes.values()
            if place != first
        )
        found.append(Unit(t, int(kink.output[t]), edges))
    return found


def _corners(tie: TiedCall, kink: Corners, labels: Tensor | None) -> list[Unit]:
    ends = (_slopes(kink, _constant(kink, s)) for s in (_lowest(tie), 1.0))
    steps = (-torch.sub(*ends)).tolist()
    found = []
    for t, (index, step) in enumerate(zip(kink.units.tolist(), steps, strict=True)):
        if (labels is None or int(labels[index]) != 0) and step != 0:
            found.append(Unit(t, index, (((0, index, step),),)))
    return found


def _contests(kink: Contests, labels: list[Tensor | None]) -> list[Unit]:
    found, t = [], 0
    for contest in kink.contests:
        a, b = (
            None if (x := labels[i]) is None else x.expand(contest.mask.shape).reshape(-1)
            for i in (contest.first, contest.second)
        )
        for index in contest.mask.reshape(-1).nonzero()[:, 0].tolist():
            if a is None or b is None or int(a[index]) != int(b[index]):
                edge = ((contest.second, index, 1.0), (contest.first, index, -1.0))
                found.append(Unit(t, index, (edge,)))
            t += 1
    return found


def _apexes(kink: Apexes, labels: Tensor | None) -> list[Unit]:
    found = []
    for t, (output, places) in enumerate(
        zip(kink.output.tolist(), kink.positions.tolist(), strict=True)
    ):
        moving = [p for p in places if labels is None or int(labels[p]) != 0]
        if moving:
            edges = tuple(((0, p, 1.0),) for p in moving)
            found.append(Unit(t, output, edges, kink.order))
    return found


def _lowest(tie: TiedCall) -> float:
    """The number of the lowest Clarke derivative of a corner; the highest one has 1."""
    return -1.0 if tie.family == "abs" else 0.0


def _slopes(kink: Corners, s: Tensor) -> Tensor:
    low, high = (
        torch.as_tensor(x, dtype=torch.float64, device=kink.mask.device).expand(kink.mask.shape)[
            kink.mask
        ]
        for x in (kink.low, kink.high)
    )
    return torch.where(s == 1, high, low + s * (high - low))


def _constant(kink: AbstractKink, value: float) -> Tensor:
    units = kink.units
    return torch.full(units.shape, value, dtype=torch.float64, device=units.device)


def _signed(kink: Windows, weights: Tensor) -> Tensor:
    return weights if kink.signs is None else weights * kink.signs


def _sign(kink: Windows, t: int, place: int) -> float:
    return 1.0 if kink.signs is None else float(kink.signs[t, place])


def _kept(mask: Tensor, keep: Tensor) -> Tensor:
    left = mask.clone()
    left[mask] = keep.to(mask.device)
    return left


def _flat(labels: list[Tensor | None], i: int) -> Tensor | None:
    found = labels[i]
    return None if found is None else found.reshape(-1)
