"""How does one executed call read as a pure function of its inputs?

Most calls are pure already. The others are rewritten here, each by the reason why it is not:

- it allocates (`empty`): its content means nothing, zeros stand for it;
- it draws (`bernoulli_`, dropout): what was drawn becomes a constant;
- it decides a shape (`nonzero`, a boolean index): the decision is part of the recorded control
  flow, as a Python `if` is, and becomes a constant; what decided is kept beside (`decisions`);
- it gives a value to Python (`item`): there is no call, and what was read is kept beside;
- it writes (`add_`, `out=`): the functional op of the same name, and the written memory is rebound;
- it moves a view without data (`transpose_`): the view op;
- it has state that its schema does not tell (batch norm's running statistics);
- its meaning depends on the recorded format (`nan_to_num` without limits): they are filled in.
"""

from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import cache
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.entry import widened
from numgeom.recording.values import Value
from numgeom.recording.variants import functional_variant, written_arguments

aten = torch.ops.aten

# Allocate without a defined content: the output's values are whatever memory held.
ALLOCATES = frozenset(
    {
        "empty",
        "empty_like",
        "empty_permuted",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
    }
)

# Draw by themselves: the output is the draw, and no derivative passes from the inputs to it
# (torch defines none, or records it as a call of its own, as for `_standard_gamma_grad`).
DRAWS = frozenset(
    {
        "_sample_dirichlet",
        "_standard_gamma",
        "bernoulli",
        "bernoulli_",
        "binomial",
        "cauchy_",
        "exponential_",
        "geometric_",
        "log_normal_",
        "multinomial",
        "normal",
        "normal_",
        "poisson",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "random_",
        "randperm",
        "uniform_",
    }
)

# Return nothing.
SILENT = frozenset({"_assert_async", "_assert_tensor_metadata"})

# Return a Python value that depends on the values of tensors: what decided is the tensor itself, or
# what an op with the same arguments answers for each entry.
READS: Mapping[str, OpOverload | None] = {
    "_local_scalar_dense": None,
    "allclose": aten.isclose.default,
    "equal": aten.eq.Tensor,
}

# Change a tensor's metadata (where its memory is, how it lies), and no value.
METADATA_ONLY = frozenset({"detach_", "set_", "record_stream", "requires_grad_", "retain_grad"})

# Write to arguments that the schema does not mark. op name -> (positions, position of `training`).
HIDDEN_WRITES: Mapping[str, tuple[tuple[int, ...], int]] = {
    "native_batch_norm": ((3, 4), 5),
    "cudnn_batch_norm": ((3, 4), 5),
    "miopen_batch_norm": ((3, 4), 5),
}


# Read a tensor of integers in their kernel, and shape their result by it: position of that tensor.
SHAPED_BY: Mapping[str, int] = {"_pack_padded_sequence": 1}


class Treatment(Enum):
    """How a call of an op is recorded."""

    PURE = auto()
    ALLOCATE = auto()
    IGNORE = auto()
    DRAW = auto()
    DECIDE = auto()
    READ = auto()
    VIEW_IN_PLACE = auto()
    CUT_BY_STRIDES = auto()
    WRITE_HIDDEN = auto()
    WRITE = auto()
    REFUSE = auto()


class Traits(NamedTuple):
    """What needs to be known of an op to record its calls, looked up once."""

    op: OpOverload
    treatment: Treatment
    written: tuple[int, ...]  # positions of the arguments that the schema marks as written
    writes: tuple[int, ...]  # positions of those whose values change, marked or not
    writes_if: int | None  # they change if the argument at this position is true
    copies: bool  # what it drew, decided or wrote must be copied after it
    takes_indices: bool  # its second argument is a list of index tensors
    has_defaults: bool  # `fill_defaults` does something
    has_variant: bool  # where it writes: a functional op computes the same
    plain: bool  # a pure function of its arguments as they are given
    flips: bool  # sets the negative or the conjugate bit of a tensor


_FLIPS = (aten._conj.default, aten._neg_view.default)

# What was looked up. By id, since the hash of an op is a Python function; the traits keep the op
# alive.
TRAITS: dict[int, Traits] = {}


def traits_of(op: OpOverload) -> Traits:
    """How a call of this op is recorded, and which arguments it writes to."""
    traits = TRAITS.get(id(op))
    if traits is None:
        second = op._schema.arguments[1:2]
        treatment = _treatment(op)
        takes_indices = any("Tensor" in str(a.type) and "List" in str(a.type) for a in second)
        has_defaults = name_of(op) in _DEFAULTS
        is_shaped, flips = name_of(op) in SHAPED_BY, op in _FLIPS
        special = takes_indices or has_defaults or is_shaped or flips
        plain = treatment is Treatment.PURE and not special
        written = written_arguments(op)
        has_variant = bool(written) and functional_variant(op) is not None
        writes, writes_if = written, None
        if treatment is Treatment.WRITE_HIDDEN:
            writes, writes_if = HIDDEN_WRITES[name_of(op)]
        elif treatment is Treatment.VIEW_IN_PLACE and name_of(op) != "resize_":
            writes = ()
        copies = treatment in (Treatment.DRAW, Treatment.DECIDE)
        traits = Traits(
            op,
            treatment,
            written,
            writes,
            writes_if,
            copies or (treatment is Treatment.WRITE and not has_variant),
            takes_indices,
            has_defaults,
            has_variant,
            plain=plain,
            flips=flips,
        )
        TRAITS[id(op)] = traits
    return traits


