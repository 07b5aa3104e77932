"""Which tied units are found to be one function, and which not?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import FrozenStep
from numgeom.nonsmooth.functions import moving_units
from numgeom.recording import record_step


def counts(model: nn.Module, loss: Callable, x: Tensor) -> tuple[int, int]:
    """Tied units that can move, and all tied units."""
    step = FrozenStep(record_step(model, loss, x))
    moving = sum(map(len, moving_units(step).values()))
    return moving, sum(len(tie.kink.units) for tie in step.ties)


def pooled(model: nn.Module, x: Tensor) -> Tensor:
    return F.max_pool1d(model(x), 2).sum()


def conv(weights: list[float], *, bias: float = 0.0) -> nn.Conv1d:
    layer = nn.Conv1d(1, 1, len(weights))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[weights]]))
        layer.bias.fill_(bias)  # type: ignore[union-attr]  # it has a bias
    return layer


def test_equal_patches_are_one_function_and_equal_sums_are_not() -> None:
    assert counts(conv([1.0, 1.0]), pooled, torch.ones(1, 1, 5)) == (0, 2)
    assert counts(conv([1.0, 1.0]), pooled, torch.tensor([[[1.0, 2.0, 1.0]]])) == (1, 1)


def test_a_relu_that_is_off_is_a_constant() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.max_pool1d(F.relu(model(x)), 2).sum()

    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert counts(conv([-1.0, -1.0]), loss, x) == (0, 1)
    # Both on their kinks: what each passes on is a choice of its own.
    assert counts(conv([0.0, 0.0]), loss, x) == (3, 3)


def test_a_dead_kink_does_not_move() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.relu(F.relu(model(x))).sum()

    assert counts(conv([-1.0]), loss, torch.ones(1, 1, 4)) == (0, 4)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(1), nn.BatchNorm1d(1).eval(), nn.Identity()])
def test_normalization_by_channel_keeps_functions_together(norm: nn.Module) -> None:
    model = nn.Sequential(conv([1.0, 0.5]), norm)
    x = torch.tensor([[[1.0, 1.0, 1.0, 2.0, 0.5]]])
    assert counts(model, pooled, x)[0] == 0


def test_windows_of_equal_windows_are_one_function() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.max_pool1d(F.max_pool1d(model(x), 2) * 2, 2).sum()

    assert counts(conv([1.0]), loss, torch.tensor([[[3.0, 1.0, 3.0, 2.0]]])) == (0, 1)


def test_windows_that_can_choose_apart_are_two_functions() -> None:
    """Behind two tied windows of equal content, each with its own choice."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.max_pool1d(F.max_pool1d(model(x), 2), 2).sum()

    x = torch.tensor([[[1.0, 2.0, 1.0, 2.0, 1.0]]])
    assert counts(conv([1.0, 1.0]), loss, x) == (3, 3)


def test_equal_numbers_from_different_parameters_are_two_functions() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.w * x

    moving = counts(Two(), lambda m, x: m(x).max(), torch.ones(2))
    assert moving == (1, 1)


def test_a_frozen_parameter_is_data() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2), requires_grad=False)
            self.v = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.w * x * self.v

    assert counts(Two(), lambda m, x: m(x).max(), torch.ones(2)) == (0, 1)


def test_where_the_parameters_are_not_named_every_tie_may_move() -> None:
    program = record_step(conv([1.0, 1.0]), pooled, torch.ones(1, 1, 5))
    assert moving_units(FrozenStep(program)) == {}
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.meta["role"] == "parameter":
            node.meta["role"] = "input"
    (units,) = moving_units(FrozenStep(program)).values()
    assert len(units) == 2


def test_what_decisions_tell_apart_is_not_one_function() -> None:
    """Sums of the same numbers, rounded to 0 and to 1: |s - 0.5| is tied, its slope not."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1e8, 1.0, -1e8]))

        def forward(self, order: Tensor) -> Tensor:
            return (self.w[order].sum(dim=1) - 0.5).abs()

    order = torch.tensor([[0, 1, 2], [0, 2, 1]])
    assert Sums()(order).tolist() == [0.5, 0.5]
    assert counts(Sums(), lambda m, x: m(x).max(), order) == (1, 1)
    # In one order they are one function.
    assert counts(Sums(), lambda m, x: m(x).max(), order[[0, 0]]) == (0, 1)


def test_maxima_of_the_same_entries_are_one_function() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, order: Tensor) -> Tensor:
            return self.w[order].amax(dim=1)

    order = torch.tensor([[0, 1], [1, 0]])
    assert counts(Rows(), lambda m, x: m(x).max(), order) == (0, 1)
    # Where the two entries are tied, each maximum chooses for itself.
    tied = Rows()
    with torch.no_grad():
        tied.w.fill_(1.0)
    assert counts(tied, lambda m, x: m(x).max(), order) == (3, 3)
