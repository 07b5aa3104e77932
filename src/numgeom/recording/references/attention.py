"""What do the fused attention kernels compute?

With scores S = scale Q K^T + bias (-inf where attention is masked), P = softmax(S) by rows and
O = P V, the gradients for an incoming dO are

    dV = P^T dO,    dP = dO V^T,    dS = P * (dP - rowsum(dO * O)),
    dQ = scale dS K,    dK = scale dS^T Q,    dbias = dS.

(Dao, Fu, Ermon, Rudra and Re 2022, FlashAttention, section 2.2 and appendix B.) A row whose keys
are all masked has P = 0, so its output is 0 and it sends no gradient back. Keys and values may have
fewer heads than queries; then head h of Q uses head h // (heads of Q / heads of K).

Tensors are laid out as [batch, heads, length, dim]. The ops themselves, which differ in layout, in
the alignment of the causal mask and in what else they return, are in `sdpa` and `packed_attention`.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.reals import square_root
from numgeom.recording.references.entry import widen

PAPER = "Dao et al. 2022, FlashAttention, sec. 2.2 and app. B"


@dataclass(frozen=True)
class Masks:
    """What keeps a query from attending to a key.

    Attributes:
        bias: Added to the scores; a boolean one keeps the keys where it is True.
        allowed: True where a query may attend to a key; None if it may everywhere.
        every_row_open: Whether each query surely attends to some key.
    """

    bias: Tensor | None
    allowed: Tensor | None
    every_row_open: bool


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, masks: Masks
) -> tuple[Tensor, Tensor]:
    """Compute the output and, per row, the logarithm of the sum of exponentials of the scores.

    Args:
        query: Shape [batch, heads, queries, dim].
        key: Shape [batch, heads of keys, keys, dim].
        value: Shape [batch, heads of keys, keys, dim of values].
        scale: Factor of the scores; None means 1 / sqrt(dim).
        masks: Which query attends to which key.

    Returns:
        The output, in the dtype of the query, and the logarithms, in at least float32.
    """
    dtype = query.dtype
    query, key, value = widen(query), widen(key), widen(value)
    scores = _scores(query, key, scale=scale, masks=masks)
    output = _softmax(scores, masks) @ _share_heads(value, query.size(1))
    return output.to(dtype), scores.logsumexp(-1)


def attend_backward(
    dy: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    *,
    scale: float | None,
    masks: Masks,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key, value, and of the scores before `scale`'s product.

    Args:
        dy: Gradient of the output.
        query: As in `attend`.
        key: As in `attend`.
        value: As in `attend`.
        output: What `attend` returned.
        scale: As in `attend`.
        masks: As in `attend`.

    Returns:
        dQ, dK, dV in the dtypes of Q, K, V; and dS, in at least float32.
    """
    dtypes = query.dtype, key.dtype, value.dtype
    query, key, value, output, dy = (widen(x) for x in (query, key, value, output, dy))
    factor = _scale(query, scale)
    heads, kv_heads = query.size(1), key.size(1)
    probabilities = _softmax(_scores(query, key, scale=scale, masks=masks), masks)
    dvalue = probabilities.mT @ dy
    dprobabilities = dy @ _share_heads(value, heads).mT
    dscores = probabilities * (dprobabilities - (dy * output).sum(-1, keepdim=True))
    dquery = (dscores @ _share_heads(key, heads)) * factor
    dkey = (dscores.mT @ query) * factor
    return (
        dquery.to(dtypes[0]),
        _sum_shared_heads(dkey, kv_heads).to(dtypes[1]),
        _sum_shared_heads(dvalue, kv_heads).to(dtypes[2]),
        dscores,
    )


def bias_gradient(dscores: Tensor, bias: Tensor | None, *, wanted: bool) -> Tensor | None:
    """Sum the gradient of the scores over the dimensions in which the bias was broadcast."""
    if bias is None or not wanted:
        return None
    return dscores.sum_to_size(bias.shape).to(bias.dtype)


def nothing(like: Tensor) -> Tensor:
    """Stand for an output that only the kernel can read, such as a random seed."""
    return torch.empty(0, dtype=torch.int64, device=like.device)


def refuse_dropout(op: str, dropout_p: float) -> None:
    """Raise if the kernel drew a dropout mask.

    Raises:
        UnsupportedOpError: if dropout_p > 0.
    """
    if dropout_p > 0:
        raise UnsupportedOpError(
            f"{op} drops attention weights (dropout_p={dropout_p}) with a random mask that stays "
            "inside the kernel, so the step cannot be computed again. Run it under "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), whose dropout is recorded, or set "
            "the attention dropout to 0."
        )


def refuse_given(op: str, **arguments: object) -> None:
    """Raise if one of the named arguments is given: no reference covers it.

    Raises:
        UnsupportedOpError: if any value is not None.
    """
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise UnsupportedOpError(
            f"{op} has no reference for its argument(s) {', '.join(given)}. Use another attention "
            "kernel, such as torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
        )


def _scale(query: Tensor, scale: float | None) -> Tensor | float:
    if scale is not None:
        return scale
    return square_root(Fraction(1, max(query.size(-1), 1))).as_factor(query)


def _scores(query: Tensor, key: Tensor, *, scale: float | None, masks: Masks) -> Tensor:
    scores = (query * _scale(query, scale)) @ _share_heads(key, query.size(1)).mT
    if masks.bias is not None and masks.bias.dtype == torch.bool:
        scores = scores.masked_fill(~masks.bias, -torch.inf)
    elif masks.bias is not None:
        scores = scores + masks.bias
    if masks.allowed is not None:
        scores = scores.masked_fill(~masks.allowed, -torch.inf)
    return scores


def _softmax(scores: Tensor, masks: Masks) -> Tensor:
    if masks.every_row_open:
        return torch.softmax(scores, -1)
    return torch.ops.aten._safe_softmax.default(scores, -1)  # zero, not nan, where all is masked


def _share_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each head of x so that there are `heads` of them."""
    batch, kv_heads, length, dim = x.shape
    if kv_heads == heads:
        return x
    shared = x.unsqueeze(2).expand(batch, kv_heads, heads // kv_heads, length, dim)
    return shared.reshape(batch, heads, length, dim)


def _sum_shared_heads(dx: Tensor, kv_heads: int) -> Tensor:
    """Undo `_share_heads` in the sense of gradients."""
    batch, heads, length, dim = dx.shape
    if kv_heads == heads:
        return dx
    return dx.reshape(batch, kv_heads, heads // kv_heads, length, dim).sum(2)
