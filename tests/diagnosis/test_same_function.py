"""Is a remedy the function that it replaces, does its text say so, and does it cure?"""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from numgeom.diagnosis import diagnose
from numgeom.diagnosis.cures import cures
from numgeom.diagnosis.match import Match
from numgeom.diagnosis.patterns import matches
from numgeom.diagnosis.poles import at_a_pole
from numgeom.diagnosis.result import Diagnosis, Kind
from numgeom.diagnosis.same_function import agreement
from numgeom.recording import Program, record_step
from reproductions.gallery import Weights
from tests.diagnosis.test_patterns import EACH, Keeping

Formula = Callable[[Tensor], Tensor]

SQUARE = torch.linspace(-2.0, 3.0, 36).reshape(6, 6).cos() * 2


def recorded(formula: Formula, x: Tensor = SQUARE) -> Program:
    return record_step(Weights(x.clone()), lambda m, b: formula(m.w).square().sum(), None)


def forward_matches(program: Program) -> list[Match]:
    found = [m for m in map(matches, program) if m is not None]
    return [m for m in found if m.node.meta["call"].phase == "forward"]


def proposed(found: Diagnosis) -> list[str]:
    return [f.evidence["formula"] for f in found.of(Kind.UNSTABLE_FORMULA)]


# Formulas that look like an unstable one and are another function.
OTHER: dict[str, Formula] = {
    "softmax without keepdim": lambda w: w.exp() / w.exp().sum(1),
    "softmax over the other dimension": lambda w: w.exp() / w.exp().sum(1, keepdim=True).t(),
    "softmax of other rows": lambda w: w.exp() / w.exp().sum(1, keepdim=True).flip(0),
    "softmax over all": lambda w: w.exp() / w.exp().sum(1, keepdim=True).sum(0, keepdim=True),
    "variance over other dimensions": lambda w: (w + 100).pow(2).mean(0) - (w + 100).mean().pow(2),
    "variance over another axis": lambda w: (w + 100).pow(2).mean(0) - (w + 100).mean(1).pow(2),
    "variance of two tensors": lambda w: (w + 9).pow(2).mean(0) - (w.flip(0) + 9.5).mean(0).pow(2),
    "variance without a half": lambda w: (w + 9).pow(2).mean(0) - 2 * (w + 9).mean(0).pow(2),
    "logarithm of a product of negatives": lambda w: torch.log(torch.prod(-(w.abs() + 0.1), 1)),
    "logarithm of a sum with a negative weight": lambda w: torch.log(
        (torch.tensor([3.0, -0.1, 1, 1, 1, 1]) * w.exp()).sum(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_a_formula_that_only_looks_like_another_gets_no_remedy(name: str) -> None:
    program = recorded(OTHER[name])
    assert all(agreement(program, m).differs for m in forward_matches(program))
    assert not proposed(diagnose(program))


@pytest.mark.parametrize(("name", "formula"), EACH)
def test_a_true_formula_is_the_same_function_and_its_text_is_code_for_it(
    name: str, formula: Formula
) -> None:
    """Evaluate what the remedy says, as Python."""
    program = recorded(formula, torch.randn(3, 4))
    run = Keeping(program)
    run.evaluate()
    found = [m for m in forward_matches(program) if m.name == name]
    assert found
    for match in found:
        compared = agreement(program, match)
        assert compared.is_same, compared
        code = re.split(", or |, whose |, n the", match.advice)[0]
        x, *others = (run.values[n] for n in match.reads)
        rows = x.numel() // max(run.values[match.node].numel(), 1)
        names = {"x": x, "w": others[0] if others else None, "n": rows, "math": math, "F": F}
        names |= {"torch": torch, "target": names["w"], "weight": torch.full(x.shape, 2.0).double()}
        said: Tensor = eval(code, names)  # a test of code in a text
        value = run.values[match.node]
        if said.shape == value.shape and said.dtype == value.dtype:
            torch.testing.assert_close(said, value, rtol=1e-9, atol=1e-11)
        else:  # the formula moves entries after it
            assert said.numel() >= value.numel()


@pytest.mark.parametrize(
    ("formula", "data"),
    [
        (lambda w: (w + 100).pow(2).mean(0) - (w + 100).mean(0).pow(2), SQUARE),
        (lambda w: 1 - w.cos(), SQUARE * 1e-8),
        (lambda w: (1 + w.exp()).log(), SQUARE * 100),
        (lambda w: w.softmax(1).log(), SQUARE * 300),
        (lambda w: w.exp().sum(1).log(), SQUARE * 400),
        (lambda w: w.exp().mean(1).log(), SQUARE * 400),
        (lambda w: w.exp() - 1, SQUARE * 1e-12),
        (lambda w: w.sigmoid().prod(1).log(), SQUARE * 100),
    ],
)
def test_data_where_the_formula_fails_do_not_hide_that_it_is_the_same(
    formula: Formula, data: Tensor
) -> None:
    program = recorded(formula, data)
    found = forward_matches(program)
    assert found
    assert all(agreement(program, m).is_same for m in found)


def test_constant_rows_do_not_make_two_functions_one() -> None:
    """On equal entries a softmax without keepdim is one; data near them tell."""
    program = recorded(lambda w: w.exp() / w.exp().sum(0, keepdim=True), torch.ones(6, 6))
    (match,) = forward_matches(program)
    other = Match(match.name, match.node, match.reads,
                  lambda values: torch.softmax(values[match.reads[0]], 1), "")  # fmt: skip
    assert agreement(program, match).is_same
    assert agreement(program, other).differs


def test_another_factor_shows() -> None:
    program = recorded(lambda w: w.exp().mean(1).log())
    (match,) = forward_matches(program)
    x = match.reads[0]
    plain = Match("", match.node, (x,), lambda values: torch.logsumexp(values[x], 1), "")
    kept = Match("", match.node, (x,),
                 lambda values: match.stable(values)[:, None], "")  # fmt: skip
    nearly = Match("", match.node, (x,), lambda values: match.stable(values) * (1 + 1e-9), "")
    assert agreement(program, match).is_same
    assert all(agreement(program, other).differs for other in (plain, kept, nearly))


def test_a_power_with_a_slope_at_zero_has_no_pole_there() -> None:
    for exponent, has_pole in ((2, False), (1.5, False), (0.5, True), (-1, True)):
        program = recorded(lambda w, e=exponent: w.abs().pow(e))
        found = [at_a_pole(n) for n in program if "pow" in str(n.target)]
        forward = [m for m in found if m and m.node.meta["call"].phase == "forward"]
        assert any(m.node.args[1] == exponent for m in forward) is has_pole


def test_a_square_that_underflows_is_not_moved_off_zero() -> None:
    """sqrt(a^2 + b^2) of a tiny a: another argument of the root would be another function."""
    w = torch.tensor([[-1.0568e-23, 0.0], [-3.0, 4.0]])
    found = diagnose(Weights(w), lambda m, b: (m.w[:, 0] ** 2 + m.w[:, 1] ** 2).sqrt().sum(), None)
    assert found
    assert not [f for f in found if f.verified]
    assert not diagnose(Weights(w), lambda m, b: torch.hypot(m.w[:, 0], m.w[:, 1]).sum(), None)


def test_a_root_at_zero_is_still_cured() -> None:
    found = diagnose(Weights(torch.tensor([0.0, 1.0])), lambda m, b: m.w.sqrt().sum(), None)
    assert [f for f in found if f.verified and "sqrt" in f.op]


@pytest.mark.parametrize(
    ("before", "after", "cured"),
    [
        (1.0, 1e-6, True), (math.inf, 1e-3, True), (1e-3, 4e-4, True), (1e-3, 6e-4, False),
        (math.inf, 0.7, False), (1.0, 1.0, False), (math.inf, math.inf, False),
        (math.inf, math.nan, False), (math.nan, 0.0, False), (0.0, 0.0, False),
    ],
)  # fmt: skip
def test_a_cure_leaves_a_clearly_smaller_and_small_error(
    before: float, after: float, cured: bool
) -> None:
    assert cures(before, after) is cured


def of_tiny(scale: float) -> Any:
    return Weights(torch.tensor([[5.7, 10.0]]) * scale)


def angle(m: Any, b: None) -> Tensor:
    return torch.view_as_complex(m.w).angle().sum()


def test_a_loss_scale_that_was_tried_in_vain_is_not_offered() -> None:
    """The square of a tiny number underflows in the backward pass: no scale of the loss helps."""
    found = diagnose(of_tiny(1e-24), angle, None)
    assert found
    for finding in found:
        in_vain = re.search("loss scale|cale the loss|bfloat16|in float32", finding.remedy)
        assert not in_vain, finding
    assert any("escale" in finding.remedy for finding in found)
    assert not diagnose(of_tiny(1e-14), angle, None)


def test_the_products_inside_of_one_derivative_are_no_layers() -> None:
    """A tiny, well separated matrix: its singular values' second derivative is large and right."""
    a = torch.tensor([[4.0, 1, 0], [1, 3, 1], [0, 1, 2]]) * 1e-20
    weights = torch.arange(1.0, 10.0).reshape(3, 3)

    def loss(m: Any, b: None) -> Tensor:
        (g,) = torch.autograd.grad(torch.linalg.svdvals(m.w).sum(), m.w, create_graph=True)
        return (g * weights).sum()

    assert not diagnose(Weights(a), loss, None)
