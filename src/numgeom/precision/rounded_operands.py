"""How is a format emulated that no kernel runs in?

Inside the mode, matrix products, convolutions and attention get operands that are rounded to the
format, and so do their derivatives: the rounded operands are what the backward pass reads, and the
gradient that comes in is rounded too. Sums stay in the format of the tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from numgeom.arithmetic.formats import Format
from numgeom.precision.rounding import round_operand

# Operands are rounded: these are sums of products. Of multi_head_attention_forward, which hides
# its products, the inputs and weights are.
_PRODUCTS: frozenset[Any] = frozenset({
    F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d,
    F.conv_transpose3d, F.scaled_dot_product_attention, F.multi_head_attention_forward,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.mv, torch.einsum,
    torch.dot, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm, Tensor.mv,
    Tensor.__matmul__, Tensor.__rmatmul__,
})  # fmt: skip


class RoundedOperands(TorchFunctionMode):
    """Rounds operands to the format on top of a stack; None there: leaves them.

    Args:
        formats: The stack; the caller pushes and pops.
    """

    def __init__(self, formats: Sequence[Format | None]) -> None:
        """Keep the stack."""
        super().__init__()
        self._formats = formats

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function, with rounded operands where it is a product."""
        del types
        kwargs = dict(kwargs or {})
        fmt = self._formats[-1] if self._formats else None
        if fmt is None or func not in _PRODUCTS:
            return func(*args, **kwargs)
        if func in _BIASED:
            return _without_bias(func, args, kwargs, fmt)
        args = [_rounded(a, fmt) for a in args]
        return _with_rounded_gradient(
            func(*args, **{key: _rounded(a, fmt) for key, a in kwargs.items()}), fmt
        )


# Functions (input, weight, bias=None, ...): the bias is added in the format of the sums.
_BIASED: frozenset[Any] = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d})


def _without_bias(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], fmt: Format
) -> Any:
    bias = kwargs.pop("bias", None)
    if len(args) > 2:
        bias, args = args[2], [*args[:2], None, *args[3:]]
    args = [_rounded(a, fmt) for a in args]
    y = func(*args, **{key: _rounded(a, fmt) for key, a in kwargs.items()})
    y = _with_rounded_gradient(y, fmt)
    if bias is None:
        return y
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    spatial = 0 if func is F.linear else weight.dim() - 2
    return y + bias.reshape(-1, *[1] * spatial)


def _rounded(value: Any, fmt: Format) -> Any:
    if isinstance(value, Tensor) and value.dtype is torch.float32:
        return _Round.apply(value, fmt)
    return value


def _with_rounded_gradient(value: Any, fmt: Format) -> Any:
    if isinstance(value, Tensor):
        return _RoundGradient.apply(value, fmt)
    if isinstance(value, tuple):
        return tuple(_with_rounded_gradient(part, fmt) for part in value)
    return value


class _Round(torch.autograd.Function):
    """Rounds forward; the derivative is that of the identity."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, fmt: Format) -> Tensor:
        del ctx
        return round_operand(value, fmt)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx
        return gradients[0], None


class _RoundGradient(torch.autograd.Function):
    """The identity forward; rounds the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, fmt: Format) -> Tensor:
        ctx.fmt = fmt
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return round_operand(gradients[0], ctx.fmt), None
