"""Do the references of the fused optimizer steps agree with the kernels and with `torch.optim`?"""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from numgeom.recording.references import overload
from tests.recording.references.agreement import assert_close, check, compute, reference

SHAPES = [(3, 4), (5,), (1,)]
FORMATS = [torch.float64, torch.float32, torch.bfloat16]


def draw(dtype: torch.dtype, *, positive: bool = False) -> list[Tensor]:
    tensors = [torch.randn(shape) for shape in SHAPES]
    return [(t.square() + 0.1 if positive else t).to(dtype) for t in tensors]


# Scaled and broken gradients.
SCALING: list[dict[str, Tensor]] = [
    {},
    {"grad_scale": torch.tensor(4.0)},
    {"grad_scale": torch.tensor(4.0), "found_inf": torch.tensor(0.0)},
    {"grad_scale": torch.tensor(4.0), "found_inf": torch.tensor(1.0)},
    {"found_inf": torch.tensor(1.0)},
]
# maximize, weight decay, number of the step.
MODES = [(False, 0.0, 1.0), (True, 0.3, 7.0), (False, 0.3, 7.0)]
# momentum, Nesterov, first step.
MOMENTA = [
    (0.0, False, False),
    (0.8, False, False),
    (0.8, False, True),
    (0.8, True, False),
    (0.8, True, True),
]


def rate(name: str) -> float | Tensor:
    return torch.tensor(0.01) if name.endswith(".tensor_lr") else 0.01


def agree(name: str, *args: Any, dtype: torch.dtype, **kwargs: Any) -> None:
    """Compare with the kernel. Rates and counts come in float32, which rounds none of them."""
    check(name, *args, terms=16, spacing=torch.finfo(dtype).eps, **kwargs)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("overload", ["", ".tensor_lr"])
@pytest.mark.parametrize("op", ["_fused_adam", "_fused_adamw"])
def test_fused_adam(op: str, overload: str, dtype: torch.dtype) -> None:
    name = f"aten::{op}{overload}"
    for amsgrad, (maximize, decay, count), scaling in product((False, True), MODES, SCALING):
        states = (draw(dtype), draw(dtype), draw(dtype), draw(dtype, positive=True))
        largest = draw(dtype, positive=True) if amsgrad else []
        agree(
            *(name, *states, largest, [torch.tensor(count) for _ in SHAPES]),
            lr=rate(name),
            beta1=0.9,
            beta2=0.95,
            weight_decay=decay,
            eps=1e-3,
            amsgrad=amsgrad,
            maximize=maximize,
            dtype=dtype,
            **scaling,
        )


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", ["aten::_fused_sgd", "aten::_fused_sgd.tensor_lr"])
def test_fused_sgd(name: str, dtype: torch.dtype) -> None:
    for (momentum, nesterov, first), (maximize, decay, _), scaling in product(
        MOMENTA, MODES, SCALING
    ):
        agree(
            *(name, draw(dtype), draw(dtype), draw(dtype) if momentum else []),
            weight_decay=decay,
            momentum=momentum,
            lr=rate(name),
            dampening=0.0 if nesterov else 0.4,
            nesterov=nesterov,
            maximize=maximize,
            is_first_step=first,
            dtype=dtype,
            **scaling,
        )


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", ["aten::_fused_adagrad", "aten::_fused_adagrad.tensor_lr"])
def test_fused_adagrad(name: str, dtype: torch.dtype) -> None:
    for (maximize, decay, count), scaling in product(MODES, SCALING):
        agree(
            *(name, draw(dtype), draw(dtype), draw(dtype, positive=True)),
            [torch.tensor(count) for _ in SHAPES],
            lr=rate(name),
            lr_decay=0.1,
            weight_decay=decay,
            eps=1e-3,
            maximize=maximize,
            dtype=dtype,
            **scaling,
        )


