"""Functions of tensors keep their bounds, against their documentation in arbitrary precision."""

import pytest
import torch

from tests.documented.arrays import Composite
from tests.documented.composites import COMPOSITES
from tests.documented.trial import FORMATS, Tried, try_composite

# Without a rule for these exponents, so that nothing is bounded.
UNRULED = frozenset(("normalize p=3", "norm 3.0", "norm 2.7", "norm 0.5", "cdist p=3"))


def _runs(f: Composite, dtype: torch.dtype) -> bool:
    """Whether torch has kernels for a format."""
    leaves = [torch.full(shape, 0.5, dtype=dtype, requires_grad=True) for shape in f.shapes]
    try:
        f.computed(*leaves).sum().backward()
    except (NotImplementedError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("f", COMPOSITES, ids=lambda f: f.name)
def test_bounds_hold(f: Composite) -> None:
    for dtype in (torch.float64, torch.float32):
        tried = try_composite(f, dtype, seed=3)
        assert not tried.violations
        assert not tried.unbounded or f.name in UNRULED


@pytest.mark.campaign
@pytest.mark.parametrize("method", ["ball", "functional", "kantorovich", "auto"])
def test_bounds_hold_in_every_format(method: str) -> None:
    total = Tried()
    for f in COMPOSITES:
        for dtype in filter(lambda dtype, f=f: _runs(f, dtype), FORMATS):
            for seed in range(5):
                for scale in (1.0, 1e-3, 30.0) if f.low < 0 else (1.0,):
                    total.add(try_composite(f, dtype, seed=seed, method=method, scale=scale))
    print(f"{method}: {total.checked} entries, {total.unbounded} without a bound, "
          f"{len(total.violations)} violated, worst error/bound {total.worst}")  # fmt: skip
    assert not total.violations
    assert total.checked > 30_000
