"""Steps from torch's own operator database: every op with its own sample inputs, and nastier ones.

A step calls the op, adds the real parts of all floating-point results, and runs backward. `cases`
yields them in the variants that users meet: as they are, not contiguous in memory, empty, without
dimensions, complex.
"""

import importlib
import sys
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

VARIANTS = ("plain", "noncontiguous", "empty", "scalar", "complex")


def _database() -> tuple[Any, ...]:
    """The database, which comes with torch's own tests.

    Their base class is one of the package `expecttest`; a stand-in does, since none of it is used.
    They forbid to set torch's switches one by one, in the whole process; that is undone.
    """
    switch = "__allow_nonbracketed_mutation_flag"
    allowed = getattr(torch.backends, switch)
    stand_in: Any = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    absent = "expecttest" not in sys.modules
    sys.modules.setdefault("expecttest", stand_in)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module("torch.testing._internal.common_methods_invocations")
    finally:
        setattr(torch.backends, switch, allowed)
        if absent:
            del sys.modules["expecttest"]
    return tuple(found.op_db)


@dataclass(frozen=True)
class Case:
    """One op on one sample of inputs."""

    name: str
    variant: str
    step: Callable[[], Any]


def ops() -> list[Any]:
    """All ops that have a derivative, in order of their names."""
    return sorted(
        (op for op in _database() if op.supports_autograd),
        key=lambda op: (op.name, op.variant_test_name),
    )


def full_name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def cases(op: Any, *, samples: int, variants: tuple[str, ...] = VARIANTS) -> Iterator[Case]:
    """Up to `samples` cases of each variant."""
    for variant in variants:
        dtype = torch.complex64 if variant == "complex" else torch.float32
        if not op.supports_dtype(dtype, "cpu"):
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = op.sample_inputs("cpu", dtype, requires_grad=True)
                for i, sample in enumerate(found):
                    if i >= samples:
                        break
                    changed = _changed(sample, variant)
                    if changed is not None:
                        yield Case(f"{full_name(op)}[{i}]", variant, _step(op, changed))
            except Exception:  # the database has no such sample here
                continue


def _changed(sample: Any, variant: str) -> Any | None:
    if variant in ("plain", "complex"):
        return sample
    if variant == "noncontiguous":
        return sample.noncontiguous()

    def emptied(x: Tensor) -> Tensor:
        if not x.dim():
            return x
        return x.detach()[:0].clone().requires_grad_(x.requires_grad)

    def scalar(x: Tensor) -> Tensor:
        if not x.numel():
            return x
        return x.detach().reshape(-1)[0].clone().requires_grad_(x.requires_grad)

    return sample.transform(
        lambda x: (emptied if variant == "empty" else scalar)(x) if isinstance(x, Tensor) else x
    )


def _step(op: Any, sample: Any) -> Callable[[], Any]:
    def step() -> None:
        result = op(sample.input, *sample.args, **sample.kwargs)
        result = sample.output_process_fn_grad(result)
        tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.requires_grad]
        loss = sum((x.real if x.is_complex() else x).float().sum() for x in tensors)
        assert isinstance(loss, Tensor)
        loss.backward()

    return step
