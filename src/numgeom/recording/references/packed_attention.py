"""Which attention do the flash and memory-efficient kernels compute when called directly?

They take [batch, length, heads, dim], or sequences of different lengths laid end to end, with the
places where they begin and end. The causal mask and the window of flash attention are aligned with
the end of the keys: the last query stands at the last key.
"""

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.attention import (
    PAPER,
    Masks,
    attend,
    attend_backward,
    bias_gradient,
    nothing,
    refuse_dropout,
    refuse_given,
)
from numgeom.recording.references.entry import Definition

_FLASH = f"flash_attn_func and flash_attn_varlen_func documentation (flash-attn 2); {PAPER}"
_EFFICIENT = f"xformers memory_efficient_attention documentation; {PAPER}"

# Values of `custom_mask_type` in the memory-efficient kernels.
_NO_MASK, _CAUSAL_TOP_LEFT, _CAUSAL_BOTTOM_RIGHT = range(3)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del max_q, max_k, return_debug_mask, num_splits
    op = "_flash_attention_forward"
    refuse_dropout(op, dropout_p)
    refuse_given(op, seqused_k=seqused_k, alibi_slopes=alibi_slopes, block_table=block_table)
    packed = cum_seq_q is not None
    q, k, v = (_heads_first(x, packed=packed) for x in (query, key, value))
    right = 0 if is_causal else window_size_right
    allowed = _allowed(
        q, k, (cum_seq_q, cum_seq_k), bottom_right=True, left=window_size_left, right=right
    )
    output, row_sums = attend(q, k, v, scale=scale, masks=_masks(None, allowed))
    row_sums = row_sums[0] if packed else row_sums
    none = nothing(query)
    return _heads_last(output, packed=packed), row_sums, none, none, none


def _flash_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, ...]:
    del logsumexp, max_q, max_k, rng_state, unused
    refuse_dropout("_flash_attention_backward", dropout_p)
    packed = cum_seq_q is not None
    dy, q, k, v, o = (_heads_first(x, packed=packed) for x in (grad_out, query, key, value, out))
    right = 0 if is_causal else window_size_right
    allowed = _allowed(
        q, k, (cum_seq_q, cum_seq_k), bottom_right=True, left=window_size_left, right=right
    )
    gradients = attend_backward(dy, q, k, v, o, scale=scale, masks=_masks(None, allowed))
    return tuple(_heads_last(dx, packed=packed) for dx in gradients[:3])


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    dropout_p: float,
    custom_mask_type: int,
    compute_log_sumexp: bool = False,
    *,
    scale: float | None = None,
    seqlen_k: Tensor | None = None,
    window_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    op = "_efficient_attention_forward"
    refuse_dropout(op, dropout_p)
    refuse_given(op, seqlen_k=seqlen_k, window_size=window_size)
    q, k, v = (_heads_first(x, packed=False) for x in (query, key, value))
    allowed = _efficient_allowed(q, k, (cu_seqlens_q, cu_seqlens_k), custom_mask_type)
    output, row_sums = attend(q, k, v, scale=scale, masks=_masks(bias, allowed))
    # The kernel also pads this output, and splits it by sequence; nothing but the kernel reads it.
    row_sums = row_sums if compute_log_sumexp else row_sums[..., :0]
    lengths = (
        query.size(1) if max_seqlen_q is None else max_seqlen_q,
        key.size(1) if max_seqlen_k is None else max_seqlen_k,
    )
    none = nothing(query)
    return _heads_last(output, packed=False), row_sums, none, none, *lengths


def _efficient_backward(
    grad_out_: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    logsumexp: Tensor,
    dropout_p: float,
    philox_seed: Tensor,
    philox_offset: Tensor,
    custom_mask_type: int,
    bias_requires_grad: bool,
    *,
    scale: float | None = None,
    num_splits_key: int | None = None,
    window_size: int | None = None,
    shared_storage_dqdkdv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    del max_seqlen_q, max_seqlen_k, logsumexp, philox_seed, philox_offset
    del num_splits_key, shared_storage_dqdkdv
    op = "_efficient_attention_backward"
    refuse_dropout(op, dropout_p)
    refuse_given(op, window_size=window_size)
    dy, q, k, v, o = (_heads_first(x, packed=False) for x in (grad_out_, query, key, value, out))
    allowed = _efficient_allowed(q, k, (cu_seqlens_q, cu_seqlens_k), custom_mask_type)
    dq, dk, dv, dscores = attend_backward(dy, q, k, v, o, scale=scale, masks=_masks(bias, allowed))
    dbias = bias_gradient(dscores, bias, wanted=bias_requires_grad)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), dbias


