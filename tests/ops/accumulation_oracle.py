"""What do ops give that add entries to each other's places?

Torch moves one entry at a time, with weight 1, and Arb adds up; see `tests.ops.laws`.
"""

import itertools
from typing import Any

import numpy as np
import torch
from flint import arb

from tests.ops.choice_oracle import extreme
from tests.ops.laws import Oracle
from tests.ops.movement_oracle import array, moved
from tests.ops.slices import total
from tests.ops.sums_oracle import mean

aten = torch.ops.aten


def accumulated(name: str, data: tuple[int, ...] = (0,)) -> Oracle:
    """Sums of the entries that go to one place: torch moves one entry at a time."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
        given = [
            [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in a]
            if isinstance(a, list)
            else torch.from_numpy(a)
            if isinstance(a, np.ndarray) and a.dtype != object
            else torch.zeros(a.shape, dtype=torch.float64)
            if isinstance(a, np.ndarray)
            else a
            for a in args
        ]
        y: Any = None
        for position in data:
            for at, entry in np.ndenumerate(args[position]):
                one = list(given)
                one[position] = given[position].clone()
                one[position][at] = 1.0
                weights = getattr(aten, name)(*one, **kwargs)
                y = (
                    array(itertools.repeat(arb(0), weights.numel()), weights.shape)
                    if y is None
                    else y
                )
                for o in torch.nonzero(weights).tolist():
                    y[tuple(o)] += arb(weights[tuple(o)].item()) * entry
        return y

    return oracle


def index_add(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    """Alpha is not a float64 number times 1: take it out."""
    alpha = arb(kwargs.get("alpha", 1))
    scaled = array((alpha * v for v in args[3].reshape(-1)), args[3].shape)
    return accumulated("index_add", (0, 3))((*args[:3], scaled), {})


def index_put(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    name = "index_put"
    if len(args) > 3:
        return accumulated(name, (0, 2))(args, kwargs)
    return moved(name, (0, 2))(args, kwargs)


def scatter_reduce(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    x, dim, index, src, how = args
    terms = np.empty(x.shape, dtype=object)
    for at in np.ndindex(*x.shape):
        terms[at] = [x[at]] if kwargs.get("include_self", True) else []
    for at in np.ndindex(*index.shape):
        to = list(at)
        to[dim] = index[at]
        terms[tuple(to)].append(src[at])
    f = {"sum": total, "mean": mean, "amax": lambda v: extreme(v)[0]}.get(
        how, lambda v: extreme(v, largest=False)[0]
    )
    flat = [f(v) if v else x[at] for at, v in np.ndenumerate(terms)]
    return array(flat, x.shape)


def embedding_dense_backward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    g, indices, count, padding, by_frequency = args
    y = array(itertools.repeat(arb(0), count * g.shape[-1]), (count, g.shape[-1]))
    for at, word in np.ndenumerate(indices):
        if word != padding:
            frequency = int((indices == word).sum()) if by_frequency else 1
            for k in range(g.shape[-1]):
                y[word, k] += g[(*at, k)] / frequency
    return y


ACCUMULATION: dict[str, Oracle] = {
    **{
        f"{kind}{n}d_backward": accumulated(f"{kind}{n}d_backward")
        for kind in ("upsample_nearest", "_upsample_nearest_exact")
        for n in (1, 2, 3)
    },
    **{
        f"{name}_backward": accumulated(f"{name}_backward")
        for name in (
            "max_pool2d_with_indices",
            "max_pool3d_with_indices",
            "adaptive_max_pool2d",
            "adaptive_max_pool3d",
        )
    },
    "scatter_add": accumulated("scatter_add", (0, 3)),
    "index_add": index_add,
    "index_put": index_put,
    "_unsafe_index_put": index_put,
    "scatter_reduce": scatter_reduce,
    "embedding_dense_backward": embedding_dense_backward,
    "unfold_backward": accumulated("unfold_backward"),
    "col2im": accumulated("col2im"),
    **{
        name: accumulated(name)
        for n in (1, 2, 3)
        for name in (f"reflection_pad{n}d_backward", f"replication_pad{n}d_backward")
    },
}
