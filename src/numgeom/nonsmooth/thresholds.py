"""From which size on is a difference of two gradients more than rounding?

Boustany (2024) answers with two numbers. tau1 (eq. 13) is the largest variation between two runs of
one and the same program on a device that does not repeat its sums in one order. tau2 (eq. 14) is
the smallest positive variation between two selections on a device that does. Both depend on the
network, the data and the format, and neither tells compensation from bifurcation reliably: see
`numgeom.nonsmooth.zones` for a test that needs no threshold.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from numgeom.arithmetic.printing import upper_short
from numgeom.nonsmooth.selection import Selection
from numgeom.nonsmooth.variation import (
    VariationError,
    backprop,
    backprop_variation,
    compare_gradients,
)

_DROPOUTS = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
)
LossFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Threshold:
    """A threshold on the backprop variation.

    Attributes:
        name: "tau1" or "tau2".
        value: The threshold; None: undefined, since nothing that it is made of was found.
        source: "two runs" of one program, "permuted sums" (an emulation of such runs), or "two
            selections".
        n_pairs: Pairs of gradients that were compared.
        n_positive: How many of them differ.
    """

    name: Literal["tau1", "tau2"]
    value: float | None
    source: Literal["two runs", "permuted sums", "two selections"]
    n_pairs: int
    n_positive: int

    def __str__(self) -> str:
        """One line that says what the number is."""
        share = f"{self.n_positive} of {self.n_pairs} pairs differ"
        label = " (emulation)" if self.source == "permuted sums" else ""
        if self.value is None:
            return f"{self.name} is undefined: no variation was found ({share})"
        return f"{self.name} = {upper_short(self.value)} by {self.source}{label}; {share}"


def tau1(models: Iterable[nn.Module], loss_fn: LossFunction, batches: Sequence[Any]) -> Threshold:
    """The largest variation between two runs of the same program (eq. 13).

    Args:
        models: Parameter points, on a device whose sums have no fixed order.
        loss_fn: `loss_fn(model, batch)` returns the loss.
        batches: The mini-batches.

    Raises:
        VariationError: if the device repeats its sums, so that there is nothing to measure.
    """
    found = []
    for model in models:
        _refuse_deterministic(model)
        for batch in batches:
            first, second = (backprop(model, loss_fn, batch) for _ in range(2))
            found.append(compare_gradients(first, second).l1)
    return _largest(found, "two runs")


def tau1_emulated(
    models: Iterable[nn.Module], loss_fn: LossFunction, batches: Sequence[Any], *, seed: int = 0
) -> Threshold:
    """What tau1 might be if sums over the mini-batch ran in another order: an emulation.

    The samples of each mini-batch are permuted. The loss must not depend on their order, as a mean
    or a sum does not: then all that differs is the order of summation.

    Args:
        models: Parameter points, on any device.
        loss_fn: `loss_fn(model, batch)` returns the loss.
        batches: Mini-batches: tensors, tuples, lists or mappings of them, samples first.
        seed: Of the permutations.

    Raises:
        VariationError: if a batch has no samples to permute, or the model draws random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for model in models:
        _refuse_random(model)
        for batch in batches:
            order = torch.randperm(_n_samples(batch), generator=generator)
            first = backprop(model, loss_fn, batch)
            second = backprop(model, loss_fn, _permuted(batch, order))
            found.append(compare_gradients(first, second).l1)
    return _largest(found, "permuted sums")


def tau2(
    models: Iterable[nn.Module],
    loss_fn: LossFunction,
    batches: Sequence[Any],
    *,
    selections: tuple[Selection, Selection] = (Selection(relu=0.0), Selection(relu=1.0)),
) -> Threshold:
    """The smallest positive variation between two selections (eq. 14).

    Undefined if no mini-batch shows any: then there is no threshold, and 0 would be none either.

    Args:
        models: Parameter points, on a deterministic device.
        loss_fn: `loss_fn(model, batch)` returns the loss.
        batches: The mini-batches.
        selections: The pair; the paper means ReLU'(0) = 0 against 1 (remark 6).
    """
    found = [
        backprop_variation(model, loss_fn, batch, selections=selections).l1
        for model in models
        for batch in batches
    ]
    positive = [d for d in found if d > 0]
    return Threshold(
        "tau2", min(positive) if positive else None, "two selections", len(found), len(positive)
    )


def tau_curve(
    variations: Iterable[float], taus: Iterable[float] | None = None
) -> tuple[tuple[float, float], ...]:
    """The share of variations above tau, for many tau: criterion 1 of the paper as a curve.

    Args:
        variations: The variation of each mini-batch; NaN is above every threshold.
        taus: The thresholds; None: two per decade around the variations.

    Returns:
        Pairs (tau, share), by growing tau.

    Example:
        >>> tau_curve([1e-8, 1e-3], taus=[1e-9, 1e-6])
        ((1e-09, 1.0), (1e-06, 0.5))
    """
    values = list(variations)
    if not values:
        raise VariationError("there are no variations, so no curve over tau")
    chosen = _decades(values) if taus is None else sorted(taus)
    return tuple((tau, sum(not d <= tau for d in values) / len(values)) for tau in chosen)


def _decades(values: list[float]) -> list[float]:
    sizes = [math.log10(d) for d in values if 0 < d < math.inf]
    low, high = (math.floor(min(sizes)), math.ceil(max(sizes))) if sizes else (-16, 0)
    return [base * 10.0**k for k in range(low - 1, high + 1) for base in (1.0, 3.0)]


def _largest(found: list[float], source: Literal["two runs", "permuted sums"]) -> Threshold:
    if not found:
        raise VariationError("tau1 needs at least one model and one mini-batch")
    return Threshold("tau1", max(found), source, len(found), sum(d > 0 for d in found))


def _refuse_deterministic(model: nn.Module) -> None:
    devices = {p.device.type for p in model.parameters()}
    if devices <= {"cpu"} or torch.are_deterministic_algorithms_enabled():
        place = "the CPU" if devices <= {"cpu"} else "a device in torch's deterministic mode"
        raise VariationError(
            f"tau1 compares two runs on a device that does not repeat its sums, and {place} "
            "repeats them: it would be 0 by construction. Move the model to a GPU with "
            "nondeterministic kernels, or use tau1_emulated, which permutes the order of summation"
        )


def _refuse_random(model: nn.Module) -> None:
    for name, module in model.named_modules():
        random = isinstance(module, _DROPOUTS) and module.p > 0
        random |= isinstance(module, nn.RNNBase) and module.dropout > 0
        if random and module.training:
            raise VariationError(
                f"{name or 'the model'} draws random numbers sample by sample, so a permuted batch "
                "is another loss: switch the model to evaluation mode"
            )


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [t for item in batch.values() for t in _tensors(item)]
    if isinstance(batch, (tuple, list)):
        return [t for item in batch for t in _tensors(item)]
    return []


def _n_samples(batch: Any) -> int:
    sizes = {t.shape[0] if t.dim() else 0 for t in _tensors(batch)}
    if len(sizes) != 1 or 0 in sizes:
        raise VariationError(
            f"the tensors of a batch have {sorted(sizes)} samples: all need the same number along "
            "their first dimension, so that the samples can be permuted"
        )
    return sizes.pop()


def _permuted(batch: Any, order: Tensor) -> Any:
    if isinstance(batch, Tensor):
        return batch[order.to(batch.device)]
    if isinstance(batch, Mapping):
        return {key: _permuted(item, order) for key, item in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_permuted(item, order) for item in batch)
    return batch
