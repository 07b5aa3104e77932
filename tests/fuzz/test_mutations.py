"""A package that is broken on purpose: does the fuzzer see it?"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.fuzz.check import check, shrunk
from tests.fuzz.mutations import (
    certain_kinks,
    exact_reciprocals,
    halved_gamma,
    without_curvature,
    without_radius,
)
from tests.fuzz.recipe import Recipe, random_recipe

pytestmark = pytest.mark.usefixtures("quiet_libraries")

Mutation = Callable[[], AbstractContextManager[Any]]

# What is broken, the method that rests on it, and a program in which that alone decides.
MUTATIONS: dict[str, tuple[Mutation, str, Recipe]] = {
    "gamma halved": (
        halved_gamma, "ball",
        Recipe(0, ("cumsum",), scale="absorbed", batch=1, width=6, ends="weighted"),
    ),
    "a radius dropped": (
        lambda: without_radius(("mul",)), "ball", Recipe(2, ("sin", "times"), ends="weighted"),
    ),
    "kinks certain": (certain_kinks, "ball", Recipe(1, ("near relu",))),
    "no curvature": (without_curvature, "kantorovich", Recipe(1, ("near zero squared",))),
    "1/n exact": (exact_reciprocals, "ball", Recipe(0, loss="mean", batch=3)),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_found(name: str) -> None:
    mutation, method, recipe = MUTATIONS[name]
    assert not check(recipe, (method,)).failed
    with mutation():
        outcome = check(recipe, (method,))
    assert outcome.status == "decided"
    assert outcome.violations


def test_a_failure_shrinks_to_what_it_needs() -> None:
    recipe = Recipe(0, ("flip", "roll"), "mean", "frozen", "float32", "few bits", 3)
    with exact_reciprocals():
        assert check(recipe, ("ball",)).violations
        small = shrunk(recipe, ("ball",))
        assert check(small, ("ball",)).violations
    assert not small.blocks
    assert (small.structure, small.format) == ("plain", "float64")
    assert small.loss == "mean"


@pytest.mark.campaign
@pytest.mark.parametrize("name", [name for name in MUTATIONS if name != "gamma halved"])
def test_random_programs_find_a_mutation(name: str) -> None:
    """Without any program made for it: within some hundred random ones.

    Half of gamma_n is hardly ever too little: a sum of n terms rounds n - 1 times, seldom all in
    one direction. Three thousand random programs do not show it, the program made for it does.
    """
    mutation, method, _ = MUTATIONS[name]
    with mutation():
        found = (s for s in range(1000, 4000) if check(random_recipe(s), (method,)).violations)
        first = next(found, None)
    print(f"{name}: first seen at seed {first}")
    assert first is not None
