"""How much arithmetic does each module do, forward and backward?"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx
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

    def on_call(node: fx.Node, value: Any) -> None:
        shapes[node] = _shape_only(value)
        if "call" in node.meta:
            count = _flops(node, shapes)
            if count:
                found[node.meta["call"].module] += count

    program.replay(torch.float64, on_call=on_call)
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


def _shape_only(value: Any) -> Any:
    """The same structure without memory: tensors that have a shape and no entries."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_shape_only(part) for part in value)
    return value
