"""What do the ops on lists of tensors compute?

`_foreach_f` applies f to the first tensor of every list, to the second of every list, and so on.
Arguments that are no lists are shared.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from numgeom.recording.references.entry import Definition

aten = torch.ops.aten


def _each(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """Turn f into `_foreach_f`."""

    def compute(*args: Any, **kwargs: Any) -> list[Tensor]:
        count = next(len(arg) for arg in args if isinstance(arg, (list, tuple)))
        return [
            function(*(arg[i] if isinstance(arg, (list, tuple)) else arg for arg in args), **kwargs)
            for i in range(count)
        ]

    return compute


def _each_with_scalars(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """Do as `_each` does, where the last argument is a tensor that holds one scalar per entry."""

    def compute(*args: Any) -> list[Tensor]:
        return _each(function)(*args[:-1], args[-1].unbind(0))

    return compute


def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return aten.addcmul.default(x, a, b, value=value)


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return aten.addcdiv.default(x, a, b, value=value)


def _addcmul_tensor(x: Tensor, a: Tensor, b: Tensor, value: Tensor) -> Tensor:
    return x + a * b * value.to(x.device)


def _addcdiv_tensor(x: Tensor, a: Tensor, b: Tensor, value: Tensor) -> Tensor:
    return x + a / b * value.to(x.device)


def _norm(x: Tensor, ord: float = 2, dtype: torch.dtype | None = None) -> Tensor:
    return aten.linalg_vector_norm.default(x, ord, None, False, dtype=dtype)


def _powsum(x: Tensor, ord: float = 2, dtype: torch.dtype | None = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    return x.abs().pow(ord).sum()


# Ops f of one tensor: `_foreach_f` is f on each.
_UNARY = (
    *("abs", "acos", "asin", "atan", "ceil", "clone", "cos", "cosh", "erf", "erfc", "exp", "expm1"),
    *("floor", "frac", "lgamma", "log", "log10", "log1p", "log2", "max", "neg", "reciprocal"),
    *("round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)

# The others: the overload of `_foreach_*`, and the function on one entry of each list.
_OTHERS: Mapping[str, Callable[..., Tensor]] = {
    "add.List": aten.add.Tensor,
    "add.Scalar": aten.add.Scalar,
    "add.ScalarList": aten.add.Scalar,
    "add.Tensor": aten.add.Tensor,
    "sub.List": aten.sub.Tensor,
    "sub.Scalar": aten.sub.Scalar,
    "sub.ScalarList": aten.sub.Scalar,
    "mul.List": aten.mul.Tensor,
    "mul.Scalar": aten.mul.Scalar,
    "mul.ScalarList": aten.mul.Scalar,
    "mul.Tensor": aten.mul.Tensor,
    "div.List": aten.div.Tensor,
    "div.Scalar": aten.div.Scalar,
    "div.ScalarList": aten.div.Scalar,
    "div.Tensor": aten.div.Tensor,
    "mm": aten.mm.default,
    "pow.List": aten.pow.Tensor_Tensor,
    "pow.Scalar": aten.pow.Tensor_Scalar,
    "pow.ScalarList": aten.pow.Tensor_Scalar,
    "pow.ScalarAndTensor": aten.pow.Scalar,
    "clamp_max.List": aten.clamp_max.Tensor,
    "clamp_max.Scalar": aten.clamp_max.default,
    "clamp_max.ScalarList": aten.clamp_max.default,
    "clamp_min.List": aten.clamp_min.Tensor,
    "clamp_min.Scalar": aten.clamp_min.default,
    "clamp_min.ScalarList": aten.clamp_min.default,
    "maximum.List": aten.maximum.default,
    "maximum.Scalar": aten.clamp_min.default,
    "maximum.ScalarList": aten.clamp_min.default,
    "minimum.List": aten.minimum.default,
    "minimum.Scalar": aten.clamp_max.default,
    "minimum.ScalarList": aten.clamp_max.default,
    "lerp.List": aten.lerp.Tensor,
    "lerp.Scalar": aten.lerp.Scalar,
    "lerp.ScalarList": aten.lerp.Scalar,
    "addcmul.Scalar": _addcmul,
    "addcmul.ScalarList": _addcmul,
    "addcdiv.Scalar": _addcdiv,
    "addcdiv.ScalarList": _addcdiv,
    "norm.Scalar": _norm,
    "powsum.Scalar": _powsum,
    "copy": aten.copy.default,
    "zero": aten.zeros_like.default,
}

_SOURCE = "the op of the same name on one tensor, torch documentation"
DEFINITIONS: tuple[Definition, ...] = (
    *(
        Definition(f"aten::_foreach_{name}", _each(getattr(aten, name).default), _SOURCE, True)
        for name in _UNARY
    ),
    *(
        Definition(f"aten::_foreach_{name}", _each(function), _SOURCE, True)
        for name, function in _OTHERS.items()
    ),
    Definition("aten::_foreach_addcmul.Tensor", _each_with_scalars(_addcmul_tensor), _SOURCE, True),
    Definition("aten::_foreach_addcdiv.Tensor", _each_with_scalars(_addcdiv_tensor), _SOURCE, True),
)
