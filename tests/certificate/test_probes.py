"""Bounds of norms by random probes: they hold, and fail as often as they say."""

import math

import pytest
import torch
from torch import Tensor

from numgeom.certificate.draws import GRAIN
from numgeom.certificate.probes import ProbePlan


def _uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1


def test_probes_bound_the_norm_of_a_known_matrix():
    """Over many matrices no bound fails, and the failure probability is what makes them wide."""
    rng = torch.Generator().manual_seed(0)
    for trial in range(50):
        n = 5 + trial
        matrix = torch.randn(n, n, generator=rng, dtype=torch.float64)
        largest = float(torch.linalg.matrix_norm(matrix, 2))
        for probes, steps in ((4, 1), (12, 3), (10, 0)):
            plan = ProbePlan(probes, steps, 1e-9, n)
            found = []
            for _ in range(probes):
                y = matrix @ _uniform(rng, n)
                for _ in range(steps):
                    y = matrix @ (matrix.T @ y)
                found.append(float(y.norm()) ** (1 / (2 * steps + 1)))
            assert plan.bound(found) >= largest
            half = ProbePlan(6, 0.5, 1e-9, n)
            pulled = [matrix.T @ (matrix @ _uniform(rng, n)) for _ in range(6)]
            assert half.bound([float(y.norm()) ** 0.5 for y in pulled]) >= largest
    assert ProbePlan(6, 1, 1e-9).inflation < ProbePlan(6, 0.5, 1e-9).inflation
    assert ProbePlan(6, 0.5, 1e-9).inflation < ProbePlan(6, 0, 1e-9).inflation ** 0.51
    assert ProbePlan(12, 3, 1e-9).inflation < 1.4 < ProbePlan(4, 1, 1e-9).inflation


def test_the_stated_failure_probability_is_that_of_the_worst_direction():
    """For v = (1, 1) / sqrt(2), density and bound agree at 0: it fails about as often as stated."""
    plan = ProbePlan(2, 0, 0.01, rounding=0.0)
    rng = torch.Generator().manual_seed(1)
    parts = _uniform(rng, 200_000, 2, 2).sum(-1).abs() / math.sqrt(2)
    rate = float((plan.inflation * parts.amax(1) < 1).double().mean())
    assert rate <= 0.01
    assert rate > 0.008


@pytest.mark.parametrize("n", [1, 3, 10, 100])
def test_no_direction_fails_more_often(n):
    plan = ProbePlan(1, 0, 0.1)
    rng = torch.Generator().manual_seed(n)
    v = torch.randn(n, generator=rng, dtype=torch.float64)
    parts = (_uniform(rng, 20_000, n) @ (v / v.norm())).abs()
    assert float((plan.inflation * parts < 1).double().mean()) <= 0.1 + 3 * math.sqrt(0.09 / 20_000)


def test_grain_and_rounding_widen_the_bound_until_there_is_none():
    plain = ProbePlan(8, 0, 1e-10)
    eps = 1e-10 ** (1 / 8) / math.sqrt(2)
    assert ProbePlan(8, 0, 1e-10, 10**8).inflation > plain.inflation
    assert ProbePlan(8, 0, 1e-10, rounding=eps / 2).inflation > 1.9 * plain.inflation
    assert math.isinf(ProbePlan(8, 0, 1e-10, rounding=eps).inflation)
    assert math.isinf(ProbePlan(8, 0, 1e-10, dimension=math.ceil((eps / GRAIN) ** 2)).inflation)


def test_the_number_of_results_is_that_of_the_plan():
    with pytest.raises(ValueError, match="planned 3 probes, got 1"):
        ProbePlan(3, 0, 1e-9).bound([1.0])
