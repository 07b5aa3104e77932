"""Which integers does a call turn into float64 numbers, and how far off are these?

Where integers meet real numbers, torch turns them into real numbers first; in a replay, into
float64. Integers up to 2^53 are float64 numbers. A larger one may be rounded, and then the call
works on another number than the integer that the program means. Every evaluation prepares its calls
here, so that rules see a real argument with a radius: the distance from the integer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, add_up, mul_up
from numgeom.ops.entry import Evaluation, Op

LARGEST_EXACT = 2**53  # all integers up to it are float64 numbers
_WIDE = (torch.int64, torch.uint64)


class Asked(Mapping[int | str, Any]):
    """Doubts or radii of a call's arguments, that remember which of them a rule looked at.

    A rule that never asks about a doubtful decision, or a converted integer, cannot have covered
    it.

    Args:
        parts: What is known, by position or name.
        required: The keys that a rule must look at; all of them by default.
    """

    def __init__(
        self, parts: Mapping[int | str, Any], required: frozenset[int | str] | None = None
    ) -> None:
        """Start with nothing asked for."""
        self._parts = parts
        self._required = frozenset(parts) if required is None else required
        self._seen: set[int | str] = set()

    def __getitem__(self, key: int | str) -> Any:
        """What is known of an argument; remembers the question."""
        self._seen.add(key)
        return self._parts[key]

    def __iter__(self) -> Iterator[int | str]:
        """The positions and names."""
        return iter(self._parts)

    def __len__(self) -> int:
        """Number of arguments of which something is known."""
        return len(self._parts)

    @property
    def ignored(self) -> bool:
        """Whether something that a rule must look at was never asked for."""
        return not self._required <= self._seen


def has_ignored(call: Evaluation) -> bool:
    """Whether the rules that were asked about a call overlooked a doubt or a converted integer."""
    return any(isinstance(m, Asked) and m.ignored for m in (call.doubts, call.radii))


def converts(call: Evaluation) -> bool:
    """Whether a prepared call rounds integers on their way to real numbers."""
    return isinstance(call.radii, Asked)


def prepared(call: Evaluation) -> Evaluation:
    """The call with integers that it rounds to float64 as real arguments, with their radii.

    Calls whose integers all are float64 numbers, or meet no real number, are returned as they are.
    """
    if not _meets_reals(call):
        return call
    found: dict[int | str, Any] = {}
    for key, x in (*enumerate(call.args), *call.kwargs.items()):
        if _is_rounded(x) or (isinstance(x, (list, tuple)) and any(map(_is_rounded, x))):
            found[key] = x
    if not found:
        return call
    args, kwargs = list(call.args), dict(call.kwargs)
    radii, doubts = dict(call.radii), dict(call.doubts)
    for key, x in found.items():
        value, radius = _converted(x, radii.get(key), doubts.pop(key, None))
        radii[key] = radius
        if isinstance(key, int):
            args[key] = value
        else:
            kwargs[key] = value
    asked = Asked(radii, required=frozenset(found))
    return replace(call, args=tuple(args), kwargs=kwargs, radii=asked, doubts=doubts)


def local_error(op: Op, call: Evaluation) -> Any:
    """What a prepared call adds to the errors of its real inputs: rounding, and conversions.

    Args:
        op: The facts.
        call: A call as `prepared` returned it, without radii of real inputs.
    """
    rounding = op.rounding_of(call)
    if not converts(call):
        return rounding
    spread = op.spread_of(call)
    if not isinstance(call.y, (tuple, list)):
        return _added(call, rounding, spread, call.y)
    nothing = [None] * len(call.y)
    parts = zip(rounding or nothing, spread or nothing, call.y, strict=True)
    return tuple(_added(call, *part) for part in parts)


def _added(call: Evaluation, rounding: Any, spread: Any, y: Any) -> Any:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        return rounding
    if has_ignored(call):
        return torch.full_like(y, torch.inf, dtype=torch.float64)
    if rounding is None or spread is None:
        return rounding if spread is None else spread
    return add_up(rounding, spread)


def has_unconvertible_number(call: Evaluation) -> bool:
    """Whether a Python integer that is no float64 number meets real numbers."""
    return any(
        type(n) is int and abs(n) > LARGEST_EXACT and _differs(n) and _is_number(call.name, key)
        for key, n in (*enumerate(call.args), *call.kwargs.items())
    ) and _meets_reals(call)


@cache
def _is_number(name: str, key: int | str) -> bool:
    """Whether an argument is a number to compute with, and not a place, such as a slice's end."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:  # an op from elsewhere
        return True
    for overload in packet.overloads():
        arguments = getattr(packet, overload)._schema.arguments
        for i, argument in enumerate(arguments):
            if key in (i, argument.name) and "int" not in str(argument.type).lower():
                return True
    return False


def _differs(n: int) -> bool:
    try:
        return int(float(n)) != n
    except OverflowError:
        return True


def _meets_reals(call: Evaluation) -> bool:
    return any(map(_is_real, (call.y, *call.args, *call.kwargs.values())))


def _is_real(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.is_floating_point()
    if isinstance(x, (list, tuple)):
        return any(map(_is_real, x))
    return isinstance(x, float)


def _is_rounded(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.dtype not in _WIDE or x.numel() == 0:
        return False
    if x.dtype is torch.int64:
        low, high = torch.aminmax(x)
        if int(low) >= -LARGEST_EXACT and int(high) <= LARGEST_EXACT:
            return False
    return bool((_distance(x) > 0).any())


def _distance(x: Tensor) -> Tensor:
    """|fl(x) - x|, exactly for int64."""
    wide = x.to(torch.float64)
    if x.dtype is not torch.int64:
        return torch.where(wide <= LARGEST_EXACT, 0.0, mul_up(wide, UNIT_ROUNDOFF))
    beyond = wide >= 2.0**63  # one more than the largest integer
    back = torch.where(beyond, 0.0, wide).to(torch.int64)
    back = torch.where(beyond, torch.iinfo(torch.int64).max, back)
    return ((back - x).abs() + beyond.to(torch.int64)).to(torch.float64)


def _converted(x: Any, radius: Any, doubt: Any) -> tuple[Any, Any]:
    if isinstance(x, (list, tuple)):
        radii = radius or [None] * len(x)
        doubts = doubt or [None] * len(x)
        pairs = [
            _converted(m, r, d) if isinstance(m, Tensor) and m.dtype in _WIDE else (m, r)
            for m, r, d in zip(x, radii, doubts, strict=True)
        ]
        return [m for m, _ in pairs], [r for _, r in pairs]
    found = _distance(x)
    if isinstance(doubt, Tensor):
        found = torch.where(doubt, torch.inf, found)
    return x.to(torch.float64), found
