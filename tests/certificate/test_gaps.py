"""Ways in which a bound could come out too small without a constant being wrong.

Each test is about one step between the theorem and its code: a sum that must not be a maximum, a
number that is not one, a norm that underflows, a gradient that two parameters share.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import numgeom.certificate.kantorovich as theorem
from numgeom.certificate import CertificateError, certify
from numgeom.certificate.bounds import LABELS, find_radii
from numgeom.certificate.curvature import Examined, examine
from numgeom.certificate.draws import Draws
from numgeom.certificate.kantorovich import kantorovich
from numgeom.certificate.norms import Probed, ScaledMap
from numgeom.certificate.passes import Drawn
from numgeom.certificate.probes import ProbePlan
from numgeom.certificate.scale import choose_scale
from numgeom.certificate.structure import pruned
from numgeom.certificate.survey import survey
from numgeom.certificate.witnesses import Witnesses
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program, record, record_step
from tests.oracle.exact_program import exact_gradients
from tests.oracle.radii import ratios


def _with(name: str, **facts: Callable[[Evaluation], Any]) -> OpTable:
    return OpTable(tuple(replace(op, **facts) if op.name == name else op for op in OPS))


def _network() -> Program:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    step = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(2, 3))
    return step.decompose()


# -- gradients -----------------------------------------------------------------------------


def test_parameters_that_share_a_gradient_are_both_bounded() -> None:
    """d/da f(a + b) is d/db f(a + b): one node of the program, under two names."""
    program = _network()
    end = next(n for n in program.graph.nodes if n.op == "output")
    (results,) = end.args
    gradients = results["gradients"]  # type: ignore[index,call-overload]  # a mapping
    shared = {**gradients, "first": gradients["0.weight"], "again": gradients["0.weight"]}
    graph, copies = fx.Graph(), {}
    for node in program.graph.nodes:
        if node is not end:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    named = {name: copies[node] for name, node in shared.items()}
    graph.output({"gradients": named, "loss": None, "updates": {}})
    both = dataclasses.replace(program, graph=graph)
    one, two = kantorovich(program), kantorovich(both)
    assert two.holds, two.reason
    assert two.norm_radii["first"] == two.norm_radii["again"] == two.norm_radii["0.weight"]
    assert two.norm_radii["first"] > 0.5 * one.norm_radii["0.weight"]
    assert max(ratios(both, two, exact_gradients(both))) <= 1
    parts = [two.norm_radii[name] for name in ("0.weight", "first", "again")]
    assert two.total_radius > 0.5 * math.hypot(*parts)


@pytest.mark.parametrize("size", [1.0, 1e-150, 1e-170, 1e-200, 1e-250])
def test_gradients_whose_squares_underflow_are_bounded(size: float) -> None:
    """Early layers of a deep sigmoid network have gradients of such sizes in float64."""
    program = _scaled(size)
    result = kantorovich(program)
    assert result.holds, result.reason
    assert min(result.norm_radii.values()) > 0
    assert max(ratios(program, result, exact_gradients(program, 2000))) <= 1


def _scaled(size: float) -> Program:
    """The gradient of sum(size tanh(1.7 w)^2)."""
    w = nn.Parameter(torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64))
    with record() as recording:
        ((w * 1.7).tanh().square() * size).sum().backward()
    return recording.program.decompose()


# -- curvature -----------------------------------------------------------------------------


def _convolution() -> Program:
    """The backward pass of the convolution has two outputs, and curved calls read both."""
    p = nn.Parameter(torch.randn(1, 1, 5, 5, dtype=torch.float64))
    v = nn.Parameter(torch.randn(2, 1, 3, 3, dtype=torch.float64))
    with record() as recording:
        nn.functional.conv2d(p.tanh(), v.tanh()).square().sum().backward()
    return pruned(recording.program.decompose())


def test_the_outputs_of_one_call_add_up_in_its_curvature() -> None:
    """||R||^2 is the sum over the outputs, not the largest of them."""
    program = _convolution()
    surveyed = survey(program, OPS, None, Draws(0))
    facts, scale = surveyed.facts, choose_scale(surveyed)
    right = OPS.named("convolution_backward")
    assert right is not None

    def curvature(*kept: int) -> float:
        """K, where only these outputs of the backward pass bend."""

        def second_order(call: Evaluation) -> Any:
            found = right.second_order_of(call)
            return tuple(part if i in kept else None for i, part in enumerate(found))

        flat = tuple(replace(op, second_order=_nothing) for op in OPS if op.name != right.name)
        ops = OpTable((*flat, replace(right, second_order=second_order)))
        return examine(program, facts, scale, 1.0, ops, None).curvature

    first, second = curvature(0), curvature(1)
    assert min(first, second) > 0
    assert curvature(0, 1) >= math.hypot(first, second) * (1 - 1e-12)


def _nothing(call: Evaluation) -> Any:
    return (None,) * len(call.y) if isinstance(call.y, (tuple, list)) else None


def test_a_curvature_that_is_not_a_number_is_none() -> None:
    """It must not be read as zero."""
    for one in (True, False):

        def second_order(call: Evaluation, one: bool = one) -> Tensor:
            found = torch.full_like(call.y, math.nan)
            return found if one else found.index_fill_(0, torch.tensor([0]), 0.0)

        result = kantorovich(_network(), ops=_with("tanh", second_order=second_order))
        assert not result.holds
        assert math.isinf(result.curvature)


def test_an_infinite_radius_is_no_certificate() -> None:
    """The last products of the gradients are in no h; their second-order terms may be infinite."""

    def second_order(call: Evaluation) -> Tensor | None:
        both = all(r is not None and bool((r > 1e-50).any()) for r in map(call.radius, (0, 1)))
        return torch.full_like(call.y, math.inf) if both else None

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    step = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(2, 3))
    result = kantorovich(step.decompose(), ops=_with("mm", second_order=second_order))
    assert result.h < 1
    assert not result.holds
    assert "infinite" in result.reason


# -- probes --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_probe_that_is_not_a_number_bounds_nothing(bad: float, place: int) -> None:
    results = [1.0, 1.0]
    results[place] = bad
    assert math.isinf(ProbePlan(2, 1e-9).bound(results))


def _poisoned(lane: int) -> Probed:
    """Probes of a network, one of whose vectors has an entry that is not a number."""
    program = pruned(_network())
    surveyed = survey(program, OPS, None, Draws(0))
    facts, scale = surveyed.facts, choose_scale(surveyed)

    class Poisoned(ScaledMap):
        def _drawn(self, lanes: int, visit: Any, branches: int = 0) -> Drawn:
            def spoiled(node: fx.Node, e: Tensor) -> None:
                e = e.clone()
                e[lane] = math.nan
                visit(node, e)

            return super()._drawn(lanes, spoiled, branches)

    return Poisoned(program, facts, scale, None, Draws(1)).probe(8)


@pytest.mark.parametrize("lane", [0, 5])
def test_numbers_that_are_none_on_the_way_void_every_bound(lane: int) -> None:
    found = _poisoned(lane)
    assert math.isinf(ProbePlan(8, 1e-9).bound(found.rows))
    assert math.isinf(ProbePlan(8, 1e-9).bound(found.total))
    for results in found.blocks.values():
        assert math.isinf(ProbePlan(8, 1e-9).bound(results))


def test_evaluations_that_differ_are_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts of one evaluation say nothing about the values of another."""

    def other(*subject: Any, **how: Any) -> Examined:
        found = examine(*subject, **how)
        return replace(found, values={k: v.nextafter(v + 1) for k, v in found.values.items()})

    monkeypatch.setattr(theorem, "examine", other)
    result = kantorovich(_network())
    assert not result.holds
    assert "different bits" in result.reason


