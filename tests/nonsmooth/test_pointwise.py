"""Do elementwise kinks get the chosen slope times what flows in?"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from numgeom.nonsmooth import First, Hybrid, Last, select

# function -> (a point on its kink, slope of the flatter side, slope of the steeper side)
CORNERS: dict[str, tuple[Callable[[Tensor], Tensor], float, float, float]] = {
    "relu": (F.relu, 0.0, 0.0, 1.0),
    "relu, minus zero": (F.relu, -0.0, 0.0, 1.0),
    "leaky-relu": (lambda x: F.leaky_relu(x, 0.25), 0.0, 0.25, 1.0),
    "leaky-relu, steep": (lambda x: F.leaky_relu(x, 3.0), 0.0, 1.0, 3.0),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.125]).to(x)), 0.0, 0.125, 1.0),
    "relu6 at 0": (F.relu6, 0.0, 0.0, 1.0),
    "relu6 at 6": (F.relu6, 6.0, 0.0, 1.0),
    "hardtanh": (F.hardtanh, -1.0, 0.0, 1.0),
    "threshold": (lambda x: F.threshold(x, 0.5, 0.5), 0.5, 0.0, 1.0),
    "elu": (lambda x: F.elu(x, alpha=0.5), 0.0, 0.5, 1.0),
    "selu": (F.selu, 0.0, 1.0507009873554805, 1.7580993408473766),
    "softshrink": (lambda x: F.softshrink(x, 0.5), -0.5, 0.0, 1.0),
    "hardsigmoid": (F.hardsigmoid, 3.0, 0.0, 1 / 6),
    "hardswish at -3": (F.hardswish, -3.0, 0.0, -0.5),
    "hardswish at 3": (F.hardswish, 3.0, 1.0, 1.5),
}
SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "elu": (F.elu, 0.0),
    "celu": (lambda x: F.celu(x, 2.0), 0.0),
    "leaky-relu of slope 1": (lambda x: F.leaky_relu(x, 1.0), 0.0),
    "threshold, a jump": (lambda x: F.threshold(x, 0.5, 7.0), 0.5),
    "softshrink by nothing": (lambda x: F.softshrink(x, 0.0), 0.0),
}


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, **choice: float) -> Tensor:
    x = x.detach().clone().requires_grad_()
    with select(**choice):
        (found,) = torch.autograd.grad(function(x), x, g)
    return found


@pytest.mark.parametrize("name", CORNERS)
@pytest.mark.parametrize("s", [0.0, 0.25, 1.0, 2.0])
def test_a_corner_has_the_slope_between_its_sides(name: str, s: float) -> None:
    function, kink, flat, steep = CORNERS[name]
    x, g = torch.tensor([kink, kink, 0.3, -0.7]), torch.tensor([1.0, 1e-4, 5.0, 5.0])
    found = gradient(function, x, g, relu=s)
    torch.testing.assert_close(found[:2], (flat + s * (steep - flat)) * g[:2], rtol=1e-6, atol=0)
    assert torch.equal(found[2:], gradient(function, x, g)[2:])


@pytest.mark.parametrize("name", CORNERS)
def test_the_sides_are_where_they_are_said_to_be(name: str) -> None:
    function, kink, flat, steep = CORNERS[name]
    step = 1e-6
    at = torch.tensor([kink - step, kink, kink + step], dtype=torch.float64)
    sides = sorted((function(at).diff() / at.diff()).tolist(), key=abs)
    assert sides == pytest.approx([flat, steep], abs=1e-5)


@pytest.mark.parametrize("name", SMOOTH)
def test_without_a_corner_nothing_changes(name: str) -> None:
    function, point = SMOOTH[name]
    x, g = torch.tensor([point, 1.0]), torch.tensor([2.0, 3.0])
    assert torch.equal(gradient(function, x, g, relu=0.3), gradient(function, x, g))


def test_the_upstream_gradient_is_kept() -> None:
    """A public implementation of ReLU'(0) = s put s in its place."""
    found = gradient(F.relu, torch.zeros(1), torch.tensor([1e-4]), relu=1.0)
    assert found.item() == pytest.approx(1e-4)


