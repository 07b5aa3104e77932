"""Which entries do ops choose over the real numbers, and what do decisions add up to?

Comparisons of Arb numbers, written out; see `tests.ops.laws`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ops.laws import Oracle
from tests.ops.movement_oracle import array, truths
from tests.ops.slices import over_slices, reduced, running


def extreme(values: list[Any], *, largest: bool = True, last: bool = False) -> tuple[Any, int]:
    """The winner and its index, the first or the last of equal ones."""
    best = 0
    for i, value in enumerate(values):
        better = value > values[best] if largest else value < values[best]
        if better or (last and value == values[best]):
            best = i
    return values[best], best


def ranked(values: list[Any], *, descending: bool) -> list[tuple[Any, int]]:
    """All values with their indices, in order; equal ones in the order of their indices."""
    left = list(enumerate(values))
    order = []
    while left:
        value, at = extreme([v for _, v in left], largest=descending)
        order.append((value, left.pop(at)[0]))
    return order


def sort(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    descending = args[2] if len(args) > 2 else kwargs.get("descending", False)
    return _first_ranks(args[0], dim, args[0].shape[dim], bool(descending))


def topk(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    dim = args[2] if len(args) > 2 else -1
    largest = args[3] if len(args) > 3 else True
    return _first_ranks(args[0], dim, args[1], largest)


def _first_ranks(
    x: np.ndarray, dim: int, count: int, descending: bool
) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        reduced(lambda v, k=k: ranked(v, descending=descending)[k], x, dim, False)
        for k in range(count)
    ]
    return np.stack([p[0] for p in parts], dim), np.stack([p[1] for p in parts], dim)


def middle(values: list[Any]) -> tuple[Any, int]:
    return ranked(values, descending=False)[(len(values) - 1) // 2]


def kthvalue(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return reduced(lambda v: ranked(v, descending=False)[args[1] - 1], args[0], -1, False)


def value_or_pair(f: Callable[[list[Any]], tuple[Any, int]]) -> Oracle:
    """max(x) gives a value, max(x, dim) a value and an index."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pair = over_slices(f)(args, kwargs)
        return pair if len(args) > 1 else pair[0]

    return oracle


def aminmax(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    low = reduced(lambda v: extreme(v, largest=False)[0], args[0], kwargs.get("dim"), False)
    return low, reduced(lambda v: extreme(v)[0], args[0], kwargs.get("dim"), False)


def truth(f: Callable[[list[bool]], bool]) -> Oracle:
    return over_slices(lambda values: f([not (v == 0) for v in values]))  # noqa: SIM201 - Arb


def logic(f: Callable[[bool, bool], bool]) -> Oracle:
    return lambda args, kwargs: np.vectorize(f)(truths(args[0]), truths(args[1]))


def rank(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return array((sum(bool(e < v) for e in edges) for v in x.reshape(-1)), x.shape)


CHOICES: dict[str, Oracle] = {
    "any": truth(any),
    "_is_any_true": truth(any),
    "_is_all_true": truth(all),
    "all": truth(all),
    "logical_and": logic(lambda a, b: a and b),
    "logical_or": logic(lambda a, b: a or b),
    "logical_xor": logic(lambda a, b: a != b),
    "logical_not": lambda args, kwargs: ~truths(args[0]),
    **{
        name: (lambda args, kwargs, f=f: f(*args))
        for name, f in {
            "bitwise_and": np.bitwise_and,
            "bitwise_or": np.bitwise_or,
            "bitwise_xor": np.bitwise_xor,
            "bitwise_not": np.bitwise_not,
            "bitwise_left_shift": np.left_shift,
            "bitwise_right_shift": np.right_shift,
            "__lshift__": np.left_shift,
            "__rshift__": np.right_shift,
        }.items()
    },
    "bucketize": lambda args, kwargs: rank(args[0], args[1]),
    "searchsorted": lambda args, kwargs: rank(args[1], args[0]),
    "amax": over_slices(lambda v: extreme(v)[0]),
    "amin": over_slices(lambda v: extreme(v, largest=False)[0]),
    "aminmax": aminmax,
    "argmax": over_slices(lambda v: extreme(v)[1]),
    "argmin": over_slices(lambda v: extreme(v, largest=False)[1]),
    "max": value_or_pair(extreme),
    "min": value_or_pair(lambda v: extreme(v, largest=False)),
    "sort": sort,
    "topk": topk,
    "kthvalue": kthvalue,
    "median": value_or_pair(middle),
    "nanmedian": value_or_pair(middle),
    "cummax": running(lambda v: extreme(v, last=True)),
    "cummin": running(lambda v: extreme(v, largest=False, last=True)),
}
