"""What a reference decides by rounded numbers is in doubt where another choice would show.

p is 1 over the reals and 1 up to some 1e-16 as it is computed, so that comparisons with numbers
next to 1 come out wrong now and then; the exact gradients are known.
"""

import math

import pytest
import torch
from torch import nn

from numgeom import certify, record
from numgeom.recording.references.freedom import declared, free
from numgeom.results.guarantee import Guarantee

METHODS = ("ball", "functional", "kantorovich")
BELOW = 1 - 2.0**-53
VALUES = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)


class Step(nn.Module):
    def __init__(self, f, a=0.1, dtype=torch.float64):
        super().__init__()
        self.a = torch.tensor(a, dtype=dtype)
        self.w = nn.Parameter(torch.tensor(1.0, dtype=dtype))
        self.f = f

    def forward(self):
        p = torch.exp(self.a) * torch.exp(-self.a)
        return self.w * self.f(p * p * p)


def near_tie(p):
    one = torch.ones_like(p)
    return torch.stack([torch.stack([p, 5 * one]), torch.stack([one * BELOW, 7 * one])])


def clear(p):
    one = torch.ones_like(p)
    return torch.stack([torch.stack([3 * p, 5 * one]), torch.stack([one, 7 * one])])


def column(p, first):
    one = torch.ones_like(p)
    return torch.stack([first, one, one]).reshape(3, 1)


def second(p):
    """Nothing to reflect in the first column; 1e-18 over the reals leads the second."""
    zero, tiny = torch.zeros_like(p), (p - 1.0) + 1e-18
    rows = ([2 * p, zero], [zero, tiny], [zero, torch.ones_like(p)])
    return torch.stack([torch.stack(row) for row in rows])


UNDECIDED = {
    "pivots": (lambda p: torch.linalg.lu_factor(near_tie(p))[0][0, 1], 5.0),
    "pivots as numbers": (lambda p: torch.linalg.lu_factor(near_tie(p))[1][0].to(p.dtype), 1.0),
    "pivots as positions": (lambda p: VALUES[torch.linalg.lu_factor(near_tie(p))[1][0]], 2.0),
    "pivots of another system": (
        lambda p: torch.linalg.lu_solve(
            clear(p).detach() * 0 + torch.eye(2, dtype=p.dtype),
            torch.linalg.lu_factor(near_tie(p))[1],
            torch.tensor([[1.0], [2.0]], dtype=p.dtype),
        )[0, 0],
        1.0,
    ),
    "sign of Q": (
        lambda p: torch.linalg.qr(column(p, (p - 1.0) + 1e-18))[1][0, 0],
        -math.sqrt(2.0),
    ),
    "sign of Q, second column": (lambda p: torch.linalg.qr(second(p))[1][1, 1], -1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", UNDECIDED)
def test_bounds_hold_where_a_reference_decides(name):
    f, exact = UNDECIDED[name]
    wrong = 0
    for i in range(60):
        step = Step(f, 0.1 + 0.013 * i)
        step().backward()
        grad = float(step.w.grad)
        if abs(grad - exact) < 1e-3 or wrong == 2:
            continue
        wrong += 1
        for method in METHODS:
            found = certify(step, lambda model, batch: model(), None, method=method)
            if found.guarantee >= Guarantee.CERTIFIED:
                assert abs(grad - exact) <= float(found.entrywise_bound("w"))
    assert wrong


def indefinite(p):
    """Its second pivot is p - 1 - 1e-18, below 0 over the reals."""
    one = torch.ones_like(p)
    return torch.stack([torch.stack([one, one]), torch.stack([one, p - 1e-18])])


def singular(p):
    """Its second pivot is p - 1, which is 0 over the reals."""
    one = torch.ones_like(p)
    return torch.stack([torch.stack([one, one]), torch.stack([one, p])])


STOPS = {
    "cholesky_ex": lambda p: torch.linalg.cholesky_ex(indefinite(p))[1],
    "inv_ex": lambda p: torch.linalg.inv_ex(singular(p))[1],
    "lu_factor_ex": lambda p: torch.linalg.lu_factor_ex(singular(p))[2],
    "solve_ex": lambda p: torch.linalg.solve_ex(singular(p), column(p, p)[:2])[1],
}


@pytest.mark.parametrize("name", STOPS)
def test_whether_a_factorisation_stops_is_in_doubt_where_it_hangs_on_rounding(name):
    def branch(p):
        return p.detach() * 0 + (3.0 if STOPS[name](p).item() == 0 else 5.0)

    for a in (0.1, 0.3, 0.7, 1.1):
        for method in METHODS:
            found = certify(Step(branch, a), lambda model, batch: model(), None, method=method)
            assert found.guarantee < Guarantee.CERTIFIED


def test_a_clear_factorisation_decides():
    def branch(p):
        info = torch.linalg.cholesky_ex(clear(p) @ clear(p).mT)[1]
        return p.detach() * 0 + (3.0 if info.item() == 0 else 5.0)

    found = certify(Step(branch), lambda model, batch: model(), None, method="ball")
    assert found.guarantee >= Guarantee.CERTIFIED, found.notes
    assert found.decisions.count == 1


FREE = {
    "solution": lambda p: torch.linalg.solve(near_tie(p), column(p, p)[:2]).sum(),
    "solution by factors": lambda p: torch.linalg.lu_solve(
        *torch.linalg.lu_factor(near_tie(p)), column(p, p)[:2]
    ).sum(),
    "inverse": lambda p: torch.linalg.inv(near_tie(p)).sum(),
    "determinant": lambda p: torch.linalg.det(near_tie(p)),
    "logarithm of the determinant": lambda p: torch.linalg.slogdet(near_tie(p))[1],
    "clear pivots": lambda p: torch.linalg.lu_factor(clear(p))[0].sum(),
    "clear signs": lambda p: torch.linalg.qr(clear(p))[1].sum(),
    "softmax of equals": lambda p: torch.softmax(torch.stack([p, p, p * p]), 0)[0],
}


class Inner(nn.Module):
    """The same, with a parameter that the factorisation depends on."""

    def __init__(self, f):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.f = f

    def forward(self):
        return self.f(torch.exp(self.a) * torch.exp(-self.a.detach()))


FACTORED = ("solution by factors", "clear pivots")  # torch unpacks these by an op without a rule


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("kind", [Step, Inner])
def test_what_does_not_depend_on_a_choice_keeps_its_guarantee(name, kind):
    if kind is Inner and name in FACTORED:
        return
    step = kind(FREE[name])
    found = certify(step, lambda model, batch: model(), None, method="functional")
    assert found.guarantee >= Guarantee.CERTIFIED, found.notes


def test_a_number_from_nowhere_is_never_certain(monkeypatch):
    def program():
        step = Step(lambda p: torch.linalg.lu_factor(clear(p))[0].sum())
        with record(step) as recording:
            step().backward()
        return recording.program

    assert not program().decompose().decisions
    assert certify(program(), method="ball").guarantee >= Guarantee.CERTIFIED
    monkeypatch.setattr("numgeom.recording.references.linear_systems.declared", lambda x: x)
    opened = program().decompose()
    assert all(decision.is_unseen for decision in opened.decisions)
    assert opened.decisions
    assert certify(program(), method="ball").guarantee < Guarantee.CERTIFIED


def test_free_numbers_are_not_recorded():
    x = torch.ones(2)
    with free():
        assert declared(x) is x