def _heads_first(x: Tensor, *, packed: bool) -> Tensor:
    """[batch, length, heads, dim] or [length, heads, dim] -> [batch, heads, length, dim]."""
    return (x.unsqueeze(0) if packed else x).transpose(1, 2)


def _heads_last(x: Tensor, *, packed: bool) -> Tensor:
    """Undo `_heads_first`."""
    x = x.transpose(1, 2)
    return x[0] if packed else x


def _efficient_allowed(
    query: Tensor, key: Tensor, ends: tuple[Tensor | None, Tensor | None], mask_type: int
) -> Tensor | None:
    if mask_type not in (_NO_MASK, _CAUSAL_TOP_LEFT, _CAUSAL_BOTTOM_RIGHT):
        raise UnsupportedOpError(
            f"_efficient_attention has no reference for custom_mask_type={mask_type}. Use 0 (no "
            "mask), 1 (causal from the top left) or 2 (causal from the bottom right)."
        )
    right = None if mask_type == _NO_MASK else 0
    bottom_right = mask_type == _CAUSAL_BOTTOM_RIGHT
    return _allowed(query, key, ends, bottom_right=bottom_right, left=None, right=right)


def _masks(bias: Tensor | None, allowed: Tensor | None) -> Masks:
    return Masks(bias, allowed, every_row_open=bias is None and allowed is None)


def _allowed(
    query: Tensor,
    key: Tensor,
    ends: tuple[Tensor | None, Tensor | None],
    *,
    bottom_right: bool,
    left: int | None,
    right: int | None,
) -> Tensor | None:
    """Tell which query may attend to which key, [queries, keys]; None if all may.

    A query at position r of its sequence sees the positions r - left .. r + right of the keys,
    where None or -1 means without limit. With `bottom_right` the positions of the queries are
    shifted so that the last one stands at the last key.
    """
    lengths = query.size(2), key.size(2)
    rows, columns = (torch.arange(length, device=query.device) for length in lengths)
    if ends[0] is None or ends[1] is None:
        rows = rows + (lengths[1] - lengths[0]) if bottom_right else rows
        return _window(rows, columns, left=left, right=right)
    query_ends, key_ends = ends[0].long(), ends[1].long()
    last = query_ends.size(0) - 2
    row_sequences, rows = _place(rows, query_ends)
    column_sequences, columns = _place(columns, key_ends)
    if bottom_right:
        shifts = key_ends.diff() - query_ends.diff()
        rows = rows + shifts[row_sequences.clamp(max=last)]
    allowed = row_sequences.unsqueeze(1) == column_sequences.unsqueeze(0)
    allowed = allowed & (column_sequences <= last)  # beyond the last sequence there is padding
    window = _window(rows, columns, left=left, right=right)
    return allowed if window is None else allowed & window


def _place(places: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequence that each place belongs to, and its position there."""
    sequences = torch.bucketize(places, ends[1:], right=True)
    return sequences, places - ends[sequences]


def _window(rows: Tensor, columns: Tensor, *, left: int | None, right: int | None) -> Tensor | None:
    ahead = columns.unsqueeze(0) - rows.unsqueeze(1)
    allowed = None
    if right is not None and right >= 0:
        allowed = ahead <= right
    if left is not None and left >= 0:
        allowed = ahead >= -left if allowed is None else allowed & (ahead >= -left)
    return allowed


DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::_flash_attention_forward", _flash, _FLASH),
    Definition("aten::_flash_attention_backward", _flash_backward, _FLASH),
    Definition("aten::_efficient_attention_forward", _efficient, _EFFICIENT),
    Definition("aten::_efficient_attention_backward", _efficient_backward, _EFFICIENT),
)
