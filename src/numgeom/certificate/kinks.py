"""Which units might be on the other side of their kink, and how close to it are they?

A call that decides (a ReLU, a comparison, a maximum) has a kink where its decision changes. A unit,
one entry of the decision, is unresolved if the exact value may lie on the other side of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.arithmetic.printing import nearest, upper
from numgeom.arithmetic.rounding import add_up
from numgeom.ops.entry import Evaluation
from numgeom.ops.kinks import Where
from numgeom.ops.table import kinks_of
from numgeom.semantics.decisions import Judged
from numgeom.visible import visible

SHOWN = 8  # units of one call that a result names; the others are counted


@dataclass(frozen=True)
class Unit:
    """One entry of a decision.

    Attributes:
        index: Its place in what the call returns.
        value: What decides, less where the decision changes: the input of a ReLU, the difference
            of the two sides of a comparison; NaN where no single number decides.
        margin: How far the exact one may be from that value; the kink lies within. NaN if unknown.
    """

    index: tuple[int, ...]
    value: float
    margin: float

    def __str__(self) -> str:
        """Return the place, and the two numbers if they are known."""
        place = str(list(self.index))
        if math.isnan(self.value):
            return place
        return f"{place} at {nearest(self.value)}, kink within {upper(self.margin, 2)}"


@dataclass(frozen=True)
class Kink:
    """Units of one call that might be on the other side of their kink.

    Attributes:
        op: The call that decides.
        module: Its module path; "" outside of every module.
        source: Its line.
        count: How many of its units are in doubt.
        units: The first of them.
    """

    op: str
    module: str
    source: str
    count: int
    units: tuple[Unit, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        text = visible(f"{self.op} in {self.module or 'the model'} ({self.source})")
        text += f": {self.count} units"
        if not self.units:
            return text
        shown = ", ".join(map(str, self.units))
        more = self.count - len(self.units)
        return f"{text}: {shown}" + (f" and {more} more" if more > 0 else "")

    def check(self) -> None:
        """Raise ValueError where the counts do not fit."""
        if self.count < len(self.units):
            raise ValueError(f"{self.count} units are in doubt, and {len(self.units)} are named")


def kink_of(node: fx.Node, doubt: Tensor, call: Evaluation | None = None) -> Kink:
    """Describe the units of a call that are in doubt.

    Args:
        node: The call that decides.
        doubt: Mask over the entries of its decision.
        call: The call as it was evaluated, with the radii of its inputs; None if it is not at
            hand, and then only the places of the units are told.
    """
    info = node.meta["call"]
    found = None if call is None else _decided_by(call)
    places = doubt.nonzero()
    units = []
    for place in places[:SHOWN].tolist():
        index = tuple(place)
        value = margin = math.nan
        if found is not None and found[0].shape == doubt.shape:
            value, margin = float(found[0][index]), float(found[1][index])
        units.append(Unit(index, value, margin))
    return Kink(str(node.target), info.module, info.source, len(places), tuple(units))


def kink_of_decision(judged: Judged) -> Kink:
    """Describe the entries of a tensor that may have decided otherwise."""
    decision = judged.decision
    value = decision.value
    places = judged.undecided.nonzero()
    units = []
    for place in places[:SHOWN].tolist():
        index = tuple(place)
        size = margin = math.nan
        if value.is_floating_point() and value.shape == judged.undecided.shape:
            size = float(value[index])
            margin = 0.0 if judged.radius is None else float(judged.radius[index])
        units.append(Unit(index, size, margin))
    info = decision.info
    return Kink(decision.op, info.module, info.source, len(places), tuple(units))


def _decided_by(call: Evaluation) -> tuple[Tensor, Tensor] | None:
    """What decides, less where the decision changes, and how far it may be off; None if unknown."""
    kinks = kinks_of(call.name)
    if kinks is None or kinks.where not in (Where.ZERO, Where.EQUAL):
        return None
    one, *others = kinks.inputs
    if kinks.where is Where.ZERO:
        return None if others else _difference(call, one, None)
    return _difference(call, one, others[0])


def _difference(call: Evaluation, one: int, other: int | None) -> tuple[Tensor, Tensor] | None:
    value = torch.as_tensor(call.arg(one), dtype=torch.float64)
    reach = torch.zeros_like(value) if call.radius(one) is None else call.radius(one)
    if other is not None:
        value = value - call.arg(other)
        reach = reach.expand(value.shape)
        if call.radius(other) is not None:
            reach = add_up(reach, call.radius(other))
    return value, reach
