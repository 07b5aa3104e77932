"""What is a call made from? Ways to read a program's graph backwards.

Calls that only move or cast numbers are seen through.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from numgeom.diagnosis.rederive import Values
from numgeom.diagnosis.trace import argument, op_name, traits

_NOTHING = fx.Graph().placeholder("nothing")


def source_of(node: Any) -> tuple[fx.Node, list[fx.Node]]:
    """The call that made the numbers, and the calls that moved or cast them since."""
    way: list[fx.Node] = []
    while isinstance(node, fx.Node) and traits(node).only_moves and node.args:
        way.append(node)
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return _NOTHING, []
    return node, way[::-1]


def along(way: list[fx.Node], value: Tensor, values: Values) -> Tensor:
    """Move or cast a value in the way that another one was."""
    for node in way:
        target: Any = node.target
        rest = map_arg(node.args[1:], lambda n: values[n])
        kwargs = dict(node.kwargs)
        if "dtype" in kwargs and value.dtype is torch.float64:
            kwargs["dtype"] = torch.float64
        value = target(value, *rest, **kwargs)
    return value


def is_one_minus(node: fx.Node) -> bool:
    """Whether a call is 1 - x."""
    return op_name(node) == "rsub" and is_number(argument(node, 1), 1.0) and not node.kwargs


def other_term(node: fx.Node, one: float = 1.0) -> fx.Node | None:
    """The x of x + 1, or of x - 1 with one = -1; None if the call is neither."""
    a, b = argument(node, 0), argument(node, 1)
    if node.kwargs:
        return None
    if op_name(node) == "add" or (op_name(node) == "sub" and one < 0):
        wanted = one if op_name(node) == "add" else -one
        if isinstance(a, fx.Node) and is_number(b, wanted):
            return a
        if isinstance(b, fx.Node) and is_number(a, wanted) and op_name(node) == "add":
            return b
    return None


def is_number(value: Any, wanted: float) -> bool:
    """Whether an argument is this number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == wanted


def same(a: Any, b: Any, depth: int = 3) -> bool:
    """Whether two nodes hold the same number: one node, or the same calls of the same."""
    if a is b:
        return True
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return type(a) is type(b) and a == b
    if depth == 0 or not op_name(a) or a.target is not b.target or a.kwargs != b.kwargs:
        return False
    pairs = zip(a.args, b.args, strict=False)
    return len(a.args) == len(b.args) and all(same(x, y, depth - 1) for x, y in pairs)


def squared(node: fx.Node) -> fx.Node | None:
    """The x of x * x or x ** 2."""
    if op_name(node) == "mul" and same(argument(node, 0), argument(node, 1)):
        return argument(node, 0)
    if op_name(node) == "pow" and is_number(argument(node, 1), 2.0):
        return argument(node, 0)
    return argument(node, 0) if op_name(node) == "square" else None


def reduced(node: fx.Node) -> tuple[list[int] | None, bool]:
    """Dimensions and keepdim of a sum or mean; None for all dimensions."""
    dims = argument(node, 1)
    given = argument(node, 2)
    keep = bool(node.kwargs.get("keepdim", False)) if given is None else bool(given)
    if not isinstance(dims, (list, tuple)) or not dims:
        return None, keep
    return [int(d) for d in dims if isinstance(d, int)], keep


def is_bounded_above(x: Any) -> bool:
    """Whether an exponent was shifted by a maximum, clamped, or cannot be large."""
    source, _ = source_of(x)
    if op_name(source) in ("clamp", "clamp_max", "minimum", "hardtanh", "log_sigmoid_forward"):
        return True
    if op_name(source) in ("_log_softmax", "tanh", "sigmoid"):
        return True
    if op_name(source) == "neg":
        inner = source_of(argument(source, 0))[0]
        return op_name(inner) in ("abs", "relu", "square", "softplus", "exp") or (
            op_name(inner) == "pow" and is_number(argument(inner, 1), 2.0)
        )
    if op_name(source) not in ("sub", "add"):
        return False
    return any(_has_maximum(a) for a in source.args[:2])


def _has_maximum(node: Any) -> bool:
    source, _ = source_of(node)
    while source is not _NOTHING and source.op == "call_function" and not op_name(source):
        source = source.all_input_nodes[0]  # a part of a call with several outputs
    if op_name(source) == "neg":
        return _has_maximum(argument(source, 0))
    if op_name(source) in ("masked_fill", "where"):  # torch.logsumexp keeps -inf maxima out
        return any(_has_maximum(a) for a in source.all_input_nodes)
    return traits(source).largest
