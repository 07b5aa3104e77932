"""Which calls stand on a kink that no selection reaches?

Selections know the kinks of activations, maxima, clamps, pools and norms. Other ops have kinks as
well: `sort`, `topk`, `median`, `cummax`, `cdist`, `scatter_reduce`, roundings. Where one of them
stands exactly on its kink, between the parameters and the loss, nothing is claimed of its
derivative, and this is said. A comparison (or an `argmax`) in the user's code is no function with
a kink but a branch of the program: it is taken as it went.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from numgeom.nonsmooth.paths import between_parameters_and_loss
from numgeom.nonsmooth.selection import KINKS
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.selection import op_name
from numgeom.ops.table import OPS, kinks_of
from numgeom.recording import Program

# The least radius: a branch that it can change is a tie, for no two different numbers of a
# narrower format are so close.
_LEAST = 2.0**-1074


@dataclass(frozen=True)
class Candidate:
    """A forward call between parameters and loss whose op may have kinks of its own.

    Attributes:
        node: The call.
        moving: What it is computed from that depends on the parameters.
    """

    node: fx.Node
    moving: frozenset[fx.Node]


def without_rule(program: Program) -> list[Candidate]:
    """The calls that may stand on a kink that no selection reaches."""
    path = between_parameters_and_loss(program)
    return [
        Candidate(node, frozenset(path.intersection(node.all_input_nodes)))
        for node in program.calls
        if node in path
        and node.meta["call"].phase == "forward"
        and _has_numbers(node)
        and _may_have_kinks(node)
    ]


def is_tied(candidate: Candidate, values: Mapping[fx.Node, Any]) -> bool:
    """Whether a call stands on a kink; also True where that cannot be told.

    Args:
        candidate: One of `without_rule`.
        values: Values of the call and of what it is computed from.
    """
    node = candidate.node
    target: Any = node.target
    op = OPS.lookup(target)
    if op is None:
        return True
    if op.name == "hypot":  # a norm: no branch, but a cone at the origin
        return bool((values[node] == 0).any())
    args: Any = map_arg(node.args, values.__getitem__)
    kwargs: Any = map_arg(node.kwargs, values.__getitem__)

    def radius(given: Any) -> Any:
        if isinstance(given, (tuple, list)):
            return [radius(item) for item in given]
        return _least(values[given]) if given in candidate.moving else None

    radii: dict[int | str, Any] = dict(enumerate(map(radius, node.args)))
    radii |= {name: radius(given) for name, given in node.kwargs.items()}
    call = Evaluation(
        op.name,
        tuple(map(_wide, args)),
        {name: _wide(value) for name, value in kwargs.items()},
        _wide(values[node]),
        radii,
    )
    return not op.applies_to(call) or _any(op.doubt_of(call))


def _has_numbers(node: fx.Node) -> bool:
    """Whether an output is a floating-point number; a decision has none."""
    return any(meta.dtype.is_floating_point for meta in node.meta["tensors"].values())


def _may_have_kinks(node: fx.Node) -> bool:
    target: Any = node.target
    name = op_name(target)
    op: Op | None = OPS.lookup(target)
    if name in KINKS:
        return False
    if op is None and target.namespace != "aten":
        return True
    kinks = kinks_of(name) if op is None else op.kinks  # without either: opened into others
    return kinks is not None and kinks.order == 1 and kinks.may_occur(node.args, node.kwargs)


def _any(doubt: Any) -> bool:
    if isinstance(doubt, (tuple, list)):
        return any(map(_any, doubt))
    return doubt is not None and bool(doubt.any())


def _least(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    return torch.full_like(value, _LEAST, dtype=torch.float64)


def _wide(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_wide, value))
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value
