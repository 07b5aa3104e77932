"""Is the chosen assignment the best of all?"""

import itertools
import math
import random

import pytest

from numgeom.precision.assignment import choose_formats
from numgeom.precision.errors import PrecisionError

FORMATS = ("float16", "bfloat16", "float32")


@pytest.mark.parametrize("seed", range(20))
def test_no_assignment_saves_more(seed: int) -> None:
    draw = random.Random(seed)
    modules = [f"m{i}" for i in range(draw.randint(1, 6))]
    errors = {
        m: {f: 10 ** draw.uniform(-8, -3) for f in FORMATS[:2]} | {"float32": 0.0} for m in modules
    }
    if seed % 4 == 0:
        errors[modules[0]]["float16"] = math.inf
    savings = {m: {f: draw.uniform(1, 100) for f in FORMATS} | {"float32": 0.0} for m in modules}
    budget = 10 ** draw.uniform(-7, -3)

    def saved(chosen: dict[str, str]) -> float:
        return sum(savings[m][f] for m, f in chosen.items())

    def spent(chosen: dict[str, str]) -> float:
        return sum(errors[m][f] for m, f in chosen.items())

    every = [
        dict(zip(modules, c, strict=True)) for c in itertools.product(FORMATS, repeat=len(modules))
    ]
    best = max(saved(c) for c in every if spent(c) <= budget * (1 - 2e-5))
    found = choose_formats(errors, savings, budget)
    assert spent(found) <= budget
    assert saved(found) >= best * (1 - 1e-5)


def test_a_tolerance_that_nothing_meets_says_what_can_be_had() -> None:
    errors = {"a": {"bfloat16": 1e-4}, "b": {"bfloat16": 3e-4}}
    savings = {"a": {"bfloat16": 1.0}, "b": {"bfloat16": 1.0}}
    with pytest.raises(PrecisionError, match=r"2\.00e-02"):
        choose_formats(errors, savings, 1e-6)


def test_a_module_that_overflows_everywhere_is_named() -> None:
    with pytest.raises(PrecisionError, match="in head"):
        choose_formats({"head": {"float16": math.inf}}, {"head": {"float16": 1.0}}, 1.0)


def test_without_a_budget_what_is_exact_is_left() -> None:
    errors = {"a": {"bfloat16": 1e-9, "float32": 0.0}}
    savings = {"a": {"bfloat16": 1.0, "float32": 0.0}}
    assert choose_formats(errors, savings, 0.0) == {"a": "float32"}
