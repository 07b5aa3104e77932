"""Are the random vectors what the bounds of their products assume?"""

import math

import torch

from numgeom.certificate.draws import GRAIN, Draws

LIKE = torch.zeros(50, 40, dtype=torch.float64)


def test_entries_are_integers_times_the_grain_between_minus_one_and_one() -> None:
    w = Draws(0).times(torch.ones(()).double(), 5, LIKE)
    assert w.shape == (5, 50, 40)
    assert bool((w >= -1).all())
    assert bool((w < 1).all())
    assert torch.equal(w / GRAIN, (w / GRAIN).round())
    n = w.numel()
    assert abs(float(w.mean())) < 5 / math.sqrt(3 * n)
    assert abs(float(w.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    quarters = torch.histc(w, 8, -1, 1) / n
    assert float((quarters - 1 / 8).abs().max()) < 5 * math.sqrt(1 / 8 / n)
    pairs = (w[:, :, 1:] * w[:, :, :-1]).mean()
    assert abs(float(pairs)) < 5 / (3 * math.sqrt(n))


def test_seed_and_purpose_decide_the_numbers() -> None:
    t = torch.ones(()).double()

    def drawn(seed: int, purpose: int) -> torch.Tensor:
        return Draws(seed, purpose).times(t, 2, LIKE)

    known = [drawn(*key) for key in ((0, 0), (0, 1), (1, 0), (-1, 0), (1, 1))]
    assert torch.equal(drawn(1, 0), known[2])
    for i, one in enumerate(known):
        assert not any(torch.equal(one, other) for other in known[:i])
    draws = Draws(3)
    assert not torch.equal(draws.times(t, 1, LIKE), draws.times(t, 1, LIKE))


def test_a_branch_is_independent_and_can_be_drawn_again() -> None:
    t = torch.ones(()).double()
    draws = Draws(5, 1)
    plain, branch = draws.times(t, 2, LIKE), draws.branch(1).times(t, 2, LIKE)
    assert torch.equal(branch, draws.branch(1).times(t, 2, LIKE))
    assert not torch.equal(branch, draws.branch(2).times(t, 2, LIKE))
    for one in (plain, draws.times(t, 2, LIKE)):
        assert abs(float((one * branch).mean())) < 5 / (3 * math.sqrt(branch.numel()))


def test_they_are_scaled_entry_by_entry() -> None:
    t = torch.rand(50, 40, dtype=torch.float64)
    t[0] = 0
    plain, scaled = (Draws(7).times(s, 3, LIKE) for s in (torch.ones_like(t), t))
    torch.testing.assert_close(scaled, plain * t, rtol=1e-15, atol=0)
    assert not bool(scaled[:, 0].any())
    assert Draws(0).times(t[:0], 3, LIKE[:0]).shape == (3, 0, 40)


def test_long_vectors_are_drawn_one_by_one_and_each_with_its_own_scale() -> None:
    like, t = torch.zeros(40_001).double(), torch.rand(3, 40_001, dtype=torch.float64)
    w = torch.full((4, 40_001), math.nan, dtype=torch.float64)
    assert Draws(2).times(t, 3, like, out=w[:3]).shape == (3, 40_001)
    assert bool(w[3].isnan().all())
    assert bool((w[:3].abs() <= t).all())
    assert abs(float((w[:3] / t).square().mean()) - 1 / 3) < 0.01
    assert abs(float((w[0] * w[1]).mean())) < 0.01
