"""Losses and their derivatives, from their documentation."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flint import arb
from torch import Tensor

from tests.oracle.numbers import (
    ONE,
    ZERO,
    Numbers,
    UnsupportedError,
    array,
    filled,
    is_at_most,
    is_less,
    larger,
    magnitude,
    mapped,
    numbers,
    real,
    scalar,
    sign,
    total,
)

_MEAN = 1  # 0: none, 2: sum


def _reduced(terms: Numbers, reduction: int) -> Numbers:
    if reduction == 0:
        return terms
    whole = total(terms.reshape(-1))
    return array([whole / terms.size if reduction == _MEAN else whole], ())


def _chained(g: Any, slopes: Numbers, reduction: int) -> Numbers:
    n = slopes.size if reduction == _MEAN else 1
    return mapped(lambda a, s: a * s / n, g, slopes)


def _loss(term: Callable[..., arb]) -> Callable[..., Numbers]:
    def loss(x: Any, target: Any, reduction: int = _MEAN, *options: Any) -> Numbers:
        given = [real(o) for o in options]
        return _reduced(mapped(lambda a, b: term(a - b, *given), x, target), reduction)

    return loss


def _loss_backward(slope: Callable[..., arb]) -> Callable[..., Numbers]:
    def backward(g: Any, x: Any, target: Any, reduction: int, *options: Any) -> Numbers:
        given = [real(o) for o in options]
        return _chained(g, mapped(lambda a, b: slope(a - b, *given), x, target), reduction)

    return backward


def _smooth_l1(d: arb, beta: arb = ONE) -> arb:
    return d * d / (2 * beta) if is_less(magnitude(d), beta) else magnitude(d) - beta / 2


def _smooth_l1_slope(d: arb, beta: arb) -> arb:
    return d / beta if is_less(magnitude(d), beta) else sign(d)


def _huber(d: arb, delta: arb = ONE) -> arb:
    size = magnitude(d)
    return d * d / 2 if is_at_most(size, delta) else delta * (size - delta / 2)


def _huber_slope(d: arb, delta: arb) -> arb:
    return d if is_at_most(magnitude(d), delta) else delta * sign(d)


def _weighted(terms: Numbers, weight: Any) -> Numbers:
    return terms if weight is None else mapped(lambda t, w: t * w, terms, weight)


def binary_cross_entropy(
    p: Any, target: Any, weight: Any = None, reduction: int = _MEAN
) -> Numbers:
    def floored_log(v: arb) -> arb:
        return larger(v.log(), arb(-100)) if is_less(ZERO, v) else arb(-100)

    def term(v: arb, t: arb) -> arb:
        return -(t * floored_log(v) + (ONE - t) * floored_log(ONE - v))

    return _reduced(_weighted(mapped(term, p, target), weight), reduction)


def binary_cross_entropy_backward(
    g: Any, p: Any, target: Any, weight: Any = None, reduction: int = _MEAN
) -> Numbers:
    def slope(v: arb, t: arb) -> arb:
        return (v - t) / larger(v * (ONE - v), real(1e-12))

    return _chained(g, _weighted(mapped(slope, p, target), weight), reduction)


def soft_margin(x: arb, y: arb) -> arb:
    return (ONE + (-x * y).exp()).log()


def soft_margin_loss(x: Any, target: Any, reduction: int = _MEAN) -> Numbers:
    return _reduced(mapped(soft_margin, x, target), reduction)


def soft_margin_loss_backward(g: Any, x: Any, target: Any, reduction: int) -> Numbers:
    return _chained(g, mapped(lambda a, y: -y / (ONE + (a * y).exp()), x, target), reduction)


def binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, positive: Any = None, reduction: int = _MEAN
) -> Numbers:
    def term(v: arb, t: arb, p: arb) -> arb:
        return p * t * (ONE + (-v).exp()).log() + (ONE - t) * (ONE + v.exp()).log()

    p = ONE if positive is None else positive
    return _reduced(_weighted(mapped(term, x, target, scalar(p) if p is ONE else p), weight),
                    reduction)  # fmt: skip


def nll_loss(
    x: Any, target: Tensor, weight: Any, reduction: int, ignored: int
) -> tuple[Numbers, Numbers]:
    rows = numbers(x)
    if rows.ndim > 2:
        raise UnsupportedError("nll_loss of images")
    rows, classes = rows.reshape(-1, rows.shape[-1]), target.reshape(-1).tolist()
    weights = [ONE] * rows.shape[1] if weight is None else list(numbers(weight))
    used = [c for c in classes if c != ignored]
    terms = [
        ZERO if c == ignored else -weights[c] * row[c] for row, c in zip(rows, classes, strict=True)
    ]
    if reduction == 0:
        return array(terms, target.shape), filled((), 0)
    whole = total(weights[c] for c in used)
    found = total(terms)
    return array([found / whole if reduction == _MEAN else found], ()), array([whole], ())


def nll_loss_backward(
    g: Any, x: Any, target: Tensor, weight: Any, reduction: int, ignored: int, whole: Any
) -> Numbers:
    x = numbers(x)
    out = filled(x.shape, 0)
    rows, g = out.reshape(-1, x.shape[-1]), numbers(g).reshape(-1)
    weights = [ONE] * x.shape[-1] if weight is None else list(numbers(weight))
    for i, c in enumerate(target.reshape(-1).tolist()):
        if c != ignored:
            share = -weights[c] * g[i if reduction == 0 else 0]
            rows[i, c] = share / numbers(whole).item() if reduction == _MEAN else share
    return rows.reshape(x.shape)


def nll_loss2d(x: Any, target: Tensor, *settings: Any) -> tuple[Numbers, Numbers]:
    rows = np.moveaxis(numbers(x), 1, -1)
    found, whole = nll_loss(rows.reshape(-1, rows.shape[-1]), target.reshape(-1), *settings)
    return found.reshape(target.shape) if found.size > 1 else found, whole


def nll_loss2d_backward(g: Any, x: Any, target: Tensor, *settings: Any) -> Numbers:
    rows = np.moveaxis(numbers(x), 1, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    found = nll_loss_backward(g, flat, target.reshape(-1), *settings)
    return np.moveaxis(found.reshape(rows.shape), -1, 1)


def _margin(p: int, margin: Any) -> Callable[[arb], tuple[arb, arb]]:
    """The term of one wrong class and its slope, from the difference of scores."""
    if p not in (1, 2):
        raise UnsupportedError(f"a margin loss with p = {p}")

    def term(d: arb) -> tuple[arb, arb]:
        z = real(margin) + d
        if is_at_most(z, ZERO):
            return ZERO, ZERO
        return (z, ONE) if p == 1 else (z * z, 2 * z)

    return term


def multi_margin_loss(
    x: Any, target: Tensor, p: Any = 1, margin: Any = 1, weight: Any = None, reduction: int = _MEAN
) -> Numbers:
    rows, f = numbers(x).reshape(-1, numbers(x).shape[-1]), _margin(int(p), margin)
    terms = []
    for row, c in zip(rows, target.reshape(-1).tolist(), strict=True):
        w = ONE if weight is None else numbers(weight)[c]
        terms.append(total(w * f(v - row[c])[0] for j, v in enumerate(row) if j != c) / len(row))
    return _reduced(array(terms, target.shape), reduction)


def multi_margin_loss_backward(
    g: Any, x: Any, target: Tensor, p: Any, margin: Any, weight: Any = None, reduction: int = _MEAN
) -> Numbers:
    x, f = numbers(x), _margin(int(p), margin)
    rows = x.reshape(-1, x.shape[-1])
    out, g = filled(rows.shape, 0), numbers(g).reshape(-1)
    for i, c in enumerate(target.reshape(-1).tolist()):
        w = (ONE if weight is None else numbers(weight)[c]) / rows.shape[1]
        w = w * (g[i] if reduction == 0 else g[0] / (len(rows) if reduction == _MEAN else 1))
        for j, v in enumerate(rows[i]):
            if j != c:
                slope = w * f(v - rows[i, c])[1]
                out[i, j], out[i, c] = out[i, j] + slope, out[i, c] - slope
    return out.reshape(x.shape)


def multilabel_margin_loss(x: Any, target: Tensor, reduction: int) -> tuple[Numbers, Tensor]:
    terms = []
    rows = numbers(x).reshape(-1, numbers(x).shape[-1])
    for row, labels in zip(rows, target.reshape(len(rows), -1).tolist(), strict=True):
        right = _labels(labels)
        pairs = [(t, j) for t in right for j in range(len(row)) if j not in right]
        hinges = (larger(ZERO, ONE - (row[t] - row[j])) for t, j in pairs)
        terms.append(total(hinges) / len(row))
    shape = target.shape[:-1]
    is_target = target.clone().zero_()
    for i, labels in enumerate(target.reshape(len(rows), -1).tolist()):
        for t in _labels(labels):
            is_target.reshape(len(rows), -1)[i, t] = 1
    return _reduced(array(terms, shape), reduction), is_target


def _labels(labels: list[int]) -> list[int]:
    """Labels up to the first negative one."""
    end = next((i for i, t in enumerate(labels) if t < 0), len(labels))
    return labels[:end]


def multilabel_margin_loss_backward(
    g: Any, x: Any, target: Tensor, reduction: int, is_target: Any
) -> Numbers:
    x = numbers(x)
    rows = x.reshape(-1, x.shape[-1])
    out, g = filled(rows.shape, 0), numbers(g).reshape(-1)
    for i, labels in enumerate(target.reshape(len(rows), -1).tolist()):
        right, n = _labels(labels), rows.shape[1]
        w = g[i] / n if reduction == 0 else g[0] / n / (len(rows) if reduction == _MEAN else 1)
        for t in right:
            for j in range(n):
                if j not in right and is_less(ZERO, ONE - (rows[i, t] - rows[i, j])):
                    out[i, t], out[i, j] = out[i, t] - w, out[i, j] + w
    return out.reshape(x.shape)


LOSSES: dict[str, Callable[..., Any]] = {
    "mse_loss": _loss(lambda d: d * d),
    "mse_loss_backward": _loss_backward(lambda d: 2 * d),
    "smooth_l1_loss": _loss(_smooth_l1),
    "smooth_l1_loss_backward": _loss_backward(_smooth_l1_slope),
    "huber_loss": _loss(_huber),
    "huber_loss_backward": _loss_backward(_huber_slope),
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_backward": binary_cross_entropy_backward,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "soft_margin_loss": soft_margin_loss,
    "soft_margin_loss_backward": soft_margin_loss_backward,
    "nll_loss_forward": nll_loss,
    "nll_loss_backward": nll_loss_backward,
    "nll_loss2d_forward": nll_loss2d,
    "nll_loss2d_backward": nll_loss2d_backward,
    "multi_margin_loss": multi_margin_loss,
    "multi_margin_loss_backward": multi_margin_loss_backward,
    "multilabel_margin_loss_forward": multilabel_margin_loss,
    "multilabel_margin_loss_backward": multilabel_margin_loss_backward,
}
