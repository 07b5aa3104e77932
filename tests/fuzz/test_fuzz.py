"""Random training steps of hundreds of kinds: does every bound hold, with no slack?

A failure prints the recipe of the program and the simplest recipe near it that fails, too:
`check(Recipe(...))` makes it again.
"""

import dataclasses

import pytest

from tests.fuzz.campaign import KINDS, Summary, run
from tests.fuzz.check import METHODS, check
from tests.fuzz.data import SCALES, WEIGHTS
from tests.fuzz.recipe import BLOCKS, FAMILIES, Recipe, build, random_recipe, simpler

pytestmark = pytest.mark.usefixtures("quiet_libraries")

DECIDED = 0.8  # a fuzzer whose oracle has no answer is none
PART = 500


def _passes(summary: Summary) -> None:
    print(summary.text())
    assert not summary.failures, "\n".join(summary.failures)
    assert summary.decided_share >= DECIDED, summary.text()


def test_every_bound_holds_on_random_programs() -> None:
    """Each program by one of the methods in turn."""
    summary = run(random_recipe(seed) for seed in range(200))
    _passes(summary)
    assert len(summary.kinds) >= 190


@pytest.mark.campaign
@pytest.mark.parametrize("first", range(1000, 6000, PART))
def test_every_bound_holds_on_many_random_programs(first: int) -> None:
    """Each program by all methods that bound; 5,000 programs in all."""
    _passes(run((random_recipe(seed) for seed in range(first, first + PART)), METHODS[:3]))


def test_the_kinds_are_many_and_have_one_name_each() -> None:
    assert KINDS >= 380
    assert len(BLOCKS) == sum(len(blocks) for blocks in FAMILIES.values())
    assert SCALES.keys() == WEIGHTS.keys()


def test_a_recipe_makes_one_program() -> None:
    recipe = random_recipe(17)
    first, second = build(recipe), build(recipe)
    assert first.digest() == second.digest()
    assert len(first) > 2


def test_simpler_recipes_have_one_thing_less() -> None:
    recipe = Recipe(3, ("relu", "linear"), "mse", "clip by norm", "float16", "ties", 3, 6, "layers")
    found = list(simpler(recipe))
    assert replaced(recipe, blocks=("linear",)) in found
    assert replaced(recipe, format="float64") in found
    assert recipe not in found
    assert not list(simpler(Recipe(3, batch=1)))


def replaced(recipe: Recipe, **fields: object) -> Recipe:
    return dataclasses.replace(recipe, **fields)


def test_what_torch_cannot_do_is_not_counted_as_decided() -> None:
    outcome = check(Recipe(0, ("slogdet",), format="float16"))
    assert outcome.status == "cannot run"
    assert not outcome.failed
