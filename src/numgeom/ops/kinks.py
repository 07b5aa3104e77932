"""Where does a function have no derivative, and which arguments decide that?

The type is for the parts of the package that have to know; the sentence beside it is for the reader
of a table. A kink is a matter of real numbers: a gather at given indices is smooth, whatever would
happen at other indices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Where(Enum):
    """The set on which a function, or its slope, is not continuous."""

    NOWHERE = "nowhere: smooth inside the domain"
    ZERO = "where an input is 0"
    BOUND = "where an input is at a number that is stated, or an argument"
    EQUAL = "where two inputs are equal"
    TIE = "where two entries of one input are equal"
    WHOLE = "where an input, or a quotient of two, is a whole number"
    TIP = "where the slope has no limit: a norm at 0, a distance of points that coincide"
    CUT = "along a line on which a branch of the function ends"


Occurs = Callable[[tuple[Any, ...], Mapping[str, Any]], bool]


def _always(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    del args, kwargs
    return True


@dataclass(frozen=True)
class Kinks:
    """The kinks of one op.

    Attributes:
        where: The set.
        sentence: The same in words, as a table of ops shows it.
        inputs: Positions of the arguments whose values decide; two of them for `EQUAL`, whose
            second may be a number.
        jumps: Whether the value itself jumps there, not its slope alone.
        order: The first derivative that is not continuous there: 1, or 2 where the slope still is.
        slight: Whether what jumps there is far below the roundings of float32.
        occurs: Whether a call with these arguments (tensors, graph nodes or numbers) has kinks at
            all: `div` has them if it is asked to round.
    """

    where: Where
    sentence: str
    inputs: tuple[int, ...] = (0,)
    jumps: bool = False
    order: int = 1
    slight: bool = False
    occurs: Occurs = _always

    @property
    def smooth(self) -> bool:
        """Whether there are none, whatever the arguments."""
        return self.where is Where.NOWHERE

    @property
    def branches(self) -> bool:
        """Whether there are two branches whose difference can be noticed."""
        tips = (Where.NOWHERE, Where.TIP, Where.CUT)
        return self.where not in tips and not self.slight

    def may_occur(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call with these arguments may be at a kink."""
        return not self.smooth and self.occurs(args, kwargs)


def smooth(sentence: str = "none") -> Kinks:
    """No kinks; the sentence says what that rests on, where it rests on something."""
    return Kinks(Where.NOWHERE, sentence, inputs=())


NO_KINKS = smooth()
GIVEN_INDICES = smooth("none, for given indices")
GIVEN_MASK = smooth("none, for a given mask")
AT_ZERO = Kinks(Where.ZERO, "at 0")
