"""Is a bad condition behind exact inputs found, and are products proved to be mild?"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.diagnosis import conditioning
from numgeom.diagnosis.conditioning import exposed_change
from numgeom.diagnosis.glance import take_alone
from numgeom.diagnosis.trace import Trace, op_name, take
from numgeom.ops.table import traits_of
from numgeom.recording import record_step


def trace_of(model: nn.Module, loss: Any, x: Tensor) -> Trace:
    torch.manual_seed(0)
    return take_alone(record_step(model, loss, x), [])


def square(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()


def shifted() -> nn.Module:
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.mul_(1e-6)
        model.bias.fill_(1e3)
    return model


MODELS = {
    "linear": (nn.Linear(5, 3), (4, 5)),
    "large bias": (shifted(), (4, 5)),
    "no bias": (nn.Linear(5, 3, bias=False), (4, 5)),
    "one row": (nn.Linear(5, 3), (5,)),
    "convolution": (nn.Conv2d(2, 3, 3, padding=1), (2, 2, 6, 6)),
    "strided": (nn.Conv1d(4, 4, 3, stride=2, groups=2), (2, 4, 9)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 2, 4, 4)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_the_bound_holds(name: str, shift: float) -> None:
    model, shape = MODELS[name]
    trace = trace_of(model, square, torch.randn(shape) + shift)
    bounds = {n: conditioning._largest_change(trace, n) for n in trace.program.calls
              if traits_of(op_name(n)).product is not None and op_name(n) != "mul"}  # fmt: skip
    assert bounds
    first = next(iter(bounds))
    u = 1e-6
    moved = conditioning.evaluate(
        trace.program, [first], dtype=torch.float64, change=conditioning._mover(u, 0)
    )[first]
    still = conditioning.evaluate(trace.program, [first], dtype=torch.float64)[first]
    change = float((moved - still).norm() / still.norm())
    assert 0.0 < change <= bounds[first] * u * (1.0 + 1e-5)


def test_a_product_is_not_measured_where_norms_prove_it_to_be_mild(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = trace_of(nn.Linear(5, 3), square, torch.randn(4, 5))
    measured = exposed_change(trace, least=0.0)
    assert 0.0 < measured < 1e-5

    def never(*given: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(conditioning, "evaluate", never)
    assert exposed_change(trace, least=1e-3) == 0.0


def cancels(model: Any, x: Tensor) -> Tensor:
    return model.weight.sum() * (x - 4194303.0).square().mean()


@pytest.mark.parametrize("looked", [take_alone, take])
def test_an_exact_difference_that_hides_a_bad_condition_is_measured(looked: Any) -> None:
    program = record_step(nn.Linear(2, 1), cancels, torch.full((4, 2), 4194304.0))
    assert exposed_change(looked(program, []), least=0.005) > 0.1


def test_a_product_of_such_a_difference_is_measured_too() -> None:
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():  # what is left is a hundredth, and no float32 number
        model.weight.copy_(torch.tensor([[1.0, -0.99, 3e-5]]))

    def loss(model: Any, x: Tensor) -> Tensor:
        return model(x - 4194303.0).square().mean()

    program = record_step(model, loss, torch.full((4, 3), 4194304.0))
    assert exposed_change(take_alone(program, []), least=0.005) > 2.0
