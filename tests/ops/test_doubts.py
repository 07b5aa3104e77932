"""Does an output hold, whatever the doubtful decisions of its inputs are?

Each case takes other decisions where there is doubt, and runs the op again. All reals are whole
numbers, so that the runs are exact: no real entry may differ by more than the stated spread, and no
decision where there is no doubt.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.ops.balls import is_decision
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS
from tests.ops.laws import as_bounds, as_masks, outputs_of, run_op

Draw = Callable[[torch.Generator], tuple[tuple[Any, ...], dict[str, Any]]]


def whole(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(-9, 10, shape, generator=g).to(torch.float64)


def index(g: torch.Generator, below: int, *shape: int) -> Tensor:
    return torch.randint(0, below, shape, generator=g)


def mask(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=g) > 0.5


# name, arguments, and the range of each integer argument that may be in doubt.
CASES: list[tuple[str, Callable[[torch.Generator], tuple[Any, ...]], int]] = [
    ("where", lambda g: (mask(g, 3, 4), whole(g, 3, 4), whole(g, 4)), 0),
    ("where", lambda g: (mask(g, 3, 4), index(g, 3, 3, 4), index(g, 3, 3, 4)), 3),
    ("where", lambda g: (mask(g, 3, 4), whole(g, 3, 4), mask(g, 3, 4)), 0),
    ("masked_fill", lambda g: (whole(g, 3, 4), mask(g, 4), 7.0), 0),
    ("gather", lambda g: (whole(g, 3, 4), 1, index(g, 4, 3, 2)), 4),
    ("gather", lambda g: (index(g, 5, 3, 5), 1, index(g, 5, 3, 2)), 5),
    ("index_select", lambda g: (whole(g, 4, 3), 0, index(g, 4, 5)), 4),
    ("index_select", lambda g: (whole(g, 3, 4), -1, index(g, 4, 2)), 4),
    ("index", lambda g: (whole(g, 4, 4), [index(g, 4, 3), index(g, 4, 3)]), 4),
    ("embedding", lambda g: (whole(g, 5, 2), index(g, 5, 2, 3)), 5),
    ("take", lambda g: (whole(g, 3, 4), index(g, 12, 5)), 12),
    ("scatter", lambda g: (whole(g, 4, 3), 0, index(g, 4, 1, 3), whole(g, 1, 3)), 4),
    ("scatter", lambda g: (whole(g, 4, 3), 1, index(g, 3, 4, 1), 5.0), 3),
    ("scatter_add", lambda g: (whole(g, 4, 3), 0, index(g, 4, 6, 3), whole(g, 6, 3)), 4),
    ("index_add", lambda g: (whole(g, 4, 3), 0, index(g, 4, 6), whole(g, 6, 3)), 4),
    ("index_put", lambda g: (whole(g, 4, 3), [index(g, 4, 2)], whole(g, 2, 3), True), 4),
    ("index_copy", lambda g: (whole(g, 4, 3), 0, index(g, 4, 1), whole(g, 1, 3)), 4),
    ("index_fill", lambda g: (whole(g, 4, 3), 0, index(g, 4, 1), 2.0), 4),
    ("scatter_reduce", lambda g: (whole(g, 4), 0, index(g, 4, 6), whole(g, 6), "amax"), 4),
    ("masked_scatter", lambda g: (whole(g, 3, 4), mask(g, 3, 4), whole(g, 12)), 0),
    ("embedding_dense_backward", lambda g: (whole(g, 4, 2), index(g, 5, 4), 5, -1, False), 5),
    ("view", lambda g: (mask(g, 3, 4), [12]), 0),
    ("cat", lambda g: ([mask(g, 2, 3), mask(g, 1, 3)], 0), 0),
    ("cat", lambda g: ([mask(g, 2, 3), whole(g, 1, 3)], 0), 0),
    ("stack", lambda g: ([index(g, 5, 3), index(g, 5, 3)], 1), 5),
    ("constant_pad_nd", lambda g: (mask(g, 3, 4), [1, 1]), 0),
    ("tril", lambda g: (mask(g, 3, 3),), 0),
    ("split", lambda g: (mask(g, 5, 2), 2), 0),
    ("sum", lambda g: (mask(g, 3, 4), [1]), 0),
    ("sum", lambda g: (index(g, 5, 3, 4), [0], True), 5),
    ("cumsum", lambda g: (mask(g, 3, 4), 1), 0),
    ("any", lambda g: (mask(g, 3, 4), 1), 0),
    ("all", lambda g: (mask(g, 3, 4), 1, True), 0),
    ("any", lambda g: (mask(g, 2, 2),), 0),
    ("max", lambda g: (index(g, 9, 3, 4), 1), 9),
    ("argmax", lambda g: (index(g, 9, 3, 4), 1), 9),
    ("sort", lambda g: (index(g, 9, 5),), 9),
    ("amax", lambda g: (index(g, 9, 3, 4), [1]), 9),
    ("logical_and", lambda g: (mask(g, 3, 4), mask(g, 4)), 0),
    ("logical_or", lambda g: (mask(g, 3, 4), mask(g, 4)), 0),
    ("logical_xor", lambda g: (mask(g, 3, 4), mask(g, 4)), 0),
    ("logical_not", lambda g: (mask(g, 3, 4),), 0),
    ("bitwise_and", lambda g: (mask(g, 3, 4), mask(g, 4)), 0),
    ("bitwise_or", lambda g: (index(g, 8, 4), index(g, 8, 4)), 8),
    ("bitwise_not", lambda g: (mask(g, 4),), 0),
    ("mm", lambda g: (index(g, 5, 2, 3), index(g, 5, 3, 2)), 5),
    ("prod", lambda g: (index(g, 5, 2, 3), 1), 5),
    ("nonzero", lambda g: (mask(g, 1),), 0),
]  # fmt: skip


def other_decisions(x: Any, doubt: Any, g: torch.Generator, below: int) -> Any:
    """Decisions drawn anew wherever there is a doubt."""
    if isinstance(x, list):
        return [other_decisions(v, d, g, below) for v, d in zip(x, doubt, strict=True)]
    if not is_decision(x):
        return x
    drawn = mask(g, *x.shape) if x.dtype is torch.bool else index(g, below, *x.shape)
    return torch.where(doubt, drawn, x)


def drawn_doubt(x: Any, g: torch.Generator) -> Any:
    if isinstance(x, list):
        return [drawn_doubt(v, g) for v in x]
    if not isinstance(x, Tensor) or not is_decision(x):
        return None
    return torch.rand(x.shape, generator=g) > 0.6


def check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], g: Any, below: int) -> bool:
    """Compare with other decisions; whether anything changed."""
    op = OPS.named(name)
    assert op is not None
    doubts: dict[int | str, Any] = {
        i: d for i, a in enumerate(args) if (d := drawn_doubt(a, g)) is not None
    }
    call = Evaluation(name, args, kwargs, run_op(name, args, kwargs), {}, doubts)
    bounds = as_bounds(op.spread_of(call), call.y)
    masks = as_masks(op.doubt_of(call), call.y)
    changed = False
    for _ in range(20):
        others = tuple(
            other_decisions(a, doubts[i], g, below) if i in doubts else a
            for i, a in enumerate(args)
        )
        there = outputs_of(run_op(name, others, kwargs))
        for y, z, bound, doubt in zip(outputs_of(call.y), there, bounds, masks, strict=True):
            if y.shape != z.shape:
                assert bool(doubt.all())
            elif is_decision(y):
                assert not bool(((y != z) & ~doubt).any()), name
                changed |= bool((y != z).any())
            else:
                assert bool(((y - z).abs() <= bound).all()), name
                changed |= bool((y != z).any())
    return changed


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n][0]}")
def test_other_decisions_stay_within_the_stated_bounds(number: int) -> None:
    name, draw, below = CASES[number]
    changed = 0
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        changed += check(name, draw(g), {}, g, below)
    assert changed > 0 or name == "nonzero"


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_a_cast_hands_doubts_on(dtype: torch.dtype) -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        check("_to_copy", (mask(g, 3, 4),), {"dtype": dtype}, g, 2)
        check("_to_copy", (index(g, 4, 3, 4),), {"dtype": dtype}, g, 4)


def test_a_doubtful_boolean_is_one_off_as_a_number() -> None:
    doubt = torch.tensor([True, False])
    op = OPS.named("_to_copy")
    assert op is not None
    x = torch.tensor([True, True])
    call = Evaluation("_to_copy", (x,), {"dtype": torch.float64}, x.double(), {}, {0: doubt})
    assert op.spread_of(call).tolist() == [1.0, 0.0]


def test_certain_arguments_decide() -> None:
    """False and doubtful is False; True or doubtful is True; a certain True settles `any`."""
    sure, open_ = torch.tensor([False, True]), torch.tensor([True, True])
    doubts = {1: torch.tensor([True, True])}
    for name, expected in (("logical_and", [False, True]), ("logical_or", [True, False])):
        op = OPS.named(name)
        assert op is not None
        y = run_op(name, (sure, open_), {})
        assert op.doubt_of(Evaluation(name, (sure, open_), {}, y, {}, doubts)).tolist() == expected
    op = OPS.named("any")
    assert op is not None
    x = torch.tensor([True, False])
    call = Evaluation("any", (x,), {}, x.any(), {}, {0: torch.tensor([False, True])})
    assert not bool(op.doubt_of(call))


def test_where_covers_both_branches_when_in_doubt() -> None:
    op = OPS.named("where")
    assert op is not None
    condition = torch.tensor([True, True])
    a, b = torch.tensor([1.0, 1.0]).double(), torch.tensor([5.0, 5.0]).double()
    radii = {1: torch.tensor([0.5, 0.5]).double(), 2: torch.tensor([0.25, 0.25]).double()}
    doubts = {0: torch.tensor([True, False])}
    call = Evaluation("where", (condition, a, b), {}, a, radii, doubts)
    found = op.spread_of(call)
    assert 4.25 <= found[0] < 4.2500001
    assert found[1] == 0.5


def pooled(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = whole(g, 1, 2, 4, 4)
    y, chosen = torch.ops.aten.max_pool2d_with_indices(x, [2, 2], [1, 1])
    return x, y, chosen, whole(g, *y.shape)


@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_the_derivative_of_a_pooling_holds_for_every_choice_within_the_balls(radius: float) -> None:
    forward, backward = (
        OPS.named(n) for n in ("max_pool2d_with_indices", "max_pool2d_with_indices_backward")
    )
    assert forward is not None
    assert backward is not None
    rest = ([2, 2], [1, 1], [0, 0], [1, 1], False)
    moved = 0
    for seed in range(10):
        x, y, chosen, gradient = pooled(seed)
        r = torch.full_like(x, radius)
        doubt = forward.doubt_of(Evaluation(forward.name, (x, *rest), {}, (y, chosen), {0: r}))[1]
        args = (gradient, x, *rest, chosen)
        grad = run_op(backward.name, args, {})
        call = Evaluation(backward.name, args, {}, grad, {1: r}, {7: doubt})
        (bound,) = as_bounds(backward.spread_of(call), grad)
        g = torch.Generator().manual_seed(seed)
        for _ in range(20):
            e = (torch.rand(x.shape, generator=g, dtype=torch.float64) * 2 - 1) * radius
            _, other = torch.ops.aten.max_pool2d_with_indices(x + e, [2, 2], [1, 1])
            assert not bool(((other != chosen) & ~doubt).any())
            there = run_op(backward.name, (gradient, x, *rest, other), {})
            assert bool(((there - grad).abs() <= bound).all())
            moved += int((there != grad).sum())
    assert moved > 0
