"""Which ops create entries from nothing but Python numbers?

They are constants of a program. A Python number stands for its double value, so what is filled in
is exact; a sequence of steps is exact when it consists of integers.
"""

from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import TINY, UNIT_ROUNDOFF, add_up, gamma_up, mul_up
from numgeom.ops.balls import unknown_unless_finite
from numgeom.ops.drawing import wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import still
from numgeom.ops.traits import Traits


def _filled(name: str, *examples: Example, source: str = "exact: a stated number") -> Op:
    return Op(
        name=name,
        kind=Kind.EXACT,
        rounding=None,
        spread=None,
        second_order=None,
        doubt=None,
        kinks=NO_KINKS,
        tangent=still,
        source=source,
        complex_too=True,
        traits=Traits(stays=True),
        examples=examples,
    )


def _steps(
    name: str,
    rounding: Any,
    *examples: Example,
    source: str = "start + i * step, at most three roundings (IEEE 754)",
) -> Op:
    return Op(
        name=name,
        kind=Kind.EXACT,
        rounding=rounding,
        spread=None,
        second_order=None,
        doubt=None,
        kinks=NO_KINKS,
        source=source,
        tangent=still,
        examples=examples,
    )


def _arange_rounding(call: Evaluation) -> Bound:
    """Bound fl(start + i * step): exact for integers that a float64 number holds."""
    numbers = [a for a in call.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    start, step = (0, 1) if len(numbers) < 2 else (numbers[0], (*numbers, 1)[2])
    return _steps_rounding(call.y, float(start), float(step), [float(n) for n in numbers])


def _linspace_rounding(call: Evaluation) -> Bound:
    """Bound fl(start + i * step), or fl(end - i * step), with step = (end - start) / (n - 1)."""
    if any(isinstance(a, Tensor) for a in call.args[:2]):
        return torch.full_like(call.y, float("inf"))
    start, end = float(call.args[0]), float(call.args[1])
    # i * step <= |end - start| <= |start| + |end|; its step was rounded twice, and i * step and
    # the addition once each.
    size = add_up(abs(start), abs(end))
    bound = torch.full_like(call.y, mul_up(gamma_up(6, UNIT_ROUNDOFF), mul_up(2.0, size)))
    bound = add_up(bound, (call.y.numel() + 4) * TINY)
    return unknown_unless_finite(bound, call.y)


def _steps_rounding(y: Tensor, start: float, step: float, numbers: list[float]) -> Bound:
    whole = all(n.is_integer() for n in numbers)
    if not y.is_floating_point() or (whole and bool((y.abs() <= 2.0**53).all())):
        return None
    # |i * step| <= |y| + |start| and more than covered by twice the sum of all sizes.
    size = add_up(y.abs(), abs(start))
    bound = mul_up(add_up(size, size), gamma_up(4, UNIT_ROUNDOFF))
    return unknown_unless_finite(add_up(bound, 4.0 * TINY), y)


def _real_number_rounding(call: Evaluation) -> Bound:
    """Bound |number - value| by |rest| + error, which the call states."""
    _, rest, error = (abs(float(a)) for a in call.args)
    return unknown_unless_finite(torch.full_like(call.y, add_up(rest, error)), call.y)


FACTORIES: tuple[Op, ...] = (
    _steps(
        "numgeom::real_number",
        _real_number_rounding,
        example(0.1, -5.5e-18, 1e-34),
        source="stated with the number (numgeom.recording.reals)",
    ),
    _filled("full", example([2, 3], 0.1, dtype=torch.float64), example([2], float("-inf"))),
    _filled("zeros", example([2, 3])),
    _filled("ones", example([2, 3])),
    _filled("full_like", example(wild(2, 3), 0.1)),
    _filled("zeros_like", example(wild(2, 3))),
    _filled("ones_like", example(wild(2, 3))),
    _filled("new_full", example(wild(2), [3], 0.1)),
    _filled("new_zeros", example(wild(2), [3])),
    _filled("new_ones", example(wild(2), [3])),
    _filled("scalar_tensor", example(0.1, dtype=torch.float64), example(float("-inf"))),
    _filled("eye", example(3), example(2, 3)),
    _filled("tril_indices", example(3, 3)),
    _filled("triu_indices", example(3, 3)),
    _steps(
        "arange",
        _arange_rounding,
        example(5),
        example(1, 7),
        example(0.0, 1.0, 0.1, dtype=torch.float64),
        example(-1e300, 1e300, 1e299, dtype=torch.float64),
    ),
    _steps(
        "linspace",
        _linspace_rounding,
        example(0.0, 1.0, 7, dtype=torch.float64),
        example(-0.3, 0.3, 10, dtype=torch.float64),
    ),
    _filled("_efficientzerotensor"),  # zeros without memory, for derivatives that vanish
    # Allocation. A recording has zeros for it: what memory held means nothing.
    *(
        _filled(name, source="no defined content")
        for name in (
            "empty",
            "empty_like",
            "empty_permuted",
            "empty_strided",
            "new_empty",
            "new_empty_strided",
        )
    ),
)
