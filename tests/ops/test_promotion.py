"""Integers that meet real numbers carry the distance to their float64 number, exactly."""

from fractions import Fraction

import pytest
import torch

from numgeom.ops.entry import Evaluation
from numgeom.ops.promotion import (
    Asked,
    converts,
    has_ignored,
    has_unconvertible_number,
    local_error,
    prepared,
)
from numgeom.ops.table import OPS

WIDE = torch.tensor([2**53 + 1, 2**53, -(2**53) - 1, 2**62 + 3, 2**63 - 1, -(2**63), 0, 7])
HALF = torch.full((8,), 0.5, dtype=torch.float64)


def _add(x, y, **more):
    return Evaluation("add", (x, y), {}, x.to(torch.float64) + y, **more)


def test_the_radius_is_the_exact_distance():
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(-(2**62), 2**62, (500,), generator=generator) * 2 + 1
    for k in (WIDE, some):
        call = prepared(_add(k, torch.full((len(k),), 0.5, dtype=torch.float64)))
        assert converts(call)
        for integer, number, radius in zip(
            k.tolist(), call.args[0].tolist(), call.radii[0].tolist(), strict=True
        ):
            assert Fraction(radius) == abs(Fraction(integer) - Fraction(number))


@pytest.mark.parametrize(
    "call",
    [
        _add(WIDE[-2:], HALF[:2]),  # small
        _add(torch.tensor([2**60, -(2**63)]), HALF[:2]),  # large, and float64 numbers
        Evaluation("add", (WIDE, WIDE), {}, WIDE + WIDE),  # no real number
        Evaluation("gt", (WIDE, 2**53), {}, WIDE > 2**53),
        _add(HALF[:0].to(torch.int64), HALF[:0]),
    ],
)
def test_other_calls_are_left_alone(call):
    assert prepared(call) is call


def test_a_comparison_with_a_number_is_in_doubt_where_the_integer_was_rounded():
    call = prepared(Evaluation("gt", (WIDE, 2.0**53), {}, WIDE.to(torch.float64) > 2.0**53))
    doubt = OPS.named("gt").doubt_of(call)
    assert doubt.tolist() == [True] + [False] * 7


def test_members_of_lists_are_converted():
    y = torch.cat([WIDE, HALF])
    call = prepared(Evaluation("cat", ([WIDE, HALF],), {}, y))
    error = local_error(OPS.named("cat"), call)
    assert error[0] == 1.0
    assert error[4] == 1.0
    assert not error[8:].any()


def test_doubts_become_radii():
    doubt = torch.tensor([True] + [False] * 7)
    call = prepared(_add(WIDE, HALF, doubts={0: doubt}))
    assert call.radii[0][0] == torch.inf
    assert 0 not in call.doubts


def test_a_rule_that_overlooks_a_converted_integer_is_seen():
    call = prepared(Evaluation("ones_like", (WIDE,), {}, torch.ones(8, dtype=torch.float64)))
    assert local_error(OPS.named("ones_like"), call).isinf().all()
    asked = Asked({0: 1, 1: 2}, required=frozenset([1]))
    assert asked.ignored
    assert asked[1] == 2
    assert not asked.ignored
    assert has_ignored(Evaluation("f", (), {}, None, radii=Asked({0: 1})))


@pytest.mark.parametrize("n", [2**53 + 1, -(2**53) - 1, 10**400])
def test_python_integers_that_are_no_float64_numbers(n):
    x = torch.ones(2, dtype=torch.float64)
    assert has_unconvertible_number(Evaluation("mul", (x, n), {}, x))
    assert not has_unconvertible_number(Evaluation("mul", (x, 2**60), {}, x))
    assert not has_unconvertible_number(Evaluation("mul", (WIDE, n), {}, WIDE))


def test_places_are_no_numbers():
    x = torch.ones(3, dtype=torch.float64)
    assert not has_unconvertible_number(Evaluation("slice", (x, 0, 1, 2**63 - 1), {}, x))
    assert has_unconvertible_number(Evaluation("full", ([3], 2**63 - 1), {}, x))
    assert has_unconvertible_number(Evaluation("add", (x, x), {"alpha": 2**63 - 1}, x))
    assert has_unconvertible_number(Evaluation("mylib::scale", (x, 2**63 - 1), {}, x))
