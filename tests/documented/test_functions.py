"""Functions of numbers keep their bounds, against their documentation in arbitrary precision."""

import pytest
import torch

from tests.documented.functions import FUNCTIONS, WITH_CONSTANTS, Function
from tests.documented.trial import FORMATS, Tried, try_function

# Without a rule, so that nothing is bounded.
UNRULED = frozenset(("ndtri", "erfcx", "copysign"))


def _formats(f: Function) -> tuple[torch.dtype, ...]:
    """The formats that torch has kernels for."""
    found = []
    for dtype in FORMATS:
        x = torch.ones(1, dtype=dtype, requires_grad=True)
        try:
            f.computed(*[x] * f.arguments).sum().backward()
        except NotImplementedError:
            continue
        found.append(dtype)
    return tuple(found)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.name)
def test_float64_bounds_hold(f: Function) -> None:
    """A float64 gradient is compared with itself: the bound is the radius alone."""
    tried = try_function(f, torch.float64, seed=1, n=10)
    assert not tried.violations
    assert tried.checked > tried.unbounded / 4 or f.name in UNRULED


@pytest.mark.parametrize("f", WITH_CONSTANTS, ids=lambda f: f.name)
def test_bounds_of_every_method_hold(f: Function) -> None:
    for method in ("functional", "kantorovich"):
        assert not try_function(f, torch.float64, seed=2, n=10, method=method).violations
    assert not try_function(f, torch.float32, seed=2, n=10).violations


@pytest.mark.campaign
@pytest.mark.parametrize("method", ["ball", "functional", "kantorovich", "auto"])
def test_bounds_hold_in_every_format(method: str) -> None:
    total = Tried()
    for f in FUNCTIONS:
        for dtype in _formats(f):
            for seed in range(3):
                total.add(try_function(f, dtype, seed=seed, n=100, method=method))
    print(f"{method}: {total.checked} entries, {total.unbounded} without a bound, "
          f"{len(total.violations)} violated, worst error/bound {total.worst}")  # fmt: skip
    assert not total.violations
    assert total.checked > 50_000
