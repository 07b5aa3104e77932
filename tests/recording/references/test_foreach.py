"""Is every op on lists of tensors the op of its name on each?"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tests.recording.references.agreement import assert_close, check, compute

aten = torch.ops.aten
SHAPES = [(3, 4), (5,), (), (2, 1, 3)]


def functional_foreach_ops() -> list[str]:
    """Every op on lists that the installed torch has, except those that write."""
    names = [
        schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aten::_foreach_")
        and not any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    ]
    assert len(names) >= 60
    return sorted(names)


# Where the entries of the tensors lie, if not in [0.3, 2]: inside the domain, away from poles.
RANGES = {
    **dict.fromkeys(("acos", "asin", "tan"), (-0.9, 0.9)),
    **dict.fromkeys(("abs", "neg", "sign", "exp", "sin", "tanh", "max", "norm"), (-2.0, 2.0)),
    **dict.fromkeys(("powsum", "clamp_min", "clamp_max", "maximum", "minimum"), (-2.0, 2.0)),
}
# What else the op takes, after the arguments without a default.
ORDERS: list[tuple[Any, ...]] = [(), (1,), (3,), (float("inf"),), (2, torch.float64)]
FURTHER: dict[str, list[tuple[Any, ...]]] = {
    "addcdiv.Scalar": [(), (0.3,)],
    "addcmul.Scalar": [(), (0.3,)],
    "norm.Scalar": ORDERS,
    "powsum.Scalar": ORDERS,
}
WITH_ALPHA = ("add.List", "add.Tensor", "sub.List")


def arguments(name: str, dtype: torch.dtype) -> list[Any]:
    """Draw the arguments without a default, by the types that the schema gives."""
    op, _, overload = name.removeprefix("aten::_foreach_").partition(".")
    low, high = RANGES.get(op, (0.3, 2.0))
    drawn: list[Any] = []
    for argument in torch._C._get_schema(f"aten::_foreach_{op}", overload).arguments:
        kind = str(argument.type)
        if argument.kwarg_only or argument.has_default_value():
            break
        if kind == "List[Tensor]" and op == "mm":
            drawn.append([torch.randn(n, n).to(dtype) for n in (2, 3)])
        elif kind == "List[Tensor]":
            drawn.append([(torch.rand(s) * (high - low) + low).to(dtype) for s in SHAPES])
        elif kind == "Tensor":  # one value for all, or one for each in addcmul and addcdiv
            drawn.append(torch.rand(len(SHAPES) if op.startswith("addc") else ()).to(dtype))
        elif kind.startswith("List["):
            drawn.append([0.4 + 0.3 * i for i in range(len(SHAPES))])
        else:
            drawn.append(0.6)
    return drawn


@pytest.mark.parametrize("name", functional_foreach_ops())
def test_foreach(name: str) -> None:
    short = name.removeprefix("aten::_foreach_")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        args = arguments(name, dtype)
        for further in FURTHER.get(short, [()]):
            check(name, *args, *further, terms=16)
        if short in WITH_ALPHA:
            check(name, *args, alpha=2, terms=16)


def test_copy_broadcasts_and_keeps_the_format_of_the_target() -> None:
    target, source = [torch.zeros(2, 3)], [torch.randn(3, dtype=torch.float64)]
    found = compute("aten::_foreach_copy", target, source)
    assert_close(found, aten._foreach_copy.default(target, source), bound=0)
    assert found[0].dtype == torch.float32


def test_clone_keeps_the_memory_format_that_is_asked_for() -> None:
    x = [torch.randn(2, 3).mT]
    found = compute("aten::_foreach_clone", x, memory_format=torch.contiguous_format)
    assert found[0].is_contiguous()


def test_lists_may_be_tuples_and_empty() -> None:
    pair: tuple[Tensor, ...] = (torch.ones(2), torch.ones(3))
    assert len(compute("aten::_foreach_sqrt", pair)) == 2
    assert compute("aten::_foreach_sqrt", []) == []


@pytest.mark.cuda
def test_cuda_kernels() -> None:
    for name in functional_foreach_ops():
        args = tree_map_only(Tensor, Tensor.cuda, arguments(name, torch.float32))
        for further in FURTHER.get(name.removeprefix("aten::_foreach_"), [()]):
            check(name, *args, *further, terms=16)