def test_zero_times_infinity_is_no_nan() -> None:
    found = gradient(F.relu, torch.zeros(1), torch.tensor([math.inf]), relu=0.0)
    assert found.item() == 0.0


@pytest.mark.parametrize("s", [-1.0, 0.0, 0.5])
def test_abs_takes_the_slope_itself(s: float) -> None:
    x, g = torch.tensor([0.0, -0.0, 2.0]), torch.tensor([3.0, 3.0, 3.0])
    assert gradient(torch.abs, x, g, abs=s).tolist() == [3 * s, 3 * s, 3.0]


def test_abs_inside_a_loss_of_torch() -> None:
    x = torch.zeros(2, requires_grad=True)
    with select(abs=1.0):
        F.l1_loss(x, torch.zeros(2), reduction="sum").backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp(min=-1, max=1.0),
        lambda x: x.clamp_min(-1).clamp_max(1),
        lambda x: torch.clamp(x, torch.tensor(-1.0), torch.tensor([1.0])),
    ],
)
def test_clamp_at_its_bounds(function: Callable[[Tensor], Tensor]) -> None:
    x, g = torch.tensor([-1.0, 1.0, 0.0, 5.0]), torch.full((4,), 2.0)
    assert gradient(function, x, g).tolist() == [2.0, 2.0, 2.0, 0.0]
    assert gradient(function, x, g, clamp=0.25).tolist() == [0.5, 0.5, 2.0, 0.0]


def test_clamp_with_nothing_between_its_bounds_has_no_kink() -> None:
    x, g = torch.tensor([1.0, 0.0]), torch.ones(2)
    bound = torch.tensor([1.0])
    for function in (lambda x: x.clamp(1.0, 1.0), lambda x: torch.clamp(x, bound, bound)):
        assert torch.equal(gradient(function, x, g, clamp=0.0), gradient(function, x, g))


def test_a_bound_that_is_trained_gets_the_rest() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    low = torch.tensor([1.0], requires_grad=True)
    with select(clamp=0.25):
        torch.clamp_min(x, low).sum().backward()
    assert x.grad is not None
    assert low.grad is not None
    assert x.grad.tolist() == [0.25, 1.0, 1.0]
    assert low.grad.tolist() == [0.75]


@pytest.mark.parametrize(
    ("function", "larger"),
    [(torch.maximum, 0), (torch.minimum, 1), (torch.fmax, 0), (torch.fmin, 1), (torch.max, 0)],
)
def test_pairs(function: Callable[[Tensor, Tensor], Tensor], larger: int) -> None:
    a = torch.tensor([1.0, 2.0, 0.0], requires_grad=True)
    b = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    for choice, tie in (
        (First(), (1.0, 0.0)),
        (Last(), (0.0, 1.0)),
        (Hybrid(beta=4.0), (-1.0, 2.0)),
    ):
        with select(max=choice):
            found = torch.autograd.grad(function(a, b).sum(), (a, b))
        wins = [1.0 - larger, float(larger)]
        assert found[0].tolist() == [tie[0], *wins]
        assert found[1].tolist() == [tie[1], *reversed(wins)]


def test_a_broadcast_argument_collects_its_ties() -> None:
    a = torch.tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    b = torch.tensor([1.0, 2.0], requires_grad=True)
    with select(max=Last()):
        found = torch.autograd.grad(
            torch.maximum(a, b), (a, b), torch.tensor([[1.0, 2], [4, 8], [16, 32]])
        )
    assert found[0].tolist() == [[0, 0], [0, 0], [0, 0]]
    assert found[1].tolist() == [21.0, 42.0]
    with select(max=First()):
        found = torch.autograd.grad(
            torch.maximum(a, b), (a, b), torch.tensor([[1.0, 2], [4, 8], [16, 32]])
        )
    assert found[0].tolist() == [[1, 2], [4, 0], [0, 32]]
    assert found[1].tolist() == [16.0, 8.0]


def test_slopes_are_the_numbers_that_were_given() -> None:
    """0.01 in float64, not the float32 number next to it."""
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    with select(relu=0.0):
        F.leaky_relu(x, 0.01).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.01, 0.01]
