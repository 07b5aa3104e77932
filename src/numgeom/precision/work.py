"""How much arithmetic does each module do, forward and backward?"""

from collections import Counter
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from numgeom.precision.noisy import op_name
from numgeom.recording import Program


def flops_by_module(program: Program) -> Counter[str]:
    """Count the floating-point operations of matrix products, convolutions and attention.

    Torch's own formulas (`torch.utils.flop_counter`), applied to the recorded calls. A call counts
    for the module that ran it, or, in the backward pass, whose call is differentiated.

    Args:
        program: A recorded step.

    Returns:
        Operations by module path; "" for calls outside of every submodule. Modules without such
        calls are missing.
    """
    found: Counter[str] = Counter()
    shapes: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            shapes[node] = torch.empty(program.constants[str(node.target)].shape, device="meta")
        elif node.op == "call_function" and "call" not in node.meta:  # a part of a call
            whole, index = node.args
            shapes[node] = shapes[whole][index]
        elif node.op == "call_function":
            shapes[node] = _results(node)
            if count := _flops(node, shapes):
                found[node.meta["call"].module] += count
    return found


def _flops(node: fx.Node, shapes: dict[fx.Node, Any]) -> int:
    args: Any = map_arg(node.args, shapes.__getitem__)
    name = op_name(node)
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return sdpa_flop_count(*(a.shape for a in args[:3]))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return sdpa_backward_flop_count(*(a.shape for a in args[:4]))
    target: Any = node.target
    formula = flop_registry.get(getattr(target, "overloadpacket", None))
    if formula is None:
        return 0
    kwargs: Any = map_arg(node.kwargs, shapes.__getitem__)
    return int(formula(*args, **kwargs, out_val=shapes[node]))


def _results(node: fx.Node) -> Any:
    """What a call gave, as tensors that have a shape and no entries; None for anything else."""
    parts: dict[int, Any] = {}
    for path, meta in node.meta["tensors"].items():
        tensor = torch.empty(meta.shape, device="meta")
        if not path:
            return tensor
        parts[path[0]] = tensor if len(path) == 1 else None
    return [parts.get(i) for i in range(max(parts, default=-1) + 1)]
