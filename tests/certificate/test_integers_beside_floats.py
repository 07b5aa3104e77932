"""No bound is smaller than the error of an integer that was rounded beside real numbers.

The oracle is exact: the steps below have gradients that are known rational numbers. Guarantee: any,
as long as a bound that is given holds, entry by entry, without slack.
"""

from fractions import Fraction

import pytest
import torch
from torch import nn

from numgeom import certify
from numgeom.results.guarantee import Guarantee

B = 2.0**53
K = torch.tensor([2**53 + 1, 2**53 + 2])


def like(w, *values):
    return torch.tensor(values, dtype=w.dtype)


# f(w, k) and the exact gradient at w = (1, 1)
STEPS = {
    "comparison": (lambda w, k: (w * like(w, 1, 2) * (k > B)).sum(), [1, 2]),
    "comparison of tensors": (lambda w, k: (w * (k > like(w, B, B))).sum(), [1, 1]),
    "where": (lambda w, k: (w * torch.where(k == B, 5.0, 1.0)).sum(), [1, 1]),
    "branch": (lambda w, k: (w * (torch.where(k > 2**53 + 1, k, like(w, B)) - B)).sum(), [0, 2]),
    "cat": (lambda w, k: (w * (torch.cat([k, like(w, 0.5)])[:2] - B)).sum(), [1, 2]),
    "maximum": (lambda w, k: (w * (torch.maximum(k, like(w, B)) - B)).sum(), [1, 2]),
    "bucketize": (lambda w, k: (w * torch.bucketize(k, like(w, B))).sum(), [1, 1]),
    "product": (lambda w, k: (w * (k * 0.5 - B / 2)).sum(), [0.5, 1]),
    "product that moves": (lambda w, k: (w.exp().log() * (w.detach() * k - B)).sum(), [1, 2]),
    "quotient": (lambda w, k: (w * (k / 2 - B / 2)).sum(), [0.5, 1]),
    "difference": (lambda w, k: (w * (k - B)).sum(), [1, 2]),
    "cast": (lambda w, k: (w * (k.to(w.dtype) - B)).sum(), [1, 2]),
    "cast and back": (lambda w, k: (w * (k.to(w.dtype).to(torch.int64) - 2**53)).sum(), [1, 2]),
    "sum": (lambda w, k: (w * (k.sum(dtype=w.dtype) - 2 * B)).sum(), [3, 3]),
    "arithmetic of indices": (lambda w, k: (w[k - 2**53 - 1] * like(w, 3, 4)).sum(), [3, 4]),
    "argmax": (lambda w, k: w[torch.argmax(k - like(w, 0, 0.75))], [0, 1]),
    "Python integer": (lambda w, k: (w * (w.detach() * (2**53 + 1) - B)).sum(), [1, 1]),
    "filled": (lambda w, k: (w * (torch.full((2,), 2**53 + 1, dtype=w.dtype) - B)).sum(), [1, 1]),
}


class Step(nn.Module):
    def __init__(self, f, dtype):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=dtype))
        self.f = f

    def forward(self, k):
        return self.f(self.w, k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["ball", "functional", "kantorovich"])
@pytest.mark.parametrize("name", STEPS)
def test_bounds_hold(name, method, dtype):
    f, exact = STEPS[name]
    certificate = certify(Step(f, dtype), lambda model, k: model(k), K, method=method)
    if certificate.guarantee < Guarantee.CERTIFIED:
        return
    model = Step(f, dtype)
    model(K).backward()
    bounds = certificate.entrywise_bound("w").tolist()
    for computed, value, bound in zip(model.w.grad.tolist(), exact, bounds, strict=True):
        assert abs(Fraction(computed) - Fraction(value)) <= Fraction(bound)


def test_small_integers_keep_their_guarantee():
    def f(w, k):
        return (w * (k * 0.5) * (k > 1.5)).sum() + (w * (k == 2.0)).sum()

    for method in ("ball", "functional", "kantorovich"):
        certificate = certify(
            Step(f, torch.float32), lambda model, k: model(k), K - 2**53, method=method
        )
        assert certificate.guarantee >= Guarantee.CERTIFIED
