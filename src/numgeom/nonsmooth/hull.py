"""Between which bounds lie all gradients that Clarke derivatives at the tied units can give?

The backprop set of a step (Boustany 2024, definition 2, with the elementary functions fixed) is
what its backward pass gives when the derivative at every tied unit runs through Clarke's Jacobian
there, unit by unit. Its interval hull is found by differences. Order the kinks as the backward pass
meets them, and change one kink after the other from the reference to any other choice, while all
kinks that are still to come keep the reference. The change at unit u is g_u sum_p w_p E_{u,p}: g_u
is the gradient that arrives, which lies in an interval known by then, w are weights on the edges of
the unit's set (`numgeom.nonsmooth.clarke`), and E_{u,p} = J^T e_{u,p} is one pullback of an edge.

So the hull is exact up to rounding if no tied unit influences another, and contains the set always.
Its width is zero at an entry exactly if the set is one point there, as far as rounding can tell:
a change that is not zero at one unit alone makes the set more than one point. Edges between places
that are one function of the parameters (`functions`) are left out, since they change nothing. Where
a change cancels only after rounding (a bias in front of batch norm), the width is of the size of
`rounding` and not zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from numgeom.arithmetic.assumptions import require_ieee_float64
from numgeom.arithmetic.printing import upper_short
from numgeom.arithmetic.reliance import relying, support
from numgeom.arithmetic.rounding import add_up, difference_up, mul_up, next_up, norm_up, sum_up
from numgeom.errors import NumgeomError
from numgeom.failures import answers
from numgeom.nonsmooth.backward import FrozenStep, TiedCall
from numgeom.nonsmooth.clarke import Unit, reference, restricted
from numgeom.nonsmooth.functions import moving_units
from numgeom.nonsmooth.kinks import Corners
from numgeom.nonsmooth.pullback import Ball, Chosen, Pullback
from numgeom.nonsmooth.selection import Selection
from numgeom.nonsmooth.sites import Site
from numgeom.recording import MISSING, Program, Recording, program_of
from numgeom.results.guarantee import Guarantee
from numgeom.visible import visible

Gradients = Mapping[str, Tensor]

MAX_PULLBACKS = 500  # some 40 ms each for LeNet on one core


class HullError(NumgeomError):
    """A hull cannot be computed for this step."""


@dataclass(frozen=True, eq=False)
class Hull:
    """An interval per parameter entry around all gradients of Clarke selections.

    For every choice of Clarke derivatives at the tied units the exact gradient of the frozen
    backward pass lies in [lower - rounding, upper + rounding].

    Attributes:
        center: The float64 gradient of the reference selection, by parameter.
        below: How far other selections move each entry down at most, float64; 0: not at all.
        above: How far they move it up at most.
        rounding: Bound on the distance of `center` from the exact gradient of its selection;
            infinite where that of some backward call is not known.
        n_units: Tied units that can move the gradient, as far as is known.
        n_inert: Tied units that cannot: their pieces are one function of the parameters.
        method: "differences" unit by unit; "intervals" if there were too many units for that: the
            hull is then valid but wider than the set, and its width says nothing where it is
            not zero.
        guarantee: That of `below` and `above`. PROVED without ties; CERTIFIED with ties, since
            pieces were compared by random evaluation; ESTIMATED where an accuracy that they rest on
            was not measured on this processor; NONE if the rounding of some backward call
            behind a kink is not known, or if a call stands on a kink that is not covered.
        unmatched: Calls with kinks that the hull does not cover, as in `Zones`.
    """

    center: Gradients
    below: Gradients
    above: Gradients
    rounding: Gradients
    n_units: int
    n_inert: int
    method: Literal["differences", "intervals"]
    guarantee: Guarantee
    unmatched: tuple[str, ...] = ()

    @property
    def lower(self) -> dict[str, Tensor]:
        """The lower ends, rounded down; equal to `center` where no selection moves an entry."""
        return {n: -_moved(-c, self.below[n]) for n, c in self.center.items()}

    @property
    def upper(self) -> dict[str, Tensor]:
        """The upper ends, rounded up."""
        return {n: _moved(c, self.above[n]) for n, c in self.center.items()}

    @property
    def width(self) -> dict[str, Tensor]:
        """The widths of the intervals, rounded up; zero where the set is one point."""
        return {n: add_up(self.below[n], self.above[n]) for n in self.center}

    @property
    def is_point(self) -> bool:
        """Whether no selection moves the gradient."""
        return not any(bool((w != 0).any()) for w in self.width.values())

    def contains(self, gradients: Gradients, *, rounding: Gradients | None = None) -> bool:
        """Whether a gradient may be that of a Clarke selection.

        Args:
            gradients: The gradient, by parameter.
            rounding: Bound on its own error; None: it is exact. `center`'s error is accounted for.
        """
        return not self.outside(gradients, rounding=rounding)

    def outside(self, gradients: Gradients, *, rounding: Gradients | None = None) -> list[str]:
        """The parameters at which a gradient leaves the hull, one entry at least."""
        found = []
        for name, low, high in ((n, self.lower[n], self.upper[n]) for n in self.center):
            room = self.rounding[name]
            if rounding is not None:
                room = add_up(room, rounding[name])
            g = gradients[name].to(torch.float64)
            inside = (g >= -_moved(-low, room)) & (g <= _moved(high, room))
            if not bool(inside.all()):
                found.append(name)
        return found

    def __str__(self) -> str:
        """One line, and one per parameter that can move."""
        widths = {n: float(w.max()) for n, w in self.width.items() if w.numel()}
        lines = [
            f"the backprop set is {'one point' if self.is_point else 'more than one point'} "
            f"({self.guarantee}): {self.n_units} tied units can move the gradient, "
            f"{self.n_inert} cannot"
        ]
        lines += [f"  {n}: width up to {upper_short(w)}" for n, w in widths.items() if w > 0]
        if self.method == "intervals":
            lines.append("  by intervals: an upper bound, wider than the set")
        if self.unmatched:
            lines.append(f"  not covered: {', '.join(self.unmatched)}")
        return "\n".join(map(visible, lines))


@answers("hull")
def hull(
    subject: nn.Module | Program | Recording | Callable[[], Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    max_pullbacks: int = MAX_PULLBACKS,
    seed: int = 0,
) -> Hull:
    """Enclose the gradients of all Clarke selections of a step.

    Args:
        subject: A model, with `loss_fn` and `batch`; a function that runs one step; a recording;
            or a program. Left as it was.
        loss_fn: `loss_fn(model, batch)` returns the loss; with a model only.
        batch: Anything that `loss_fn` understands; with a model only.
        max_pullbacks: Most edges to pull back one by one; beyond them intervals are used.
        seed: Of the random evaluations that compare sums.

    Raises:
        SubjectError: if the arguments do not fit together.
        RecordingError: if the step cannot be recorded.
        SelectionError: if the loss depends on a gradient.
        HullError: if a backward call is not linear in the gradient.
        ArithmeticAssumptionError: float64 arithmetic is not what the bounds assume.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.MaxPool1d(2))
        >>> hull(model, lambda m, x: m(x).sum(), torch.ones(1, 1, 4)).is_point
        True
    """
    return hull_of(
        program_of(subject, loss_fn, batch, question="hull"), max_pullbacks=max_pullbacks, seed=seed
    )


@answers("hull")
def hull_of(
    program: Program | FrozenStep, *, max_pullbacks: int = MAX_PULLBACKS, seed: int = 0
) -> Hull:
    """Enclose the gradients of all Clarke selections of a recorded step; see `hull`."""
    require_ieee_float64("cpu")
    with relying() as used:
        step = program if isinstance(program, FrozenStep) else FrozenStep(program)
        found = _hull_of(step, max_pullbacks, seed)
    if found.guarantee is Guarantee.NONE or support(used).holds:
        return found
    return replace(found, guarantee=Guarantee.ESTIMATED)


def _hull_of(step: FrozenStep, max_pullbacks: int, seed: int) -> Hull:
    calls = _Calls(step, seed)
    pullback = Pullback(step)
    center = pullback.reference(calls.chosen)
    if not calls.chosen:  # then the reference selection is torch's: take its gradient, bit by bit
        own = step.gradients(Selection())
        center = {n: (own[n], add_up(r, difference_up(own[n], v))) for n, (v, r) in center.items()}
    edges = sum(len(unit.edges) for units in calls.units.values() for unit in units)
    if edges <= max_pullbacks:
        moves, moving = _Differences(pullback, calls, center).run()
    else:
        moves = _intervals(pullback, calls, center)
        moving = sum(map(len, calls.units.values()))
    known = all(bool(reach.isfinite().all()) for both in moves.values() for reach in both)
    guarantee = Guarantee.CERTIFIED if step.ties else Guarantee.PROVED
    return Hull(
        center={n: value for n, (value, _) in center.items()},
        below={n: below for n, (below, _) in moves.items()},
        above={n: above for n, (_, above) in moves.items()},
        rounding={n: radius for n, (_, radius) in center.items()},
        n_units=moving,
        n_inert=sum(len(tie.kink.units) for tie in step.ties) - moving,
        method="differences" if edges <= max_pullbacks else "intervals",
        guarantee=guarantee if known and not step.uncovered else Guarantee.NONE,
        unmatched=tuple(_place(node) for node in (*step.sites.unmatched, *step.uncovered)),
    )


class _Calls:
    """The tied calls whose units may move the gradient, with their sites."""

    def __init__(self, step: FrozenStep, seed: int) -> None:
        self.sites: dict[fx.Node, list[Site]] = {}
        for site in step.sites.found:
            self.sites.setdefault(site.forward, []).append(site)
        self.units: dict[TiedCall, list[Unit]] = moving_units(step, seed=seed)
        self.chosen: Chosen = {tie: self._at_reference(tie) for tie in self.units}

    def _at_reference(self, tie: TiedCall) -> tuple[Any, Tensor]:
        keep = torch.zeros(len(tie.kink.units), dtype=torch.bool, device=tie.kink.units.device)
        keep[[unit.number for unit in self.units[tie]]] = True
        return restricted(tie.kink, keep), reference(tie)[keep]


class _Differences:
    """Changes one kink after the other, in the order of the backward pass."""

    def __init__(self, pullback: Pullback, calls: _Calls, center: Mapping[str, Ball]) -> None:
        self._pullback = pullback
        self._calls = calls
        self._moves = {
            n: (torch.zeros_like(value), torch.zeros_like(value))
            for n, (value, _) in center.items()
        }
        self._waiting: dict[TiedCall, tuple[Tensor, Tensor]] = {}

    def run(self) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
        """How far every entry can move down and up, and how many units move one."""
        order = list(self._calls.units)[::-1]
        moving = 0
        for i, tie in enumerate(order):
            site = self._calls.sites[tie.node][0]
            value, radius = self._at_units(tie, self._pullback.upstream(site))
            below, above = self._waiting.get(tie, (torch.zeros_like(value),) * 2)
            ups = _positive(value, add_up(radius, above)).tolist()
            downs = _positive(-value, add_up(radius, below)).tolist()
            checked = False
            for unit, up, down in zip(self._calls.units[tie], ups, downs, strict=True):
                if up == 0 and down == 0:
                    continue
                pulled = [self._pulled(tie, edge, order[i + 1 :]) for edge in unit.edges]
                if not checked:
                    self._check(tie, unit, pulled[0][0])
                    checked = True
                moving += self._add(unit, pulled, (up, down), order[i + 1 :])
        return self._moves, moving

    def _pulled(
        self, tie: TiedCall, edge: Any, below: list[TiedCall], sign: float = 1.0
    ) -> tuple[dict[str, Ball], dict[fx.Node, Ball]]:
        starts = {}
        for site in self._calls.sites[tie.node]:
            whole = self._pullback.kept(site.last).value
            like = whole if site.part is None else whole[site.part]
            g = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
            for slot, index, coefficient in edge:
                if slot == site.slot:
                    g.view(-1)[index] += sign * coefficient
            starts[site] = g
        asked = [self._calls.sites[other.node][0].upstream for other in below]
        return self._pullback.from_kink(starts, asked)

    def _at_units(self, tie: TiedCall, ball: Ball) -> Ball:
        """The entries of an upstream gradient at the units of a call, [T]."""
        places = [unit.output for unit in self._calls.units[tie]]
        value, radius = (t.reshape(-1)[places] for t in ball)
        return value, radius

    def _check(self, tie: TiedCall, unit: Unit, found: Mapping[str, Ball]) -> None:
        """A linear pass is odd, bit by bit; one that is not was taken apart wrongly."""
        opposite, _ = self._pulled(tie, unit.edges[0], [], -1.0)
        if any(not torch.equal(opposite[n][0], -value) for n, (value, _) in found.items()):
            raise HullError(
                f"the backward pass behind {tie.op} ({_place(tie.node)}) is not linear in the "
                "gradient, so its selections cannot be enclosed; please report the model"
            )

    def _add(
        self, unit: Unit, pulled: Any, arriving: tuple[float, float], below: list[TiedCall]
    ) -> bool:
        """Widen the intervals by what one unit can do; whether it can do anything."""
        moved = False
        for name, (down, up) in self._moves.items():
            found = [gradients[name] for gradients, _ in pulled if name in gradients]
            if found:
                less, more = _reach(found, arriving, unit.order)
                moved = moved or bool((less != 0).any()) or bool((more != 0).any())
                self._moves[name] = (add_up(down, less), add_up(up, more))
        for tie in below:
            node = self._calls.sites[tie.node][0].upstream
            found = [self._at_units(tie, inner[node]) for _, inner in pulled if node in inner]
            if found:
                less, more = _reach(found, arriving, unit.order)
                down, up = self._waiting.get(tie, (torch.zeros_like(less),) * 2)
                self._waiting[tie] = (add_up(down, less), add_up(up, more))
        return moved


def _reach(
    edges: list[Ball], arriving: tuple[float, float], order: float | None
) -> tuple[Tensor, Tensor]:
    """How far the choices at one unit move a value down and up.

    Args:
        edges: What each edge gives, per unit of the arriving gradient.
        arriving: The largest positive and negative part of the arriving gradient.
        order: As in `Unit`.
    """
    up, down = arriving
    if order is not None:  # sup over the dual ball: the p-norm of the edges
        sizes = torch.stack([add_up(value.abs(), radius) for value, radius in edges])
        reach = norm_up(sizes, 0) if order == 2 else sum_up(sizes, 0)
        reach = mul_up(reach if len(edges) > 1 else sizes[0], max(up, down))
        return reach, reach
    less = more = torch.zeros_like(edges[0][0])
    for value, radius in edges:
        plus, minus = _positive(value, radius), _positive(-value, radius)
        more = torch.maximum(more, torch.maximum(mul_up(plus, up), mul_up(minus, down)))
        less = torch.maximum(less, torch.maximum(mul_up(minus, up), mul_up(plus, down)))
    return less, more


def _intervals(
    pullback: Pullback, calls: _Calls, center: Mapping[str, Ball]
) -> dict[str, tuple[Tensor, Tensor]]:
    """How far every entry can move if all choices at all units were independent numbers."""
    moving: Chosen = {}
    for tie, (kink, numbers) in calls.chosen.items():
        reach = torch.ones_like(numbers)
        if isinstance(kink, Corners):
            steps = [abs(unit.edges[0][0][2]) for unit in calls.units[tie]]
            reach = next_up(torch.tensor(steps, dtype=torch.float64, device=numbers.device))
        moving[tie] = (kink, reach)
    found = pullback.reference(calls.chosen, moving=moving)
    moves = {}
    for name, (_, radius) in found.items():
        extra = torch.where(radius > center[name][1], radius, 0.0)
        moves[name] = (extra, extra)
    return moves


def _positive(value: Tensor, radius: Tensor) -> Tensor:
    """Upper bound of the positive part of what lies within a radius."""
    above = add_up(value.clamp_min(0), radius)
    within = torch.where(radius > -value, next_up(radius + value), 0.0)
    return torch.where(value >= 0, above, within)


def _moved(value: Tensor, up: Tensor) -> Tensor:
    """Upper bound of value + up, any sign of value; the value itself where up is 0."""
    return torch.where(up == 0, value, next_up(value + up))


def _place(node: fx.Node) -> str:
    info = node.meta["call"]
    return " ".join(part for part in (str(node.target), info.module, info.source) if part)
