"""Are the functions that stand in for ops equal to them, and are they differentiable?"""

from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.ops.differentiable import DIFFERENTIABLE

aten = torch.ops.aten


def calls() -> dict[str, tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=torch.float64)

    x, dy, w, b = normal(3, 4, 5), normal(3, 4, 5), normal(5), normal(5)
    _, mean, rstd = aten.native_layer_norm(x, [5], w, b, 1e-5)
    gx, gdy, gw, gb = normal(2, 6, 3, 2), normal(2, 6, 3, 2), normal(6), normal(6)
    sizes = (2, 6, 6, 3)
    _, gmean, grstd = aten.native_group_norm(gx, gw, gb, *sizes, 1e-5)
    return {
        "native_layer_norm": (x, [5], w, b, 1e-5),
        "native_layer_norm_backward": (dy, x, [5], mean, rstd, w, b, [True, True, True]),
        "native_group_norm": (gx, gw, gb, *sizes, 1e-5),
        "native_group_norm_backward": (gdy, gx, gmean, grstd, gw, *sizes, [True, True, True]),
        "silu_backward": (normal(9), normal(9)),
        "mish_backward": (normal(9), normal(9)),
        "as_strided_scatter": (normal(20), normal(3, 2), [3, 2], [4, 1], 5),
    }


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_stand_in_is_equal_to_its_op(name: str) -> None:
    args = calls()[name]
    found, expected = DIFFERENTIABLE[name](*args), getattr(aten, name)(*args)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_stand_in_has_a_derivative_in_every_operand(name: str) -> None:
    args = calls()[name]
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    if name == "native_layer_norm_backward":
        places.remove(6)  # the bias does not matter

    def of(*operands: Tensor) -> Any:
        given = list(args)
        for i, operand in zip(places, operands, strict=True):
            given[i] = operand
        return DIFFERENTIABLE[name](*given)

    assert torch.autograd.gradcheck(of, [args[i].clone().requires_grad_() for i in places])
