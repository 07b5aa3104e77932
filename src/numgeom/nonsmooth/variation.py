"""How much do two backward passes of one step differ?

The backprop variation of Boustany (2024, eq. 12): the norm of the difference of two gradients that
were computed by two separate backward passes. Norms are accumulated in float64 whatever the
gradients' format: in float16 the 1-norm of a large gradient overflows.

Equation 12 sums the loss over a mini-batch; most code takes its mean, which makes D smaller by the
batch size. So every result says which it was.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from numgeom.errors import NumgeomError
from numgeom.nonsmooth.selection import Selection, select

Reduction = Literal["mean", "sum", "unknown"]


class VariationError(NumgeomError):
    """Two gradients cannot be compared."""


@dataclass(frozen=True)
class Norms:
    """Norms of a difference of two gradients, in float64.

    Attributes:
        l1: Sum of the absolute differences.
        l2: Euclidean norm of the difference.
        linf: Largest absolute difference.
        relative: `l2` over the Euclidean norm of the first gradient; 0 if the gradients are
            equal, infinite if only the first one is zero.
    """

    l1: float
    l2: float
    linf: float
    relative: float


@dataclass(frozen=True)
class Variation(Norms):
    """The backprop variation of a step.

    Attributes:
        parameters: The norms of each parameter's difference, by name.
        reduction: How the loss was reduced over the mini-batch.
        n_nonfinite: Entries in which the gradients differ and one of them is not finite; the
            norms are then infinite or NaN.
    """

    parameters: Mapping[str, Norms]
    reduction: Reduction
    n_nonfinite: int

    def __float__(self) -> float:
        """The 1-norm, the D of equation 12."""
        return self.l1


def compare_gradients(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, reduction: Reduction = "unknown"
) -> Variation:
    """Measure the difference of two gradients.

    Args:
        first: Gradient of every parameter, by name.
        second: The same parameters' gradients from another backward pass.
        reduction: How the loss was reduced over the mini-batch; noted in the result.

    Raises:
        VariationError: if the gradients belong to different parameters.

    Example:
        >>> compare_gradients({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 5.0])}).l1
        1.0
    """
    if set(first) != set(second):
        odd = ", ".join(sorted(set(first) ^ set(second)))
        raise VariationError(f"only one of the two gradients has: {odd}")
    parts: dict[str, Norms] = {}
    sums = [0.0, 0.0, 0.0, 0.0]  # |d|, d^2, max |d|, first^2
    n_nonfinite = 0
    for name, a in first.items():
        b = second[name]
        if a.shape != b.shape:
            raise VariationError(f"{name} has shapes {tuple(a.shape)} and {tuple(b.shape)}")
        a, b = a.detach().double(), b.detach().to(a.device).double()
        same = (a == b) | (a.isnan() & b.isnan())
        d = torch.where(same, 0.0, a - b).abs()
        n_nonfinite += int((~d.isfinite()).sum())
        found = [
            float(d.sum()),
            float(d.square().sum()),
            float(d.max()) if d.numel() else 0.0,
            float(a.square().sum()),
        ]
        parts[name] = _norms(*found)
        sums = [
            sums[0] + found[0],
            sums[1] + found[1],
            _larger(sums[2], found[2]),
            sums[3] + found[3],
        ]
    total = _norms(*sums)
    return Variation(total.l1, total.l2, total.linf, total.relative, parts, reduction, n_nonfinite)


def backprop(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    *,
    selection: Selection | None = None,
) -> dict[str, Tensor]:
    """One backward pass under a selection; the model is left as it was.

    Parameters, `.grad`, buffers and the random generators are afterwards what they were before, so
    two calls see the same dropout masks and the same statistics.

    Args:
        model: The model, in its training or evaluation mode.
        loss_fn: `loss_fn(model, batch)` returns the loss.
        batch: Anything that `loss_fn` understands.
        selection: Derivatives at kinks; None is torch's.

    Returns:
        The gradient of every parameter that got one, by name.

    Raises:
        SelectionError: as for `select`.
    """
    with _restored(model), select(selection or Selection()):
        loss_fn(model, batch).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def backprop_variation(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    *,
    selections: tuple[Selection, Selection],
    reduction: Reduction = "unknown",
) -> Variation:
    """The backprop variation D between two selections, in the model's own formats.

    Args:
        model: The model; left as it was.
        loss_fn: `loss_fn(model, batch)` returns the loss.
        batch: Anything that `loss_fn` understands.
        selections: The two derived programs.
        reduction: How `loss_fn` reduces over the mini-batch; noted in the result.
    """
    first, second = (backprop(model, loss_fn, batch, selection=s) for s in selections)
    return compare_gradients(first, second, reduction=reduction)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Run with empty `.grad` and put gradients, buffers and generators back afterwards."""
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _norms(total: float, squares: float, largest: float, of_first: float) -> Norms:
    if total == 0:
        return Norms(0.0, 0.0, 0.0, 0.0)
    relative = math.sqrt(squares / of_first) if of_first else math.inf
    return Norms(total, math.sqrt(squares), largest, relative)


def _larger(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
