"""Which rules speak of real numbers alone?

Radii and sizes here are those of real entries. Of a complex result only two things are recorded:
that it is certain, or that it is in doubt. So a rule that is meant for reals answers a call with
complex entries by "nothing is known".
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from numgeom.ops.balls import unknown
from numgeom.ops.entry import Evaluation, Op

Fact = Callable[[Evaluation], Any]


def real_only(*ops: Op) -> tuple[Op, ...]:
    """The same entries, without any claim about complex numbers."""
    return tuple(
        replace(
            op,
            rounding=partial(_guarded, op.rounding, unknown),
            spread=partial(_guarded, op.spread, unknown),
            second_order=partial(_guarded, op.second_order, unknown),
            doubt=partial(_guarded, op.doubt, _everything),
        )
        for op in ops
    )


def _guarded(fact: Fact, otherwise: Fact, call: Evaluation) -> Any:
    return otherwise(call) if _is_complex((call.y, call.args, call.kwargs)) else fact(call)


def _is_complex(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_complex()
    if isinstance(value, dict):
        return any(_is_complex(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_is_complex(v) for v in value)
    return isinstance(value, complex)


def _everything(call: Evaluation) -> Any:
    """All entries of all outputs are in doubt."""
    if isinstance(call.y, (list, tuple)):
        return tuple(_all_of(y) for y in call.y)
    return _all_of(call.y)


def _all_of(y: Any) -> Tensor | None:
    return torch.ones_like(y, dtype=torch.bool) if isinstance(y, Tensor) else None
