"""Is every op's tangent rule its derivative, within the rounding that it states?"""

import dataclasses
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OPS
from numgeom.ops.tangents import Pushed, Stack
from tests.ops.oracle import ORACLES as ELEMENTWISE_ORACLES
from tests.ops.tangent_laws import attained_tangent, check_tangent
from tests.ops.tensor_oracle import ORACLES as TENSOR_ORACLES
from tests.ops.test_campaign import EXEMPT, harder

ORACLES = {**ELEMENTWISE_ORACLES, **TENSOR_ORACLES}
# Without an oracle: what is drawn, memory as it was, windows that are drawn.
TRIED = tuple(op for op in OPS if op.name in ORACLES and op.examples)


def test_every_entry_has_a_rule() -> None:
    assert [op.name for op in OPS if op.tangent is None] == []


@pytest.mark.parametrize("op", TRIED, ids=lambda op: op.name)
def test_the_rule_is_the_derivative(op: Op) -> None:
    check_tangent(op, ORACLES[op.name])


HARD = tuple(op for op in TRIED if op.name not in EXEMPT)


def _spoilt(op: Op, seed: int) -> Op:
    """The entry with its examples spoilt: extreme and subnormal numbers, zeros, ties."""
    examples = [
        harder(example, seed + 10 * number + k, share)
        for number, example in enumerate(op.examples)
        for k, share in enumerate((0.15, 0.6))
    ]
    return dataclasses.replace(op, examples=tuple(examples))


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("op", HARD, ids=lambda op: op.name)
def test_the_rule_is_the_derivative_on_spoilt_examples(op: Op, seed: int) -> None:
    check_tangent(_spoilt(op, 1000 * seed), ORACLES[op.name], seed=seed)
