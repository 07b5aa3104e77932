"""How is a function of a list of numbers applied to the slices of an array?"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flint import arb

from tests.ops.laws import Oracle
from tests.ops.movement_oracle import array


def total(values: Any) -> arb:
    result = arb(0)
    for value in values:
        result += value if isinstance(value, arb) else arb(int(value))
    return result


def over_slices(
    f: Callable[[list[Any]], Any], position: int = 1
) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """Apply a function of a list of numbers to every slice along `dim`."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        dim = args[position] if len(args) > position else kwargs.get("dim")
        keep = args[position + 1] if len(args) > position + 1 else kwargs.get("keepdim", False)
        return reduced(f, x, dim, bool(keep))

    return oracle


def reduced(f: Callable[[list[Any]], Any], x: np.ndarray, dim: Any, keep: bool) -> Any:
    axes = list(range(x.ndim)) if dim is None or dim == [] else dim
    axes = [axes] if isinstance(axes, int) else axes
    axes = [a % x.ndim for a in axes]
    kept = [a for a in range(x.ndim) if a not in axes]
    slices = x.transpose(*kept, *axes).reshape(*(x.shape[a] for a in kept), -1)
    shape = tuple(x.shape[a] for a in kept)
    results = [f(list(slices[i])) for i in np.ndindex(*shape)]
    full = tuple(1 if a in axes else x.shape[a] for a in range(x.ndim)) if keep else shape
    if results and isinstance(results[0], tuple):
        return tuple(array(part, full) for part in zip(*results, strict=True))
    return array(results, full)


def running(f: Callable[[list[Any]], Any]) -> Oracle:
    """Apply a function to every prefix along a dimension."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, dim = args[0], args[1]
        parts = [reduced(f, x.take(range(k + 1), dim), dim, False) for k in range(x.shape[dim])]
        if isinstance(parts[0], tuple):
            return tuple(np.stack(group, dim) for group in zip(*parts, strict=True))
        return np.stack(parts, dim)

    return oracle
