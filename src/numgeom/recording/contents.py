"""Which numbers of a step must be copied while it runs, since no replay can find them again?

What came from outside, before the step changes it; what was drawn; what was decided by values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.functionalize import DRAWS, Traits, Treatment, draws_nothing, name_of
from numgeom.recording.seen import Seen, is_dense, overlaps, span
from numgeom.recording.values import Constant, Value, meta_of, tensors_in
from numgeom.recording.variants import argument_at, written_arguments

Copies = dict[Seen, Value]
_MOST_GAPS = 16  # places in memory per entry; and a memory that is small in any case
_SMALL = 1 << 20
_MASKS = (torch.bool, torch.uint8)


def outside_copy(
    tensor: Tensor, role: str, name: str, *, copy: Callable[[Tensor], Tensor] = Tensor.clone
) -> tuple[Constant, bool]:
    """Copy a tensor from outside.

    Args:
        tensor: The tensor.
        role: What it is to the step.
        name: Its name.
        copy: Makes copies of tensors that fill their memory.

    Returns:
        The copy, and whether expanded dimensions were left out of it.
    """
    meta = meta_of(tensor)
    if tensor.is_contiguous() or is_dense(meta):
        return Constant(copy(tensor.detach()), role, name), False
    if not overlaps(meta):
        return Constant(_with_gaps(tensor.detach()), role, name), False
    plain = tensor.detach()
    for dim, step in enumerate(plain.stride()):
        if step == 0 and plain.shape[dim] > 1:
            plain = plain.narrow(dim, 0, 1)
    if overlaps(meta_of(plain)):  # sliding windows over one line of memory
        return Constant(tensor.detach().contiguous(), role, name), False
    return Constant(_with_gaps(plain), role, name), True


def _with_gaps(tensor: Tensor) -> Tensor:
    """A copy that keeps the gaps between the entries: kernels choose their order by strides.

    Not where almost all of it would be gaps, as of one column of a large table.
    """
    reach = span(meta_of(tensor))
    if tensor.is_conj() or tensor.is_neg() or reach > max(_MOST_GAPS * tensor.numel(), _SMALL):
        return tensor.clone()
    room = tensor.new_zeros(reach).as_strided(tensor.shape, tensor.stride())
    return room.copy_(tensor)


def copies_after(
    traits: Traits,
    args: Any,
    kwargs: Any,
    outputs: Any,
    *,
    copy: Callable[[Tensor], Tensor] = Tensor.clone,
) -> tuple[list[tuple[Tensor, Value]], Any]:
    """Copy what a call that has run drew or decided.

    Args:
        traits: What is known of the op.
        args: The call's arguments.
        kwargs: Those given by name.
        outputs: What it returned.
        copy: Makes copies of what it drew.

    Returns:
        The tensors that must be constants with their copies, and for a selection by a mask the
        positions that it chose.

    Raises:
        UnsupportedOpError: the call cannot be recorded.
    """
    op, treatment = traits.op, traits.treatment
    if treatment is Treatment.DRAW and not draws_nothing(op, args, kwargs):
        drawn = _drawn(traits, args, kwargs, outputs)
        return [(t, Value(Constant(copy(t.detach()), "drawn"))) for t in drawn], None
    if treatment is Treatment.DECIDE:
        return _decided(traits, args, outputs)
    if treatment is Treatment.WRITE and not traits.has_variant:
        target = argument_at(op, args, kwargs, traits.written[0])
        if name_of(op) in ("zero_", "fill_", "copy_"):
            return [], None
        if any(t is not target for t in tensors_in((args, kwargs))):
            raise UnsupportedOpError("it writes in place and has no functional counterpart")
        return [_copy(target, "input")], None
    return [], None


def _drawn(traits: Traits, args: Any, kwargs: Any, outputs: Any) -> list[Tensor]:
    op, name = traits.op, name_of(traits.op)
    if name in ("native_dropout", "_fused_dropout"):
        return [outputs[1]]
    if name.startswith("rrelu_with_noise"):
        return [argument_at(op, args, kwargs, 1)]
    if name not in DRAWS:
        raise UnsupportedOpError(
            "it draws random numbers inside a fused kernel, where they cannot be recorded; "
            "for attention use torch.nn.attention.sdpa_kernel(SDPBackend.MATH), for recurrent "
            "layers torch.backends.cudnn.flags(enabled=False), or set the dropout to 0"
        )
    found = tensors_in([argument_at(op, args, kwargs, i) for i in written_arguments(op)])
    return found + [t for t in tensors_in(outputs) if all(t is not other for other in found)]


def _decided(
    traits: Traits, args: Any, outputs: Any
) -> tuple[list[tuple[Tensor, Value]], list[Any] | None]:
    name, found = name_of(traits.op), tensors_in(outputs)
    if name == "masked_select":
        source, mask = args
        if source.shape != mask.shape:
            mask = mask.expand(torch.broadcast_shapes(source.shape, mask.shape))
        return [], decided_indices([mask])
    if all(not t.is_floating_point() and not t.is_complex() for t in found):
        return [_copy(tensor, "decision") for tensor in found], None
    if name in ("index", "_unsafe_index", "repeat_interleave", "nonzero_static"):
        return [], None
    raise UnsupportedOpError(
        "the shape of its floating-point result depends on the values of its input; "
        "index with positions instead"
    )


def _copy(tensor: Tensor, role: str) -> tuple[Tensor, Value]:
    return tensor, Value(Constant(tensor.detach().clone(), role))


# -- indices -----------------------------------------------------------------------------------


def has_mask(indices: Any) -> bool:
    """Whether a boolean tensor is among the indices."""
    return any(isinstance(i, Tensor) and i.dtype in _MASKS for i in indices)


def masks_in(indices: Any) -> list[Tensor]:
    """The boolean tensors among the indices."""
    return [i for i in indices if isinstance(i, Tensor) and i.dtype in _MASKS]


def deciding(op: Any, args: Any) -> list[Tensor]:
    """The arguments that decide the shape of a call's result, where no index does."""
    if name_of(op) in ("index", "_unsafe_index"):
        return []
    return tensors_in(args[1:] if name_of(op) == "masked_select" else args)


def decided_indices(indices: Any) -> list[Any]:
    """Index tensors, boolean ones replaced by the positions that they chose, as constants."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype in _MASKS:
            chosen = index.nonzero().unbind(1)
            found.extend(Value(Constant(each.detach().clone(), "decision")) for each in chosen)
        else:
            found.append(index)
    return found


# -- memory ------------------------------------------------------------------------------------


def covers_memory(tensor: Tensor) -> bool:
    """Whether the tensor is the whole of its storage, each place once."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    if not whole or tensor.storage_offset() != 0:
        return False
    return tensor.is_contiguous() or is_dense(meta_of(tensor))


def line_of(tensor: Tensor) -> Tensor:
    """The storage of a tensor as one line of numbers of its dtype."""
    memory = tensor.untyped_storage()
    line = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return line.set_(memory, 0, (memory.nbytes() // tensor.element_size(),), (1,))