class Before(TorchDispatchMode):
    """Keeps what an op is called with, as it was before the op wrote."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.op = overload(name)
        self.seen: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is self.op:
            self.seen.append(tree_map_only(Tensor, Tensor.clone, (args, kwargs)))
        return func(*args, **kwargs)


Make = Callable[[list[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: list[tuple[str, Make, Make]] = [
    (
        "aten::_fused_adam_",
        lambda p: torch.optim.Adam(p, fused=True, amsgrad=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, foreach=False, amsgrad=True, weight_decay=0.1),
    ),
    (
        "aten::_fused_adamw_",
        lambda p: torch.optim.AdamW(p, fused=True),
        lambda p: torch.optim.AdamW(p, foreach=False),
    ),
    (
        "aten::_fused_sgd_",
        lambda p: torch.optim.SGD(p, fused=True, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, foreach=False, momentum=0.9, nesterov=True),
    ),
    (
        "aten::_fused_adagrad_",
        lambda p: torch.optim.Adagrad(p, fused=True, lr_decay=0.1),
        lambda p: torch.optim.Adagrad(p, foreach=False, lr_decay=0.1),
    ),
]


@pytest.mark.parametrize(("name", "fused", "plain"), OPTIMIZERS)
def test_steps_are_those_of_the_plain_optimizer(name: str, fused: Make, plain: Make) -> None:
    values = draw(torch.float64)
    one, two = ([v.clone().requires_grad_() for v in values] for _ in range(2))
    fused_optimizer, plain_optimizer = fused(one), plain(two)
    for _ in range(3):
        for a, b in zip(one, two, strict=True):
            b.grad = torch.randn_like(b)
            a.grad = b.grad.clone()
        with Before(name) as before:
            fused_optimizer.step()
        plain_optimizer.step()
        ((args, kwargs),) = before.seen
        found = compute(name.removesuffix("_"), *args, **kwargs)
        assert_close(found[0], [p.detach() for p in two], bound=1e-13)


@pytest.mark.parametrize("dtype", FORMATS)
def test_unscaling_gradients(dtype: torch.dtype) -> None:
    name = "aten::_amp_foreach_non_finite_check_and_unscale"
    found, inverse = torch.tensor(0.0), torch.tensor(0.25)
    broken = [torch.tensor([1.0, torch.inf]).to(dtype), torch.tensor([torch.nan]).to(dtype)]
    agree(name, draw(dtype), found, inverse, dtype=dtype)
    agree(name, draw(dtype) + broken[:1], found, inverse, dtype=dtype)
    agree(name, broken[1:], found, inverse, dtype=dtype)
    agree(name, draw(dtype), torch.tensor(1.0), inverse, dtype=dtype)
    with_inverse_one = compute(name, draw(dtype) + broken[:1], found, torch.tensor(1.0))
    assert with_inverse_one[1] == 1


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_updating_the_loss_scale(interval: int) -> None:
    name = "aten::_amp_update_scale"
    for scale, count, broken in product((8.0, 3e38), (0, 1, 4), (0.0, 1.0)):
        state = torch.tensor(scale), torch.tensor(count, dtype=torch.int32), torch.tensor(broken)
        found = compute(name, *state, 2.0, 0.5, interval)
        kernel = reference(name).op(*state, 2.0, 0.5, interval)
        assert_close(found, kernel, bound=0)
        assert [t.dtype for t in found] == [t.dtype for t in kernel]


@pytest.mark.cuda
@pytest.mark.parametrize("maximize", [False, True])
def test_cuda_kernels(maximize: bool) -> None:
    def on_cuda(tensors: list[Tensor]) -> list[Tensor]:
        return [t.cuda() for t in tensors]

    dtype = torch.float32
    states = [on_cuda(draw(dtype)) for _ in range(3)]
    squares, counts = on_cuda(draw(dtype, positive=True)), on_cuda([torch.tensor(3.0)] * 3)
    scaling = {"grad_scale": torch.tensor(4.0).cuda(), "found_inf": torch.tensor(0.0).cuda()}
    common: dict[str, Any] = {"weight_decay": 0.1, "maximize": maximize, "dtype": dtype, **scaling}
    adam = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "amsgrad": True}
    for name in ("aten::_fused_adam", "aten::_fused_adamw"):
        agree(name, *states, squares, squares, counts, **adam, **common)
    sgd = {"momentum": 0.9, "lr": 0.01, "dampening": 0.1, "nesterov": False, "is_first_step": False}
    agree("aten::_fused_sgd", *states, **sgd, **common)
    name = "aten::_amp_foreach_non_finite_check_and_unscale"
    agree(name, states[0], scaling["found_inf"], scaling["grad_scale"], dtype=dtype)
