"""Bounds of norms by random probes: they hold, and fail as often as they say."""

import math

import pytest
import torch
from torch import Tensor

from numgeom.certificate.draws import GRAIN
from numgeom.certificate.probes import ProbePlan, Step, guess_error, largest_norm


def _uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1


def test_probes_bound_the_norm_of_a_known_matrix():
    """Over many matrices no bound fails, and the failure probability is what makes them wide."""
    rng = torch.Generator().manual_seed(0)
    for trial in range(50):
        n = 5 + trial
        matrix = torch.randn(n, n, generator=rng, dtype=torch.float64)
        largest = float(torch.linalg.matrix_norm(matrix, 2))
        for probes, steps in ((4, 1), (12, 3), (10, 0), (6, 0.5)):
            plan = ProbePlan(probes, 1e-9, n)
            found = []
            for _ in range(probes):
                y = matrix @ _uniform(rng, n)
                for _ in range(int(steps)):
                    y = matrix @ (matrix.T @ y)
                if steps % 1:
                    y = matrix.T @ y
                passes = [Step(0.0)] * (1 + round(2 * steps))
                found.append(largest_norm(plan.least, passes, float(y.norm())))
            assert max(found) >= largest


def test_errors_on_the_way_are_taken_into_account():
    """A chain of passes that each are off by something, in the worst direction."""
    rng = torch.Generator().manual_seed(2)
    for _ in range(200):
        sigma, start = (float(torch.rand((), generator=rng)) + 0.1 for _ in range(2))
        losses = (torch.rand(4, generator=rng).double() * 0.02).tolist()
        sizes = (torch.rand(4, generator=rng).double() + 0.5).tolist()
        c = start
        for loss, size in zip(losses, sizes, strict=True):
            c = (sigma * c - loss) / size
        chain = [Step(loss, size) for loss, size in zip(losses, sizes, strict=True)]
        if c > 0:
            bound = largest_norm(start, chain, c)
            assert sigma <= bound <= sigma * (1 + 1e-6)
    assert largest_norm(0.0, [Step(0.0)], 1.0) == math.inf
    assert largest_norm(-0.1, [Step(0.0)], 1.0) == math.inf
    assert largest_norm(0.1, [Step(math.nan)], 1.0) == math.inf
    assert largest_norm(0.1, [Step(0.0)], math.inf) == math.inf


def test_a_guess_of_a_transposed_product_is_as_far_off_as_stated():
    rng = torch.Generator().manual_seed(3)
    plan = ProbePlan(3, 1e-9, 20)
    for trial in range(300):
        difference = torch.randn(20, generator=rng, dtype=torch.float64) * 10.0 ** -(trial % 9)
        gap = float((_uniform(rng, 3, 20) @ difference).abs().max())
        bound = guess_error(gap, 1.0, roundoff=0.0, rounding=0.0, plan=plan)
        assert float(difference.norm()) <= bound
    assert guess_error(0.0, 1.0, roundoff=0.0, rounding=1.0, plan=plan) == math.inf


def test_the_stated_failure_probability_is_that_of_the_worst_direction():
    """For v = (1, 1) / sqrt(2), density and bound agree at 0: it fails about as often as stated."""
    plan = ProbePlan(2, 0.01)
    rng = torch.Generator().manual_seed(1)
    parts = _uniform(rng, 200_000, 2, 2).sum(-1).abs() / math.sqrt(2)
    rate = float((plan.inflation() * parts.amax(1) < 1).double().mean())
    assert rate <= 0.01
    assert rate > 0.008


@pytest.mark.parametrize("n", [1, 3, 10, 100])
def test_no_direction_fails_more_often(n):
    plan = ProbePlan(1, 0.1)
    rng = torch.Generator().manual_seed(n)
    v = torch.randn(n, generator=rng, dtype=torch.float64)
    parts = (_uniform(rng, 20_000, n) @ (v / v.norm())).abs()
    assert float((plan.inflation() * parts < 1).double().mean()) <= 0.1 + 3 * math.sqrt(
        0.09 / 20_000
    )


def test_grain_and_rounding_widen_the_bound_until_there_is_none():
    plain = ProbePlan(8, 1e-10)
    eps = 1e-10 ** (1 / 8) / math.sqrt(2)
    assert ProbePlan(8, 1e-10, 10**8).inflation() > plain.inflation()
    assert plain.inflation(eps / 2) > 1.9 * plain.inflation()
    assert math.isinf(plain.inflation(eps))
    assert math.isinf(plain.inflation(math.inf))
    assert math.isinf(plain.inflation(math.nan))
    assert math.isinf(ProbePlan(8, 1e-10, dimension=math.ceil((eps / GRAIN) ** 2)).inflation())
    assert plain.bound([1.0] * 8, beside=1.0) >= 2 * plain.bound([1.0] * 8) * (1 - 1e-12)


def test_the_number_of_results_is_that_of_the_plan():
    with pytest.raises(ValueError, match="planned 3 probes, got 1"):
        ProbePlan(3, 1e-9).bound([1.0])
