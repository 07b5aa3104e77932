"""Scaled dot-product attention and its derivative."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flint import arb

from tests.oracle.numbers import (
    INFINITY,
    ONE,
    Numbers,
    UnsupportedError,
    array,
    numbers,
    real,
)
from tests.oracle.sums import bmm, softmax


def _stacked(x: Numbers) -> Numbers:
    return x.reshape(-1, *x.shape[2:])


def _weights(q: Any, k: Any, causal: bool, mask: Any, scale: Any) -> tuple[Numbers, arb]:
    """The softmax of the scores, [batch * heads, queries, keys], and the scale."""
    q, k = numbers(q), numbers(k)
    factor = ONE / real(q.shape[-1]).sqrt() if scale is None else real(scale)
    scores = bmm(_stacked(q), np.swapaxes(_stacked(k), 1, 2)) * factor
    whole = scores.reshape(*q.shape[:2], *scores.shape[1:])
    if causal:
        queries, keys = whole.shape[2:]
        hidden = np.triu(np.ones((queries, keys), dtype=bool), 1)
        flat = [
            -INFINITY if h else v
            for v, h in zip(whole.reshape(-1), np.broadcast_to(hidden, whole.shape).reshape(-1),
                            strict=True)
        ]  # fmt: skip
        whole = array(flat, whole.shape)
    if mask is not None:
        whole = whole + np.broadcast_to(numbers(mask), whole.shape)
    return softmax(_stacked(whole), -1), factor


def attention(
    q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *, attn_mask: Any = None,
    scale: Any = None,
) -> tuple[Numbers, None]:  # fmt: skip
    if dropout:
        raise UnsupportedError("attention with dropout")
    weights, _ = _weights(q, k, causal, attn_mask, scale)
    found = bmm(weights, _stacked(numbers(v)))
    return found.reshape(*q.shape[:3], v.shape[-1]), None


def attention_backward(
    g: Any, q: Any, k: Any, v: Any, out: Any, logsumexp: Any, dropout: float, causal: bool, *,
    attn_mask: Any = None, scale: Any = None,
) -> tuple[Numbers, Numbers, Numbers]:  # fmt: skip
    del logsumexp, dropout
    weights, factor = _weights(q, k, causal, attn_mask, scale)
    dy, queries, keys, values = (_stacked(numbers(x)) for x in (g, q, k, v))
    along = (dy * _stacked(numbers(out))).sum(-1, keepdims=True)
    ds = weights * (bmm(dy, np.swapaxes(values, 1, 2)) - along)
    dq, dk = bmm(ds, keys) * factor, bmm(np.swapaxes(ds, 1, 2), queries) * factor
    dv = bmm(np.swapaxes(weights, 1, 2), dy)
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)


ATTENTION: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
}
