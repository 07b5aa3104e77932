"""Is it said where a call stands on a kink that selections do not know, and only there?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import FrozenStep, hull_of, survey_of, zones_of
from numgeom.recording import record_step
from numgeom.results.guarantee import Guarantee

Function = Callable[[Tensor], Tensor]
INDEX = torch.zeros(2, 3, dtype=torch.long)

# Each with a kink where entries are equal, or at whole numbers.
FUNCTIONS: dict[str, Function] = {
    "sort": lambda x: x.sort().values @ torch.tensor([1.0, 5.0, 7.0]),
    "topk": lambda x: x.topk(1).values,
    "kthvalue": lambda x: x.kthvalue(2).values,
    "median": torch.median,
    "cummax": lambda x: x.cummax(1)[0],
    "aminmax": lambda x: torch.aminmax(x).max,
    "_cdist_forward": lambda x: torch.cdist(x, torch.tensor([[3.0, 3.0, 3.0]])),
    "dist": lambda x: torch.dist(x, torch.full((2, 3), 3.0)),
    "scatter_reduce": lambda x: torch.zeros(2, 3).scatter_reduce(0, INDEX, x, "amax"),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(
        x[None], 2, output_size=1, _random_samples=torch.zeros(1, 1, 2)
    ),
    "frac": torch.frac,
    "hypot": lambda x: torch.hypot(x - 3, x - 3),
    "hardshrink": lambda x: F.hardshrink(x, 3.0),
}
GENERIC = torch.tensor([[0.31, 1.72, -2.45], [3.63, 0.54, 1.13]])
# Ops whose kinks are not looked for closely: they count wherever they stand.
EVERYWHERE = {"dist", "fractional_max_pool2d", "scatter_reduce"}


class Model(nn.Module):
    def __init__(self, function: Function, values: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values.clone())
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w * x).sum()


def step(function: Function, values: Tensor) -> FrozenStep:
    program = record_step(Model(function, values), lambda m, x: m(x), torch.ones(2, 3))
    return FrozenStep(program)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tie_without_a_rule_is_named_and_nothing_is_proved(name: str) -> None:
    found = step(FUNCTIONS[name], torch.full((2, 3), 3.0))
    assert [str(node.target).split(".")[1] for node in found.uncovered] == [name]
    assert hull_of(found).guarantee is Guarantee.NONE
    for unmatched in (hull_of(found).unmatched, zones_of(found).unmatched):
        assert len(unmatched) == 1
        assert name in unmatched[0]


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - EVERYWHERE))
def test_off_its_kink_a_call_is_smooth(name: str) -> None:
    found = step(FUNCTIONS[name], GENERIC)
    assert found.uncovered == ()
    assert hull_of(found).guarantee is Guarantee.PROVED


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x >= 3, x, 0),  # a branch of the user
        lambda x: F.cross_entropy(x, torch.tensor([0, 1])),
        lambda x: F.layer_norm(x, (3,)),
        lambda x: F.smooth_l1_loss(x, torch.full((2, 3), 2.0)),
        lambda x: x + torch.ones(2, 3).sort().values,  # data
        lambda x: x + torch.dist(torch.ones(3), torch.ones(3)),
    ],
)
def test_other_calls_are_not(function: Function) -> None:
    assert step(function, torch.full((2, 3), 3.0)).uncovered == ()


def test_a_statistic_that_the_loss_does_not_see_does_not_count() -> None:
    class Watched(Model):
        def __init__(self) -> None:
            super().__init__(lambda x: x, torch.ones(2, 3))
            self.register_buffer("middle", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("middle").copy_((self.w * x).detach().median())
            return super().forward(x)

    program = record_step(Watched(), lambda m, x: m(x), torch.ones(2, 3))
    assert any("median" in str(node.target) for node in program)
    assert FrozenStep(program).uncovered == ()


def test_the_text_says_what_is_left_out() -> None:
    program = step(torch.median, torch.ones(2, 3)).program
    text = survey_of(program).text()
    assert "not covered: aten.median" in text
    assert "are left out of this" in text
    assert "left out" not in survey_of(step(torch.median, GENERIC).program).text()
