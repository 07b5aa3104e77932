"""What do the fused normalisations compute?

With the mean m and the variance v over all dimensions but the channels (or the last ones), and
s = 1 / sqrt(v + eps),

    xhat = (x - m) s,    y = w xhat + b,
    db = sum dy,    dw = sum dy xhat,    dx = w s (dy - mean(dy) - xhat mean(dy xhat)).

(Ioffe and Szegedy 2015, Batch normalization.) With running statistics in place of m and v these do
not depend on x, and dx = w s dy. RMS norm (Zhang and Sennrich 2019) has m = 0, v = mean x^2, and no
b, so its dx lacks the term mean(dy).

No reference here writes to the running statistics; those that the op's schema returns, it returns:
(1 - momentum) old + momentum new, with the unbiased variance as the new one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.recording.references.entry import Definition, widen, widen_optional, widened


@dataclass(frozen=True)
class _Statistics:
    """Mean and variance per channel, and 1 / sqrt(variance + eps)."""

    mean: Tensor
    variance: Tensor
    inverse_deviation: Tensor


def _measure(x: Tensor, eps: float) -> _Statistics:
    """Measure the channels of a batch."""
    mean = x.mean(_all_but_channels(x))
    centred = x - _per_channel(mean, x)
    variance = (centred * centred).mean(_all_but_channels(x))
    return _Statistics(mean, variance, (variance + eps).rsqrt())


def _take(mean: Tensor | None, variance: Tensor | None, eps: float) -> _Statistics:
    """Take given statistics of the channels."""
    if mean is None or variance is None:
        raise ValueError("batch norm outside training needs running statistics")
    mean, variance = widen(mean), widen(variance)
    return _Statistics(mean, variance, (variance + eps).rsqrt())


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape([1, -1] + [1] * (x.dim() - 2))


def _apply(x: Tensor, weight: Tensor | None, bias: Tensor | None, by: _Statistics) -> Tensor:
    y = (widen(x) - _per_channel(by.mean, x)) * _per_channel(by.inverse_deviation, x)
    y = y if weight is None else y * _per_channel(widen(weight), x)
    y = y if bias is None else y + _per_channel(widen(bias), x)
    return y.to(x.dtype)


def _update(
    x: Tensor, mean: Tensor, variance: Tensor, momentum: float, by: _Statistics
) -> tuple[Tensor, Tensor]:
    """Return the running statistics after a batch."""
    count = x.numel() // x.size(1)
    unbiased = by.variance * count / (count - 1) if count > 1 else by.variance
    new_mean = widen(mean) + (by.mean - widen(mean)) * momentum
    new_variance = widen(variance) + (unbiased - widen(variance)) * momentum
    return new_mean.to(mean.dtype), new_variance.to(variance.dtype)


def _statistics_dtype(x: Tensor, *parameters: Tensor | None) -> torch.dtype:
    """Return the dtype in which the CPU kernels save: that of the parameters, if there are any."""
    return next((p.dtype for p in parameters if p is not None), x.dtype)


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del momentum
    by = _measure(widen(input), eps) if training else _take(running_mean, running_var, eps)
    dtype = _statistics_dtype(input, weight, bias, running_mean, running_var)
    return _outputs(input, weight, bias, by, dtype=dtype, training=training)


def _outputs(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    by: _Statistics,
    *,
    dtype: torch.dtype,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise; save the statistics in `dtype`, or nothing outside training."""
    y = _apply(x, weight, bias, by)
    if training:
        return y, by.mean.to(dtype), by.inverse_deviation.to(dtype)
    empty = torch.empty(0, dtype=dtype, device=x.device)
    return y, empty, empty


def _batch_norm_no_stats(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _batch_norm(input, weight, bias, None, None, training, momentum, eps)


def _batch_norm_no_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)