# -- probabilities -------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [1e-3, 1.4e-9, 1e-15])
def test_the_stated_probability_covers_probes_and_labels(
    asked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = []

    def watched(*subject: Any, **how: Any) -> Any:
        spent.append(how["failure_probability"])
        return kantorovich(*subject, **how)

    monkeypatch.setattr("numgeom.certificate.bounds.kantorovich", watched)
    radii = find_radii(_network(), "kantorovich", 1.0, failure_probability=asked)
    stated = float(radii.constants["failure probability"])
    assert stated >= (spent[0] + LABELS) * (1 - 1e-15)
    assert stated <= max(asked, asked / 2 + LABELS)


@pytest.mark.parametrize("wanted", [math.inf, 0.0])
def test_the_probabilities_of_all_bounds_add_up(
    wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every norm that is bounded spends its part: each gradient, all of them, and each beta."""
    spent: list[float] = []

    class Spending(ProbePlan):
        def bound(self, results: list[float], **how: Any) -> float:
            spent.append(self.failure_probability)
            return super().bound(results, **how)

    class Stepping(ProbePlan):
        @property
        def least(self) -> float:
            spent.append(self.failure_probability)
            return super().least

    class Judging(Witnesses):
        def errors(self, y: Any, x: Any, chance: float) -> list[float]:
            spent.append(chance)
            return super().errors(y, x, chance)

    monkeypatch.setattr(theorem, "ProbePlan", Spending)
    monkeypatch.setattr("numgeom.certificate.norms.ProbePlan", Stepping)
    monkeypatch.setattr("numgeom.certificate.norms.Witnesses", Judging)
    # As if plain probes, half a power step and whole ones did not do.
    crooked = OpTable(tuple(
        replace(op, second_order=partial(_larger, op.second_order_of)) for op in OPS
    ))  # fmt: skip
    for ops in (OPS, crooked):
        spent.clear()
        result = kantorovich(_network(), failure_probability=1e-6, wanted=wanted, ops=ops)
        assert result.holds is (ops is OPS)
        assert spent
        assert math.fsum(spent) <= 1e-6 * (1 + 1e-12)


def _larger(second_order: Callable[[Evaluation], Any], call: Evaluation) -> Any:
    found = second_order(call)
    return found * 1e20 if isinstance(found, Tensor) else found


@pytest.mark.parametrize("asked", [0.0, -1e-9, 1.0, 2.0, math.nan])
def test_a_probability_must_be_one(asked: float) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(CertificateError, match="between 0 and 1"):
        certify(model, lambda m, x: m(x).sum(), torch.randn(2, 2), failure_probability=asked)
