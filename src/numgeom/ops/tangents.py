"""How does a call pass small changes of its inputs on, to first order, and what does it lose?

A *tangent rule* gets k tangents of each input at once, stacked along a new first dimension, and
returns those of the result: t_y = f'(x) t, computed in float64. Beside them it returns a bound of
its own rounding, one for all lanes together, entry by entry:

    |computed t_y - f'(x) t| <= rounding,        for each of the k tangents t,

where x and t are the float64 numbers that the rule got, and f' is the exact derivative there. The
bound follows from `Stack.size`, the largest magnitude over the lanes (Higham 2002, sec. 3.1 and
3.3, running error analysis).

Few forms of rule cover all ops. A linear op is applied to the tangents, and rounds as its own fact
says; an entry-by-entry function multiplies them by a slope that is known up to an error (`Slope`);
a product of two tensors follows the product rule (`bilinear_tangent`). At a kink the rule takes the
branch that was computed. Where an input is infinite, so is the exact one: its tangent does not
count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    all_finite,
    cover_roundings,
    gamma_up,
    next_up,
)
from numgeom.errors import NumgeomError
from numgeom.ops.entry import Bound, Evaluation
from numgeom.ops.intervals import Interval

aten = torch.ops.aten

Key = int | str
_NORMAL = 1e-280  # beside an entry of this size the smallest subnormal number is nothing


class NoTangentRuleError(NumgeomError):
    """A call has no tangent rule of ours, or not for the inputs that move."""


class Stack:
    """Tangents of one value.

    Attributes:
        lanes: The tangents, [k, *shape of the value], float64.
    """

    def __init__(self, lanes: Tensor) -> None:
        """Take tangents as they are; they must not be changed any more."""
        self.lanes = lanes

    @cached_property
    def size(self) -> Tensor:
        """The largest magnitude over the lanes, entry by entry; exact, NaN where one is."""
        return torch.maximum(self.lanes.amax(0), self.lanes.amin(0).neg_())

    def beside(self, y: Tensor) -> Tensor:
        """The tangents in a form that broadcasts to those of a result y."""
        return stacked(self.lanes, y)


Moved = Mapping[Key, Any]
"""Tangents by the key of the argument: a Stack, or for a list of tensors a list of Stack | None."""


@dataclass(frozen=True, eq=False)
class Pushed:
    """Tangents of one output.

    Attributes:
        lanes: [k, *shape of the output].
        rounding: Bound of |lanes - f'(x) t|, entry by entry, over all lanes; gets an upper bound of
            |lanes|. None: the rule is exact.
        fresh: Whether nothing else holds the memory of `lanes`.
    """

    lanes: Tensor
    rounding: Callable[[Tensor], Bound] | None = None
    fresh: bool = False


TangentRule = Callable[[Evaluation, Moved], Any]
"""Returns a Pushed for the output, None if it does not move; a tuple of them for several."""


def stacked(tangents: Tensor, y: Tensor) -> Tensor:
    """Tangents of an operand in a form that broadcasts to those of the result."""
    missing = y.dim() + 1 - tangents.dim()
    shape = tangents.shape
    return tangents.reshape(shape[0], *[1] * missing, *shape[1:]) if missing else tangents


def still(call: Evaluation, moved: Moved) -> Any:
    """The rule of ops whose results do not move with their inputs: fills, steps, decisions."""
    del moved
    return (None,) * len(call.y) if isinstance(call.y, (tuple, list)) else None


def require_known(call: Evaluation, moved: Moved, *known: Key) -> None:
    """Refuse tangents of arguments that a rule does not know."""
    unknown = [key for key in moved if key not in known]
    if unknown:
        raise NoTangentRuleError(
            f"The tangent rule of {call.name} does not cover its argument {unknown[0]!r}. Its "
            "entry in numgeom/ops needs a rule for it; please report it."
        )


# -- linear ops --------------------------------------------------------------------------


def linear_tangent(
    rounding: Callable[[Evaluation], Any] | None = None,
    *,
    data: tuple[int, ...] = (0,),
    constants: tuple[tuple[int, str], ...] = (),
    fixed: tuple[int, ...] = (),
    stack: Callable[[Tensor, Any, Tensor], Tensor] | None = None,
) -> TangentRule:
    """The rule of an op that is linear in some arguments together: the op itself.

    Args:
        rounding: The rounding fact of the op, which must grow with the sizes of its data and not
            look at y; None if it is exact.
        data: Positions of the arguments that it is linear in; numbers there count as constants.
        constants: Positions and names of the numbers that it writes into its result.
        fixed: Positions of tensors that the result depends on by decisions alone.
        stack: The op written for stacked tangents t, the other arguments and y, for one argument;
            by default it is applied lane by lane.
    """

    def rule(call: Evaluation, moved: Moved) -> Any:
        require_known(call, moved, *data, *fixed)
        moving: Moved = {key: moved[key] for key in data if key in moved}
        if not moving:
            return still(call, moved)

        def bound(part: int | None) -> Callable[[Tensor], Bound] | None:
            if rounding is None:
                return None
            fact = rounding

            def of_sizes(total: Tensor) -> Bound:
                del total
                args, kwargs = _with_data(call, data, constants, moving, _size_of)
                y = call.y
                flat = y if part is None else y[part]
                zeros = torch.zeros((), dtype=torch.float64, device=flat.device).expand(flat.shape)
                ys = zeros if part is None else tuple(zeros for _ in y)
                found = fact(Evaluation(call.name, args, kwargs, ys))
                return found if part is None else found[part]

            return of_sizes

        if stack is not None and not call.kwargs and isinstance(call.y, Tensor) and call.y.dim():
            lanes = stack(moving[data[0]].lanes, call.args[1:], call.y)
        else:
            lanes = _each_lane(call, data, constants, moving)
        if isinstance(call.y, (tuple, list)):
            return tuple(
                Pushed(t, bound(i)) if _is_real(y) else None
                for i, (t, y) in enumerate(zip(lanes, call.y, strict=True))
            )
        return Pushed(lanes, bound(None)) if _is_real(call.y) else None

    return rule


def _each_lane(
    call: Evaluation,
    data: tuple[int, ...],
    constants: tuple[tuple[int, str], ...],
    moving: Moved,
) -> Any:
    """The op applied to the tangents lane by lane."""
    stacks: list[Tensor] = []
    for value in moving.values():
        each = value if isinstance(value, list) else [value]
        stacks += [s.lanes for s in each if s is not None]

    def apply(*lanes: Tensor) -> Any:
        following = iter(lanes)
        args, kwargs = _with_data(call, data, constants, moving, lambda stack: next(following))
        return run_op(call.name, args, kwargs)

    try:
        return torch.vmap(apply)(*stacks)
    except RuntimeError:  # an op that torch cannot batch
        each = [apply(*lanes) for lanes in zip(*stacks, strict=True)]
    if isinstance(each[0], Tensor):
        return torch.stack(each)
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True))


def run_op(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Evaluate an op of ATen in float64, wherever its inputs lie in memory."""
    if name in ("view", "_unsafe_view", "_reshape_alias"):
        return torch.reshape(args[0], args[1])
    if name in ("as_strided", "as_strided_scatter"):  # in a program x is one line of memory
        args = (args[0].contiguous().clone(), *args[1:])
    return getattr(aten, name)(*args, **kwargs)


