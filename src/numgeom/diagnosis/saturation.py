"""Which activations have stopped to let gradients through?

Sigmoids and tanhs far out, ReLUs that are off for every sample, softmaxes that are one-hot.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import Observation, Trace, argument, norm, op_name, place, traits
from numgeom.semantics.lockstep import Call

_FLAT = 1e-3  # derivative, as a part of the largest that the activation has
_SHARE = 0.8  # part of a call's entries (units, rows) from which on it is reported
_KILLED = 1e-4  # part of the cotangent's norm that comes through an activation's backward call
_MASKED = -1e4  # scores below the row's maximum by more, or at the format's end, are masks
_ONE_HOT = 1.0 - 1e-3
_ENTRIES = 4096  # of a sample, and
_ROWS = 1024
_LIKELY = 0.5 * _SHARE  # in a sample: then all are looked at
_FEW = 0.02  # rows: all rows may be one-hot of those with several open entries, and these be few


@dataclass(frozen=True)
class _Flat:
    kind: Kind
    share: float
    what: str


class SaturationDetector:
    """Finds activations whose derivative vanished on nearly all entries."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._flat: dict[fx.Node, _Flat] = {}

    def see(self, call: Call, seen: Observation | None) -> None:
        """Measure how much of an activation is flat."""
        name = op_name(call.node)
        if name.startswith("_scaled_dot_product") and name.endswith(_FORWARD_ENDS):
            self._attention(call)
        if seen is None or seen.entries < 2 or seen.nonfinite or seen.reference_nonfinite:
            return
        if name in ("sigmoid", "tanh"):
            if _share_flat(name, _sample(call.reference)) >= _LIKELY:
                self._note(call, Kind.SATURATION, _share_flat(name, call.computed), "entries")
        elif name in ("hardtanh", "hardsigmoid"):
            self._bounded(call)
        elif _is_zero_at_rest(call):
            self._relu(call)
        elif name == "_softmax":
            scores = call.argument(0)
            if scores is not None and self._may_be_one_hot(call, argument(call.node, 1)):
                self._softmax(call, scores.computed, argument(call.node, 1))
        elif traits(call.node).activation_backward:
            self._backward(call, seen)

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield one finding for each line and operation."""
        told: set[tuple[str, ...]] = set()
        for node, flat in self._flat.items():
            where = place(node)
            key = (where["source"], where["module"], flat.kind)
            if key in told:
                continue
            told.add(key)
            dead = flat.kind is Kind.DEAD_UNITS
            yield Finding(
                kind=flat.kind,
                severity=Severity.WARNING,
                **where,
                evidence={f"share_of_{flat.what}": flat.share},
                explanation=_DEAD if dead else _SATURATED,
                remedy=_REVIVE if dead else _DESATURATE,
            )

    # -- measures --------------------------------------------------------------------------

    def _note(self, call: Call, kind: Kind, share: float, what: str) -> None:
        if share >= _SHARE:
            self._flat[call.node] = _Flat(kind, share, what)

    def _bounded(self, call: Call) -> None:
        y: Tensor = call.computed
        low, high = float(y.min()), float(y.max())
        bounds = (0.0, 1.0) if op_name(call.node) == "hardsigmoid" else _bounds(call.node)
        if low >= bounds[0] and high <= bounds[1]:
            at_end = (y == bounds[0]) | (y == bounds[1])
            self._note(call, Kind.SATURATION, _share(at_end), "entries")

    def _relu(self, call: Call) -> None:
        y: Tensor = call.computed
        if y.dim() < 2 or y.shape[0] < 4:
            return  # too few samples to call a unit dead
        channels = 1 if y.dim() >= 4 else y.dim() - 1
        others = [d for d in range(y.dim()) if d != channels]
        self._note(call, Kind.DEAD_UNITS, _share((y == 0).all(dim=others)), "units")

    def _softmax(self, call: Call, scores: Tensor, dim: int) -> None:
        y: Tensor = call.computed
        scores = scores.double().movedim(dim, -1)
        lowest = max(_MASKED, 0.5 * torch.finfo(y.dtype).min)
        top = scores.amax(-1, keepdim=True)
        open_ = (scores > lowest) | (scores > top + lowest) & (scores > 0.5 * lowest)
        rows = open_.sum(-1) >= 2
        one_hot = y.double().movedim(dim, -1).amax(-1) > _ONE_HOT
        if bool(rows.any()):
            self._note(call, Kind.SATURATION, _share(one_hot[rows]), "rows_one_hot")

    def _may_be_one_hot(self, call: Call, dim: int) -> bool:
        """Whether a look at all rows is worth it: not if hardly any in a large sample is one-hot.

        Rows with a single open entry are one-hot on purpose, so they count here.
        """
        y: Tensor = call.reference
        if y.dim() == 0 or y.numel() // y.shape[dim] <= _ROWS:
            return True
        rows = y.movedim(dim, -1).flatten(0, -2)
        one_hot = rows[:: rows.shape[0] // _ROWS | 1].amax(-1) > _ONE_HOT
        return _share(one_hot) > _FEW

    def _attention(self, call: Call) -> None:
        query, key = call.argument(0), call.argument(1)
        if query is None or key is None:
            return
        q, k = query.reference, key.reference
        if q.shape[1] != k.shape[1]:
            return  # grouped heads
        scale = call.node.kwargs.get("scale")
        factor = float(scale) if isinstance(scale, (int, float)) else q.shape[-1] ** -0.5
        scores = (q[:1] @ k[:1].transpose(-1, -2)) * factor  # one sample is enough
        if any(a is True for a in call.node.args):
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        given = call.node.kwargs.get("attn_mask")
        if isinstance(given, fx.Node):
            mask = call.inputs[given].reference[:1]
            scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -1e38)
        rows = (scores > _MASKED).sum(-1) >= 2
        one_hot = scores.softmax(-1).amax(-1) > _ONE_HOT
        if bool(rows.any()):
            self._note(call, Kind.SATURATION, _share(one_hot[rows]), "rows_one_hot")

    def _backward(self, call: Call, seen: Observation) -> None:
        given = call.argument(0)
        if given is None or not isinstance(given.reference, Tensor):
            return
        size = norm(given.reference)
        if size == 0.0 or not math.isfinite(size):
            return
        share = seen.norm / size
        if share >= _KILLED:
            return
        rectified = op_name(call.node) == "threshold_backward"
        if rectified and given.reference.shape[:1].numel() < 4:
            return
        kind = Kind.DEAD_UNITS if rectified else Kind.SATURATION
        self._flat[call.node] = _Flat(kind, 1.0 - share, "cotangent_killed")


_FORWARD_ENDS = ("attention", "attention_for_cpu")
_SATURATED = (
    "The activation is flat at nearly all entries: its derivative is zero there and no gradient "
    "comes through."
)
_DEAD = "The units are off for every sample of the batch: they get no gradient and stay off."
_DESATURATE = (
    "Make what goes in smaller: normalise (LayerNorm), scale scores by 1/sqrt(d), initialise with "
    "smaller weights; or use an activation that does not saturate."
)
_REVIVE = (
    "Lower the learning rate, initialise the biases at zero and the weights with "
    "kaiming_normal_, or use nn.LeakyReLU() or nn.GELU()."
)


def _share_flat(name: str, y: Tensor) -> float:
    """Part of the entries of a sigmoid or tanh at which its derivative vanished."""
    y = y.double()
    slope = 4.0 * y * (1.0 - y) if name == "sigmoid" else 1.0 - y * y
    return _share(slope.abs() < _FLAT)


def _sample(x: Tensor) -> Tensor:
    """Some of many entries: enough to see that a share is far from the threshold.

    Every k-th one with odd k, so that none of the columns of the usual sizes is left out.
    """
    return x if x.numel() <= 2 * _ENTRIES else x.flatten()[:: x.numel() // _ENTRIES | 1]


def _share(where: Tensor) -> float:
    return float(where.double().mean()) if where.numel() else 0.0


def _is_zero_at_rest(call: Call) -> bool:
    name, args = op_name(call.node), call.node.args
    if name == "clamp_min":
        return bool(argument(call.node, 1) == 0)
    return name == "relu" or (name == "threshold" and args[1:] == (0, 0))


def _bounds(node: fx.Node) -> tuple[float, float]:
    given: list[Any] = [a for a in node.args[1:] if isinstance(a, (int, float))]
    return (float(given[0]), float(given[1])) if len(given) == 2 else (-1.0, 1.0)
