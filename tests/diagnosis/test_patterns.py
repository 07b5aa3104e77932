"""Is every formula recognised, and is its stable form the same function?"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from numgeom.diagnosis.patterns import matches
from numgeom.diagnosis.poles import at_a_pole
from numgeom.recording import Program, record_step
from numgeom.recording.replay import ProgramInterpreter
from reproductions.gallery import Weights

Formula = Callable[[Tensor], Tensor]
SHAPE = (3, 4)

FORMULAS: dict[str, tuple[Formula, ...]] = {
    "log(softmax(x))": (
        lambda x: x.softmax(-1).log(),
        lambda x: x.softmax(1)[torch.arange(3), torch.tensor([1, 0, 2])].log(),
        lambda x: x.softmax(0).t().unsqueeze(0).log(),
        lambda x: x.softmax(-1).float().log(),
    ),
    "log(sigmoid(x))": (lambda x: x.sigmoid().log(), lambda x: x.sigmoid()[:, 0].log()),
    "log(1 - sigmoid(x))": (lambda x: (1 - x.sigmoid()).log(),),
    "log(1 + exp(x))": (
        lambda x: (1 + x.exp()).log(),
        lambda x: (x.exp() + 1).log(),
        lambda x: x.exp().log1p(),
    ),
    "log(1 + x)": (lambda x: (1 + x.abs()).log(),),
    "log(1 - exp(x))": (lambda x: (1 - (-x.abs() - 0.1).exp()).log(),),
    "log(sum(exp(x)))": (
        lambda x: x.exp().sum(-1).log(),
        lambda x: x.exp().sum().log(),
        lambda x: x.exp().sum(0, keepdim=True).log(),
        lambda x: x.exp().mean(1).log(),
        lambda x: x.exp().mean().log(),
    ),
    "log(sum(w * exp(x)))": (
        lambda x: (torch.tensor([0.1, 0.2, 0.3, 0.4]) * x.exp()).sum(-1).log(),
        lambda x: (x.exp() * x.softmax(-1)).sum(-1).log(),
    ),
    "log(prod(x))": (
        lambda x: x.sigmoid().prod(-1).log(),
        lambda x: x.sigmoid().prod().log(),
    ),
    "log(exp(x))": (lambda x: x.exp().log(),),
    "exp(x) / sum(exp(x))": (
        lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
        lambda x: (lambda e: e / e.sum(1, keepdim=True))(x.exp()),
    ),
    "1 / (1 + exp(-x))": (lambda x: 1 / (1 + (-x).exp()),),
    "1 - cos(x)": (lambda x: 1 - x.cos(), lambda x: x.cos() - 1),
    "1 - exp(x)": (lambda x: 1 - x.exp(), lambda x: x.exp() - 1, lambda x: -1 + x.exp()),
    "1 - sigmoid(x)": (lambda x: 1 - x.sigmoid(),),
    "1 - cosh(x)": (lambda x: x.cosh() - 1,),
    "mean(x**2) - mean(x)**2": (
        lambda x: x.pow(2).mean() - x.mean().pow(2),
        lambda x: (x * x).mean(-1) - x.mean(-1) ** 2,
        lambda x: x.square().mean(0, keepdim=True) - x.mean(0, keepdim=True).square(),
    ),
    "binary_cross_entropy(sigmoid(x))": (
        lambda x: F.binary_cross_entropy(x.sigmoid(), torch.full(SHAPE, 0.3)),
        lambda x: F.binary_cross_entropy(
            x.sigmoid(), torch.full(SHAPE, 0.3), torch.full(SHAPE, 2.0), reduction="sum"
        ),
    ),
}
EACH = [(name, formula) for name, formulas in FORMULAS.items() for formula in formulas]


class Keeping(ProgramInterpreter):
    """Keeps all values of a float64 run."""

    def __init__(self, program: Program) -> None:
        super().__init__(program, dtype=torch.float64)
        self.values: dict[Any, Any] = {}

    def run_node(self, node: Any, values: Any) -> Any:
        self.values[node] = super().run_node(node, values)
        return self.values[node]


def recorded(formula: Formula) -> Program:
    def loss(model: Any, batch: None) -> Tensor:
        return formula(model.w).square().sum()

    return record_step(Weights(torch.randn(SHAPE)), loss, None)


@pytest.mark.parametrize(("name", "formula"), EACH)
def test_a_formula_is_recognised_and_its_stable_form_is_the_same(
    name: str, formula: Formula
) -> None:
    program = recorded(formula)
    found = [m for m in map(matches, program) if m is not None]
    found = [m for m in found if m.node.meta["call"].phase == "forward" and m.name == name]
    assert found, f"not recognised:\n{program}"
    run = Keeping(program)
    run.evaluate()
    for match in found:
        stable = match.stable(run.values)
        value = run.values[match.node]
        assert stable.shape == value.shape
        torch.testing.assert_close(stable, value, rtol=1e-9, atol=1e-11)


STABLE: tuple[Formula, ...] = (
    lambda x: x.log_softmax(-1),
    lambda x: F.logsigmoid(x),
    lambda x: F.softplus(x),
    lambda x: x.logsumexp(-1),
    lambda x: (x - x.amax(-1, keepdim=True)).exp().sum(-1).log(),
    lambda x: (x - x.max(-1, keepdim=True).values).exp().sum(-1).log(),
    lambda x: (lambda e: e / e.sum(-1, keepdim=True))((x - x.amax(-1, keepdim=True)).exp()),
    lambda x: (1 + (-x.abs()).exp()).log(),
    lambda x: x.var(-1),
    lambda x: x.expm1(),
    lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2])),
    lambda x: x.square().mean() - x.mean(),
    lambda x: x.clamp(max=3).exp().sum().log(),
)


@pytest.mark.parametrize("formula", STABLE)
def test_a_stable_formula_is_not_reported_wherever_it_stands(formula: Formula) -> None:
    program = recorded(formula)
    found = [m for m in map(matches, program) if m is not None and m.always]
    assert not found, [m.name for m in found]


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: x.sqrt(), lambda x: x.log(), lambda x: x.rsqrt(), lambda x: 1 / x,
        lambda x: x.pow(0.5), lambda x: x.norm(dim=-1), lambda x: torch.ones(SHAPE) / x,
    ],
)  # fmt: skip
def test_away_from_a_pole_the_guarded_form_is_the_same(formula: Formula) -> None:
    program = recorded(lambda x: formula(x.abs() + 0.5))
    found = [m for m in map(at_a_pole, program) if m is not None]
    found = [m for m in found if m.node.meta["call"].phase == "forward"]
    assert found
    run = Keeping(program)
    run.evaluate()
    for match in found:
        torch.testing.assert_close(
            match.stable(run.values), run.values[match.node], rtol=1e-9, atol=1e-11
        )
