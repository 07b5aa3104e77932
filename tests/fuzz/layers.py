"""Blocks with matrices: linear algebra, convolution, pooling, norms, attention, recurrence."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.maker import Block, Layer, Maker


def _plain(f: Callable[[Tensor], Tensor]) -> Block:
    return lambda make: f


def _linear(make: Maker) -> Layer:
    w, b = make.parameter(make.width, make.width), make.parameter(make.width)
    return lambda h: F.linear(h, w, b)


def _with_matrix(f: Callable[[Tensor, Tensor], Tensor]) -> Block:
    def block(make: Maker) -> Layer:
        w = make.parameter(make.width, make.width)
        return lambda h: f(h, w)

    return block


def _diagonally_dominant(w: Tensor) -> Tensor:
    """A matrix that can be inverted."""
    n = len(w)
    return torch.tanh(w) / n + 2 * torch.eye(n, dtype=w.dtype)


def _positive_definite(w: Tensor) -> Tensor:
    a = torch.tanh(w)
    return a @ a.t() + torch.eye(len(w), dtype=w.dtype)


def _bilinear(make: Maker) -> Layer:
    w = make.parameter(make.width, 2, 2)
    return lambda h: F.bilinear(h[:, :2], h[:, 2:4], w)


CONTRACTIONS: dict[str, Block] = {
    "linear": _linear, "mm": _with_matrix(torch.mm), "mm transposed": _with_matrix(
        lambda h, w: h @ w.t()),
    "gram": _plain(lambda h: (h @ h.t()) @ h), "bmm": _with_matrix(
        lambda h, w: torch.bmm(h[:, None], w.expand(len(h), *w.shape))[:, 0]),
    "addmm": _with_matrix(lambda h, w: torch.addmm(h, h, w, beta=0.5, alpha=0.3)),
    "baddbmm": _with_matrix(lambda h, w: torch.baddbmm(
        h[:, None], h[:, None], w.expand(len(h), *w.shape), beta=0.5, alpha=2)[:, 0]),
    "einsum": _with_matrix(lambda h, w: torch.einsum("bi,ij,bj->bi", h, w, h)),
    "outer": _plain(lambda h: torch.outer(h[0], h[0])[: len(h)] + h),
    "dot": _plain(lambda h: h * torch.dot(h[0], h[-1])),
    "mv": _with_matrix(lambda h, w: h + torch.mv(w, h[0])),
    "matmul of three": _with_matrix(lambda h, w: torch.matmul(h[:, None, :], w).squeeze(1)),
    "tensordot": _with_matrix(lambda h, w: torch.tensordot(h, w, dims=([1], [0]))),
    "bilinear": _bilinear, "kron": _plain(
        lambda h: torch.kron(h[:, :2], h[:1, : h.shape[1] // 2])),
    "matrix_power": _with_matrix(lambda h, w: h @ torch.matrix_power(torch.tanh(w), 2)),
    "chain_matmul": _with_matrix(lambda h, w: torch.linalg.multi_dot([h, w, w])),
    "solve": _with_matrix(lambda h, w: torch.linalg.solve(_diagonally_dominant(w), h.t()).t()),
    "inverse": _with_matrix(lambda h, w: h @ torch.linalg.inv(_diagonally_dominant(w))),
    "cholesky": _with_matrix(lambda h, w: h @ torch.linalg.cholesky(_positive_definite(w))),
    "triangular solve": _with_matrix(lambda h, w: torch.linalg.solve_triangular(
        _diagonally_dominant(w).triu(), h.t(), upper=True).t()),
    "det": _with_matrix(lambda h, w: h * torch.linalg.det(_diagonally_dominant(w))),
    "slogdet": _with_matrix(lambda h, w: h * torch.linalg.slogdet(_diagonally_dominant(w))[1]),
    "cdist": _with_matrix(lambda h, w: torch.cdist(h, w)),
    "cdist 1": _with_matrix(lambda h, w: torch.cdist(h, w, p=1)),
    "cosine": _with_matrix(lambda h, w: h * F.cosine_similarity(h, w[:1])[:, None]),
    "pairwise distance": _with_matrix(lambda h, w: h * F.pairwise_distance(h, w[:1])[:, None]),
    "pdist": _with_matrix(lambda h, w: h + F.pdist(w)[: 1].sum()),
    "trace": _with_matrix(lambda h, w: h * torch.trace(w)),
    "low rank": _with_matrix(lambda h, w: h @ w[:, :1] @ w[:1]),
}  # fmt: skip


def _conv1d(**settings: Any) -> Block:
    def block(make: Maker) -> Layer:
        w, b = make.parameter(2, 1, 3), make.parameter(2)

        def layer(h: Tensor) -> Tensor:
            y = F.conv1d(h[:, None], w, b, padding=2, **settings)
            return F.pad(y.flatten(1), (0, h.shape[1]))[:, : h.shape[1]] + h * 0.1

        return layer

    return block


def _planes(h: Tensor) -> Tensor:
    """Images of two rows, in two channels."""
    return torch.stack([h, h.flip(1) * 0.5], 1).view(len(h), 2, 2, -1)


def _conv2d(transposed: bool = False, **settings: Any) -> Block:
    def block(make: Maker) -> Layer:
        groups = settings.get("groups", 1)
        w, b = make.parameter(2, 2 // groups, 2, 2), make.parameter(2)
        op = F.conv_transpose2d if transposed else F.conv2d

        def layer(h: Tensor) -> Tensor:
            y = op(_planes(h), w, b, padding=1, **settings).flatten(1)
            return F.pad(y, (0, h.shape[1]))[:, : h.shape[1]] + h * 0.1

        return layer

    return block


def _pooled(f: Callable[[Tensor], Tensor]) -> Block:
    """Pooling of images; what is left is added to the rows."""

    def layer(h: Tensor) -> Tensor:
        y = f(_planes(h)).flatten(1)
        return F.pad(y, (0, h.shape[1]))[:, : h.shape[1]] + h * 0.5

    return lambda make: layer


def _resized(**settings: Any) -> Block:
    def layer(h: Tensor) -> Tensor:
        y = F.interpolate(h[:, None], scale_factor=2, **settings)[:, 0]
        return y[:, 1 : h.shape[1] + 1] + h

    return lambda make: layer


WINDOWS: dict[str, Block] = {
    "conv1d": _conv1d(), "conv1d strided": _conv1d(stride=2),
    "conv1d dilated": _conv1d(dilation=2), "conv2d": _conv2d(), "conv2d strided": _conv2d(stride=2),
    "conv2d grouped": _conv2d(groups=2), "conv_transpose2d": _conv2d(transposed=True),
    "conv_transpose2d strided": _conv2d(transposed=True, stride=2),
    "max_pool2d": _pooled(lambda x: F.max_pool2d(x, 2)),
    "max_pool2d padded": _pooled(lambda x: F.max_pool2d(x, 2, 1, 1)),
    "max_pool1d": _pooled(lambda x: F.max_pool1d(x.flatten(2), 2)),
    "avg_pool2d": _pooled(lambda x: F.avg_pool2d(x, 2)),
    "avg_pool2d padded": _pooled(lambda x: F.avg_pool2d(x, 3, 1, 1)),
    "avg_pool2d bare": _pooled(lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    "avg_pool1d": _pooled(lambda x: F.avg_pool1d(x.flatten(2), 3)),
    "adaptive_avg_pool2d": _pooled(lambda x: F.adaptive_avg_pool2d(x, (1, 2))),
    "adaptive_avg_pool1d": _pooled(lambda x: F.adaptive_avg_pool1d(x.flatten(2), 3)),
    "adaptive_max_pool2d": _pooled(lambda x: F.adaptive_max_pool2d(x, (1, 2))),
    "lp_pool2d": _pooled(lambda x: F.lp_pool2d(x.abs() + 0.1, 2, 2)),
    "nearest": _resized(mode="nearest"), "linear resize": _resized(mode="linear"),
    "unfold and fold": _pooled(lambda x: F.fold(F.unfold(x, 2), x.shape[2:], 2)),
}  # fmt: skip


def _affine(f: Callable[..., Tensor]) -> Block:
    def block(make: Maker) -> Layer:
        w, b = make.parameter(make.width), make.parameter(make.width)
        return lambda h: f(h, w, b)

    return block


def _channels(f: Callable[..., Tensor]) -> Block:
    def block(make: Maker) -> Layer:
        w, b = make.parameter(2), make.parameter(2)
        return lambda h: f(h.view(len(h), 2, -1), w, b).reshape(h.shape)

    return block


def _batch_norm_eval(make: Maker) -> Layer:
    mean, variance = make.numbers(2), make.numbers(2, low=0.5)
    w, b = make.parameter(2), make.parameter(2)
    return lambda h: F.batch_norm(h.view(len(h), 2, -1), mean, variance.abs() + 0.5, w, b).reshape(
        h.shape
    )


def _batch_norm(make: Maker) -> Layer:
    module = make.module(nn.BatchNorm1d(2))
    return lambda h: module(h.view(len(h), 2, -1)).reshape(h.shape)


NORMS: dict[str, Block] = {
    "layer_norm": _affine(lambda h, w, b: F.layer_norm(h, h.shape[1:], w, b)),
    "layer_norm bare": _plain(lambda h: F.layer_norm(h, h.shape[1:], eps=1e-3)),
    "rms_norm": _affine(lambda h, w, b: F.rms_norm(h, h.shape[1:], w, 1e-5) + b),
    "batch_norm": _batch_norm, "batch_norm eval": _batch_norm_eval,
    "batch_norm functional": _channels(lambda x, w, b: F.batch_norm(
        x, None, None, w, b, training=True)),
    "group_norm": _channels(lambda x, w, b: F.group_norm(x, 2, w, b)),
    "group_norm of one": _channels(lambda x, w, b: F.group_norm(x, 1, w, b)),
    "instance_norm": _channels(lambda x, w, b: F.instance_norm(x, weight=w, bias=b)),
    "local_response_norm": _plain(lambda h: F.local_response_norm(
        h.view(len(h), 2, -1), 2).reshape(h.shape)),
    "dropout": _plain(lambda h: F.dropout(h, 0.3)),
    "alpha_dropout": _plain(lambda h: F.alpha_dropout(h, 0.3, training=True)),
    "residual": _affine(lambda h, w, b: h + torch.tanh(h * w + b)),
    "weight standardized": _with_matrix(lambda h, w: h @ ((w - w.mean(1, keepdim=True))
                                                          / (w.std(1, keepdim=True) + 1e-3)).t()),
}  # fmt: skip


def _attended(**settings: Any) -> Block:
    def block(make: Maker) -> Layer:
        w = make.parameter(3 * make.width, make.width)
        mask = make.numbers(make.batch, make.batch) if settings.get("masked") else None
        rest = {k: v for k, v in settings.items() if k != "masked"}

        def layer(h: Tensor) -> Tensor:
            q, k, v = F.linear(h, w).view(1, len(h), 3, 2, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **rest)
            return h + y.transpose(1, 2).reshape(h.shape)

        return layer

    return block


def _multi_head(make: Maker) -> Layer:
    module = make.module(nn.MultiheadAttention(make.width, 2, batch_first=True))
    need = make.choice(True, False)
    return lambda h: h + module(h[None], h[None], h[None], need_weights=need)[0][0]


def _encoder(make: Maker) -> Layer:
    kind = make.choice("relu", "gelu")
    layer = nn.TransformerEncoderLayer(make.width, 2, 4, 0.0, kind, batch_first=True)
    module = make.module(layer)
    return lambda h: module(h[None])[0]


def _by_hand(make: Maker) -> Layer:
    w = make.parameter(make.width, make.width)

    def layer(h: Tensor) -> Tensor:
        scores = (h @ w) @ h.t() / h.shape[1] ** 0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1) @ h

    return layer


def _recurrent(kind: type[nn.RNNBase], **settings: Any) -> Block:
    def block(make: Maker) -> Layer:
        module = make.module(kind(2, 2, batch_first=True, **settings))
        return lambda h: h + module(h.view(len(h), -1, 2))[0].reshape(h.shape)

    return block


def _cell(kind: Callable[..., nn.Module]) -> Block:
    def block(make: Maker) -> Layer:
        module = make.module(kind(make.width, make.width))

        def layer(h: Tensor) -> Tensor:
            found = module(h)
            return found[0] if isinstance(found, tuple) else found

        return layer

    return block


def _embedded(make: Maker) -> Layer:
    table = make.parameter(4, make.width)
    words = make.integers(4, make.batch)
    padding = make.choice(None, 0)
    by_frequency = make.choice(True, False)
    return lambda h: h + F.embedding(words, table, padding, scale_grad_by_freq=by_frequency)


def _bag(make: Maker) -> Layer:
    table = make.parameter(4, make.width)
    words = make.integers(4, make.batch, 2)
    mode = make.choice("sum", "mean", "max")
    return lambda h: h + F.embedding_bag(words, table, mode=mode)


SEQUENCES: dict[str, Block] = {
    "attention": _attended(), "causal attention": _attended(is_causal=True),
    "masked attention": _attended(masked=True), "scaled attention": _attended(scale=0.3),
    "multi-head attention": _multi_head, "encoder layer": _encoder, "attention by hand": _by_hand,
    "rnn": _recurrent(nn.RNN), "lstm": _recurrent(nn.LSTM), "gru": _recurrent(nn.GRU),
    "rnn relu": _recurrent(nn.RNN, nonlinearity="relu"), "rnn cell": _cell(nn.RNNCell),
    "lstm cell": _cell(nn.LSTMCell), "gru cell": _cell(nn.GRUCell), "embedding": _embedded,
    "embedding bag": _bag,
}  # fmt: skip
