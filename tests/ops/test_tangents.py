"""Is every op's tangent rule its derivative, within the rounding that it states?"""

import dataclasses
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OPS
from numgeom.ops.tangents import Pushed
from numgeom.semantics.sensitivity import load_forward_formulas
from tests.ops.oracle import ORACLES as ELEMENTWISE_ORACLES
from tests.ops.tangent_laws import check_tangent
from tests.ops.tensor_oracle import ORACLES as TENSOR_ORACLES
from tests.ops.test_campaign import EXEMPT, harder

ORACLES = {**ELEMENTWISE_ORACLES, **TENSOR_ORACLES}
# Without an oracle: what is drawn, memory as it was, windows that are drawn.
TRIED = tuple(op for op in OPS if op.name in ORACLES and op.examples)


def test_every_entry_has_a_rule() -> None:
    assert [op.name for op in OPS if op.tangent is None] == []


# What rounds n times is granted all of them in one direction; compound functions, each in full.
LOOSE = 0.001


@pytest.mark.parametrize("op", TRIED, ids=lambda op: op.name)
def test_the_rule_is_the_derivative(op: Op) -> None:
    seen = check_tangent(op, ORACLES[op.name])
    assert seen == 0.0 or seen > LOOSE


# torch's kernel misreads indices that do not lie side by side in memory; the rule, in batches, not.
MISREAD = frozenset({"adaptive_max_pool3d_backward"})
HARD = tuple(op for op in TRIED if op.name not in EXEMPT | MISREAD)


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


# ----------------------------------------------------------------------------- the law can fail


def _entry(name: str) -> Op:
    op = OPS.named(name)
    assert op is not None
    assert op.tangent is not None
    return op


def _changed(op: Op, *, slope: float = 1.0, bound: float = 1.0) -> Op:
    """The entry with the tangents of its first output, or what they round, multiplied."""
    rule = op.tangent
    assert rule is not None

    def spoilt(pushed: Pushed | None) -> Pushed | None:
        if pushed is None:
            return None
        before = pushed.rounding

        def rounding(size: torch.Tensor) -> Any:
            found = None if before is None else before(size)
            return None if found is None else found * bound

        return Pushed(pushed.lanes * slope, rounding)

    def changed(call: Evaluation, moved: Any) -> Any:
        found = rule(call, moved)
        return tuple(map(spoilt, found)) if isinstance(found, tuple) else spoilt(found)

    return dataclasses.replace(op, tangent=changed)


@pytest.mark.parametrize(
    "name", ["exp", "mul", "mm", "sum", "div", "relu", "view", "logcumsumexp", "var_mean", "gelu"]
)
def test_a_wrong_rule_is_noticed(name: str) -> None:
    with pytest.raises(AssertionError, match="is off by"):
        check_tangent(_changed(_entry(name), slope=1 + 1e-6), ORACLES[name])


@pytest.mark.parametrize("name", ["mul", "add", "sub", "pow", "leaky_relu"])
def test_half_the_rounding_is_too_little(name: str) -> None:
    op = _entry(name)
    assert check_tangent(op, ORACLES[name]) > 0.5
    with pytest.raises(AssertionError, match="the bound says"):
        check_tangent(_changed(op, bound=0.5), ORACLES[name])


def test_forward_formulas_of_torch_that_are_wrong_are_noticed() -> None:
    """That of logcumsumexp shifts by the largest entry of all, and adds 1e-13 to a divisor."""

    def by_torch(call: Evaluation, moved: Any) -> Pushed:
        load_forward_formulas()
        lanes = []
        for t in moved[0].lanes:
            with forward_ad.dual_level():
                x = forward_ad.make_dual(call.args[0], t)
                y = torch.logcumsumexp(x, call.args[1])
                lanes.append(forward_ad.unpack_dual(y).tangent)
        return Pushed(torch.stack(lanes), lambda size: size * 1e-9 + 1e-9)

    op = dataclasses.replace(_entry("logcumsumexp"), tangent=by_torch)
    with pytest.raises(AssertionError, match="logcumsumexp"):
        check_tangent(op, ORACLES["logcumsumexp"])