def written_now(traits: Traits, args: Any) -> tuple[int, ...]:
    """Positions of the arguments whose values this call changes."""
    if traits.writes_if is None or args[traits.writes_if]:
        return traits.writes
    return ()


def _treatment(op: OpOverload) -> Treatment:
    name = name_of(op)
    if op.namespace in _COMMUNICATION or op is aten.view.dtype:
        return Treatment.REFUSE
    if name in ALLOCATES:
        return Treatment.ALLOCATE
    if name in SILENT or name in METADATA_ONLY:
        return Treatment.IGNORE
    if name in READS:
        return Treatment.READ
    if torch.Tag.nondeterministic_seeded in op.tags:
        return Treatment.DRAW
    if torch.Tag.dynamic_output_shape in op.tags:
        return Treatment.DECIDE
    if torch.Tag.inplace_view in op.tags:
        return Treatment.VIEW_IN_PLACE
    if name == "as_strided":
        return Treatment.CUT_BY_STRIDES
    if name in HIDDEN_WRITES:
        return Treatment.WRITE_HIDDEN
    return Treatment.WRITE if written_arguments(op) else Treatment.PURE


def name_of(op: OpOverload) -> str:
    """The op's name without namespace and overload."""
    return op._opname


@cache
def is_composite(op: OpOverload) -> bool:
    """Whether torch defines an op, and its derivative, by other ops alone on every device."""
    # Asked of the dispatcher itself: Python registers decompositions of other ops as well.
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    composite = has_kernel(op.name(), "CompositeImplicitAutograd")
    kernels = ("AutogradCPU", "CPU", "CUDA")
    return composite and not any(has_kernel(op.name(), key) for key in kernels)


def draws_nothing(op: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a seeded op is told not to draw: its dropout probability is 0, or it evaluates."""
    for i, argument in enumerate(op._schema.arguments):
        given = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
        if argument.name in ("dropout_p", "dropout", "p") and given == 0:
            return True
        if argument.name in ("train", "training") and given is False:
            return True
    return False


_COMMUNICATION = ("c10d", "_c10d_functional", "fsdp")


def refusal_of(op: OpOverload) -> str:
    """Why calls of this op are refused, and what to do."""
    if op.namespace in _COMMUNICATION:
        return (
            "communication between processes is not recorded; record the step of one process, "
            "without the distributed wrapper"
        )
    return "the bits of a tensor are read as another dtype; that has no meaning over the reals"


def refuse_unsupported_tensor(tensor: torch.Tensor) -> None:
    """Raise where a tensor is of a kind that a recording cannot represent.

    Raises:
        UnsupportedOpError: names the kind and what to do.
    """
    plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested)
    if plain and tensor.dtype not in _QUANTIZED:
        return
    if tensor.is_nested:
        raise UnsupportedOpError("a nested tensor is not supported; pad it to a dense one")
    if tensor.is_quantized:
        raise UnsupportedOpError("a quantized tensor is not supported; record the float model")
    if tensor.is_meta:
        raise UnsupportedOpError("a tensor on the meta device has no values")
    raise UnsupportedOpError(
        f"a {str(tensor.layout).removeprefix('torch.')} tensor is not supported; use a dense one "
        "(for embeddings: sparse=False)"
    )


_QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})


def fill_defaults(
    op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Write out defaults that torch takes from the dtype, so that a replay keeps their values."""
    fill = _DEFAULTS.get(name_of(op))
    return fill(args, kwargs) if fill else (args, kwargs)


def _nan_to_num(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    nan, posinf, neginf = (*args[1:], None, None, None)[:3]
    if not x.dtype.is_floating_point:
        return args, kwargs
    limits = torch.finfo(x.dtype)
    values = {"nan": nan, "posinf": posinf, "neginf": neginf, **kwargs}
    values["nan"] = 0.0 if values["nan"] is None else values["nan"]
    values["posinf"] = limits.max if values["posinf"] is None else values["posinf"]
    values["neginf"] = limits.min if values["neginf"] is None else values["neginf"]
    return (x, values["nan"], values["posinf"], values["neginf"]), {}


def _rms_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, shape = args[:2]
    weight, eps = (*args[2:], None, None)[:2]
    eps = kwargs.get("eps", eps)
    if eps is None:
        eps = torch.finfo(widened(x.dtype)).eps
    return (x, shape, weight, eps), {}


_DEFAULTS: Mapping[str, Callable[..., Any]] = {
    "nan_to_num": _nan_to_num,
    "_fused_rms_norm": _rms_norm,
}


def running_statistics(emit: Any, args: Any, read: Any, *, momentum: float) -> list[Value]:
    """New running mean and variance of batch norm: (1 − momentum) · old + momentum · batch."""
    x, running = args[0], args[3]
    dims = [0, *range(2, len(x.shape))]
    meta = running.meta()
    wide = emit(aten._to_copy.default, (read[0],), {"dtype": running.dtype}, x.meta())
    mean = emit(aten.mean.dim, (wide, dims), {}, meta)
    var = emit(aten.var.correction, (wide, dims), {"correction": 1}, meta)
    new = []
    for old, batch in ((read[3], mean), (read[4], var)):
        kept = emit(aten.mul.Tensor, (old, 1 - momentum), {}, meta)
        fresh = emit(aten.mul.Tensor, (batch, momentum), {}, meta)
        new.append(emit(aten.add.Tensor, (kept, fresh), {}, meta))
    return new
