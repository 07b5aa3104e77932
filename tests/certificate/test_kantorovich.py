"""The Newton-Kantorovich certificate against arbitrary precision: no violation, no slack."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from numgeom.certificate.kantorovich import kantorovich
from numgeom.ops.entry import Op
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program, record
from tests.oracle.networks import random_program
from tests.oracle.numbers import UndecidedError
from tests.oracle.radii import ratios
from tests.oracle.workloads import opened_workload

NAMES = (
    "mlp-relu", "mlp-tanh", "mlp-gelu", "mlp-softplus", "batch-norm-cnn", "norms", "lstm",
    "attention-weights", "encoder-layer", "autocast-bf16", "tied",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("quiet_libraries")


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_gradient_is_within_the_radii(name):
    program = opened_workload(name)
    result = kantorovich(program)
    assert result.holds, result.reason
    assert result.h < 1
    assert max(ratios(program, result)) <= 1
    size = math.hypot(*(float(m.norm()) for m in result.midpoints.values()))
    assert result.total_radius < 1e-8 * size


def _check_random(seeds: range) -> float:
    worst, held = 0.0, 0
    for seed in seeds:
        label, program = random_program(seed)
        program = program.decompose()
        result = kantorovich(program, seed=seed)
        if not result.holds:
            assert result.reason
            continue
        try:
            ratio = max(ratios(program, result))
        except UndecidedError:
            continue
        held += 1
        assert ratio <= 1, label
        worst = max(worst, ratio)
    assert held > len(seeds) / 2
    return worst


def test_random_networks_are_within_the_radii():
    assert 0 < _check_random(range(12)) <= 1


@pytest.mark.campaign
def test_many_random_networks_are_within_the_radii():
    print("largest error / radius:", _check_random(range(2000, 2200)))


def _changed(change, names) -> OpTable:
    return OpTable(tuple(change(op) if op.name in names else op for op in OPS))


def test_too_small_rounding_is_caught():
    """With every rounding taken a million times too small, the exact gradient leaves the radii."""
    program = opened_workload("mlp-tanh")

    def shrunk(rounding, call):
        found = rounding(call)
        if isinstance(found, tuple):
            return tuple(None if part is None else part * 1e-6 for part in found)
        return None if found is None else found * 1e-6

    def careless(op: Op) -> Op:
        return replace(op, rounding=partial(shrunk, op.rounding_of))

    result = kantorovich(program, ops=_changed(careless, {op.name for op in OPS}))
    assert result.holds
    assert max(ratios(program, result)) > 1


def test_without_curvature_the_constant_is_zero():
    """All of h comes from the curvature facts: an op that hides its own would make it vanish."""
    program = opened_workload("mlp-tanh")

    def linear(op: Op) -> Op:
        return replace(op, second_order=None)

    honest = kantorovich(program)
    blind = kantorovich(program, ops=_changed(linear, {op.name for op in OPS}))
    assert honest.curvature > 0
    assert blind.curvature == 0
    assert blind.h == 0


def _near_a_kink(distance: float) -> Program:
    w = torch.nn.Parameter(torch.tensor([0.1], dtype=torch.float64))

    def step() -> None:
        x = w.tanh().atanh() - 0.1 + distance  # 0.1 - 0.1 up to rounding
        (torch.relu(x) * 3).sum().backward()

    with record() as recording:
        step()
    return recording.program.decompose()


def test_a_kink_within_the_radius_is_named_and_voids_the_bound():
    result = kantorovich(_near_a_kink(1e-17))
    assert not result.holds
    assert "kink" in result.reason
    assert any(kink.count for kink in result.unresolved)
    assert kantorovich(_near_a_kink(1e-6)).holds


def test_an_unknown_op_is_told():
    without = OpTable(tuple(op for op in OPS if op.name != "tanh"))
    result = kantorovich(opened_workload("mlp-tanh"), ops=without)
    assert not result.holds
    assert "aten.tanh.default" in result.reason
    assert result.unknown_ops == {"aten.tanh.default": 2}


def test_a_condition_that_fails_is_blamed_and_gives_no_bound():
    """A chaotic program: 100 steps of the logistic map lose more digits than float64 has."""
    w = torch.nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def step() -> None:
        x = w
        for _ in range(100):
            x = 3.9 * x * (1 - x)
        x.sum().backward()

    with record() as recording:
        step()
    result = kantorovich(recording.program.decompose())
    assert not result.holds
    assert "to blame" in result.reason
    assert not result.norm_radii
    assert math.isinf(result.total_radius)
