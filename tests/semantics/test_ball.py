"""Ball arithmetic against arbitrary precision: no violation, no slack."""

from dataclasses import replace

import pytest
import torch

from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program, record
from numgeom.semantics.ball import enclose
from tests.oracle.exact_program import contains, exact_gradients
from tests.oracle.networks import random_program
from tests.oracle.numbers import UndecidedError
from tests.oracle.workloads import opened_workload

NAMES = (
    "mlp-relu", "mlp-tanh", "mlp-gelu", "mlp-gelu-tanh", "mlp-silu", "mlp-sigmoid", "mlp-softplus",
    "mlp-leaky-relu", "mlp-elu", "batch-norm-cnn", "batch-norm-cnn-eval", "norms", "lstm", "rnn",
    "attention", "attention-weights", "encoder-layer", "sdpa-math", "sdpa-flash-causal",
    "autocast-bf16", "bfloat16", "float64", "tied", "frozen", "checkpoint", "accumulation",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("quiet_libraries")


def _worst(program: Program, ops: OpTable = OPS) -> float:
    balls = enclose(program, ops=ops)
    exact = exact_gradients(program)
    return max(contains(exact[k], balls.midpoints[k], balls.radii[k]) for k in exact)


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_gradient_is_enclosed(name):
    program = opened_workload(name)
    balls = enclose(program)
    assert not balls.unknown_ops
    assert _worst(program) <= 1
    sizes = [float(m.norm()) for m in balls.midpoints.values()]
    radii = [float(r.norm()) for r in balls.radii.values()]
    assert max(radii) < 1e-4 * max(sizes)


def _check_random(seeds: range) -> float:
    worst, undecided = 0.0, 0
    for seed in seeds:
        label, program = random_program(seed)
        try:
            ratio = _worst(program.decompose())
        except UndecidedError:  # an exact tie of inexact numbers: nothing to compare with
            undecided += 1
            continue
        assert ratio <= 1, label
        worst = max(worst, ratio)
    assert undecided < len(seeds) / 10
    return worst


def test_random_networks_are_enclosed():
    assert 0 < _check_random(range(60)) <= 1


@pytest.mark.campaign
def test_many_random_networks_are_enclosed():
    print("largest error / radius:", _check_random(range(1000, 2000)))


def test_an_op_without_a_rule_is_told_and_gives_no_bound():
    without = OpTable(tuple(op for op in OPS if op.name != "tanh"))
    balls = enclose(opened_workload("mlp-tanh"), ops=without)
    assert balls.unknown_ops == {"aten.tanh.default": 2}
    assert all(bool(torch.isinf(balls.radii[k]).any()) for k in ("0.weight", "2.weight"))


def test_the_enclosure_fails_without_rounding():
    """Facts that leave out what the calls round by are caught by the oracle."""
    careless = OpTable(tuple(replace(op, rounding=lambda call: None) for op in OPS))
    assert _worst(opened_workload("mlp-tanh"), careless) > 1


def test_a_decision_that_nobody_asked_about_gives_no_bound():
    """`where` on a doubtful comparison; a rule that ignores doubts must not pass as certain."""
    w = torch.nn.Parameter(torch.tensor([0.1, 0.7], dtype=torch.float64))

    def step() -> None:
        x = w * 3.0 - torch.tensor([0.1 * 3.0, 0.5], dtype=torch.float64)  # 0 up to rounding
        torch.where(x > 0, x.exp(), x * 5).sum().backward()

    with record() as recording:
        step()
    program = recording.program.decompose()
    honest = enclose(program)
    assert honest.doubtful
    careless = OpTable(
        tuple(
            replace(op, spread=lambda call: torch.zeros_like(call.y)) if op.name == "where" else op
            for op in OPS
        )
    )
    assert bool(torch.isinf(enclose(program, ops=careless).radii["leaf_0"][0]))
