"""Numbers of arbitrary precision in arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flint import arb
from torch import Tensor

Numbers = np.ndarray  # of arb objects


class UndecidedError(Exception):
    """A comparison could not be decided at this precision."""


def to_numbers(tensor: Tensor) -> Numbers:
    """Exact copies of the entries of a tensor."""
    out = np.empty(tuple(tensor.shape), dtype=object)
    flat = tensor.detach().double().reshape(-1).tolist()
    out.reshape(-1)[:] = [arb(v) for v in flat] if flat else []
    return out


def numbers(x: Any) -> Numbers:
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, Tensor):
        return to_numbers(x)
    out = np.empty((), dtype=object)
    out[()] = arb(x)
    return out


def mapped(f: Callable[..., arb], *arrays: Numbers) -> Numbers:
    wide = np.broadcast_arrays(*arrays)
    out = np.empty(wide[0].shape, dtype=object)
    flat = out.reshape(-1)
    for i, entries in enumerate(zip(*(w.reshape(-1) for w in wide), strict=True)):
        flat[i] = f(*entries)
    return flat.reshape(out.shape)


def numbered(x: Numbers) -> Tensor:
    return torch.arange(x.size).reshape(x.shape)


def is_less(a: arb, b: arb) -> bool:
    if a < b:
        return True
    if a >= b:
        return False
    raise UndecidedError
