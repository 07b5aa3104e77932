"""Ways to break the package on purpose: a fuzzer that does not see them sees nothing."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

from numgeom.arithmetic import rounding
from numgeom.certificate import bounds
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OPS, OpTable

_CERTIFY = importlib.import_module("numgeom.certificate.certify")  # the name is the function's


@contextmanager
def halved_gamma() -> Iterator[None]:
    """gamma_n = n u / (1 - n u), taken half as large, wherever the package uses it."""
    true = rounding.gamma_up

    def half(count: int, unit_roundoff: float) -> float:
        return 0.5 * true(count, unit_roundoff)

    users = [m for m in sys.modules.values() if getattr(m, "gamma_up", None) is true]
    patches = [mock.patch.object(m, "gamma_up", half) for m in users]
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in patches:
            patch.stop()


@contextmanager
def changed_entries(change: Callable[[Op], Op]) -> Iterator[None]:
    """Certificates are made with other facts."""
    table = OpTable(tuple(change(op) for op in OPS))
    other = partial(bounds.find_radii, ops=table)
    with mock.patch.object(_CERTIFY, "find_radii", other):
        yield


def _nothing(call: Evaluation) -> None:
    del call


def without_radius(names: tuple[str, ...]) -> Any:
    """What comes into these ops is taken for exact."""
    return changed_entries(lambda op: replace(op, spread=_nothing) if op.name in names else op)


def certain_kinks() -> Any:
    """No branch is ever in doubt."""
    return changed_entries(lambda op: replace(op, doubt=_nothing))


def without_curvature() -> Any:
    """Every op is taken for linear."""
    return changed_entries(lambda op: replace(op, second_order=_nothing))


def exact_reciprocals() -> Any:
    """A division by a Python number, as in a mean, is taken for exact."""

    def change(op: Op) -> Op:
        if op.name not in ("div", "mean"):
            return op
        true = op.rounding

        def careless(call: Evaluation) -> Any:
            by_number = op.name == "mean" or isinstance(call.args[1], (int, float))
            return None if by_number else true(call)

        return replace(op, rounding=careless)

    return changed_entries(change)
