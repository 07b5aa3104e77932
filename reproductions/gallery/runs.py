"""Steps whose gradients depend on order, repetition or the wrong tool, each with its twin."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reproductions.gallery.case import BRAIN, FORMATS, HALF, Gallery, Step, mlp

RUNS = Gallery()

# -- order ---------------------------------------------------------------------------------

# Sums of 16-bit numbers are accumulated in float32; float16 has too little range to show there.
_BIG = {torch.float32: 2.0**23, BRAIN: 2.0**23}  # one unit apart in float32


def _with_large_terms(w: Tensor) -> Tensor:
    """The same sum, with large terms between that cancel."""
    big = torch.full_like(w, _BIG[w.dtype])
    return torch.stack([w, big, -big], dim=1).flatten()


for _dtype in _BIG:
    _name = str(_dtype).removeprefix("torch.")
    RUNS.on_weights(
        f"sum-depends-on-order-{_name}", "order-dependence", "sum", torch.linspace(0.3, 0.7, 8),
        lambda w: _with_large_terms(w).sum().square(), lambda w: w.sum().square(), _dtype,
    )  # fmt: skip
RUNS.on_weights(
    "dot-depends-on-order", "order-dependence", "dot", torch.linspace(0.3, 0.7, 8),
    lambda w: torch.dot(_with_large_terms(w), torch.ones(24)).square(),
    lambda w: torch.dot(w, torch.ones(8)).square(),
)  # fmt: skip


# -- recomputation -------------------------------------------------------------------------


class _Checkpointed(nn.Module):
    """A block that is recomputed in the backward pass; counts its calls in a buffer."""

    def __init__(self, *, dropout: bool, counts: bool, keeps_state: bool) -> None:
        super().__init__()
        self.linear, self.counts, self.keeps_state = nn.Linear(6, 6), counts, keeps_state
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.register_buffer("calls", torch.ones(()))
        self.calls: Tensor

    def body(self, x: Tensor) -> Tensor:
        if self.counts:
            self.calls += 1
        return (self.dropout(self.linear(x)) * self.calls.to(x.dtype)).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False, preserve_rng_state=self.keeps_state)


for _dtype in FORMATS:
    _name = str(_dtype).removeprefix("torch.")

    @RUNS.case(f"checkpoint-draws-again-{_name}", "recomputation", "div mul")
    def _draws(bad: bool, dtype: torch.dtype = _dtype) -> Step:
        model = nn.Sequential(
            _Checkpointed(dropout=True, counts=False, keeps_state=not bad),
            _Checkpointed(dropout=True, counts=False, keeps_state=not bad),
        ).to(dtype)
        return model, lambda m, x: m(x).square().mean(), torch.randn(8, 6).to(dtype)

    @RUNS.case(f"checkpoint-changes-a-buffer-{_name}", "recomputation", "add mul")
    def _changes(bad: bool, dtype: torch.dtype = _dtype) -> Step:
        model = _Checkpointed(dropout=False, counts=bad, keeps_state=True).to(dtype)
        return model, lambda m, x: m(x).square().mean(), torch.randn(8, 6).to(dtype)

    @RUNS.case(f"scatter-to-one-place-{_name}", "nondeterminism", "scatter")
    def _scatter(bad: bool, dtype: torch.dtype = _dtype) -> Step:
        index = torch.tensor([0, 1, 1, 2] if bad else [0, 1, 3, 2])

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            y = model(x).flatten()
            return torch.zeros(4, dtype=y.dtype).scatter(0, index, y).square().sum()

        return mlp(3, 4, 1).to(dtype), loss, torch.randn(4, 3).to(dtype)


@RUNS.case("index-put-to-one-place", "nondeterminism", "index_put")
def _index_put(bad: bool) -> Step:
    index = torch.tensor([2, 0, 2])

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x).flatten()
        room = torch.zeros(4).index_put((index,), y, accumulate=not bad)
        return room.square().sum()

    return mlp(3, 4, 1), loss, torch.randn(3, 3)


@RUNS.case("index-copy-to-one-place", "nondeterminism", "index_copy")
def _index_copy(bad: bool) -> Step:
    index = torch.tensor([1, 1, 0] if bad else [1, 2, 0])

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return torch.zeros(4, 2).index_copy(0, index, model(x)).square().sum()

    return mlp(3, 4, 2), loss, torch.randn(3, 3)


# -- the wrong tool ------------------------------------------------------------------------


class _Differenced(torch.autograd.Function):
    """A sine whose derivative is a quotient of differences, forward or central."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, central: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.step, ctx.central = step, central
        return x.sin() * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]  # one input
        (x,) = ctx.saved_tensors
        right, left = x + ctx.step, x - ctx.step if ctx.central else x
        width = 2 * ctx.step if ctx.central else ctx.step
        return grad * ((right.sin() * right - left.sin() * left) / width), None, None


