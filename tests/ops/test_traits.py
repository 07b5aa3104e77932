"""Do ops do what their traits say, on the examples of their entries?

Where the entries of an argument come is seen by giving each a number of its own; whether an op is
linear in a factor, by whole numbers, whose sums and products are exact.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.ops.composites import COMPOSITES
from numgeom.ops.entry import Evaluation, Kind, Op
from numgeom.ops.kinks import Where
from numgeom.ops.table import OPS, kinks_of, traits_of
from numgeom.ops.traits import Moves, Places
from tests.ops.trials import draw_radii, generator, outputs_of, run_op

aten = torch.ops.aten
TRIED = [op for op in OPS if op.examples]


def having(what: Any) -> Any:
    chosen = [op for op in TRIED if what(op.traits)]
    return pytest.mark.parametrize("op", chosen, ids=lambda op: op.name)


# ----------------------------------------------------------------------------------------- movement


def _numbered(x: Any, first: int) -> tuple[Any, int]:
    """The argument with a number of its own in each entry, counted from `first`."""
    if isinstance(x, (list, tuple)):
        found = []
        for item in x:
            item, first = _numbered(item, first)
            found.append(item)
        return found, first
    if not isinstance(x, Tensor):
        return x, first
    count = x.numel()
    return torch.arange(first, first + count, dtype=torch.float64).reshape(x.shape), first + count


def check_moves(op: Op, moves: Moves) -> None:
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        if any(isinstance(a, torch.dtype) for a in args):
            continue  # a view of the bits
        args, first = list(args), 1000
        for position in moves.data:
            if position < len(args):
                args[position], first = _numbered(args[position], first)
        given = range(1000, first)
        y = outputs_of(run_op(op.name, tuple(args), kwargs))
        if op.name == "_pack_padded_sequence":
            y = y[:1]  # the other result counts sequences
        assert moves.parts or len(y) == 1
        if moves.casts and not y[0].is_floating_point():
            continue
        entries = torch.cat([part.to(torch.float64).reshape(-1) for part in y])
        if moves.signed:
            entries = entries.abs()
        counts = Counter(entries.tolist())
        own = {value: n for value, n in counts.items() if value in given}
        others = set(counts) - set(given)
        if not moves.fills and len(given):
            numbers = {float(a) for a in args if isinstance(a, (int, float))}
            assert others <= numbers, f"{op.name}: {others}"
        if moves.places is not Places.ANY:
            assert all(n == 1 for n in own.values()), op.name
        if moves.places is Places.ONCE and y[0].is_floating_point():
            assert len(own) == len(given), op.name
        if moves.in_order and y[0].is_floating_point():
            assert entries.tolist() == list(map(float, given)), op.name


@having(lambda traits: traits.moves is not None)
def test_entries_come_where_it_is_said(op: Op) -> None:
    if op.name == "copy":
        return  # its first argument gives the shape alone
    assert op.traits.moves is not None
    check_moves(op, op.traits.moves)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("expand", Moves(Places.AT_MOST_ONCE)),
        ("slice", Moves(Places.ONCE)),
        ("permute", Moves(Places.ONCE, in_order=True)),
        ("tril", Moves(Places.AT_MOST_ONCE)),
        ("split", Moves(Places.ONCE)),
    ],
)
def test_a_wrong_movement_is_noticed(name: str, wrong: Moves) -> None:
    op = OPS.named(name)
    assert op is not None
    with pytest.raises(AssertionError):
        check_moves(op, wrong)


@having(lambda traits: traits.chooses)
def test_what_is_chosen_was_there(op: Op) -> None:
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        given = {0.0}
        for x in args:
            for part in x if isinstance(x, (list, tuple)) else (x,):
                if isinstance(part, Tensor):
                    given |= set(part.double().abs().reshape(-1).tolist())
        for y in outputs_of(run_op(op.name, args, kwargs)):
            if y.is_floating_point():
                found = y[~y.isnan()].abs().reshape(-1).tolist()
                assert set(found) <= given, op.name


# --------------------------------------------------------------------------- what depends on what


@pytest.mark.parametrize(
    "op",
    [op for op in TRIED if traits_of(op.name).entrywise],
    ids=lambda op: op.name,
)
def test_an_entry_depends_on_its_own_place(op: Op) -> None:
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        y = run_op(op.name, args, kwargs)
        if y.numel() < 2:
            continue
        place = tuple(n - 1 for n in y.shape)
        for position, x in enumerate(args):
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
                continue
            moved = x.clone()
            at = tuple(n - 1 for n in x.shape)
            moved[at] = moved[at] * 0.5 + 0.37
            other = run_op(op.name, (*args[:position], moved, *args[position + 1 :]), kwargs)
            reached = torch.zeros(x.shape, dtype=torch.bool)
            reached[at] = True
            kept = ~reached.expand(y.shape)
            assert place is not None
            same = (other == y) | (other != other) & (y != y)
            assert bool(same[kept].all()), f"{op.name}, argument {position}"


@having(lambda traits: traits.product is not None)
def test_factors_are_factors(op: Op) -> None:
    """f is linear in each factor, with what is added taken off; in whole numbers, exactly."""
    product = op.traits.product
    assert product is not None
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        g = generator(number)
        args = [_whole(a, g) for a in args]
        kwargs = {k: v for k, v in kwargs.items() if k not in ("alpha", "beta")}
        if product.added is not None and isinstance(args[product.added], Tensor):
            args[product.added] = torch.zeros_like(args[product.added])
        for at in (product.left, product.right):
            if not isinstance(args[at], Tensor) or not args[at].is_floating_point():
                continue
            one, other = args[at], _whole(args[at], g)
            parts = []
            for value in (one, other, one + 2.0 * other):
                with_it = [value if i == at else a for i, a in enumerate(args)]
                parts.append(run_op(op.name, tuple(with_it), kwargs))
            assert torch.equal(parts[0] + 2.0 * parts[1], parts[2]), op.name


@having(lambda traits: traits.linear_in and not (traits.moves and traits.moves.casts))
def test_an_op_is_linear_in_what_it_says(op: Op) -> None:
    """f(x + 2y) = f(x) + 2 f(y), all these arguments together; fills and numbers apart."""
    places = op.traits.linear_in
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        kwargs = {k: v for k, v in kwargs.items() if k != "alpha"}
        g = generator(number)
        real = all(_is_real(args[i]) for i in places if i < len(args))
        bits = any(isinstance(a, torch.dtype) for a in args)
        filled = op.traits.moves is not None and op.traits.moves.fills
        if not real or bits or filled or op.traits.last_wins:
            continue  # numbers, decisions, constants; which of two writes wins is open
        one, other = ([_multiple(a, g) if i in places else a for i, a in enumerate(args)]
                      for _ in range(2))  # fmt: skip
        both = [_plus(a, b) if i in places else a
                for i, (a, b) in enumerate(zip(one, other, strict=True))]  # fmt: skip
        found = [outputs_of(run_op(op.name, tuple(x), kwargs)) for x in (one, other, both)]
        for a, b, c in zip(*found, strict=True):
            assert not a.is_floating_point() or torch.equal(a + 2.0 * b, c), op.name


def _is_real(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return all(map(_is_real, x))
    return isinstance(x, Tensor) and x.is_floating_point()


def _multiple(x: Any, g: torch.Generator) -> Any:
    """Whole numbers that all small counts divide, so that means are exact."""
    if isinstance(x, (list, tuple)):
        return [_multiple(item, g) for item in x]
    return _whole(x, g) * 27720.0


def _plus(a: Any, b: Any) -> Any:
    if isinstance(a, (list, tuple)):
        return [_plus(x, y) for x, y in zip(a, b, strict=True)]
    return a + 2.0 * b


class _Seen(dict[int | str, Any]):
    """Labels that remember whether they were asked for."""

    asked = False

    def get(self, key: int | str, default: Any = None) -> Any:
        self.asked = True
        return default


@pytest.mark.parametrize("op", [op for op in TRIED if op.doubt], ids=lambda op: op.name)
def test_labels_are_asked_for_as_it_is_said(op: Op) -> None:
    asked = False
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        radii = draw_radii(args, kwargs, generator(number), scale=0.3)
        labels = _Seen()
        y = run_op(op.name, args, kwargs)
        op.doubt_of(Evaluation(op.name, args, kwargs, y, radii, {}, labels))
        asked = asked or labels.asked
    assert asked == op.traits.reads_ties


def _whole(x: Any, g: torch.Generator) -> Any:
    if isinstance(x, float):
        return 2.0
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return torch.randint(-4, 5, x.shape, generator=g).to(torch.float64)


@having(lambda traits: traits.piecewise_constant)
def test_steps_are_flat(op: Op) -> None:
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        given = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        if any(a.requires_grad for a in given):
            continue
        if op.second_order is None and op.spread is None:
            continue  # a decision, whose entries do not move but jump
        inputs = [a.clone().requires_grad_() for a in given]
        replaced = iter(inputs)
        run = [next(replaced) if any(a is v for v in given) else a for a in args]
        y = run_op(op.name, tuple(run), kwargs)
        if not (isinstance(y, Tensor) and y.requires_grad):
            continue
        found = torch.autograd.grad(y.sum(), inputs, allow_unused=True)
        assert all(d is None or not bool(d.any()) for d in found), op.name


# -------------------------------------------------------------------------------------------- poles

_GRID = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0)


def _values_on_a_grid(op: Op) -> tuple[Tensor, Tensor] | None:
    """Values and slopes of an elementwise op of one or two tensors, at small numbers."""
    grid = torch.tensor(_GRID, dtype=torch.float64)
    count = 1 + max(0, len(op.examples[0].make(generator(0))[0]) - 1)
    args = (grid,) if count == 1 else (grid[:, None].expand(10, 10), grid.expand(10, 10))
    inputs = [a.clone().requires_grad_() for a in args]
    try:
        y = run_op(op.name, tuple(inputs), {})
        slopes = torch.autograd.grad(y.sum(), inputs, allow_unused=True) if y.requires_grad else ()
    except (RuntimeError, TypeError):
        return None
    found = [s.reshape(-1) for s in slopes if s is not None]
    return y.detach(), torch.cat(found) if found else torch.zeros(0)


@pytest.mark.parametrize(
    "op", [op for op in TRIED if op.kind is Kind.ELEMENTWISE], ids=lambda op: op.name
)
def test_an_op_without_poles_is_finite_at_small_numbers(op: Op) -> None:
    found = _values_on_a_grid(op)
    if found is None:
        return
    values, slopes = found
    poles = op.traits.poles
    if values.is_floating_point() and not bool(values.isfinite().all()):
        assert poles is not None, op.name
        assert poles.of_value, op.name
    if not bool(slopes.isfinite().all()):
        assert poles is not None, op.name


# --------------------------------------------------------------------------------------- composites


def test_composites_are_ops_without_facts() -> None:
    names = [composite.name for composite in COMPOSITES]
    assert len(names) == len(set(names))
    assert not [name for name in names if OPS.named(name) is not None]
    assert not [name for name in names if not hasattr(aten, name)]
    assert not [c.name for c in COMPOSITES if c.kinks.smooth and c.traits == traits_of("none such")]


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert kinks_of("no_such_op") is None
    known = traits_of("no_such_op")
    assert not known.never_rounds
    assert not known.only_moves
    assert known.moves is None


def test_a_tip_is_no_branch() -> None:
    tip, branch = kinks_of("hypot"), kinks_of("relu")
    assert tip is not None and branch is not None  # noqa: PT018 - for the types
    assert tip.where is Where.TIP
    assert branch.branches
    assert not tip.branches
