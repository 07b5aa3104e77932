"""Does an entry say "none" exactly where there is none?

A fact that is None is zero for every call; that it may be is what the laws against the oracle say,
which read None as zero. Here the other direction: a fact that is a function is not zero throughout.
An entry that can say less costs certificates width and time, since a call that might round, bend or
decide is asked about it again and again.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.ops.balls import is_decision
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.kinks import AT_ZERO, NO_KINKS, Kinks, Where
from numgeom.ops.table import OPS
from tests.ops.laws import as_bounds, as_masks
from tests.ops.trials import draw_radii, generator, run_op

FACTS = ("rounding", "spread", "second_order", "doubt")
SCALES = (1e-9, 0.3, 30.0)
TRIED: tuple[Op, ...] = tuple(op for op in OPS if op.examples)
each_op = pytest.mark.parametrize("op", TRIED, ids=lambda op: op.name)


def calls(op: Op, *, doubts: bool) -> Iterator[Evaluation]:
    """Every example with radii; with `doubts`, its decisions in doubt, and reals made decisions."""
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        y = run_op(op.name, args, kwargs)
        for scale in SCALES:
            radii = draw_radii(args, kwargs, generator(number), scale=scale)
            yield Evaluation(op.name, args, kwargs, y, radii)
            if doubts:
                yield Evaluation(op.name, args, kwargs, y, radii, _in_doubt(args))
                yield Evaluation(op.name, args, kwargs, y, _unbounded(radii))
        if not doubts:
            continue
        for dtype in (torch.int64, torch.bool, torch.uint8):
            whole = tuple(_made(a, dtype) for a in args)
            try:
                y = run_op(op.name, whole, kwargs)
            except (RuntimeError, NotImplementedError, IndexError):
                continue  # not an op on decisions
            yield Evaluation(op.name, whole, kwargs, y, {}, _in_doubt(whole))


def _in_doubt(args: Any) -> dict[int | str, Any]:
    def doubt(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            found = [doubt(item) for item in x]
            return None if all(f is None for f in found) else found
        return torch.ones_like(x, dtype=torch.bool) if is_decision(x) else None

    return {i: d for i, d in enumerate(map(doubt, args)) if d is not None}


def _unbounded(radii: Any) -> Any:
    if isinstance(radii, dict):
        return {key: _unbounded(r) for key, r in radii.items()}
    if isinstance(radii, list):
        return [_unbounded(r) for r in radii]
    return None if radii is None else torch.full_like(radii, math.inf)


def _made(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, (list, tuple)):
        return [_made(item, dtype) for item in x]
    real = isinstance(x, Tensor) and x.is_floating_point()
    return x.nan_to_num(posinf=1.0, neginf=0.0).clamp(0, 3).to(dtype) if real else x


# Arguments that no oracle knows, for which an entry has to say that nothing is known.
X = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
AT = torch.tensor([0, 0, 1])
RARE: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "round": [((X,), {"decimals": 2})],
    "scatter": [((X, 0, AT, X), {"reduce": "add"}), ((X, 0, AT, X), {"reduce": "multiply"})],
    "scatter_reduce": [((X, 0, AT, X, "prod"), {})],
}


def rare_calls(op: Op) -> Iterator[Evaluation]:
    for args, kwargs in RARE.get(op.name, ()):
        radii: dict[int | str, Any] = {0: X * 0.1}
        yield Evaluation(op.name, args, kwargs, run_op(op.name, args, kwargs), radii)


def is_ever(op: Op, fact: str) -> bool:
    """Whether a fact is anything but zero on the examples."""
    for call in (*calls(op, doubts=True), *rare_calls(op)):
        found = getattr(op, f"{fact}_of")(call)
        full = as_masks(found, call.y) if fact == "doubt" else as_bounds(found, call.y)
        if any(bool((part != 0).any()) for part in full):
            return True
    return False


@pytest.mark.parametrize("fact", FACTS)
@each_op
def test_a_fact_is_none_if_it_is_zero(op: Op, fact: str) -> None:
    if getattr(op, fact) is not None:
        assert is_ever(op, fact), f"{op.name}: {fact} is 0 on all examples, so it is None"


def test_a_fact_that_is_always_zero_is_noticed() -> None:
    add = OPS.named("add")
    assert add is not None
    for zero in (lambda call: None, lambda call: torch.zeros(call.y.shape, dtype=torch.float64)):
        assert not is_ever(dataclasses.replace(add, second_order=zero), "second_order")
    assert is_ever(add, "rounding")


# ------------------------------------------------------------------------------------------- kinks


def branches(op: Op) -> Iterator[tuple[Evaluation, bool]]:
    """Calls without doubtful arguments, and whether a branch or a decision of theirs is open."""
    for call in calls(op, doubts=False):
        yield call, any(bool(mask.any()) for mask in as_masks(op.doubt_of(call), call.y))


@each_op
def test_a_decision_about_real_numbers_is_a_kink(op: Op) -> None:
    for call, open_ in branches(op):
        if open_:
            assert op.kinks.may_occur(call.args, call.kwargs), f"{op.name}: {op.kinks.sentence}"


@each_op
def test_a_kink_is_met(op: Op) -> None:
    """By an example, whose branch is open; at a tip the remainder may be unbounded instead."""
    assert op.kinks.smooth or any(open_ for _, open_ in branches(op)) or _has_a_tip(op)


def _has_a_tip(op: Op) -> bool:
    bounds = (b for c in calls(op, doubts=False) for b in as_bounds(op.second_order_of(c), c.y))
    return op.kinks.where is Where.TIP and any(bool(torch.isinf(b).any()) for b in bounds)


@each_op
def test_the_arguments_that_decide_do(op: Op) -> None:
    """Errors of all other arguments raise no doubt; those of each that is named do."""
    if op.kinks.smooth or op.kinks.where is Where.TIP:
        return
    for call, open_ in branches(op):
        decide = {k: r for k, r in call.radii.items() if k in op.kinks.inputs}
        others = {k: r for k, r in call.radii.items() if k not in op.kinks.inputs}
        rest = dataclasses.replace(call, radii=others)
        assert not any(bool(m.any()) for m in as_masks(op.doubt_of(rest), call.y)), op.name
        alone = dataclasses.replace(call, radii=decide)
        assert open_ == any(bool(m.any()) for m in as_masks(op.doubt_of(alone), call.y)), op.name


@pytest.mark.parametrize(
    ("name", "kinks", "law"),
    [
        ("relu", NO_KINKS, "decision"),
        ("div", NO_KINKS, "decision"),
        ("sigmoid", AT_ZERO, "met"),
        ("threshold_backward", AT_ZERO, "decide"),
    ],
)
def test_wrong_kinks_are_noticed(name: str, kinks: Kinks, law: str) -> None:
    op = OPS.named(name)
    assert op is not None
    laws = {
        "decision": test_a_decision_about_real_numbers_is_a_kink,
        "met": test_a_kink_is_met,
        "decide": test_the_arguments_that_decide_do,
    }
    with pytest.raises(AssertionError):
        laws[law](dataclasses.replace(op, kinks=kinks))


def test_division_has_kinks_if_it_is_asked_to_round() -> None:
    div = OPS.named("div")
    assert div is not None
    x = torch.ones(1, dtype=torch.float64)
    assert not div.kinks.may_occur((x, x), {})
    assert div.kinks.may_occur((x, x), {"rounding_mode": "floor"})
    assert math.isfinite(float(div.spread_of(Evaluation("div", (x, x), {}, x, {0: x}))))
