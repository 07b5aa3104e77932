"""By how much does one call stretch the errors of its inputs, in the 2-norm?

Everything is taken from the facts of the op table, entry by entry, and turned into norms. With r
the radii of the inputs, S_p the spread and Q_p the second-order bound for an error in input p
alone:

Elementwise ops. |f'_p| r_p <= S_p + Q_p, so an entry moves by at most
sum_p |e_p| (S_p + Q_p) / r_p + Q, and ||e_y|| <= sum_p max_i ((S_p + Q_p) / r_p)_i ||e_p|| + ||Q||.
Entries within reach of a kink are paid for in full, by their spread.

Linear ops. The spread of radii 1 is the row sums of |J|. A pull-back c of ones is the column sums
of J; those of |J| exceed them by at most the difference of both totals. ||J||_2 <= sqrt(||J||_1
||J||_inf) (Higham 2002, sec. 6.3).

Products of matrices. ||E_A B|| <= ||E_A|| ||B||_2, and ||E_A E_B|| <= ||E_A|| ||E_B||.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    add_up,
    cover_roundings,
    div_up,
    mul_up,
    norm_up,
    sqrt_up,
    sum_up,
)
from numgeom.functionals.spectral import spectral_norm_up
from numgeom.ops.entry import Evaluation, Kind, Op

Position = int | str | tuple[int, int]
"""Of an argument: its place, its name, or (place, place in the list that is the argument)."""
Run = Callable[[Evaluation], Any]

_LINEAR = frozenset({Kind.EXACT, Kind.CAST, Kind.REDUCTION, Kind.SELECTION, Kind.CONTRACTION})
_MATRIX_PRODUCTS = frozenset({"mm", "bmm"})


@dataclass(frozen=True)
class Stretch:
    """How one call turns the errors of its inputs into that of an output.

    ||e_y|| <= sum_p factors[p] ||e_p|| + curvature + jumps, for errors within the radii. The
    curvature shrinks with the square of the errors, the jumps are paid as a whole.
    """

    factors: Mapping[Position, float]
    curvature: float = 0.0
    jumps: float = 0.0


def _is_entrywise(op: Op) -> bool:
    """Whether an entry depends on its own place; choices among an entry and bounds do, too."""
    return op.kind is Kind.ELEMENTWISE or (op.kind is Kind.SELECTION and op.traits.entrywise)


def stretch_of(
    op: Op, call: Evaluation, errors: Mapping[Position, float], run: Run, part: int | None
) -> Stretch | None:
    """The stretch of one call; None where the facts give none.

    Args:
        op: The facts about the op.
        call: The call with the radii of its inputs, in float64.
        errors: ||e_p|| of every inexact input.
        run: Runs the call again with other arguments, with derivatives.
        part: Which of several outputs; None for the only one.
    """
    if any(d is not None for d in dict(call.doubts).values()):
        return None
    if not errors:
        return Stretch({})
    y = call.y if part is None else call.y[part]
    if op.kind is Kind.EXACT and any(isinstance(p, tuple) for p in errors):
        return _joined(call, errors, y)
    if any(isinstance(p, tuple) for p in errors):
        return None
    if part is None and _is_entrywise(op):
        return _elementwise(op, call, errors)
    if op.name in _MATRIX_PRODUCTS:
        return _product(call, errors)
    if op.kind in _LINEAR:
        return _linear(op, call, errors, run, part)
    return None


def _joined(call: Evaluation, errors: Mapping[Position, float], y: Tensor) -> Stretch | None:
    """Several tensors side by side: every entry goes to one place at most."""
    sizes = [t.numel() for a in call.args if isinstance(a, list | tuple) for t in a if _real(t)]
    return Stretch(dict.fromkeys(errors, 1.0)) if y.numel() <= sum(sizes) else None


def _elementwise(op: Op, call: Evaluation, errors: Mapping[Position, float]) -> Stretch | None:
    y = call.y
    crossed = op.doubt_of(call)
    crossed = None if crossed is None or not bool(crossed.any()) else crossed
    factors: dict[Position, float] = {}
    jumps = 0.0
    for p in errors:
        alone = _alone(call, p, call.radii)
        radius = _shaped(alone.radii, y)
        if radius is None:
            return None
        moved = _plus(op.spread_of(alone), op.second_order_of(alone))
        if moved is None:
            continue
        ratio = torch.where(radius > 0, div_up(_whole(moved, y), radius), 0.0)
        if crossed is not None:
            ratio = ratio.masked_fill(crossed, 0.0)
        copies = sqrt_up(float(-(-y.numel() // max(1, _argument(call, p).numel()))))
        factor, paid = _split(ratio, op.spread_of(alone), y, mul_up(copies, errors[p]))
        factors[p] = mul_up(factor, copies)
        jumps = add_up(jumps, paid)
    bend = op.second_order_of(call)
    if bend is not None:
        bend = _whole(bend, y)
        bend = bend if crossed is None else bend.masked_fill(crossed, 0.0)
    if crossed is not None:
        spread = op.spread_of(call)
        jumps = add_up(jumps, 0.0 if spread is None else float(norm_up(_whole(spread, y)[crossed])))
    return Stretch(factors, 0.0 if bend is None else float(norm_up(bend)), jumps)


def _split(ratio: Tensor, spread: Any, y: Tensor, error: float) -> tuple[float, float]:
    """Let a few steep entries pay by their radii instead of stretching the whole norm.

    For every threshold t, ||e_y|| <= t ||e|| + ||spread where the ratio exceeds t||.

    Returns:
        The threshold, and the norm that is paid besides.
    """
    if not ratio.numel():
        return 0.0, 0.0
    best, paid = float(ratio.amax()), 0.0
    if spread is None:
        return best, paid
    least = mul_up(best, error)
    moved = _whole(spread, y)
    for threshold in (1.0, 1.5 * float(ratio.median())):
        steep = ratio > threshold
        if not bool(steep.any()):
            continue
        besides = float(norm_up(moved[steep]))
        if add_up(mul_up(threshold, error), besides) < least:
            least = add_up(mul_up(threshold, error), besides)
            best, paid = threshold, besides
    return best, paid


def _product(call: Evaluation, errors: Mapping[Position, float]) -> Stretch:
    a, b = call.args[0], call.args[1]
    factors: dict[Position, float] = {}
    if 0 in errors:
        factors[0] = spectral_norm_up(b)
    if 1 in errors:
        factors[1] = spectral_norm_up(a)
    both = mul_up(errors[0], errors[1]) if len(factors) == 2 else 0.0
    return Stretch(factors, both)


def _linear(
    op: Op, call: Evaluation, errors: Mapping[Position, float], run: Run, part: int | None
) -> Stretch | None:
    doubt = op.doubt_of(call)
    for each in doubt if isinstance(doubt, tuple | list) else (doubt,):
        if each is not None and bool(each.any()):
            return None
    factors: dict[Position, float] = {}
    for p in errors:
        alone = _alone(call, p, call.radii)
        if _bends(_select(op.second_order_of(alone), part)):
            return None
        factor = _norm_of_map(op, call, p, run, part)
        if factor is None:
            return None
        factors[p] = factor
    bend = _select(op.second_order_of(call), part) if len(factors) > 1 else None
    return Stretch(factors, 0.0 if bend is None else float(norm_up(bend)))


def _norm_of_map(op: Op, call: Evaluation, p: Position, run: Run, part: int | None) -> float | None:
    """Bound the 2-norm of a linear map by its largest row sum and its largest column sum."""
    x = _argument(call, p)
    y = call.y if part is None else call.y[part]
    if x.numel() == 0 or y.numel() == 0:
        return 0.0
    unit = _alone(call, p, {p: torch.ones_like(x, dtype=torch.float64)})
    rows = _select(op.spread_of(unit), part)
    if rows is None:
        return 0.0
    rows = _whole(rows, y)
    columns = _column_sums(op, call, p, run, part)
    if columns is None:
        return None
    total, seen = float(sum_up(rows)), abs(math.fsum(columns.reshape(-1).tolist()))
    missed = max(0.0, total - seen)
    largest = add_up(cover_roundings(float(columns.abs().amax()), y.numel() + 64), missed)
    return sqrt_up(mul_up(float(rows.amax()), largest))


def _column_sums(op: Op, call: Evaluation, p: Position, run: Run, part: int | None) -> Any:
    """Pull ones back through the map, with the other factors of a contraction made positive."""

    def positive(value: Any) -> Any:
        return value.abs() if op.kind is Kind.CONTRACTION and _real(value) else value

    args = [positive(value) for value in call.args]
    kwargs = {name: positive(value) for name, value in call.kwargs.items()}
    x = _argument(call, p).detach().clone().requires_grad_()
    if isinstance(p, int):
        args[p] = x
    elif isinstance(p, str):
        kwargs[p] = x
    try:
        with torch.enable_grad():
            y = _select(run(replace(call, args=tuple(args), kwargs=kwargs)), part)
            if not isinstance(y, Tensor) or not y.requires_grad:
                return None
            (found,) = torch.autograd.grad(y, x, torch.ones_like(y), allow_unused=True)
    except (RuntimeError, NotImplementedError):  # no derivative
        return None
    return None if found is None or not bool(torch.isfinite(found).all()) else found


def _argument(call: Evaluation, p: Position) -> Tensor:
    if isinstance(p, int):
        return call.args[p]
    assert isinstance(p, str)  # lists are dealt with before
    return call.kwargs[p]


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _bends(bound: Any) -> bool:
    return bound is not None and bool((bound != 0).any())


def _select(value: Any, part: int | None) -> Any:
    return value if part is None or value is None else value[part]


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return add_up(a, b)


def _whole(bound: Tensor, y: Tensor) -> Tensor:
    return bound if bound.shape == y.shape else bound.expand(y.shape)


def _alone(call: Evaluation, p: Position, radii: Mapping[Any, Any]) -> Evaluation:
    """The call with one inexact input."""
    assert not isinstance(p, tuple)  # lists are dealt with before
    return replace(call, radii={p: radii[p]})


def _shaped(radii: Mapping[Any, Any], y: Tensor) -> Tensor | None:
    """The one radius in the shape of the result; None where they do not broadcast."""
    (radius,) = radii.values()
    if not isinstance(radius, Tensor):
        return None
    try:
        return radius.expand(y.shape)
    except RuntimeError:
        return None
