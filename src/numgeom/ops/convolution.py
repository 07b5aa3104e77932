"""How far can a convolution, or its derivative, move and round?

Bounds: `bilinear`, with one product x[c, p] w[o, c, k] of an input entry and a kernel tap for every
term. Terms per entry, with K the number of taps and g the number of groups:

    y        (C_in / g) K,        grad_x   (C_out / g) K,
    grad_w   N times the number of positions over which the kernel slides,      grad_b the same.

A pair of an entry of x and a tap of w meets in one entry of y, namely the one whose position their
positions give. The same holds for the pairs of each derivative: grad_y and w determine the entry of
x, grad_y and x the tap. So the multiplicity is 1 (`bilinear`).
"""

import math
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, add_up, gamma_up, mul_up, sum_up
from numgeom.ops.balls import unknown_unless_finite
from numgeom.ops.bilinear import (
    Multiply,
    bilinear_rounding,
    bilinear_second_order,
    bilinear_spread,
)
from numgeom.ops.drawing import tiny, wild
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kernel_errors import CONVOLUTION as CONVOLUTION_ERRORS
from numgeom.ops.kernel_errors import CONVOLUTION_BACKWARD
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangent_products import added_pushed, bilinear_pushed
from numgeom.ops.tangents import Moved, Pushed, require_known
from numgeom.ops.traits import Autocast, Product, Traits

aten = torch.ops.aten

_SOURCE = "sum of n products in any order (Higham 2002, sec. 3.1)"


# -- forward -----------------------------------------------------------------------------


def _multiply(call: Evaluation) -> Multiply:
    settings = call.args[3:9]
    return lambda x, w: aten.convolution(x, w, None, *settings)


def _terms(call: Evaluation) -> int:
    x, w = call.args[:2]
    transposed, groups = call.args[6], call.args[8]
    channels = x.shape[1] // groups if transposed else w.shape[1]
    return channels * math.prod(w.shape[2:])


def _rounding(call: Evaluation) -> Bound:
    x, w, bias = call.args[:3]
    addend = None if bias is None else _per_channel(bias.abs(), call.y)
    bound = bilinear_rounding(_multiply(call), x, w, _terms(call), addend=addend)
    return unknown_unless_finite(bound, call.y)


def _spread(call: Evaluation) -> Bound:
    x, w = call.args[:2]
    radii = (call.radius(0), call.radius(1))
    moved = bilinear_spread(_multiply(call), x, w, radii, _terms(call))
    r_bias = call.radius(2)
    if r_bias is None:
        return moved
    own = _per_channel(r_bias, call.y).expand(call.y.shape)
    return own if moved is None else add_up(own, moved)


def _second_order(call: Evaluation) -> Bound:
    radii = (call.radius(0), call.radius(1))
    return bilinear_second_order(_multiply(call), radii, _terms(call))


def _tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    require_known(call, moved, 0, 1, 2)
    parts: list[Pushed] = []
    if 0 in moved or 1 in moved:
        parts.append(bilinear_pushed(_multiply(call), call.args[:2], moved, (0, 1), _terms(call)))
    if 2 in moved:
        own = moved[2].lanes.reshape(len(moved[2].lanes), 1, -1, *[1] * (call.y.dim() - 2))
        parts.append(Pushed(own.expand(len(own), *call.y.shape)))
    return added_pushed(parts)


def _per_channel(bias: Tensor, y: Tensor) -> Tensor:
    return bias.reshape(1, -1, *[1] * (y.dim() - 2))


# -- backward ----------------------------------------------------------------------------


class _Backward:
    """The three derivatives of a convolution, each a bilinear or linear op of its own."""

    def __init__(self, call: Evaluation) -> None:
        self.call = call
        self.g, self.x, self.w = call.args[:3]
        self.settings = call.args[4:10]
        self.mask = call.args[10]
        transposed, groups = call.args[7], call.args[9]
        taps = math.prod(self.w.shape[2:])
        channels = self.w.shape[1] if transposed else self.g.shape[1] // groups
        slides = self.x if transposed else self.g
        self.terms_x = channels * taps
        self.terms_w = slides.shape[0] * math.prod(slides.shape[2:])
        self.terms_b = self.g.shape[0] * math.prod(self.g.shape[2:])

    def grad_x(self, g: Tensor, w: Tensor) -> Tensor:
        mask = [True, False, False]
        return aten.convolution_backward(g, self.x, w, None, *self.settings, mask)[0]

    def grad_w(self, g: Tensor, x: Tensor) -> Tensor:
        mask = [False, True, False]
        return aten.convolution_backward(g, x, self.w, None, *self.settings, mask)[1]

    def sum_b(self, g: Tensor) -> Tensor:
        return sum_up(g, (0, *range(2, g.dim())))

    def radius(self, position: int) -> Bound:
        return self.call.radius(position)


def _backward_rounding(call: Evaluation) -> tuple[Bound, Bound, Bound]:
    op = _Backward(call)
    x = w = b = None
    if op.mask[0]:
        x = bilinear_rounding(op.grad_x, op.g, op.w, op.terms_x)
        x = unknown_unless_finite(x, call.y[0])
    if op.mask[1]:
        w = bilinear_rounding(op.grad_w, op.g, op.x, op.terms_w)
        w = unknown_unless_finite(w, call.y[1])
    if op.mask[2]:
        b = mul_up(op.sum_b(op.g.abs()), gamma_up(max(0, op.terms_b - 1), UNIT_ROUNDOFF))
        b = unknown_unless_finite(b, call.y[2])
    return x, w, b