def _batch_norm_functional(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    by = _measure(widen(input), eps) if training else _take(running_mean, running_var, eps)
    dtype = _statistics_dtype(input, weight, bias, running_mean)
    outputs = _outputs(input, weight, bias, by, dtype=dtype, training=training)
    if not training:
        return *outputs, running_mean.clone(), running_var.clone()
    return *outputs, *_update(input, running_mean, running_var, momentum, by)


def _batch_norm_with_update(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    outputs = _batch_norm_functional(
        input, weight, bias, running_mean, running_var, True, momentum, eps
    )
    return *outputs[:3], _nothing(input), *outputs[3:]


def _batch_norm_no_update(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    outputs = _batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)
    return *outputs, _nothing(input)


def _cudnn_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    exponential_average_factor: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    factor = exponential_average_factor
    outputs = _batch_norm(input, weight, bias, running_mean, running_var, training, factor, epsilon)
    return *outputs, _nothing(input)


def _nothing(like: Tensor) -> Tensor:
    """Stand for the reserve of the kernel."""
    return torch.empty(0, dtype=torch.uint8, device=like.device)


def _batch_norm_gradients(
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, dy = widen(input), widen(grad_out)
    if not train:
        by = _take(running_mean, running_var, eps)
        mean, inverse_deviation = by.mean, by.inverse_deviation
    elif save_mean is None or save_invstd is None:
        by = _measure(x, eps)
        mean, inverse_deviation = by.mean, by.inverse_deviation
    else:
        mean, inverse_deviation = widen(save_mean), widen(save_invstd)
    dims = _all_but_channels(x)
    xhat = (x - _per_channel(mean, x)) * _per_channel(inverse_deviation, x)
    dbias, dweight = dy.sum(dims), (dy * xhat).sum(dims)
    factor = inverse_deviation if weight is None else inverse_deviation * widen(weight)
    if train:
        count = x.numel() // x.size(1)
        dy = dy - _per_channel(dbias / count, x) - xhat * _per_channel(dweight / count, x)
    dx = dy * _per_channel(factor, x)
    dtype = _statistics_dtype(input, weight, running_mean, running_var, save_mean)
    return (
        dx.to(input.dtype) if output_mask[0] else None,
        dweight.to(dtype) if output_mask[1] else None,
        dbias.to(dtype) if output_mask[2] else None,
    )


def _batch_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_var: Tensor | None,
    update: bool,
    eps: float,
    output_mask: Sequence[bool],
    reserve: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    del reserve
    return _batch_norm_gradients(  # `save_var` holds 1 / sqrt(variance + eps)
        *(grad_out, input, weight, running_mean, running_var, save_mean, save_var),
        update,
        eps,
        output_mask,
    )


def _cudnn_batch_norm_backward(
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_var: Tensor | None,
    epsilon: float,
    reserveSpace: Tensor,  # the op's own name
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    del reserveSpace
    return _batch_norm_gradients(  # `save_var` holds 1 / sqrt(variance + eps)
        *(grad_output, input, weight, running_mean, running_var, save_mean, save_var),
        True,
        epsilon,
        (True, True, True),
    )


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    x = widen(input)
    if eps is None:
        eps = torch.finfo(widened(input.dtype)).eps
    inverse = ((x * x).mean(_last(normalized_shape), keepdim=True) + eps).rsqrt()
    y = x * inverse if weight is None else x * inverse * widen(weight)
    return y.to(input.dtype), inverse


def _rms_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    x, dy, inverse = widen(input), widen(grad_out), widen(rstd)
    weight_dtype = input.dtype if weight is None else weight.dtype
    weight = widen_optional(weight)
    xhat = x * inverse
    dxhat = dy if weight is None else dy * weight
    dx = inverse * (dxhat - xhat * (dxhat * xhat).mean(_last(normalized_shape), keepdim=True))
    dweight = (dy * xhat).sum_to_size(list(normalized_shape))
    wanted = output_mask[1] and weight is not None
    return (
        dx.to(input.dtype) if output_mask[0] else None,
        dweight.to(weight_dtype) if wanted else None,
    )


def _last(shape: Sequence[int]) -> list[int]:
    return list(range(-len(shape), 0))


_BATCH = "Ioffe and Szegedy 2015; torch.nn.BatchNorm2d documentation"
_RMS = "Zhang and Sennrich 2019; torch.nn.RMSNorm documentation"
DEFINITIONS: tuple[Definition, ...] = (
    # The first two write to the running statistics.
    Definition("aten::native_batch_norm", _batch_norm, _BATCH),
    Definition("aten::_native_batch_norm_legit", _batch_norm, _BATCH),
    Definition("aten::_native_batch_norm_legit.no_stats", _batch_norm_no_stats, _BATCH, True),
    Definition("aten::_native_batch_norm_legit_no_training", _batch_norm_no_training, _BATCH, True),
    Definition("aten::_native_batch_norm_legit_functional", _batch_norm_functional, _BATCH, True),
    Definition("aten::_batch_norm_with_update_functional", _batch_norm_with_update, _BATCH, True),
    Definition("aten::_batch_norm_no_update", _batch_norm_no_update, _BATCH, True),
    Definition("aten::native_batch_norm_backward", _batch_norm_gradients, _BATCH, True),
    Definition("aten::batch_norm_backward", _batch_norm_backward, _BATCH, True),
    Definition("aten::cudnn_batch_norm", _cudnn_batch_norm, _BATCH),
    Definition("aten::cudnn_batch_norm_backward", _cudnn_batch_norm_backward, _BATCH),
    Definition("aten::_fused_rms_norm", _rms_norm, _RMS, True),
    Definition("aten::_fused_rms_norm_backward", _rms_norm_backward, _RMS),
)
