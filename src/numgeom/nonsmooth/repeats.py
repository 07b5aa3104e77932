"""Which backward-phase calls of a recorded step only repeat its forward pass?

Activation checkpointing runs parts of the forward pass again while the backward pass runs. What it
computes is the forward pass's, and belongs to it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from numgeom.recording import Program


def repeated_calls(program: Program) -> dict[fx.Node, fx.Node]:
    """Find the backward-phase calls that repeat a forward call on the same values.

    Calls are pure, so equal ops on equal arguments are equal values. Random draws that a
    recomputation repeated are constants of equal content.
    """
    first: dict[Any, fx.Node] = {}
    same: dict[fx.Node, fx.Node] = {}  # also for forward calls, so that chains are recognised
    drawn: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.op == "get_attr":
            tensor = program.constants[str(node.target)]
            for other in drawn:
                if _equal(program.constants[str(other.target)], tensor):
                    same[node] = other
                    break
            if node.meta["role"] == "drawn":
                drawn.append(node)
        elif node.op == "call_function":
            key = (node.target, _key(node.args, same), _key(node.kwargs, same))
            if key in first:
                same[node] = first[key]
            elif not _is_backward(node):
                first[key] = node
    return {node: other for node, other in same.items() if _is_backward(node)}


def _is_backward(node: fx.Node) -> bool:
    """Whether a call, or the call that a value is a part of, ran in the backward phase."""
    while node.op == "call_function" and "call" not in node.meta:
        source: Any = node.args[0]
        node = source
    return node.op == "call_function" and node.meta["call"].phase != "forward"


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _key(tree: Any, origin: Mapping[fx.Node, fx.Node]) -> Any:
    if isinstance(tree, fx.Node):
        return origin.get(tree, tree)
    if isinstance(tree, (list, tuple)):
        return tuple(_key(item, origin) for item in tree)
    if isinstance(tree, dict):
        return tuple((name, _key(item, origin)) for name, item in sorted(tree.items()))
    return (type(tree), str(tree))
