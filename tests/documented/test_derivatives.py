"""Second derivatives, forward-mode derivatives and drawn masks keep their bounds too.

torch's formulas for them hold numbers of their own: (p - 1)(p - 2), 1 / alpha, 1 / (1 - p).
"""

from collections.abc import Callable

import flint
import pytest
import torch
from flint import arb
from torch import Tensor

import numgeom

F = torch.nn.functional
POINTS = (0.3, -0.2, 0.7, -0.9, 0.1)


def _twice(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def derivative(x: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        return found

    return derivative


def _forward_mode(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


def _celu(x: Tensor) -> Tensor:
    return F.celu(x, 0.7)


def _celu_bend(v: arb) -> arb:
    return arb(0) if v > 0 else (v / arb(0.7)).exp() / arb(0.7)


def _gelu_bend(v: arb) -> arb:
    return (2 - v * v) * (-v * v / 2).exp() / (2 * arb.pi()).sqrt()


def _erfinv_bend(v: arb) -> arb:
    y = v.erfinv()
    return arb.pi() / 2 * y * (2 * y * y).exp()


def _power_bend(p: float) -> Callable[[arb], arb]:
    return lambda v: arb(p) * (arb(p) - 1) * (v.log() * (arb(p) - 2)).exp()


CASES = [
    *(
        pytest.param(_twice(lambda x, p=p: (x + 2) ** p), lambda v, p=p: _power_bend(p)(v + 2),
                     id=f"power {p} twice")
        for p in (0.1, 1 / 3, 2.7)
    ),
    pytest.param(_twice(_celu), _celu_bend, id="celu twice"),
    pytest.param(_forward_mode(_celu), _celu_bend, id="celu forward"),
    pytest.param(_twice(F.gelu), _gelu_bend, id="gelu twice"),
    pytest.param(_forward_mode(torch.erfinv), _erfinv_bend, id="erfinv forward"),
    pytest.param(_twice(lambda x: F.mse_loss(x, 0.5 * x) * 5), lambda v: arb(0.5), id="mse twice"),
]  # fmt: skip


# torch compiles its forward-mode formulas, when they are first used, in a way that it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("method", ["ball", "functional", "kantorovich"])
@pytest.mark.parametrize(("f", "exact"), CASES)
def test_derivatives_of_derivatives_are_bounded(
    f: Callable[[Tensor], Tensor], exact: Callable[[arb], arb], method: str
) -> None:
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor(POINTS, dtype=dtype, requires_grad=True)
        _check(lambda x=x: f(x).sum(), x, exact, method)


@pytest.mark.parametrize("p", [0.1, 0.3, 1 / 3, 0.5])
@pytest.mark.parametrize(
    "drop", [F.dropout, lambda x, p: torch.native_dropout(x, p, True)[0]], ids=["plain", "native"]
)
def test_a_dropped_gradient_is_the_documented_multiple(
    drop: Callable[..., Tensor], p: float
) -> None:
    """What is kept is multiplied by 1 / (1 - p), p the double that the user wrote."""
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor(POINTS, dtype=dtype, requires_grad=True)

        def step(x: Tensor = x) -> Tensor:
            torch.manual_seed(1)
            return drop(x, p).sum()

        step().backward()
        assert x.grad is not None
        kept = {v: bool(g != 0) for v, g in zip(x.tolist(), x.grad, strict=True)}
        for method in ("ball", "functional"):
            _check(step, x, lambda v, k=kept: 1 / (1 - arb(p)) if k[float(v)] else arb(0), method)


def _check(loss: Callable[[], Tensor], x: Tensor, exact: Callable[[arb], arb], method: str) -> None:
    x.grad = None
    certificate = numgeom.certify(lambda: loss().backward(), method=method)
    x.grad = None
    loss().backward()
    assert x.grad is not None
    (bounds,) = certificate.entrywise_bounds.values()
    with flint.ctx.workprec(300):
        for v, g, bound in zip(x.tolist(), x.grad.tolist(), bounds.tolist(), strict=True):
            assert abs(exact(arb(v)) - arb(g)) <= bound
