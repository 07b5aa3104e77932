"""Where do ops that only move or create entries put them?

Torch moves the numbers of the entries (1, 2, ...; 0 for what is filled in), and the oracle looks
the entries up. Oracles get and return arrays of Arb numbers; see `tests.ops.laws`.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from flint import arb

from numgeom.ops.exact import EXACT
from tests.ops.laws import Oracle

aten = torch.ops.aten


def array(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of objects, from a flat sequence."""
    result = np.empty(shape, dtype=object)
    out = result.reshape(-1)
    for i, value in enumerate(values):
        out[i] = value
    return result


def moved(
    name: str, data: tuple[int, ...] = (0,), constants: tuple[tuple[int, str], ...] = ()
) -> Oracle:
    """The entries, where torch puts their numbers."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entries: list[Any] = [arb(0)]  # number 0: what is filled in
        new, options = list(args), dict(kwargs)

        def number(x: np.ndarray) -> torch.Tensor:
            start = len(entries)
            entries.extend(x.reshape(-1).tolist())
            ids = torch.arange(start, start + x.size, dtype=torch.float64)
            return ids.reshape(x.shape)

        for position, name_of in constants:
            if position < len(new):
                entries[0], new[position] = arb(new[position]), 0.0
            elif name_of in options:
                entries[0], options[name_of] = arb(options[name_of]), 0.0
        for position, value in enumerate(args):
            if position in data:
                several = isinstance(value, list)
                new[position] = [number(v) for v in value] if several else number(value)
            elif isinstance(value, np.ndarray):
                new[position] = torch.from_numpy(np.asarray(value))
            elif isinstance(value, list):
                new[position] = [
                    torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in value
                ]
        ids = getattr(aten, name)(*new, **options)
        return _looked_up(ids, entries)

    return oracle


def _looked_up(ids: Any, entries: list[Any]) -> Any:
    if isinstance(ids, (tuple, list)):
        return tuple(_looked_up(i, entries) for i in ids)
    if not ids.is_floating_point():
        return ids.numpy()
    return array((entries[int(i)] for i in ids.reshape(-1).tolist()), tuple(ids.shape))


def where(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    return np.where(args[0], numbers(args[1]), numbers(args[2]))


def masked_fill(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    return np.where(args[1], numbers(args[2]), args[0])


def numbers(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return array((v if isinstance(v, arb) else arb(int(v)) for v in value.flat), value.shape)
    return array([arb(value)], ())


def index_fill(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    x, dim, index, value = args
    y = x.copy()
    at: list[Any] = [slice(None)] * x.ndim
    at[dim] = index
    y[tuple(at)] = value[()] if isinstance(value, np.ndarray) else arb(value)
    return y


def constant(value: float, shape: Any) -> np.ndarray:
    return array(itertools.repeat(arb(value), math.prod(shape)), tuple(shape))


def arange(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    start, end, step = args if len(args) == 3 else (*args, 1) if len(args) == 2 else (0, *args, 1)
    if all(isinstance(a, int) for a in args):
        return np.arange(start, end, step)
    count = math.ceil((end - start) / step)
    return array((arb(start) + i * arb(step) for i in range(count)), (count,))


def linspace(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    start, end, n = arb(args[0]), arb(args[1]), args[2]
    return array((start + i * (end - start) / (n - 1) for i in range(n)), (n,))


def truths(x: np.ndarray) -> np.ndarray:
    flat = [not (v == 0) for v in x.reshape(-1)]  # noqa: SIM201 - Arb has its own !=
    return np.array(flat, bool).reshape(x.shape)


def cast(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    """To real numbers, to integers (towards zero), or to booleans."""
    x, dtype = args[0], kwargs["dtype"]
    if dtype is torch.bool:
        return truths(x)
    if dtype.is_floating_point:
        return numbers(x)
    return array((truncated(v) for v in x.reshape(-1)), x.shape)


def copy(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    target, x = args
    x = np.broadcast_to(x, target.shape)
    return numbers(x) if target.dtype == object else array(map(truncated, x.reshape(-1)), x.shape)


def truncated(v: arb) -> int:
    return int((v.floor() if v >= 0 else v.ceil()).unique_fmpz())


_DATA = {
    "slice_scatter": (0, 1),
    "select_scatter": (0, 1),
    "diagonal_scatter": (0, 1),
    "as_strided_scatter": (0, 1),
}


MOVEMENT: dict[str, Oracle] = {
    **{op.name: moved(op.name, _DATA.get(op.name, (0,))) for op in EXACT},
    "constant_pad_nd": moved("constant_pad_nd", (0,), ((2, "value"),)),
    **{
        name: moved(name)
        for name in (
            "gather",
            "index_select",
            "index",
            "_unsafe_index",
            "embedding",
            "take",
            "masked_select",
            *(
                f"{kind}{n}d"
                for kind in ("upsample_nearest", "_upsample_nearest_exact")
                for n in (1, 2, 3)
            ),
        )
    },
    "where": where,
    "masked_fill": masked_fill,
    "masked_scatter": moved("masked_scatter", (0, 2)),
    "_to_copy": cast,
    "copy": copy,
    "index_fill": index_fill,
    "nonzero": lambda args, kwargs: np.argwhere(truths(args[0])),
    "full": lambda args, kwargs: constant(args[1], args[0]),
    "zeros": lambda args, kwargs: constant(0, args[0]),
    "ones": lambda args, kwargs: constant(1, args[0]),
    "full_like": lambda args, kwargs: constant(args[1], args[0].shape),
    "zeros_like": lambda args, kwargs: constant(0, args[0].shape),
    "ones_like": lambda args, kwargs: constant(1, args[0].shape),
    "new_full": lambda args, kwargs: constant(args[2], args[1]),
    "new_zeros": lambda args, kwargs: constant(0, args[1]),
    "new_ones": lambda args, kwargs: constant(1, args[1]),
    "_efficientzerotensor": lambda args, kwargs: constant(0, args[0]),
    "scalar_tensor": lambda args, kwargs: constant(args[0], ()),
    "numgeom::real_number": lambda args, kwargs: array([arb(args[0]) + arb(args[1])], ()),
    "eye": lambda args, kwargs: numbers(np.eye(*args, dtype=int)),
    "tril_indices": lambda args, kwargs: np.stack(np.tril_indices(args[0], 0, args[1])),
    "triu_indices": lambda args, kwargs: np.stack(np.triu_indices(args[0], 0, args[1])),
    "arange": arange,
    "linspace": linspace,
    "index_copy": moved("index_copy", (0, 3)),
    "scatter": lambda a, k: moved(
        "scatter",
        (0, 3) if isinstance(a[3], np.ndarray) else (0,),
        ((3, "value"),) * (not isinstance(a[3], np.ndarray)),
    )(a, k),
}
