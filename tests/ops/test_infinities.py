"""Do infinite midpoints and infinite radii keep their meaning on the way through masks and maxima?

Attention masks hold -inf or -3.4e38. An exact -inf is a number like others; an infinite radius says
that nothing is known.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS
from tests.ops.laws import as_bounds, as_masks, run_op

INF = math.inf
LOWEST = -3.4028234663852886e38


def real(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def total(name: str, *args: Any, radii: dict[int | str, Any], **kwargs: Any) -> Tensor:
    """Spread and rounding of the first output."""
    op = OPS.named(name)
    assert op is not None
    call = Evaluation(name, args, kwargs, run_op(name, args, kwargs), radii)
    return as_bounds(op.spread_of(call), call.y)[0] + as_bounds(op.rounding_of(call), call.y)[0]


def doubt(name: str, *args: Any, radii: dict[int | str, Any]) -> Any:
    op = OPS.named(name)
    assert op is not None
    call = Evaluation(name, args, {}, run_op(name, args, {}), radii)
    return as_masks(op.doubt_of(call), call.y)


@pytest.mark.parametrize("hidden", [-INF, LOWEST])
def test_masked_entries_do_not_widen_a_maximum(hidden: float) -> None:
    x = real([1.0, hidden, 0.5], [hidden, hidden, 2.0])
    r = real([1e-9, 0.0, 1e-9], [0.0, 0.0, 1e-9])
    bound = total("amax", x, [1], radii={0: r})
    assert bool((bound < 1.1e-9).all())
    assert bool((bound >= 1e-9).all())


def test_a_row_that_is_masked_throughout_has_an_exact_maximum() -> None:
    x = real(-INF, -INF)
    assert total("amax", x, [0], radii={0: real(0.0, 0.0)}).item() == 0.0
    assert not bool(doubt("amax", x, [0], radii={0: torch.zeros(2).double()})[0])


def test_filling_with_infinity_is_exact() -> None:
    x, mask = real(1.0, 2.0), torch.tensor([True, False])
    assert total("masked_fill", x, mask, -INF, radii={0: real(0.1, 0.1)}).tolist() == [0.0, 0.1]
    found = total("where", mask, torch.tensor(-INF).double(), x, radii={2: real(0.1, INF)})
    assert found.tolist() == [0.0, INF]


def test_a_doubtful_mask_between_a_number_and_infinity_is_unknown() -> None:
    op = OPS.named("where")
    assert op is not None
    mask = torch.tensor([True, True])
    args = (mask, real(-INF, -INF), real(1.0, -INF))
    call = Evaluation("where", args, {}, args[1], {}, {0: torch.tensor([True, True])})
    assert op.spread_of(call).tolist() == [INF, 0.0]


def test_an_unknown_entry_makes_what_it_may_win_unknown() -> None:
    x, r = real([1.0, 2.0], [1.0, 2.0]), real([INF, 0.0], [0.0, 0.0])
    assert total("amax", x, [1], radii={0: r}).tolist() == [INF, 0.0]
    values, indices = doubt("max", x, 1, radii={0: r})
    assert indices.tolist() == [True, False]
    assert values.tolist() == [True, False]
    assert total("sum", x, [1], radii={0: r})[0].item() == INF


@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "prod", "linalg_vector_norm"])
def test_a_result_that_is_not_finite_is_unknown(name: str) -> None:
    args: tuple[Any, ...] = (real(1e308, 1e308, 1e308),)
    kwargs = {"correction": 0} if name in ("var", "std") else {}
    if name in ("var", "std"):
        args = (real(1e308, -1e308, 1e308),)
    if name == "mean":
        args = (real(1e308, 1.7e308, 1e308),)
    assert total(name, *args, radii={}, **kwargs).item() == INF


def test_a_product_that_passes_the_normal_range_is_unknown() -> None:
    assert total("prod", real(1e-200, 1e-200, 1e200, 1e200), radii={}).item() == INF
    assert total("prod", real(0.0, 1e-200, 1e-200), radii={}).item() == 0.0


def test_equal_exact_entries_are_a_certain_tie() -> None:
    """As after a ReLU: zeros that are exact in both programs."""
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    for radius, expected in ((0.0, False), (1e-300, True)):
        r = torch.full_like(x, radius)
        found = doubt("max_pool2d_with_indices", x, [2, 2], radii={0: r})
        assert [bool(mask) for mask in found] == [expected, expected]
        assert bool(doubt("argmax", x.flatten(), radii={0: r.flatten()})[0]) is expected
        assert bool(doubt("amax", x.flatten(), [0], radii={0: r.flatten()})[0]) is expected
        assert bool(doubt("sort", x.flatten(), radii={0: r.flatten()})[1].any()) is expected


def test_random_windows_hold_over_the_box() -> None:
    """fractional_max_pool2d, whose windows an oracle would have to draw."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 6, 6, generator=g, dtype=torch.float64)
    drawn = torch.rand(1, 2, 2, generator=g, dtype=torch.float64)
    r = torch.rand(x.shape, generator=g, dtype=torch.float64) * 0.3
    args = (x, [2, 2], [3, 3], drawn)
    bound = total("fractional_max_pool2d", *args, radii={0: r})
    y = run_op("fractional_max_pool2d", args, {})[0]
    for _ in range(50):
        e = (torch.rand(x.shape, generator=g, dtype=torch.float64) * 2 - 1) * r
        there = run_op("fractional_max_pool2d", (x + e, *args[1:]), {})[0]
        assert bool(((there - y).abs() <= bound).all())
    assert bool((bound <= 0.3).all())
