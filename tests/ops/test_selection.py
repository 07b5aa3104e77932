"""Is a derivative replaced where it can be, and refused loudly where it cannot?"""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from numgeom.ops.selection import Gradients, OpCall, SelectionError, Substitution


def doubling(seen: list[OpCall]) -> Callable[[OpCall], Callable[[Gradients, Gradients], Gradients]]:
    """Answer every call with twice torch's derivative."""

    def answer(call: OpCall) -> Callable[[Gradients, Gradients], Gradients]:
        seen.append(call)
        return lambda native, upstream: tuple(None if g is None else 2 * g for g in native)

    return answer


def test_an_answer_becomes_the_derivative() -> None:
    seen: list[OpCall] = []
    x = torch.tensor([3.0], requires_grad=True)
    with Substitution(doubling(seen), frozenset({"sin"})):
        y = torch.sin(x) + torch.cos(x)
    (found,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(found, (2 * torch.cos(x) - torch.sin(x)).detach())
    assert [call.name for call in seen] == ["sin"]


def test_a_call_is_described_by_its_schema() -> None:
    seen: list[OpCall] = []
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    with Substitution(doubling(seen), frozenset({"max_pool2d_with_indices", "relu"})):
        F.max_pool2d(x, 2, padding=1)
        (x * 1).relu_()
    pool, relu = seen
    assert pool.arguments["kernel_size"] == [2, 2]
    assert pool.arguments["ceil_mode"] is False
    assert pool.arguments["self"].shape == x.shape
    assert [t.shape for t in pool.outputs] == [(1, 1, 3, 3)] * 2
    assert relu.name == "relu"
    assert relu.outputs == ()


def test_the_input_of_an_in_place_op_is_seen_before_it_is_overwritten() -> None:
    values = []

    def answer(call: OpCall) -> None:
        values.append(call.arguments["self"].clone())

    x = torch.tensor([-1.0, 1.0], requires_grad=True)
    with Substitution(answer, frozenset({"relu"})):
        (x * 1).relu_()
    assert values[0].tolist() == [-1.0, 1.0]


def test_ops_inside_composite_functions_are_seen() -> None:
    seen: list[OpCall] = []
    x = torch.ones(3, requires_grad=True)
    with Substitution(doubling(seen), frozenset({"abs", "clamp_min"})):
        (F.l1_loss(x, torch.zeros(3)) + F.margin_ranking_loss(x, x.detach(), x.detach())).backward()
    assert {call.name for call in seen} == {"abs", "clamp_min"}


def test_what_is_not_differentiated_is_not_asked_about() -> None:
    seen: list[OpCall] = []
    x = torch.ones(3, requires_grad=True)
    with Substitution(doubling(seen), frozenset({"sin"})):
        torch.sin(x.detach())
        with torch.no_grad():
            torch.sin(x)
        with torch.inference_mode():
            torch.sin(torch.ones(3))
    assert not seen


def test_the_forward_of_a_custom_function_is_its_own_affair() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x)

        @staticmethod
        def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
            return 7 * gradients[0]

    seen: list[OpCall] = []
    x = torch.ones(1, requires_grad=True)
    with Substitution(doubling(seen), frozenset({"sin"})):
        y = Own.apply(x)
    (found,) = torch.autograd.grad(y, x)
    assert found.item() == 7
    assert not seen


def test_an_in_place_write_into_a_view_is_refused() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    with (
        Substitution(doubling([]), frozenset({"sin"})),
        pytest.raises(SelectionError, match=r"sin_.*writes into a view.*out\s+of place"),
    ):
        (x * 1)[0].sin_()


def test_transforms_are_refused() -> None:
    with (
        Substitution(doubling([]), frozenset({"sin"})),
        pytest.raises(SelectionError, match="torch.func"),
    ):
        torch.func.grad(lambda x: torch.sin(x).sum())(torch.ones(2))


def test_a_result_that_nobody_uses_is_forgotten() -> None:
    x = torch.ones(2, requires_grad=True)
    with Substitution(doubling([]), frozenset({"sin"})) as substitution:
        torch.sin(x)
        torch.ones(1)
        assert substitution._waiting == []


def test_code_inside_the_backward_pass_is_answered_too() -> None:
    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
            ctx.x = x
            return torch.sin(x)

        @staticmethod
        def backward(
            ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor
        ) -> torch.Tensor:
            x = ctx.x.detach().requires_grad_()
            with torch.enable_grad():
                y = torch.sin(x)
            return torch.autograd.grad(y, x, gradients[0])[0]

    x = torch.zeros(1, requires_grad=True)
    with Substitution(doubling([]), frozenset({"sin"})):
        Recompute.apply(x).backward(torch.ones(1))
    assert x.grad is not None
    assert x.grad.item() == 2
