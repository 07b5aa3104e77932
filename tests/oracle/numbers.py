"""Real numbers in arrays: Arb balls, and decisions that are taken only where they are certain."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from flint import arb
from torch import Tensor

Numbers = np.ndarray  # of arb objects

ZERO, ONE, INFINITY = arb(0), arb(1), arb("inf")


class UndecidedError(Exception):
    """A comparison could not be decided at this precision."""


class UnsupportedError(NotImplementedError):
    """The oracle does not know an op, or not with these arguments; nothing is guessed."""


def real(x: Any) -> arb:
    """A number of any kind, exactly."""
    if isinstance(x, arb):
        return x
    if isinstance(x, (bool, int)):
        return arb(int(x))
    if math.isinf(x):
        return INFINITY if x > 0 else -INFINITY
    return arb(x)


def array(values: Iterable[Any], shape: Iterable[int]) -> Numbers:
    """An array of objects, from a flat sequence."""
    out = np.empty(tuple(shape), dtype=object)
    flat = list(values)
    if flat:
        out.reshape(-1)[:] = flat
    return out


def scalar(x: Any) -> Numbers:
    return array([real(x)], ())


def to_numbers(tensor: Tensor) -> Numbers:
    """Exact copies of the entries of a tensor, integers beyond 2^53 included."""
    if tensor.is_complex():
        raise UnsupportedError("complex numbers")
    tensor = tensor.detach().cpu()
    wide = tensor.double() if tensor.is_floating_point() else tensor
    return array((real(v) for v in wide.reshape(-1).tolist()), tensor.shape)


def numbers(x: Any) -> Numbers:
    """Any argument as an array of numbers."""
    if isinstance(x, np.ndarray):
        return x
    return to_numbers(x) if isinstance(x, Tensor) else scalar(x)


def filled(shape: Any, value: Any) -> Numbers:
    return np.broadcast_to(numbers(value), tuple(shape)).copy()


def mapped(f: Callable[..., Any], *arrays: Any) -> Numbers:
    """Apply a function of numbers to arrays that broadcast."""
    wide = np.broadcast_arrays(*(numbers(a) for a in arrays))
    flat = [w.reshape(-1) for w in wide]
    return array((f(*entries) for entries in zip(*flat, strict=True)), wide[0].shape)


def elementwise(f: Callable[..., arb]) -> Callable[..., Numbers]:
    """The op that applies a function to every entry; options that change nothing are dropped."""
    return lambda *arrays, **_: mapped(f, *arrays)


def numbered(x: Numbers) -> Tensor:
    """The numbers of the entries: to move them is to move the entries."""
    return torch.arange(x.size).reshape(x.shape)


def total(values: Iterable[arb]) -> arb:
    result = ZERO
    for v in values:
        result = result + v
    return result


# -- decisions -----------------------------------------------------------------------------


def is_same_ball(a: arb, b: arb) -> bool:
    """Whether two tiny balls are one: what was computed in the same way from the same numbers.

    Different real numbers that agree in all bits of midpoint and radius, hundreds of them, are not
    expected; so such a pair is taken for a tie, which is what it is where a row is repeated.
    """
    small = a.is_finite() and b.is_finite() and a.rel_accuracy_bits() >= 150
    return small and bool(a.mid() == b.mid()) and bool(a.rad() == b.rad())


def _open(a: arb, relation: str, b: arb) -> UndecidedError:
    return UndecidedError(f"{a.str(6)} {relation} {b.str(6)}")


def is_less(a: arb, b: arb) -> bool:
    if is_minus_infinity(a) or is_minus_infinity(b):
        return not is_minus_infinity(b)
    if a < b:
        return True
    if a >= b or is_same_ball(a, b):
        return False
    raise _open(a, "<", b)


def is_at_most(a: arb, b: arb) -> bool:
    return not is_less(b, a)


def is_equal(a: arb, b: arb) -> bool:
    if not (a.is_finite() and b.is_finite()):  # masks, to which numbers may have been added
        return float(a.mid()) == float(b.mid())
    if a.is_exact() and b.is_exact():
        return bool(a == b)
    if a < b or a > b:
        return False
    if is_same_ball(a, b):
        return True
    raise _open(a, "==", b)


def larger(a: arb, b: arb) -> arb:
    return b if is_less(a, b) else a


def smaller(a: arb, b: arb) -> arb:
    return b if is_less(b, a) else a


def magnitude(x: arb) -> arb:
    return x if is_at_most(ZERO, x) else -x


def sign(x: arb) -> arb:
    return ONE if is_less(ZERO, x) else -ONE if is_less(x, ZERO) else ZERO


def floor(x: arb) -> arb:
    whole = x.floor().unique_fmpz()
    if whole is None:
        raise UndecidedError(f"floor of {x.str(6)}")
    return arb(whole)


def truncated(x: arb) -> arb:
    return floor(x) if is_at_most(ZERO, x) else -floor(-x)


def is_minus_infinity(x: arb) -> bool:
    """Whether a mask was written here."""
    return not x.is_finite() and float(x.mid()) == -math.inf


def extreme(values: Iterable[arb], largest: bool = True) -> tuple[arb, int]:
    """The largest (or smallest) of several numbers and its first position."""
    values = list(values)
    best, at = values[0], 0
    for i, v in enumerate(values[1:], 1):
        if is_less(best, v) if largest else is_less(v, best):
            best, at = v, i
    return best, at