def _size_of(stack: Stack) -> Tensor:
    return stack.size


def _with_data(
    call: Evaluation,
    data: tuple[int, ...],
    constants: tuple[tuple[int, str], ...],
    moving: Moved,
    read: Callable[[Stack], Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with what is read from the tangents for the data, and zeros for constants."""
    args, kwargs = list(call.args), dict(call.kwargs)
    for position in data:
        if position >= len(args):
            continue
        value, stack = args[position], moving.get(position)
        if isinstance(value, (list, tuple)):
            stacks = stack if isinstance(stack, list) else [None] * len(value)
            args[position] = [
                _zeros(v) if s is None else read(s) for v, s in zip(value, stacks, strict=True)
            ]
        else:
            args[position] = _zeros(value) if stack is None else read(stack)
    for position, name in constants:
        if position < len(args):
            args[position] = 0.0
        elif name in kwargs:
            kwargs[name] = 0.0
    for key, value in kwargs.items():
        if isinstance(value, torch.dtype) and value.is_floating_point:
            kwargs[key] = torch.float64
    wide = [torch.float64 if isinstance(a, torch.dtype) else a for a in args]
    return tuple(wide), kwargs


def _zeros(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros_like(value, dtype=torch.float64)
    return 0.0 if isinstance(value, (bool, int, float)) else value


def _is_real(y: Any) -> bool:
    return isinstance(y, Tensor) and y.is_floating_point()


# -- entry-by-entry functions ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Slope:
    """A partial derivative, entry by entry.

    Attributes:
        value: What the tangents are multiplied by; a number, or of the shape of y or broadcast.
        error: Bound of |value - exact|; None: exact.
        plain: Whether all entries are 0, 1 or -1, so that the product does not round.
    """

    value: Tensor | float
    error: Bound = None
    plain: bool = False

    @classmethod
    def enclosed(cls, first: Interval) -> "Slope":
        """The middle of an enclosure of the derivative."""
        if first.lo is first.hi:
            return cls(first.lo)
        middle = (0.5 * first.lo).add_(first.hi, alpha=0.5)
        known = all_finite(middle)
        if not known:
            middle = torch.where(torch.isfinite(middle), middle, 0.0)
        error = torch.maximum(next_up(first.hi - middle), next_up(middle - first.lo))
        return cls(middle, error)


Slopes = Callable[[Evaluation, frozenset[Key]], Mapping[Key, Slope]]
"""The slopes along the arguments that move, by key."""


def finite_slope(value: Tensor) -> Slope:
    """An exact slope; 0 where it is infinite, since y is an infinity then, and stays it."""
    if not all_finite(value):
        value = torch.where(torch.isinf(value), 0.0, value)
    return Slope(value)


def elementwise_tangent(slopes: Slopes) -> TangentRule:
    """The rule of an entry-by-entry function: t_y = sum of slope_i t_i."""

    def rule(call: Evaluation, moved: Moved) -> Pushed | None:
        if not moved or not _is_real(call.y):
            return None
        found = slopes(call, frozenset(moved))
        require_known(call, moved, *found)
        terms = [(_bounded_slope(call, found[key], key), stack) for key, stack in moved.items()]
        return _weighted(call.y, terms)

    return rule


def _bounded_slope(call: Evaluation, slope: Slope, key: Key) -> Slope:
    """Zero where the argument is infinite, since then its exact value is the same infinity."""
    x = call.args[key] if isinstance(key, int) else call.kwargs[key]
    if all_finite(x):
        return slope
    infinite = torch.isinf(x)
    value = torch.where(infinite, 0.0, torch.as_tensor(slope.value, dtype=torch.float64))
    error = None if slope.error is None else torch.where(infinite, 0.0, slope.error)
    return Slope(value, error, slope.plain)


def _weighted(y: Tensor, terms: list[tuple[Slope, Stack]]) -> Pushed:
    total: Tensor | None = None
    for slope, stack in terms:
        t = stack.beside(y)
        if total is not None:
            total = torch.addcmul(total, t, torch.as_tensor(slope.value, dtype=torch.float64))
        elif isinstance(slope.value, float) and slope.value == 1.0:
            total = t
        else:
            total = t * slope.value
    assert total is not None
    fresh = len(terms) > 1 or not (isinstance(terms[0][0].value, float) and terms[0][0].value == 1)
    if total.shape[1:] != y.shape:
        total, fresh = total.expand(len(total), *y.shape), False
    plain = all(slope.plain for slope, _ in terms)
    exact = plain and len(terms) == 1

    def rounding(size: Tensor) -> Bound:
        if plain and len(terms) == 2:
            return size * UNIT_ROUNDOFF  # one addition; those that are rounded are normal
        bound: Tensor | None = None
        for slope, stack in terms:
            part = _term_rounding(slope, stack, len(terms))
            if part is not None:
                bound = part if bound is None else bound + part
        if len(terms) == 1:
            bound = _one_product(size, terms[0]) + (0.0 if bound is None else bound)
        assert bound is not None
        return cover_roundings(bound, len(terms) + 4).expand(y.shape)

    return Pushed(total, None if exact else rounding, fresh)


def _one_product(size: Tensor, term: tuple[Slope, Stack]) -> Tensor:
    """Rounding of a single product, from what it gave."""
    bound = size * (UNIT_ROUNDOFF * (1.0 + 16.0 * UNIT_ROUNDOFF))
    if bool(size.numel()) and bool(size.amin() > _NORMAL):
        return bound
    slope, stack = term
    support = (torch.as_tensor(slope.value) != 0) & (stack.size != 0)
    return bound + support.to(torch.float64) * TINY


def _term_rounding(slope: Slope, stack: Stack, count: int) -> Tensor | None:
    """What one of several terms adds: its slope's error, and up to n + 1 roundings."""
    size = stack.size
    bound = None if slope.error is None else times(slope.error, size)
    if count == 1:
        return bound
    value = torch.as_tensor(slope.value, dtype=torch.float64).abs()
    product = times(value, size)
    own = product * gamma_up(count + 1, UNIT_ROUNDOFF)
    if not (own.numel() and bool(own.amin() > _NORMAL)):
        own = own + ((value != 0) & (size != 0)).to(torch.float64) * (2.0 * TINY)
    return own if bound is None else own + bound


def times(a: Tensor, b: Tensor) -> Tensor:
    """A product of nonnegative numbers, 0 where one of them is."""
    product = a * b
    if all_finite(product):
        return product
    return torch.where((a == 0) | (b == 0), 0.0, product)