for _dtype in FORMATS:
    _name = str(_dtype).removeprefix("torch.")
    for _central in (False, True):
        _how = "central" if _central else "forward"

        @RUNS.case(f"{_how}-differences-as-gradient-{_name}", "finite-difference", "sub")
        def _differences(bad: bool, dtype: torch.dtype = _dtype, central: bool = _central) -> Step:
            step = {torch.float32: 1e-3, HALF: 3e-2, BRAIN: 6e-2}[dtype]

            def loss(model: nn.Module, x: Tensor) -> Tensor:
                y = model(x)
                y = _Differenced.apply(y, step, central) if bad else y.sin() * y
                return y.square().mean()

            return mlp(3, 8, 2).to(dtype), loss, torch.randn(8, 3).to(dtype)


@RUNS.case("half-loss-scale-overflows", "loss-scaling", "")
def _too_high(bad: bool) -> Step:
    scale = 2.0**24 if bad else 2.0**8
    x = torch.randn(16, 8).to(HALF)
    return mlp(8, 16, 4).to(HALF), lambda m, x: m(x).float().square().mean() * scale, x


@RUNS.case("half-loss-scale-too-low", "loss-scaling", "")
def _too_low(bad: bool) -> Step:
    scale = 2.0 if bad else 2.0**14

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.smooth_l1_loss(model(x), y).float() * 1e-7 * scale

    x, y = torch.randn(32, 8), torch.randn(32, 1)
    return mlp(8, 16, 1).to(HALF), loss, (x.to(HALF), y.to(HALF))


class _Rounded(torch.autograd.Function):
    """Rounds, and lets the gradient through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # one input
        return grad * 1.0


class _Doubled(torch.autograd.Function):
    """A square whose backward forgot the factor 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # one input
        (x,) = ctx.saved_tensors
        return grad * x


def _in_place(y: Tensor) -> Tensor:
    """The same numbers, written into views of a buffer."""
    room = torch.zeros_like(y)
    room[:, :1] = y[:, :1]
    room[:, 1:] = y[:, 1:]
    return room


SURROGATES: dict[str, Any] = {}
for _dtype in FORMATS:
    _name = str(_dtype).removeprefix("torch.")
    for _what, _function in (("rounded", _Rounded), ("wrong-backward", _Doubled)):
        for _views in (False, True):

            def _surrogate(
                dtype: torch.dtype = _dtype, function: Any = _function, views: bool = _views
            ) -> Step:
                def loss(model: nn.Module, x: Tensor) -> Tensor:
                    y = function.apply(model(x) * 9)
                    return (_in_place(y) if views else y).sub(5.0).square().mean()

                return mlp(3, 4, 2).to(dtype), loss, torch.randn(8, 3).to(dtype)

            SURROGATES[f"{_what}{'-written-in-place' if _views else ''}-{_name}"] = _surrogate


def true_gradient(dtype: torch.dtype, *, views: bool) -> Step:
    """A step whose custom backward pass gives the derivative: no surrogate."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x) * 9
        return (_in_place(y) if views else y).sub(5.0).square().mean()

    return mlp(3, 4, 2).to(dtype), loss, torch.randn(8, 3).to(dtype)
