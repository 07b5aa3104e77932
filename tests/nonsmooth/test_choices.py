"""Do the weights keep to their formulas (definition 6 of Boustany 2024)?"""

import math

import pytest
import torch

from numgeom.nonsmooth import (
    AbstractChoice,
    AllOnes,
    Custom,
    First,
    Hybrid,
    Last,
    Minimal,
    Native,
    Random,
    SelectionError,
    Uniform,
)

ACTIVE = torch.tensor(
    [
        [True, True, False, False],
        [False, True, True, True],
        [True, True, True, True],
        [False, False, True, False],
    ]
)
CLARKE: tuple[AbstractChoice, ...] = (
    First(),
    Last(),
    Minimal(),
    Hybrid(beta=0.3),
    Random(),
    Uniform(),
)
NOT_CLARKE: tuple[AbstractChoice, ...] = (Hybrid(beta=-1.0), Hybrid(beta=1e4), AllOnes())


def weights(choice: AbstractChoice, seed: int = 0) -> torch.Tensor:
    return choice.weights(ACTIVE, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("choice", CLARKE + NOT_CLARKE, ids=str)
def test_only_active_places_get_weight(choice: AbstractChoice) -> None:
    found = weights(choice)
    assert found.dtype == torch.float64
    assert bool((found[~ACTIVE] == 0).all())


@pytest.mark.parametrize("choice", CLARKE, ids=str)
def test_clarke_choices_are_convex_combinations(choice: AbstractChoice) -> None:
    found = weights(choice)
    assert choice.is_clarke
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("choice", NOT_CLARKE, ids=str)
def test_the_others_say_so(choice: AbstractChoice) -> None:
    assert not choice.is_clarke


def test_unit_choices() -> None:
    assert weights(First()).argmax(1).tolist() == [0, 1, 0, 2]
    assert weights(Last()).argmax(1).tolist() == [1, 3, 3, 2]
    assert weights(AllOnes()).sum(1).tolist() == [2, 3, 4, 1]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 10.0, 1e4])
def test_hybrid_has_the_coefficients_of_definition_6(beta: float) -> None:
    found = weights(Hybrid(beta=beta))
    for row, k in zip(found, (2, 3, 4), strict=False):
        expected = [1 - beta + beta / k] + [beta / k] * (k - 1)
        got = row[row != 0].tolist() if beta else [float(row.max())]
        assert got == pytest.approx(expected if beta else [1.0], rel=1e-12)


@pytest.mark.parametrize(("k", "norm"), [(2, 7070), (3, 8164), (4, 8659)])
def test_norms_at_beta_10000(k: int, norm: float) -> None:
    active = torch.arange(4)[None] < k
    found = Hybrid(beta=1e4).weights(active, torch.Generator())
    assert int(found.norm()) == norm
    formula = math.hypot(1 - 1e4 + 1e4 / k, *[1e4 / k] * (k - 1))
    assert float(found.norm()) == pytest.approx(formula, rel=1e-12)


def test_one_active_place_takes_all_for_every_beta() -> None:
    for beta in (0.0, 1.0, 10.0, 1e4):
        assert weights(Hybrid(beta=beta))[3].tolist() == [0, 0, 1, 0]


def test_draws_follow_the_seed() -> None:
    wide = torch.ones(200, 4, dtype=torch.bool)
    for choice in (Random(), Uniform()):
        first, again, other = (
            choice.weights(wide, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_random_takes_every_active_place_about_equally_often() -> None:
    wide = torch.ones(4000, 4, dtype=torch.bool)
    counts = Random().weights(wide, torch.Generator().manual_seed(0)).sum(0)
    # Binomial(4000, 1/4) has a standard deviation of 27.4.
    assert bool(((counts - 1000).abs() < 5 * 27.4).all())


def test_uniform_is_flat_on_the_simplex() -> None:
    wide = torch.ones(4000, 3, dtype=torch.bool)
    found = Uniform().weights(wide, torch.Generator().manual_seed(0))
    # Dirichlet(1, 1, 1): P(first weight > 1/2) = 1/4.
    share = float((found[:, 0] > 0.5).double().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_custom_weights_are_checked() -> None:
    minimal = Custom(lambda active: active / active.sum(1, keepdim=True), clarke=True)
    assert torch.allclose(weights(minimal), weights(Minimal()))
    with pytest.raises(SelectionError, match="one weight per place"):
        weights(Custom(lambda active: torch.ones(2)))
    with pytest.raises(SelectionError, match="does not attain the maximum"):
        weights(Custom(lambda active: torch.ones(active.shape)))


def test_nonsense_is_refused() -> None:
    with pytest.raises(SelectionError, match="finite"):
        Hybrid(beta=math.nan)
    with pytest.raises(SelectionError, match="leaves torch's gradient alone"):
        weights(Native())
