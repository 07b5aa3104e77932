"""Do vertices, edges and draws lie in Clarke's Jacobian?"""

import math

import pytest
import torch
from torch import Tensor, nn

from numgeom.nonsmooth import FrozenStep
from numgeom.nonsmooth.backward import TiedCall
from numgeom.nonsmooth.clarke import draw, least, reference, restricted, tensor_arguments, units_of
from numgeom.nonsmooth.kinks import Apexes, Contests, Corners, Windows
from numgeom.recording import record_step
from tests.nonsmooth.kinked import KINKED, Kinked


def own_loss(model: nn.Module, batch: object) -> Tensor:
    del batch
    return model()


def ties(name: str) -> tuple[TiedCall, ...]:
    function, shape = KINKED[name]
    found = FrozenStep(record_step(Kinked(function, shape), own_loss, None)).ties
    assert found
    return found


def assert_clarke(tie: TiedCall, numbers: Tensor, *, sum_error: float = 0.0) -> None:
    """In the set, by its definition."""
    kink = tie.kink
    assert numbers.dtype == torch.float64
    if isinstance(kink, (Windows, Contests)):
        weights = numbers
        if isinstance(kink, Windows) and kink.signs is not None:
            weights = numbers * kink.signs
        assert bool((weights >= 0).all())
        assert bool(((weights.sum(dim=1) - 1).abs() <= sum_error).all())
        if isinstance(kink, Windows):
            assert not bool(weights[~kink.active].any())
    elif isinstance(kink, Corners):
        bottom = -1.0 if tie.family == "abs" else 0.0
        low, high = (
            torch.as_tensor(x, dtype=torch.float64).expand(kink.mask.shape)[kink.mask]
            for x in (kink.low, kink.high)
        )
        low = low + bottom * (high - low)
        assert bool((numbers >= torch.minimum(low, high)).all())
        assert bool((numbers <= torch.maximum(low, high)).all())
    else:
        assert isinstance(kink, Apexes)
        dual = math.inf if kink.order == 1 else 1 / (1 - 1 / kink.order)
        assert bool((torch.linalg.vector_norm(numbers, dual, dim=1) <= 1).all())


@pytest.mark.parametrize("name", KINKED)
def test_draws_and_special_elements_are_clarke_derivatives(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for tie in ties(name):
        assert_clarke(tie, reference(tie))
        assert_clarke(tie, least(tie), sum_error=1e-15)  # k times 1/k
        for _ in range(5):
            assert_clarke(tie, draw(tie, generator))
            assert_clarke(tie, draw(tie, generator, vertices=True))


@pytest.mark.parametrize("name", KINKED)
def test_no_draw_is_shorter_than_the_least_one(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for tie in ties(name):
        rows = least(tie).reshape(len(tie.kink.units), -1).norm(dim=1)
        for _ in range(5):
            drawn = draw(tie, generator).reshape(len(tie.kink.units), -1).norm(dim=1)
            assert bool((drawn >= rows - 1e-15).all())


@pytest.mark.parametrize("name", KINKED)
def test_edges_lead_from_the_reference_to_other_elements(name: str) -> None:
    for tie in ties(name):
        arguments = tensor_arguments(tie.node)
        units = units_of(tie, dict.fromkeys(arguments))  # nothing is known: all may move
        assert [unit.number for unit in units] == list(range(len(tie.kink.units)))
        assert [unit.output for unit in units] == tie.kink.units.tolist()
        for unit in units:
            start = reference(tie)[unit.number]
            for edge in unit.edges:
                total = sum(step for _, _, step in edge)
                if isinstance(tie.kink, Contests) or (
                    isinstance(tie.kink, Windows) and tie.kink.signs is None
                ):
                    assert total == 0  # weight moves from one place to another
                elif isinstance(tie.kink, Corners):
                    assert float(start) + total in (1.0, -1.0) or total != 0


@pytest.mark.parametrize("name", KINKED)
def test_a_restricted_kink_has_the_units_that_were_kept(name: str) -> None:
    for tie in ties(name):
        keep = torch.arange(len(tie.kink.units)) % 2 == 0
        part = restricted(tie.kink, keep)
        assert torch.equal(part.units, tie.kink.units[keep])


def test_draws_differ_from_unit_to_unit() -> None:
    (tie,) = ties("max-pool2d")
    weights = draw(tie, torch.Generator().manual_seed(0))
    assert len(weights.unique(dim=0)) > len(weights) // 2
    assert torch.equal(weights, draw(tie, torch.Generator().manual_seed(0)))
