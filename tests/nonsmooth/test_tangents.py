"""Are structural ties told from accidental ones?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import FrozenStep
from numgeom.nonsmooth.tangents import Pieces, classify
from numgeom.recording import record_step


def pieces_of(
    model: nn.Module, function: Callable[[nn.Module, Tensor], Tensor], x: Tensor
) -> Pieces:
    step = FrozenStep(record_step(model, function, x))
    found = classify(step)
    assert found is not None
    (pieces,) = found.values()
    return pieces


def conv(weight: list[float]) -> nn.Conv1d:
    layer = nn.Conv1d(1, 1, len(weight), bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.fill_(0.5)
    return layer


def pooled(model: nn.Module, x: Tensor) -> Tensor:
    return F.max_pool1d(model(x), 2).sum()


def test_equal_patches_are_one_function() -> None:
    x = torch.tensor([[[1.0, 2.0, 1.0, 2.0, 1.0, 7.0]]])
    pieces = pieces_of(conv([1.0, 1.0]), pooled, x[..., :5])
    # Patches (1, 2), (2, 1): different, with equal sums. (1, 2), (2, 1) again.
    assert pieces.moves.tolist() == [True, True]
    assert pieces.identical.tolist() == [False, False]
    flat = torch.ones(1, 1, 5)
    pieces = pieces_of(conv([1.0, 1.0]), pooled, flat)
    assert pieces.identical.tolist() == [True, True]


def test_dead_units_do_not_move() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.max_pool1d(F.relu(-model(x)), 2).sum()

    pieces = pieces_of(conv([1.0, 1.0]), loss, torch.rand(1, 1, 5))
    assert pieces.moves.tolist() == [False, False]


def test_a_second_layer_sees_through_the_choices_of_the_first() -> None:
    """Windows that differ only in entries that were not taken are one function."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.max_pool1d(F.max_pool1d(model(x), 2) * 2, 2).sum()

    x = torch.tensor([[[3.0, 1.0, 3.0, 2.0]]])
    pieces = pieces_of(conv([1.0]), loss, x)
    assert pieces.moves.tolist() == [True]
    assert pieces.identical.tolist() == [True]


def test_a_unit_on_its_corner_is_two_functions() -> None:
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1.0]]))
    pieces = pieces_of(layer, lambda m, x: F.relu(m(x)).sum(), torch.ones(1, 1))
    assert pieces.moves.tolist() == [True]
    assert pieces.identical.tolist() == [False]


def test_an_input_of_zeros_is_a_corner_that_nothing_moves() -> None:
    layer = nn.Linear(2, 2, bias=False)
    pieces = pieces_of(layer, lambda m, x: F.relu(m(x)).sum(), torch.zeros(1, 2))
    assert pieces.moves.tolist() == [False, False]


def test_equal_arguments_of_maximum() -> None:
    def same(model: nn.Module, x: Tensor) -> Tensor:
        return torch.maximum(model(x), model(x)).sum()

    def other(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return torch.maximum(y, y.detach() * 0 + 0.75).sum()

    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.fill_(0.25)
    assert pieces_of(layer, same, torch.ones(1, 1)).identical.tolist() == [True]
    assert pieces_of(layer, other, torch.ones(1, 1)).identical.tolist() == [False]


def test_a_norm_at_zero() -> None:
    layer = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(layer.weight)
    pieces = pieces_of(layer, lambda m, x: m(x).norm(), torch.ones(1, 1))
    assert pieces.moves.tolist() == [True]
    assert pieces.identical.tolist() == [False]


def test_without_ties_there_is_nothing_to_classify() -> None:
    layer = nn.Linear(1, 1)
    step = FrozenStep(record_step(layer, lambda m, x: m(x).sum(), torch.ones(1, 1)))
    assert classify(step) == {}
