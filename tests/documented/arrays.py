"""Arrays of Arb balls with a derivative, and what documented formulas are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flint import arb
from torch import Tensor

from tests.documented import dual as D
from tests.documented.dual import Dual

F = torch.nn.functional
Array = Any  # of Dual


@dataclass(frozen=True)
class Composite:
    """A function of tensors.

    Attributes:
        name: As it is shown.
        computed: What is run, on leaves of the shapes.
        exact: What it means, on arrays.
        shapes: Of the leaves.
        low: Smallest number drawn.
        high: Largest number drawn.
    """

    name: str
    computed: Callable[..., Tensor]
    exact: Callable[..., Array]
    shapes: tuple[tuple[int, ...], ...]
    low: float = -1.5
    high: float = 1.5


def each(f: Callable[..., Dual], *arrays: Array) -> Array:
    """Apply f entry by entry."""
    return np.frompyfunc(f, len(arrays), 1)(*arrays)


def total(a: Array) -> Dual:
    found = Dual(0)
    for v in np.asarray(a, dtype=object).reshape(-1):
        found = found + v
    return found


def mean(a: Array) -> Dual:
    a = np.asarray(a, dtype=object)
    return total(a) / a.size


def rows(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of the last dimension."""
    return lambda x: np.array([f(r) for r in x.reshape(-1, x.shape[-1])], dtype=object)


def softmax(r: Array) -> Array:
    powers = each(D.exp, r)
    return powers / total(powers)


def logsumexp(r: Array) -> Dual:
    return D.log(total(each(D.exp, r)))


def norm(r: Array, p: float = 2.0) -> Dual:
    if p == 2:
        return D.sqrt(total(r * r))
    return D.power(total(each(lambda v: D.power(D.absolute(v), p), r)), 1 / arb(p))


def variance(r: Array, correction: int = 0) -> Dual:
    gap = np.asarray(r, dtype=object).reshape(-1) - mean(r)
    return total(gap * gap) / (gap.size - correction)


def normalised(r: Array, eps: float = 1e-5) -> Array:
    return (r - mean(r)) / D.sqrt(variance(r) + eps)


def cosine(a: Array, b: Array) -> Dual:
    return total(a * b) / (norm(a) * norm(b))
