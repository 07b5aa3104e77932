"""What are the first and second derivatives of a composite formula over a box?

A jet holds enclosures of a function's value and of its partial derivatives up to order two, over a
box of its variables. Jets add, multiply and compose by the rules of calculus (Griewank & Walther
2008, ch. 13), so an op's formula, written once, yields its slopes and its curvature. Boxes that
are narrow against the scale of the function give tight enclosures.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from numgeom.ops import intervals
from numgeom.ops.derivatives import ELEMENTARY
from numgeom.ops.intervals import Interval, Number

Part = Interval | None  # None: zero everywhere

VALUES: dict[str, Callable[[Interval], Interval]] = {
    "exp": intervals.exp,
    "expm1": intervals.expm1,
    "log": intervals.log,
    "log1p": intervals.log1p,
    "sqrt": intervals.sqrt,
    "reciprocal": intervals.reciprocal,
    "square": Interval.square,
    "tanh": intervals.tanh,
    "sigmoid": intervals.sigmoid,
    "erf": intervals.erf,
    "erfc": intervals.erfc,
}


@dataclass(frozen=True, eq=False)
class Jet:
    """A function of n variables on a box.

    Attributes:
        value: What values it takes.
        first: Its n partial derivatives.
        second: Its second partial derivatives, [i][j] for i <= j.
        order: 2, or 1 if second derivatives are not wanted; all of them are None then.
    """

    value: Interval
    first: tuple[Part, ...]
    second: tuple[tuple[Part, ...], ...]
    order: int = 2

    @classmethod
    def variable(cls, box: Interval, position: int, count: int, *, order: int) -> "Jet":
        """One of `count` variables."""
        one = intervals.constant(1.0, box)
        first = tuple(one if i == position else None for i in range(count))
        nothing = tuple(tuple(None for _ in range(count)) for _ in range(count))
        return cls(box, first, nothing, order)

    def __neg__(self) -> "Jet":
        return self._linear(lambda part: -part)

    def __add__(self, other: "Jet | Number") -> "Jet":
        if not isinstance(other, Jet):
            return Jet(self.value + other, self.first, self.second, self.order)
        return Jet(
            self.value + other.value,
            tuple(_plus(a, b) for a, b in zip(self.first, other.first, strict=True)),
            _each_pair(self, lambda i, j: _plus(self.second[i][j], other.second[i][j])),
            self.order,
        )

    def __sub__(self, other: "Jet | Number") -> "Jet":
        return self + (-other)

    def __mul__(self, other: "Jet | Number") -> "Jet":
        if not isinstance(other, Jet):
            return self._linear(lambda part: part * other)
        a, b = self, other

        def pair(i: int, j: int) -> Part:
            outer = _plus(_mul(a.second[i][j], b.value), _mul(b.second[i][j], a.value))
            if i == j:
                mixed = _mul(_mul(a.first[i], b.first[i]), intervals.constant(2.0, a.value))
            else:
                mixed = _plus(_mul(a.first[i], b.first[j]), _mul(a.first[j], b.first[i]))
            return _plus(outer, mixed)

        first = (
            _plus(_mul(p, b.value), _mul(q, a.value)) for p, q in zip(a.first, b.first, strict=True)
        )
        return Jet(a.value * b.value, tuple(first), _each_pair(a, pair), a.order)

    def __truediv__(self, other: "Jet") -> "Jet":
        return self * other.apply("reciprocal")

    def __radd__(self, other: Number) -> "Jet":
        return self + other

    def __rsub__(self, other: Number) -> "Jet":
        return -self + other

    def __rmul__(self, other: Number) -> "Jet":
        return self * other

    def over(self, divisor: float) -> "Jet":
        """This divided by a number."""
        return self._linear(lambda part: part / divisor)

    def scaled(self, constant: float) -> "Jet":
        """This times a real constant of which the nearest float64 number is given."""
        return self._linear(lambda part: intervals.times_constant(part, constant))

    def apply(self, name: str) -> "Jet":
        """An elementary function of this one."""
        derivatives = ELEMENTARY[name].derivatives(self.value)
        slope = derivatives.first
        curvature = derivatives.second if self.order == 2 else None

        def pair(i: int, j: int) -> Part:
            bent = _mul(_mul(self.first[i], self.first[j]), curvature)
            if i == j and self.first[i] is not None:
                bent = _mul(_square(self.first[i]), curvature)
            return _plus(bent, _mul(self.second[i][j], slope))

        first = tuple(_mul(part, slope) for part in self.first)
        return Jet(VALUES[name](self.value), first, _each_pair(self, pair), self.order)

    def select(self, here: Tensor, other: "Jet", there: Tensor) -> "Jet":
        """This function where `here`, another one where `there`, both of them elsewhere."""

        def pick(a: Part, b: Part) -> Part:
            if a is None and b is None:
                return None
            zero = intervals.constant(0.0, self.value)
            first, second = zero if a is None else a, zero if b is None else b
            return first.select(here, second, there)

        value = self.value.select(here, other.value, there)
        first = tuple(pick(a, b) for a, b in zip(self.first, other.first, strict=True))
        second = _each_pair(self, lambda i, j: pick(self.second[i][j], other.second[i][j]))
        return Jet(value, first, second, self.order)

    def _linear(self, apply: Callable[[Interval], Interval]) -> "Jet":
        def part(p: Part) -> Part:
            return None if p is None else apply(p)

        first = tuple(part(p) for p in self.first)
        second = _each_pair(self, lambda i, j: part(self.second[i][j]))
        return Jet(apply(self.value), first, second, self.order)


def _each_pair(jet: Jet, entry: Callable[[int, int], Part]) -> tuple[tuple[Part, ...], ...]:
    indices = range(len(jet.first))
    wanted = jet.order == 2
    return tuple(
        tuple(entry(i, j) if wanted and i <= j else None for j in indices) for i in indices
    )


def _plus(a: Part, b: Part) -> Part:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _mul(a: Part, b: Part) -> Part:
    return None if a is None or b is None else a * b


def _square(a: Part) -> Part:
    return None if a is None else a.square()
