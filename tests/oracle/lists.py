"""Ops on lists of tensors, as optimizers use them: each tensor alone."""

from collections.abc import Callable
from typing import Any

from tests.oracle.elementwise import ELEMENTWISE
from tests.oracle.movement import MOVEMENT
from tests.oracle.numbers import Numbers
from tests.oracle.sums import SUMS

_KNOWN = {**ELEMENTWISE, **MOVEMENT, **SUMS, "norm": SUMS["linalg_vector_norm"]}


def list_op(name: str) -> Callable[..., list[Numbers]] | None:
    """The op on lists of this name, if the op on tensors is known."""
    single = _KNOWN.get(name.removeprefix("_foreach_"))
    if single is None or not name.startswith("_foreach_"):
        return None

    def each(xs: list[Any], *args: Any, **options: Any) -> list[Numbers]:
        found = []
        for i, x in enumerate(xs):
            own = [a[i] if isinstance(a, (list, tuple)) else a for a in args]
            if name == "_foreach_addcmul" or name == "_foreach_addcdiv":
                own, factor = own[:2], own[2:] or [options.get("value", 1)]
                found.append(single(x, *own, value=factor[0]))
            elif name == "_foreach_norm":
                found.append(single(x, *own[:1]))
            elif name in ("_foreach_zero", "_foreach_copy"):
                found.append(own[0] if own else single(x, 0))
            else:
                found.append(single(x, *own, **options))
        return found

    return each
