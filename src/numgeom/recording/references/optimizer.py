"""What do the fused optimizer steps and the ops of loss scaling compute?

All are functional: they return what the mutating op of the same name writes. A gradient scale
divides the gradients, and the divided ones are returned; if `found_inf` is 1, nothing changes.
(Their kernels want rates and counts in float32, so none runs in float64 throughout.)
With g the gradient (its negative if `maximize`), plus weight_decay * p where the decay is part of
the gradient, and t the number of the step:

    Adam (Kingma and Ba 2015, alg. 1; AMSGrad: Reddi, Kale and Kumar 2018, alg. 2)
        m' = b1 m + (1 - b1) g,    v' = b2 v + (1 - b2) g^2,    w' = max(w, v')
        p' = p - lr m' / (1 - b1^t) / (sqrt(v' or w') / sqrt(1 - b2^t) + eps)
    AdamW (Loshchilov and Hutter 2019, alg. 2): the same with p (1 - lr weight_decay) for p
    SGD (Sutskever et al. 2013, as torch.optim.SGD documents it)
        m' = momentum m + (1 - dampening) g, or g in the first step
        p' = p - lr (g + momentum m' with Nesterov, else m')
    Adagrad (Duchi, Hazan and Singer 2011)
        s' = s + g^2,    p' = p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s') + eps)
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from numgeom.recording.references.entry import Definition, widen

Tensors = Sequence[Tensor]


def _scalar(value: float | Tensor, like: Tensor) -> float | Tensor:
    """Bring a rate or a step count into the format and to the device of the parameter."""
    return value.to(like) if isinstance(value, Tensor) else value


def _unscaled(grad: Tensor, grad_scale: Tensor | None) -> Tensor:
    return grad if grad_scale is None else grad / grad_scale.to(grad)


def _ascent(grad: Tensor, p: Tensor, *, maximize: bool, weight_decay: float) -> Tensor:
    """Turn around the gradient if the aim is to maximise; add the decay of the weights."""
    g = -grad if maximize else grad
    return g + p * weight_decay if weight_decay != 0 else g


def _written(
    found_inf: Tensor | None, old: Sequence[Tensors], new: Sequence[Tensors]
) -> tuple[list[Tensor], ...]:
    """Return the new values in the formats of the old, or the old if a gradient was not finite."""
    written = []
    for before, after in zip(old, new, strict=True):
        cast = [b.to(a.dtype) for a, b in zip(before, after, strict=True)]
        if found_inf is not None:
            cast = [
                torch.where(found_inf.to(a.device) == 1, a, b)
                for a, b in zip(before, cast, strict=True)
            ]
        written.append(cast)
    return tuple(written)


def _adam(
    self: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    state_steps: Tensors,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    decoupled: bool,
) -> tuple[list[Tensor], ...]:
    """Step by Adam, or with `decoupled` weight decay by AdamW."""
    old = (self, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs if amsgrad else [])
    new: tuple[list[Tensor], ...] = ([], [], [], [], [])
    for i, count in enumerate(state_steps):
        p, grad, m, v, *largest = (widen(tensors[i]) for tensors in old if tensors)
        rate, t = _scalar(lr, p), _scalar(count, p)
        grad = _unscaled(grad, grad_scale)
        g = _ascent(grad, p, maximize=maximize, weight_decay=0 if decoupled else weight_decay)
        if decoupled and weight_decay != 0:
            p = p - p * (rate * weight_decay)
        m, v = m * beta1 + g * (1 - beta1), v * beta2 + g * g * (1 - beta2)
        largest = [torch.maximum(w, v) for w in largest]
        first, second = 1 - beta1**t, 1 - beta2**t
        root = (largest[0] if amsgrad else v).sqrt()
        p = p - m * (rate / first) / (root / second**0.5 + eps)
        for tensors, result in zip(new, (p, grad, m, v, *largest), strict=False):
            tensors.append(result)
    return _written(found_inf, old, new)


def _sgd(
    self: Tensors,
    grads: Tensors,
    momentum_buffer_list: Tensors,
    *,
    weight_decay: float,
    momentum: float,
    lr: float | Tensor,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    is_first_step: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> tuple[list[Tensor], ...]:
    old = (self, grads, momentum_buffer_list)  # without momentum, the list of buffers is empty
    new: tuple[list[Tensor], ...] = ([], [], [])
    for i in range(len(self)):
        p, grad, *buffer = (widen(tensors[i]) for tensors in old if tensors)
        grad = _unscaled(grad, grad_scale)
        g = _ascent(grad, p, maximize=maximize, weight_decay=weight_decay)
        for m in buffer:
            m = g if is_first_step else m * momentum + g * (1 - dampening)
            g = g + m * momentum if nesterov else m
            new[2].append(m)
        new[0].append(p - g * _scalar(lr, p))
        new[1].append(grad)
    return _written(found_inf, old, new)


def _adagrad(
    self: Tensors,
    grads: Tensors,
    state_sums: Tensors,
    state_steps: Tensors,
    *,
    lr: float | Tensor,
    lr_decay: float,
    weight_decay: float,
    eps: float,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    returns_steps: bool,
) -> tuple[list[Tensor], ...]:
    """Step by Adagrad; the overloads differ in whether they return the step counts."""
    old = (self, grads, state_sums)
    new: tuple[list[Tensor], ...] = ([], [], [])
    for i, count in enumerate(state_steps):
        p, grad, total = (widen(tensors[i]) for tensors in old)
        grad = _unscaled(grad, grad_scale)
        g = _ascent(grad, p, maximize=maximize, weight_decay=weight_decay)
        total = total + g * g
        rate = _scalar(lr, p) / (1 + (_scalar(count, p) - 1) * lr_decay)
        p = p - g * rate / (total.sqrt() + eps)
        for tensors, result in zip(new, (p, grad, total), strict=True):
            tensors.append(result)
    outputs = _written(found_inf, old, new)
    return (*outputs, list(state_steps)) if returns_steps else outputs


def _unscale(self: Tensors, found_inf: Tensor, inv_scale: Tensor) -> tuple[list[Tensor], Tensor]:
    """Multiply the gradients by 1 / scale; tell whether any of them was not finite."""
    for x in self:
        broken = (~x.isfinite()).any().to(found_inf.device)
        found_inf = torch.where(broken, torch.ones_like(found_inf), found_inf)
    return [x * inv_scale.to(device=x.device, dtype=x.dtype) for x in self], found_inf.clone()


def _update_scale(
    self: Tensor,
    growth_tracker: Tensor,
    found_inf: Tensor,
    scale_growth_factor: float,
    scale_backoff_factor: float,
    growth_interval: int,
) -> tuple[Tensor, Tensor]:
    """Shrink the scale after a step that was not finite; let it grow after enough that were.

    (Micikevicius et al. 2018, Mixed precision training, section 3.2.)
    """
    broken = found_inf != 0
    counted = growth_tracker + 1
    grows = counted == growth_interval
    grown = self * scale_growth_factor
    scale = torch.where(grows & grown.isfinite(), grown, self)
    scale = torch.where(broken, self * scale_backoff_factor, scale)
    return scale, torch.where(broken | grows, torch.zeros_like(counted), counted)


def _definitions(
    op: str, default: Callable[..., object], tensor_lr: Callable[..., object], source: str
) -> tuple[Definition, Definition]:
    return (
        Definition(f"aten::{op}", default, source),
        Definition(f"aten::{op}.tensor_lr", tensor_lr, source),
    )


_ADAM = partial(_adam, decoupled=False)
_ADAMW = partial(_adam, decoupled=True)
_AMP = "torch.amp.GradScaler documentation; Micikevicius et al. 2018, sec. 3.2"
DEFINITIONS: tuple[Definition, ...] = (
    *_definitions("_fused_adam", _ADAM, _ADAM, "torch.optim.Adam documentation"),
    *_definitions("_fused_adamw", _ADAMW, _ADAMW, "torch.optim.AdamW documentation"),
    *_definitions("_fused_sgd", _sgd, _sgd, "torch.optim.SGD documentation"),
    *_definitions(
        "_fused_adagrad",
        partial(_adagrad, returns_steps=True),
        partial(_adagrad, returns_steps=False),
        "torch.optim.Adagrad documentation",
    ),
    Definition("aten::_amp_foreach_non_finite_check_and_unscale", _unscale, _AMP),
    Definition("aten::_amp_update_scale", _update_scale, _AMP),
)
