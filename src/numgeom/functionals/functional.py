"""What is an error functional, and how are two of them put together?

Phi(eps) = L eps + Delta bounds the error of a result by the error eps of what it was computed from:
L is the stretch, Delta the error that is added. All arithmetic is rounded outward, so a composition
bounds whatever its parts bound.
"""

import math
from dataclasses import dataclass

from numgeom.arithmetic.formats import float64
from numgeom.arithmetic.lower_bounds import div_down, sub_down
from numgeom.arithmetic.printing import lower, upper
from numgeom.arithmetic.rounding import add_up, mul_up
from numgeom.errors import NumgeomError


class FunctionalError(NumgeomError):
    """An error functional is given numbers that are no bounds, or asked for what it cannot give."""


@dataclass(frozen=True)
class ErrorFunctional:
    """Phi(eps) = stretch * eps + added, for eps >= 0.

    Attributes:
        stretch: L, a Lipschitz bound; inf where nothing is known.
        added: Delta, in the unit of the result's error; inf where nothing is known.

    Example:
        >>> layer, head = ErrorFunctional(2.0, 1e-7), ErrorFunctional(0.5, 3e-8)
        >>> whole = head @ layer
        >>> upper(whole.stretch), upper(whole.added)
        ('1.01e+00', '8.01e-08')
    """

    stretch: float
    added: float

    def __post_init__(self) -> None:
        for name, value in (("stretch", self.stretch), ("added", self.added)):
            if not value >= 0.0:
                raise FunctionalError(
                    f"An error functional needs {name} >= 0, not {value!r}; give inf where nothing "
                    "is known."
                )

    def __call__(self, error: float) -> float:
        """The error of the result, for an input error of at most `error`, rounded up."""
        if not error >= 0.0:
            raise FunctionalError(f"An input error is at least 0, not {error!r}.")
        return add_up(_times(self.stretch, error), self.added)

    def __matmul__(self, inner: "ErrorFunctional") -> "ErrorFunctional":
        """This functional after another: L = L_1 L_2, Delta = L_1 Delta_2 + Delta_1.

        On a chain of n this is the composition theorem: Delta = sum_i Delta_i prod_{j > i} L_j.
        """
        return ErrorFunctional(_times(self.stretch, inner.stretch), self(inner.added))

    def __add__(self, other: "ErrorFunctional") -> "ErrorFunctional":
        """Two paths that join: both stretches and both errors add up."""
        return ErrorFunctional(add_up(self.stretch, other.stretch), add_up(self.added, other.added))

    def invert(self, tolerance: float) -> float:
        """The largest input error that keeps the result's error within `tolerance`, rounded down.

        Returns:
            eps with L eps + Delta <= tolerance; inf if L is 0.

        Raises:
            FunctionalError: if Delta alone exceeds the tolerance.
        """
        if not tolerance >= self.added:
            raise FunctionalError(
                f"No input is accurate enough for an error of {lower(tolerance)}: what is added on "
                f"the way alone is up to {upper(self.added)}. Compute in a wider format, or allow "
                "more."
            )
        room = sub_down(tolerance, self.added)
        if self.stretch == 0.0:
            return math.inf
        if math.isinf(room):
            return math.inf if math.isfinite(self.stretch) else 0.0
        if math.isinf(self.stretch):
            return 0.0
        found = div_down(room, self.stretch)
        while found > 0.0 and self(found) > tolerance:  # the evaluation itself is rounded up
            found = math.nextafter(found * (1.0 - 2.0**-50), 0.0)
        return found

    def bits(self, tolerance: float, *, unit_roundoff: float, error: float = 0.0) -> int:
        """Significant bits that the computation needs for a tolerance.

        Delta is taken as proportional to the unit roundoff u it was found for, as it is without
        underflow and as long as n u is small: Delta(p) = Delta * 2^-p / u.

        Args:
            tolerance: Largest error of the result, in its unit.
            unit_roundoff: u that `added` belongs to.
            error: Error of the input.

        Returns:
            p, the hidden bit included, from 1.

        Raises:
            FunctionalError: if no number of bits is enough.
        """
        if not 0.0 < unit_roundoff < 1.0:
            raise FunctionalError(f"A unit roundoff lies between 0 and 1, not {unit_roundoff!r}.")
        inherited = _times(self.stretch, error)
        room = sub_down(tolerance, inherited) if math.isfinite(inherited) else -math.inf
        if self.added == 0.0 and room >= 0.0:
            return 1
        if not room > 0.0 or math.isinf(self.added):
            raise FunctionalError(
                f"No number of bits keeps the error below {lower(tolerance)}: "
                + (
                    "nothing bounds what is added."
                    if math.isinf(self.added)
                    else f"the input error alone grows to {upper(inherited)}."
                )
            )
        bits = max(1, math.ceil(math.log2(self.added) - math.log2(room) - math.log2(unit_roundoff)))
        limit = float64.precision * 40  # far beyond any format; ends the loop for absurd numbers
        while bits < limit and mul_up(self.added, 2.0**-bits / unit_roundoff) > room:
            bits += 1
        return bits


IDENTITY = ErrorFunctional(1.0, 0.0)
EXACT = ErrorFunctional(0.0, 0.0)


def _times(stretch: float, error: float) -> float:
    """An exact input stays exact, whatever the stretch is; unlike 0 * inf of a bound."""
    return 0.0 if error == 0.0 or stretch == 0.0 else mul_up(stretch, error)
