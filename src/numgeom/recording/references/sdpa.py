"""Which attention does each fused op of `scaled_dot_product_attention` compute?

All take [batch, heads, length, dim]. With `is_causal`, query i attends to keys 0..i, whatever the
two lengths are. Cumulated lengths of nested tensors are refused.
"""

import torch
from torch import Tensor

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

_SOURCE = f"torch.nn.functional.scaled_dot_product_attention documentation; {PAPER}"


def _masks(query: Tensor, key: Tensor, bias: Tensor | None, is_causal: bool) -> Masks:
    allowed = None
    if is_causal:
        shape = query.size(2), key.size(2)
        allowed = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    return Masks(bias, allowed, every_row_open=bias is None)  # key 0 is open to every query


def _for_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    refuse_dropout("_scaled_dot_product_flash_attention_for_cpu", dropout_p)
    masks = _masks(query, key, attn_mask, is_causal)
    output, row_sums = attend(query, key, value, scale=scale, masks=masks)
    row_sums = row_sums.masked_fill(row_sums == -torch.inf, 0.0)  # as the kernel reports such rows
    return output, row_sums


def _for_cpu_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    del logsumexp
    refuse_dropout("_scaled_dot_product_flash_attention_for_cpu_backward", dropout_p)
    masks = _masks(query, key, attn_mask, is_causal)
    return attend_backward(grad_out, query, key, value, out, scale=scale, masks=masks)[:3]


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, None, None, int, int, Tensor, Tensor, Tensor]:
    del return_debug_mask  # the mask is that of dropout, which is refused
    refuse_dropout("_scaled_dot_product_flash_attention", dropout_p)
    masks = _masks(query, key, None, is_causal)
    output, row_sums = attend(query, key, value, scale=scale, masks=masks)
    none = nothing(query)
    lengths = query.size(2), key.size(2)
    return output, row_sums, None, None, *lengths, none, none, none


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
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    del logsumexp, max_q, max_k, philox_seed, philox_offset
    op = "_scaled_dot_product_flash_attention_backward"
    refuse_dropout(op, dropout_p)
    refuse_given(op, cum_seq_q=cum_seq_q, cum_seq_k=cum_seq_k)
    masks = _masks(query, key, None, is_causal)
    return attend_backward(grad_out, query, key, value, out, scale=scale, masks=masks)[:3]


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    refuse_dropout("_scaled_dot_product_efficient_attention", dropout_p)
    masks = _masks(query, key, attn_bias, is_causal)
    output, row_sums = attend(query, key, value, scale=scale, masks=masks)
    row_sums = _aligned(row_sums) if compute_log_sumexp else row_sums[..., :0]
    return output, row_sums, nothing(query), nothing(query)


def _aligned(row_sums: Tensor) -> Tensor:
    """Pad to a multiple of 32, as the memory-efficient kernels do."""
    return torch.constant_pad_nd(row_sums, [0, -row_sums.size(-1) % 32], torch.inf)


def _efficient_backward(
    grad_out_: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    philox_seed: Tensor,
    philox_offset: Tensor,
    dropout_p: float,
    grad_input_mask: list[bool],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    del logsumexp, philox_seed, philox_offset
    refuse_dropout("_scaled_dot_product_efficient_attention_backward", dropout_p)
    masks = _masks(query, key, attn_bias, is_causal)
    gradients = attend_backward(grad_out_, query, key, value, out, scale=scale, masks=masks)
    return *gradients[:3], bias_gradient(gradients[3], attn_bias, wanted=grad_input_mask[3])


def _cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, None, None, int, int, Tensor, Tensor, None]:
    del compute_log_sumexp, return_debug_mask
    refuse_dropout("_scaled_dot_product_cudnn_attention", dropout_p)
    masks = _masks(query, key, attn_bias, is_causal)
    output, row_sums = attend(query, key, value, scale=scale, masks=masks)
    none = nothing(query)
    lengths = query.size(2), key.size(2)
    row_sums = row_sums.unsqueeze(-1)
    return output, row_sums, None, None, *lengths, none, none, None


def _cudnn_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    philox_seed: Tensor,
    philox_offset: Tensor,
    attn_bias: Tensor | None,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    del logsumexp, philox_seed, philox_offset, max_q, max_k
    op = "_scaled_dot_product_cudnn_attention_backward"
    refuse_dropout(op, dropout_p)
    refuse_given(op, cum_seq_q=cum_seq_q, cum_seq_k=cum_seq_k)
    masks = _masks(query, key, attn_bias, is_causal)
    return attend_backward(grad_out, query, key, value, out, scale=scale, masks=masks)[:3]


def _overrideable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, None, None, int, int, Tensor, Tensor, None]:
    del return_debug_mask
    refuse_dropout("_scaled_dot_product_fused_attention_overrideable", dropout_p)
    masks = _masks(query, key, attn_bias, is_causal)
    output, row_sums = attend(query, key, value, scale=scale, masks=masks)
    none = nothing(query)
    lengths = query.size(2), key.size(2)
    return output, row_sums, None, None, *lengths, none, none, None


def _overrideable_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    grad_input_mask: list[bool],
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    del logsumexp, max_q, max_k, philox_seed, philox_offset
    op = "_scaled_dot_product_fused_attention_overrideable_backward"
    refuse_dropout(op, dropout_p)
    refuse_given(op, cum_seq_q=cum_seq_q, cum_seq_k=cum_seq_k)
    masks = _masks(query, key, attn_bias, is_causal)
    gradients = attend_backward(grad_out, query, key, value, out, scale=scale, masks=masks)
    return *gradients[:3], bias_gradient(gradients[3], attn_bias, wanted=grad_input_mask[3])


_OP = "aten::_scaled_dot_product"
DEFINITIONS: tuple[Definition, ...] = (
    Definition(f"{_OP}_flash_attention_for_cpu", _for_cpu, _SOURCE, True),
    Definition(f"{_OP}_flash_attention_for_cpu_backward", _for_cpu_backward, _SOURCE, True),
    Definition(f"{_OP}_flash_attention", _flash, _SOURCE),
    Definition(f"{_OP}_flash_attention_backward", _flash_backward, _SOURCE),
    Definition(f"{_OP}_efficient_attention", _efficient, _SOURCE),
    Definition(f"{_OP}_efficient_attention_backward", _efficient_backward, _SOURCE),
    Definition(f"{_OP}_cudnn_attention", _cudnn, _SOURCE),
    Definition(f"{_OP}_cudnn_attention_backward", _cudnn_backward, _SOURCE),
    Definition(f"{_OP}_fused_attention_overrideable", _overrideable, _SOURCE),
    Definition(f"{_OP}_fused_attention_overrideable_backward", _overrideable_backward, _SOURCE),
)
