"""How far may a printed number be trusted?"""

import enum
import functools


@functools.total_ordering
class Guarantee(enum.Enum):
    """What a number promises, from nothing to always.

    Levels are ordered, `NONE < ESTIMATED < CERTIFIED < PROVED`, and a result carries the
    weakest level of what it was made from: combine levels with `min` (or `weakest`).

    Example:
        >>> min(Guarantee.PROVED, Guarantee.ESTIMATED)
        <Guarantee.ESTIMATED: 1>
    """

    NONE = 0
    ESTIMATED = 1
    CERTIFIED = 2
    PROVED = 3

    def __lt__(self, other: object) -> bool:
        """Order by strength."""
        if not isinstance(other, Guarantee):
            return NotImplemented
        return self.value < other.value

    def __str__(self) -> str:
        """Return the name, as it is printed beside a number."""
        return self.name

    @property
    def meaning(self) -> str:
        """One sentence that says what the level promises."""
        return _MEANINGS[self]


def weakest(first: Guarantee, *others: Guarantee) -> Guarantee:
    """Combine levels: a result is as trustworthy as its weakest ingredient.

    At least one level is asked for, since a result made from nothing has none.
    """
    return min(first, *others) if others else first


_MEANINGS = {
    Guarantee.NONE: "Unknown: nothing is promised about this number.",
    Guarantee.ESTIMATED: "A measurement or a prediction, not a bound.",
    Guarantee.CERTIFIED: "A bound that may fail only with the stated probability over random "
    "vectors drawn for the check.",
    Guarantee.PROVED: "A bound that always holds, given the printed assumptions.",
}