def _backward_spread(call: Evaluation) -> tuple[Bound, Bound, Bound]:
    op = _Backward(call)
    r_g, r_x, r_w = op.radius(0), op.radius(1), op.radius(2)
    x = w = b = None
    if op.mask[0]:
        x = bilinear_spread(op.grad_x, op.g, op.w, (r_g, r_w), op.terms_x)
    if op.mask[1]:
        w = bilinear_spread(op.grad_w, op.g, op.x, (r_g, r_x), op.terms_w)
    if op.mask[2] and r_g is not None:
        b = op.sum_b(r_g)
    return x, w, b


def _backward_second_order(call: Evaluation) -> tuple[Bound, Bound, Bound]:
    op = _Backward(call)
    r_g, r_x, r_w = op.radius(0), op.radius(1), op.radius(2)
    x = w = None
    if op.mask[0]:
        x = bilinear_second_order(op.grad_x, (r_g, r_w), op.terms_x)
    if op.mask[1]:
        w = bilinear_second_order(op.grad_w, (r_g, r_x), op.terms_w)
    return x, w, None


def _backward_tangent(call: Evaluation, moved: Moved) -> tuple[Pushed | None, ...]:
    require_known(call, moved, 0, 1, 2)
    op = _Backward(call)
    x = w = b = None
    if op.mask[0] and (0 in moved or 2 in moved):
        x = bilinear_pushed(op.grad_x, (op.g, op.w), moved, (0, 2), op.terms_x)
    if op.mask[1] and (0 in moved or 1 in moved):
        w = bilinear_pushed(op.grad_w, (op.g, op.x), moved, (0, 1), op.terms_w)
    if op.mask[2] and 0 in moved:
        g = moved[0]

        def rounding(size: Tensor) -> Bound:
            del size
            return mul_up(op.sum_b(g.size), gamma_up(max(0, op.terms_b - 1), UNIT_ROUNDOFF))

        b = Pushed(g.lanes.sum((1, *range(3, g.lanes.dim()))), rounding, fresh=True)
    return x, w, b


def _settings(
    dims: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    transposed: bool = False,
    output_padding: int = 0,
    groups: int = 1,
) -> tuple[Any, ...]:
    """Arguments of a convolution after the tensors."""
    lists = [[n] * dims for n in (stride, padding, dilation)]
    return (*lists, transposed, [output_padding] * dims, groups)


_PLAIN = _settings(2)
_STRIDED = _settings(2, stride=2, padding=1)
_DILATED = _settings(2, padding=2, dilation=2, groups=2)
_TRANSPOSED = _settings(2, stride=2, padding=1, transposed=True, output_padding=1)
_LINE = _settings(1, stride=3, padding=1)
_DEPTHWISE = _settings(2, padding=1, groups=3)
_ALL = [True, True, True]

CONVOLUTION: tuple[Op, ...]  = (
    Op(
        name="convolution",
        kind=Kind.CONTRACTION,
        rounding=_rounding,
        spread=_spread,
        second_order=_second_order,
        doubt=None,
        kinks=NO_KINKS,
        traits=Traits(
            product=Product(0, 1, added=2),
            adds=True,
            autocast=Autocast.LOW,
            kernel=CONVOLUTION_ERRORS,
        ),
        tangent=_tangent,
        source=_SOURCE,
        examples=(
            example(normal(2, 3, 5, 4), normal(2, 3, 3, 2), normal(2), *_PLAIN),
            example(wild(1, 2, 5, 5), wild(3, 2, 3, 3), None, *_STRIDED),
            example(normal(1, 4, 5, 5), normal(2, 2, 2, 2), wild(2), *_DILATED),
            example(normal(2, 2, 3, 3), normal(2, 3, 3, 3), normal(3), *_TRANSPOSED),
            example(tiny(1, 2, 4, 4), tiny(2, 2, 2, 2), None, *_PLAIN),
            example(normal(2, 2, 7), normal(3, 2, 3), normal(3), *_LINE),
            example(normal(1, 1, 3, 3, 3), normal(2, 1, 2, 2, 2), None, *_settings(3, padding=1)),
            example(normal(1, 3, 4, 4), normal(3, 1, 3, 3), None, *_DEPTHWISE),
            example(normal(0, 1, 4, 4), normal(1, 1, 3, 3), None, *_PLAIN),
        ),
    ),
    Op(
        name="convolution_backward",
        kind=Kind.CONTRACTION,
        rounding=_backward_rounding,
        spread=_backward_spread,
        second_order=_backward_second_order,
        doubt=None,
        kinks=NO_KINKS,
        traits=Traits(adds=True, autocast=Autocast.LOW, kernel=CONVOLUTION_BACKWARD),
        tangent=_backward_tangent,
        source=_SOURCE,
        examples=(
            example(normal(2, 2, 3, 3), normal(2, 3, 5, 4), normal(2, 3, 3, 2), [2], *_PLAIN, _ALL),
            example(wild(1, 3, 3, 3), wild(1, 2, 5, 5), wild(3, 2, 3, 3), [3], *_STRIDED, _ALL),
            example(wild(1, 2, 7, 7), wild(1, 4, 5, 5), wild(2, 2, 2, 2), [2], *_DILATED, _ALL),
            example(wild(2, 3, 6, 6), wild(2, 2, 3, 3), wild(2, 3, 3, 3), [3], *_TRANSPOSED, _ALL),
        ),
    ),
)  # fmt: skip
