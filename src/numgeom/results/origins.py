"""What was a result made from, as long as both are at hand?

A result is data: it holds no model, no program and no function, so it can be copied, pickled and
written. What it was made from is noted here, beside it, and forgotten with it. A copy of a result,
and one that was read from a file, has no origin.
"""

import weakref
from typing import Any

_ORIGINS: dict[int, tuple[weakref.ref[Any], Any]] = {}


def remember(result: Any, origin: Any) -> None:
    """Note what a result was made from, until the result is gone."""
    key = id(result)

    def forget(reference: weakref.ref[Any]) -> None:
        if key in _ORIGINS and _ORIGINS[key][0] is reference:
            del _ORIGINS[key]

    _ORIGINS[key] = (weakref.ref(result, forget), origin)


def origin_of(result: Any) -> Any:
    """What a result was made from; None if that is not known here."""
    reference, origin = _ORIGINS.get(id(result), (None, None))
    return origin if reference is not None and reference() is result else None
