"""Does a glance at the reference leave a suspicion wherever both runs would show a finding?"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.diagnosis import Severity
from numgeom.diagnosis.diagnose import all_detectors, diagnose_program
from numgeom.diagnosis.glance import glance, take_alone
from numgeom.diagnosis.trace import Trace, take
from numgeom.recording import Program, record_step
from numgeom.recording.record import record_callable
from reproductions.gallery import CASES, SURROGATES, Case, Weights, mlp
from tests.recording import workloads


def square(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()


def recorded(step: Any) -> Program:
    torch.manual_seed(0)
    return record_step(*step())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_defect_is_suspicious(case: Case) -> None:
    assert glance(recorded(case.defective), all_detectors()) is None


HEALTHY = ("mlp-relu", "mlp-gelu", "lenet", "batch-norm-cnn", "dropout", "attention", "lstm",
           "autocast-bf16", "bfloat16", "float16", "float64", "checkpoint", "tied")  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_a_glance_is_enough_for_a_healthy_step(name: str) -> None:
    program = record_callable(workloads.build(name)[1])
    seen = glance(program, all_detectors())
    assert seen is not None
    assert all(finding.severity is Severity.INFO for finding in seen[1])


@pytest.mark.parametrize("name", HEALTHY)
def test_both_ways_measure_the_same(name: str) -> None:
    program = record_callable(workloads.build(name)[1])
    glanced, whole = take_alone(program, []), take(program, [])
    assert glanced.errors.gradient == whole.errors.gradient
    assert glanced.errors.worst == whole.errors.worst
    assert glanced.unit_roundoff == whole.unit_roundoff
    assert glanced.observations.keys() == whole.observations.keys()
    for node, seen in glanced.observations.items():
        full = whole.observations[node]
        assert (seen.format, seen.entries) == (full.format, full.entries)
        assert seen.norm == full.norm
        assert seen.nonfinite == full.nonfinite
        if full.rel_error < 1.0:  # maxima differ by no more than the norm of the difference
            missed = abs(seen.largest - full.largest)
            assert missed <= full.rel_error * full.norm * (1.0 + 1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_told_by_a_glance_where_nothing_else_is(name: str) -> None:
    program = recorded(SURROGATES[name])
    whole = diagnose_program(program, detectors=all_detectors())
    found = diagnose_program(program)
    assert [f.kind for f in found] == [f.kind for f in whole]


def test_an_exact_value_is_known_to_be_exact() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return ((x + 1.0) * 3.0).sum() * 0.1 * model(x / 3.0).sum()  # x / 3 is inexact

    program = record_step(nn.Linear(2, 1), loss, torch.arange(8.0).reshape(4, 2))
    glanced, whole = take_alone(program, []), take(program, [])
    found, wanted = (
        {n for n, seen in trace.observations.items() if seen.rel_error == 0.0}
        for trace in (glanced, whole)
    )
    assert found == {n for n in wanted if all(source in wanted for source in n.all_input_nodes)}
    assert any(n.op != "get_attr" for n in found)


def test_a_loss_that_is_wrong_is_suspicious_though_the_gradients_are_right() -> None:
    def loss(model: Any, batch: None) -> Tensor:
        return (model.w * 1e8 + 1.0 - model.w * 1e8).sum() + model.w.sum() * 1e-9

    assert glance(record_step(Weights([1.0, 3.0]), loss, None), all_detectors()) is None


def test_a_gradient_that_is_not_finite_is_suspicious_before_anything_runs() -> None:
    program = record_step(mlp(3, 4, 1), lambda m, x: 1e39 * square(m, x), torch.ones(2, 3))

    class Never:
        def see(self, call: Any, seen: Any) -> None:
            raise AssertionError

        def findings(self, trace: Trace) -> Any:
            raise AssertionError

    assert glance(program, [Never()]) is None


def test_underflow_is_counted_from_the_reference() -> None:
    model = Weights([1e-3] * 8).half()

    def loss(model: Any, batch: None) -> Tensor:
        return (model.w * 1e-3 * 1e-3).float().sum() + model.w.sum()

    program = record_step(model, loss, None)
    seen = take_alone(program, [])
    whole = take(program, [])
    assert sum(o.flushed for o in seen.observations.values()) > 0
    assert sum(o.flushed for o in seen.observations.values()) == sum(
        o.flushed for o in whole.observations.values()
    )


def test_a_formula_that_suffers_is_suspicious_though_it_weighs_nothing() -> None:
    def loss(model: Any, x: Tensor) -> Tensor:
        return square(model, x) + 1e-6 * torch.log(1 + 1e-6 * model(x).square()).mean()

    program = record_step(mlp(3, 4, 1), loss, torch.randn(8, 3))
    errors = take_alone(program, []).errors
    assert errors.of_gradients < 1e-4
    assert glance(program, all_detectors()) is None


def test_a_formula_with_a_stable_form_is_suspicious_though_it_does_well() -> None:
    def loss(model: Any, x: Tensor) -> Tensor:
        return -model(x).softmax(-1).log()[:, 0].mean()

    program = record_step(mlp(3, 4, 4), loss, torch.randn(8, 3))
    assert take_alone(program, []).errors.of_gradients < 1e-4
    assert glance(program, all_detectors()) is None


def test_a_lost_gradient_is_suspicious_though_it_weighs_nothing() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = Weights([1.0, 2.0]).half(), Weights([1.0, 2.0]).half()

    def loss(model: Any, batch: None) -> Tensor:
        return (model.large.w + (model.small.w * 1e-4) * 1e-4).sum()

    program = record_step(Two(), loss, None)
    errors = take_alone(program, []).errors
    assert errors.of_gradients < 1e-3
    assert errors.parameters["small.w"] == 1.0
    assert glance(program, all_detectors()) is None


def test_what_may_not_repeat_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    where = torch.tensor([0, 0, 1])

    def loss(model: Any, batch: None) -> Tensor:
        return model.w[where].square().sum()

    program = record_step(Weights([1.0, 2.0]), loss, None)
    gradients = program.recorded.gradients
    gradients["w"] = gradients["w"] * (1.0 + 2.0**-20)  # as if another order had won
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen = glance(program, all_detectors())
    assert seen is not None
    assert [finding.kind for finding in seen[1]] == ["nondeterminism"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    seen = glance(program, all_detectors())
    assert seen is not None
    assert not seen[1]
