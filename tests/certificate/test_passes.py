"""Is what probe passes round bounded, and does it void a certificate where it must?"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flint import arb, ctx
from torch import Tensor, nn

import numgeom
from numgeom.certificate.draws import Draws
from numgeom.certificate.kantorovich import kantorovich
from numgeom.certificate.norms import KEPT, ScaledMap
from numgeom.certificate.probes import ProbePlan
from numgeom.certificate.scale import choose_scale
from numgeom.certificate.structure import pruned
from numgeom.certificate.survey import survey
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS, OpTable
from numgeom.ops.tangents import Pushed
from numgeom.recording import Program, record_step
from numgeom.semantics.tangents import push


class _Weighted(nn.Module):
    """The gradient of `w` is what `value` makes of `a`."""

    def __init__(self, a: float, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.value = value

    def forward(self) -> Tensor:
        return self.w * self.value(self.a.detach())


def _error_and_bound(a: float, value: Callable[[Tensor], Tensor], exact: arb) -> tuple[arb, float]:
    model = _Weighted(a, value)
    model().backward()
    assert model.w.grad is not None
    error = abs(arb(float(model.w.grad)) - exact)
    found = numgeom.certify(model, lambda m, _: m(), None, method="kantorovich")
    if found.entrywise_bounds:
        return error, float(found.entrywise_bound("w"))
    assert any("round too much" in note for note in found.notes), found.notes
    return error, math.inf


@pytest.mark.parametrize("bend", [True, False])
@pytest.mark.parametrize("large", [2.0**120, 2.0**60, 2.0**20, 1.0])
def test_tangents_that_cancel_are_not_lost_in_silence(bend: bool, large: float) -> None:
    """(x + 0) - 0 is x, but a pass adds a change of this 0 that swallows that of x."""
    with ctx.workprec(300):
        for i in range(8):
            a, k = 3.0 + 0.05 * i, 1e6
            c = float(math.floor(math.exp(a) * k))

            def value(a: Tensor, k: float = k, c: float = c) -> Tensor:
                x = torch.exp(a) * k - c
                zero = (torch.sin(a) - torch.sin(a)) * large
                y = (x + zero) - zero
                return torch.sin(y) if bend else y

            exact = arb(a).exp() * arb(k) - arb(c)
            error, bound = _error_and_bound(a, value, exact.sin() if bend else exact)
            assert not error > bound
            assert large > 2.0**60 or bound < 1e-5


@pytest.mark.parametrize("k", [1e3, 1e4, 1e6])
def test_a_running_logarithm_far_below_the_largest_entry(k: float) -> None:
    with ctx.workprec(300):
        for a in (0.3, 0.31, 0.32, 0.33):
            c = math.floor(math.exp(a) * k) + 60.0

            def value(a: Tensor, k: float = k, c: float = c) -> Tensor:
                rest = torch.tensor([0.0, 1.0], dtype=torch.float64)
                x = torch.cat([(torch.exp(a) * k - c).reshape(1), rest])
                return torch.sin(torch.logcumsumexp(x, 0)[0])

            exact = (arb(a).exp() * arb(k) - arb(c)).sin()
            error, bound = _error_and_bound(a, value, exact)
            assert not error > bound
            assert bound < 1e-6


def _network() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    step = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(2, 3))
    return pruned(step.decompose())


def _coarse(relative: float, *, stated: float) -> OpTable:
    """Rules that round every tangent to a relative accuracy, and say so."""

    def coarse(rule: Any) -> Any:
        def spoilt(pushed: Pushed | None) -> Pushed | None:
            if pushed is None:
                return None
            noise = torch.rand(pushed.lanes.shape, generator=g, dtype=torch.float64) * 2 - 1
            before = pushed.rounding

            def rounding(size: Tensor) -> Tensor:
                own = size * (2 * stated)
                found = None if before is None else before(size)
                return own if found is None else own + found

            return Pushed(pushed.lanes * (1 + relative * noise), rounding, fresh=True)

        def changed(call: Evaluation, moved: Any) -> Any:
            found = rule(call, moved)
            return tuple(map(spoilt, found)) if isinstance(found, tuple) else spoilt(found)

        return changed

    g = torch.Generator().manual_seed(5)
    return OpTable(tuple(dataclasses.replace(op, tangent=coarse(op.tangent)) for op in OPS))


def _exact_norm(program: Program, scale: Any) -> float:
    offsets, size, rows = {}, 0, []
    for node, t in scale.columns.items():
        offsets[node] = size
        size += t.numel()

    def inject(node: Any, value: Tensor) -> Tensor | None:
        if node not in offsets:
            return None
        unit = torch.zeros(size, value.numel(), dtype=torch.float64)
        start = offsets[node]
        unit[start : start + value.numel()] = torch.diag(scale.columns[node].reshape(-1))
        return unit.reshape(size, *value.shape)

    def visit(node: Any, e: Tensor) -> None:
        if node in scale.rows:
            rows.append((e / scale.rows[node]).reshape(size, -1))

    push(program, size, inject, visit)
    return float(torch.linalg.matrix_norm(torch.cat(rows, 1).T, 2))


@pytest.mark.parametrize("relative", [1e-13, 1e-10, 1e-8])
def test_passes_that_round_coarsely_say_so_and_bounds_hold(relative: float) -> None:
    program, ops = _network(), _coarse(relative, stated=relative)
    surveyed = survey(program, ops, None, Draws(0))
    facts, scale = surveyed.facts, choose_scale(surveyed)
    norm = _exact_norm(program, scale)
    solver = ScaledMap(program, facts, scale, None, Draws(1), ops)
    found = solver.probe(12, keep=KEPT)
    assert relative < found.rounding < math.inf
    plain = ProbePlan(12, 1e-9, solver.dimension).bound(found.rows, rounding=found.rounding)
    assert norm <= plain
    assert norm <= solver.pull(found, 1e-9)
    assert norm <= solver.power(8, 1, 1e-9)


def test_what_rounds_more_than_probes_can_bear_is_refused() -> None:
    result = kantorovich(_network(), ops=_coarse(0.0, stated=1e-2))
    assert not result.holds
    assert "round too much" in result.reason
    assert "aten." in result.reason


def test_an_op_without_a_tangent_rule_is_named() -> None:
    without = (dataclasses.replace(op, tangent=None) if op.name == "tanh" else op for op in OPS)
    result = kantorovich(_network(), ops=OpTable(tuple(without)))
    assert not result.holds
    assert "aten.tanh.default has no tangent rule" in result.reason
