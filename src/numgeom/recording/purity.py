"""Which ops may a program that comes from a file call?

A call of a program is a pure function of tensors, so a file may ask for nothing else. What torch
and the package state about an op decides, never a list of dangerous ones:

- torch itself defines it, in `aten` or `prims`, or it is the package's own `real_number`;
- its schema writes to no argument, and returns tensors and nothing else;
- its meaning or its shape function is known: torch marks it as a core or pointwise op, or knows
  what shapes it gives, or the package has a reference or a decomposition for it;
- a recorder keeps it as a call: it draws no random number, allocates no memory with undefined
  content, moves no metadata and talks to no other process (`numgeom.recording.functionalize`);
- it is not composite: of such an op the ops it is made of are recorded;
- it writes to no running statistics behind its schema's back.

Everything else is refused with its name: ops that read files, print or set a switch, TorchScript's
own functions, in-place and `out=` variants, ops of other libraries. Those that write to nothing by
their schema may be let in by the caller, who then vouches for them.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from numgeom.recording.decompose import decompositions
from numgeom.recording.functionalize import (
    HIDDEN_WRITES,
    Treatment,
    draws_nothing,
    is_composite,
    name_of,
    traits_of,
)
from numgeom.recording.reals import REAL_NUMBER, is_real_number
from numgeom.recording.references import REFERENCES
from numgeom.recording.variants import argument_at

_KEPT_AS_CALLS = (
    Treatment.PURE,
    Treatment.DECIDE,
    Treatment.CUT_BY_STRIDES,
    Treatment.WRITE_HIDDEN,
    Treatment.DRAW,  # where it is told not to draw, see `objection_to_call`
)
_TENSORS = ("Tensor", "List[Tensor]", "Optional[Tensor]")


@cache
def impurity(op: OpOverload) -> str | None:
    """Why no file may call an op, whoever vouches for it; None if it may."""
    schema = op._schema
    if schema.is_mutable:
        return "it writes to its arguments"
    if not schema.returns or any(str(r.type) not in _TENSORS for r in schema.returns):
        return "it does not return tensors"
    return None


@cache
def objection(op: OpOverload) -> str | None:
    """Why a file may not call an op unless its caller vouches for it; None if it may."""
    if op is REAL_NUMBER:
        return None
    # Functions of TorchScript share torch's namespaces, but the dispatcher does not have them.
    if op.namespace not in ("aten", "prims") or not torch._C._dispatch_has_kernel(op.name()):
        return "torch does not define it"
    if is_composite(op):
        return "it is made of other ops, which are recorded in its place"
    if not _is_known(op):
        return "nothing is known of it"
    if traits_of(op).treatment not in _KEPT_AS_CALLS:
        return "no recorder keeps it as a call"
    return None


def objection_to_call(
    op: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Why a file may not make this call of an op that it may call; None if it may."""
    if op is REAL_NUMBER and not is_real_number(args):
        return "what it is given is no real number with an error"
    if traits_of(op).treatment is Treatment.DRAW and not draws_nothing(op, args, kwargs):
        return "it draws random numbers"
    if name_of(op) in HIDDEN_WRITES:
        (statistics, _), training = HIDDEN_WRITES[name_of(op)]
        trains = argument_at(op, args, kwargs, training)
        if trains is not False and argument_at(op, args, kwargs, statistics) is not None:
            return "it writes to its running statistics"
    return None


def _is_known(op: OpOverload) -> bool:
    stated = torch.Tag.core in op.tags or torch.Tag.pointwise in op.tags
    if stated or op in REFERENCES:
        return True
    if op in decompositions():
        return True
    if op.namespace != "aten":
        return False
    if op.has_kernel_for_dispatch_key(torch._C.DispatchKey.Meta):
        return True
    from torch._subclasses.fake_impls import op_implementations_dict

    return op in op_implementations_dict
