"""Are the gallery's defects found, and its twins left in peace, in 16-bit formats too?

Model and batch of a case are converted. The lists hold the cases whose numbers make the same defect
in the narrower format, and whose cure still is one there: a cancellation that costs half of the
digits of float32 may leave none of bfloat16, and 1e6 is no number of float16. Order, recomputation,
nondeterminism, finite differences and loss scales have cases of their own in each format.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.diagnosis import Diagnosis, Severity, diagnose
from reproductions.gallery import BRAIN, CASES, HALF, Case

IN_BOTH = (
    "log-of-zero", "log-of-negative", "exp-overflow-in-both", "sqrt-at-zero", "zero-over-zero",
    "power-of-zero", "acos-at-one", "masked-too-late", "reciprocal-sigmoid", "softmax-unshifted",
    "log-softmax-split", "log-sigmoid-split", "log-one-minus-sigmoid", "softplus-by-hand",
    "logsumexp-by-hand", "logsumexp-of-tiny", "likelihood-as-a-product",
    "division-by-an-underflowed-sum", "tiny-denominator", "parameter-is-nan", "input-is-infinite",
    "empty-selection", "attention-row-masked-whole", "attention-one-hot",
    "contrastive-sharp-temperature", "vae-unbounded-log-variance", "mixture-density-by-hand",
    "flow-log-of-determinant", "entropy-of-a-softmax", "saturated-sigmoid", "saturated-tanh",
    "saturated-hardtanh", "saturated-silu", "saturated-gelu", "dead-relus",
    "softmax-saturates-before-mse", "deep-sigmoid-vanishes", "recurrence-vanishes",
    "recurrence-explodes", "torch-rnn-vanishes",
)  # fmt: skip
IN_FLOAT16 = (
    "variance-by-moments",
)  # fmt: skip
IN_BFLOAT16 = (
    "exp-overflow", "exp-about-to-overflow", "one-minus-cos", "exp-minus-one", "log-of-one-plus",
    "difference-of-squares", "small-root-of-a-quadratic", "tangent-near-its-pole",
    "finite-difference-in-the-loss", "physics-residual-by-differences", "deep-linear-explodes",
    "chaotic-map",
)  # fmt: skip


def converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.dtype is torch.float32 else value
    return tuple(converted(v, dtype) for v in value) if isinstance(value, tuple) else value


def of(make: Any, dtype: torch.dtype) -> Diagnosis:
    torch.manual_seed(0)
    model, loss_fn, batch = make()
    return diagnose(model.to(dtype), loss_fn, converted(batch, dtype))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, HALF) for name in (*IN_BOTH, *IN_FLOAT16)]
    + [(name, BRAIN) for name in (*IN_BOTH, *IN_BFLOAT16)],
)
def test_a_defect_is_found_and_its_twin_is_not(name: str, dtype: torch.dtype) -> None:
    case: Case = next(case for case in CASES if case.name == name)
    found = of(case.defective, dtype)
    assert any(
        finding.severity is not Severity.INFO
        and finding.kind in case.kinds
        and (not case.ops or any(word in finding.op for word in case.ops))
        for finding in found
    ), f"none of {case.kinds} at {case.ops}:\n{found}"
    twin = of(case.healthy, dtype)
    assert not twin, f"a false alarm:\n{twin}"
