"""Does the audit measure what torch does at kinks, and whether it matters?"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import AuditedOp, audit, audit_of
from numgeom.recording import record_step
from tests.nonsmooth.kinked import KINKED, Kinked
from tests.nonsmooth.steps import cross_entropy

# What breaks the rule, from torch's derivatives as they were measured one by one by hand
# (derivatives of sums at ones, or at the bound): clamp takes 1, pools and max(dim) the first entry,
# fmax and fmin the first argument, PReLU the slope 1, SELU the steeper side.
BREAKS = {
    "adaptive-max-pool1d",
    "adaptive-max-pool2d",
    "adaptive-max-pool3d",
    "clamp",
    "clamp-beside-where",
    "clamp-broadcast",
    "clamp-max",
    "clamp-max-tensor",
    "clamp-min",
    "clamp-min-keyword",
    "clamp-min-tensor",
    "clamp-one-bound-trained",
    "clamp-tensors",
    "clamp-twice",
    "fmax",
    "fmin-broadcast",
    "hinge-embedding",
    "margin-ranking",
    "max-along",
    "max-along-kept",
    "max-pool1d",
    "max-pool2d",
    "max-pool2d-channels-last",
    "max-pool2d-overlapping",
    "max-pool3d",
    "min-along",
    "prelu",
    "prelu-one-slope",
    "selu",
}


def own_loss(model: nn.Module, batch: object) -> Tensor:
    del batch
    return model()


@pytest.mark.parametrize("name", KINKED)
def test_every_op_is_measured(name: str) -> None:
    function, shape = KINKED[name]
    found = audit_of(record_step(Kinked(function, shape), own_loss, None))
    assert found
    assert all(op.breaks_rule is not None for op in found)
    assert any(op.breaks_rule for op in found) is (name in BREAKS)
    # These functions have ties: where torch keeps to the rule, the rule changes nothing.
    for op in found:
        assert op.n_tied > 0
        assert op.breaks_rule or op.difference < 1e-15
        assert op.matters is op.breaks_rule


@pytest.mark.parametrize(
    ("function", "norm", "least"),
    [
        (lambda x: x.clamp(min=0), 1.0, 0.0),
        (lambda x: F.max_pool1d(x[None], 4), 1.0, 0.5),
        (lambda x: x.max(dim=1)[0], 1.0, 0.5),
        (lambda x: x.amax(dim=1), 0.5, 0.5),
        (F.relu, 0.0, 0.0),
        (lambda x: F.leaky_relu(x, 0.25), 0.25, 0.25),
    ],
)
def test_the_norms_are_those_at_the_kink(
    function: Callable[[Tensor], Tensor], norm: float, least: float
) -> None:
    """Measured although this batch has no ties."""

    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor([[0.5, 1.5, -2.0, 3.0]]))

        def forward(self) -> Tensor:
            return function(self.x).sum()

    (op,) = audit(Free(), own_loss, None)
    assert op.norm == pytest.approx(norm, rel=1e-12)
    assert op.least_norm == pytest.approx(least, rel=1e-12)
    assert op.n_tied == 0
    assert op.difference == 0.0
    assert not op.matters
    assert "no unit is tied on this batch" in str(op)


def test_a_tie_of_a_clamp_matters() -> None:
    class AtZero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor([0.0, 2.0]))

        def forward(self) -> Tensor:
            return 3 * self.x.clamp(min=0).sum()

    (op,) = audit(AtZero(), own_loss, None)
    assert op.breaks_rule
    assert op.n_tied == 1
    assert op.difference == 3.0
    assert op.matters
    assert "breaks the rule (norm 1, least 0); 1 tied units: the rule would move" in str(op)


def test_equal_patches_break_the_rule_and_do_not_matter(lenet: Callable, digits: Callable) -> None:
    found = {op.op: op for op in audit(lenet(), cross_entropy, digits(0, 32))}
    pool = found["max_pool2d_with_indices"]
    assert pool.breaks_rule
    assert pool.norm == 1.0
    assert pool.least_norm == 0.5
    assert pool.n_tied > 1000
    assert not pool.matters
    assert len(pool.places) == 2
    relu = found["relu"]
    assert relu.breaks_rule is False


def test_what_was_not_measured_is_not_said_to_keep_the_rule() -> None:
    op = AuditedOp("relu", "relu", ("m",), None, None, 0, 0.0, 0.0)
    assert op.breaks_rule is None
    assert "was not measured" in str(op)


def test_a_nan_matters() -> None:
    assert AuditedOp("relu", "relu", ("m",), 1.0, 0.0, 1, math.nan, 0.0).matters
