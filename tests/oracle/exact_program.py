"""Evaluate an opened program in arbitrary precision: what is its exact gradient?

Independent of the package: every op is written out here on Arb balls (python-flint), entry by
entry. Movement of entries is found by moving their numbers instead. An op that is missing here
raises; nothing is guessed.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import flint
import numpy as np
import torch
from flint import arb
from torch import Tensor, fx

from numgeom.recording import Program
from tests.oracle.exact_ops import SPECIAL
from tests.oracle.numbers import (
    Numbers,
    UndecidedError,
    is_less,
    mapped,
    numbered,
    numbers,
    to_numbers,
)


def exact_gradients(program: Program, bits: int = 200) -> dict[str, Numbers]:
    """Exact gradients of an opened program as arrays of Arb balls (tiny radii)."""
    before = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        return _run(program)
    finally:
        flint.ctx.prec = before


def _run(program: Program) -> dict[str, Numbers]:
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            tensor = program.constants[str(node.target)]
            values[node] = to_numbers(tensor) if tensor.is_floating_point() else tensor
        elif node.op == "output":
            return {k: values[n] for k, n in node.args[0]["gradients"].items()}
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        else:
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            values[node] = _call(node.target, list(args), dict(kwargs))
    raise AssertionError("no output")


def contains(numbers: Numbers, middle: Tensor, radius: Tensor) -> float:
    """Largest |exact - middle| / radius over all entries; above 1 means a violation."""
    worst = 0.0
    m, r = middle.reshape(-1).tolist(), radius.reshape(-1).tolist()
    for exact, x, dx in zip(numbers.reshape(-1), m, r, strict=True):
        if math.isinf(dx):
            continue
        distance = abs(exact - arb(x))
        if dx == 0:
            # the ball of the oracle must not touch a violation: an exact value has radius 0
            if not (distance.is_exact() and distance == 0) and not distance < arb(2) ** -150:
                return math.inf
            continue
        ratio = float((distance / arb(dx)).upper())
        worst = max(worst, ratio)
    return worst


# -- dispatch ----------------------------------------------------------------------------


def _call(op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    name = op._opname
    if name == "real_number":
        return SPECIAL[name](*args, **kwargs)
    if not any(isinstance(a, np.ndarray) for a in _leaves([args, kwargs])):
        out = op(*args, **kwargs)
        return to_numbers(out) if isinstance(out, Tensor) and out.is_floating_point() else out
    if name in _MOVES:
        return _move(op, args, kwargs)
    if name in SPECIAL:
        return SPECIAL[name](*args, **kwargs)
    if name in _UNARY:
        return mapped(_UNARY[name], args[0])
    if name in _BINARY:
        scale = kwargs.get("alpha", 1)
        other = args[1] if scale == 1 else mapped(lambda v: v * arb(scale), numbers(args[1]))
        return mapped(_BINARY[name], numbers(args[0]), numbers(other))
    if name in _COMPARE:
        return _decide(_COMPARE[name], numbers(args[0]), numbers(args[1]))
    raise NotImplementedError(f"the oracle does not know {op}")


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in _leaves(item)]
    if isinstance(tree, dict):
        return _leaves(list(tree.values()))
    return [tree]


def _decide(f: Callable[[arb, arb], Any], a: Numbers, b: Numbers) -> Tensor:
    wide = np.broadcast_arrays(a, b)
    found = [f(x, y) for x, y in zip(*(w.reshape(-1) for w in wide), strict=True)]
    return torch.tensor(found, dtype=torch.bool).reshape(wide[0].shape)


def _take(x: Numbers, ids: Tensor) -> Numbers:
    out = np.empty(tuple(ids.shape), dtype=object)
    flat = x.reshape(-1)
    out.reshape(-1)[:] = [flat[i] for i in ids.reshape(-1).tolist()]
    return out


def _move(op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Apply a movement op to the entries' numbers, and fetch the entries."""
    moved = op(numbered(args[0]), *args[1:], **kwargs)
    if isinstance(moved, Tensor):
        return _take(args[0], moved)
    return [_take(args[0], part) for part in moved]


_MOVES = frozenset(
    {
        "clone",
        "diagonal",
        "expand",
        "flip",
        "gather",
        "index",
        "index_select",
        "permute",
        "repeat",
        "reshape",
        "select",
        "slice",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unfold",
        "unsqueeze",
        "view",
    }  # fmt: skip
)

_UNARY: dict[str, Callable[[arb], arb]] = {
    "neg": lambda x: -x,
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "log1p": lambda x: x.log1p(),
    "expm1": lambda x: x.expm1(),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "erf": lambda x: x.erf(),
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": lambda x: 1 / x.sqrt(),
    "reciprocal": lambda x: 1 / x,
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "abs": abs,
    "relu": lambda x: x if is_less(arb(0), x) else arb(0),
}


def _is_equal(a: arb, b: arb) -> bool:
    if not b.is_finite():  # a mask
        return not a.is_finite() and float(a.mid()) == float(b.mid())
    if a.is_exact() and b.is_exact():
        return bool(a == b)
    if a < b or a > b:
        return False
    raise UndecidedError


_BINARY: dict[str, Callable[[arb, arb], arb]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "maximum": lambda a, b: b if is_less(a, b) else a,
    "minimum": lambda a, b: a if is_less(a, b) else b,
}
_COMPARE: dict[str, Callable[[arb, arb], bool]] = {
    "lt": is_less,
    "gt": lambda a, b: is_less(b, a),
    "le": lambda a, b: not is_less(b, a),
    "ge": lambda a, b: not is_less(a, b),
    "eq": _is_equal,
    "ne": lambda a, b: not _is_equal(a, b),
}
