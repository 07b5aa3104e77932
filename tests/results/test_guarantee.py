"""Are levels ordered, and do they combine to the weakest?"""

import itertools

import pytest

from numgeom.results.guarantee import Guarantee, weakest

ORDER = [Guarantee.NONE, Guarantee.ESTIMATED, Guarantee.CERTIFIED, Guarantee.PROVED]


def test_levels_are_ordered() -> None:
    shuffled = [ORDER[2], ORDER[0], ORDER[3], ORDER[1]]
    assert sorted(shuffled) == ORDER == list(Guarantee)
    for (i, a), (j, b) in itertools.product(enumerate(ORDER), repeat=2):
        assert (a < b, a <= b, a > b, a >= b) == (i < j, i <= j, i > j, i >= j)


@pytest.mark.parametrize("a", ORDER)
@pytest.mark.parametrize("b", ORDER)
def test_the_weakest_level_wins(a: Guarantee, b: Guarantee) -> None:
    expected = ORDER[min(ORDER.index(a), ORDER.index(b))]
    assert weakest(a, b) is min(a, b) is expected
    assert weakest(a) is a


def test_a_level_is_no_number() -> None:
    with pytest.raises(TypeError):
        _ = Guarantee.NONE < 1


def test_only_bounds_are_called_certified() -> None:
    for level in (Guarantee.NONE, Guarantee.ESTIMATED):
        assert "certified" not in level.meaning.lower()
        assert "A bound" not in level.meaning
