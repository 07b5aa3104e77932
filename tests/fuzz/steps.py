"""What a training step does besides forward and backward, and in which formats."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.fuzz.maker import Maker, Network

Objective = Callable[[Network, Tensor], Tensor]
Step = Callable[[], None]
Structure = Callable[[Maker, Network, Objective, Tensor], Step]


def _plain(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    return lambda: objective(model, x).backward()


def _accumulated(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    def step() -> None:
        (objective(model, x) / 3).backward()
        (objective(model, x.flip(0) * 0.5) / 7).backward()

    return step


def _clipped(clip: Callable[[Any], Any]) -> Structure:
    def structure(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
        def step() -> None:
            objective(model, x).backward()
            clip(model.parameters())

        return step

    return structure


def _checkpointed(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    class Whole(Network):
        def forward(self, h: Tensor) -> Tensor:
            return checkpoint(model, h, use_reentrant=False)

    return lambda: objective(Whole(), x).backward()


def _hooked(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    kind = make.choice("scale", "clamp", "noise")
    change = {
        "scale": lambda g: g * 0.3,
        "clamp": lambda g: g.clamp(-0.1, 0.1),
        "noise": lambda g: g + 1e-3 * torch.ones_like(g),
    }[kind]

    def step() -> None:
        handles = [p.register_hook(change) for p in model.parameters()]
        objective(model, x).backward()
        for handle in handles:
            handle.remove()

    return step


class _Steep(torch.autograd.Function):
    """x^3 with a derivative of its own, which is not its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x * x * 3.5).clamp(max=2.0)


def _with_function(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    model.layers.append(lambda h: _Steep.apply(torch.tanh(h)))
    return lambda: objective(model, x).backward()


def _optimized(kind: type[torch.optim.Optimizer], **settings: Any) -> Structure:
    """One update, and the gradient after it."""

    def structure(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
        def step() -> None:
            optimizer = kind(model.parameters(), **settings)
            objective(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
            objective(model, x).backward()

        return step

    return structure


def _penalized(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    def step() -> None:
        loss = objective(model, x)
        parameters = list(model.parameters())
        grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        penalty = torch.stack([g.square().sum() for g in grads if g is not None]).sum()
        (loss + 0.1 * penalty).backward()

    return step


def _scaled(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    scale = make.choice(1024.0, 65536.0, 100.0)

    def step() -> None:
        (objective(model, x) * scale).backward()
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(1.0 / scale)

    return step


def _tied(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    """Every layer twice."""
    model.layers.extend(model.layers[:1])
    return lambda: objective(model, x).backward()


def _frozen(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    for p in list(model.parameters())[1::2]:
        p.requires_grad_(False)
    return lambda: objective(model, x).backward()


def _distilled(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    def step() -> None:
        with torch.no_grad():
            teacher = model(x.flip(0))
        ((model(x) - teacher).square().mean() + 0.1 * objective(model, x)).backward()

    return step


def _branching(make: Maker, model: Network, objective: Objective, x: Tensor) -> Step:
    def step() -> None:
        loss = objective(model, x)
        (loss * 2 if loss.item() > 0.5 else loss.square()).backward()

    return step


STRUCTURES: dict[str, Structure] = {
    "plain": _plain,
    "accumulation": _accumulated,
    "clip by norm": _clipped(lambda p: torch.nn.utils.clip_grad_norm_(p, 0.1)),
    "clip by value": _clipped(lambda p: torch.nn.utils.clip_grad_value_(p, 0.05)),
    "checkpoint": _checkpointed,
    "hooks": _hooked,
    "custom function": _with_function,
    "after sgd": _optimized(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "after adam": _optimized(torch.optim.Adam, lr=0.01, foreach=False),
    "after adamw": _optimized(torch.optim.AdamW, lr=0.01, foreach=True),
    "after rmsprop": _optimized(torch.optim.RMSprop, lr=0.01, foreach=False),
    "after adagrad": _optimized(torch.optim.Adagrad, lr=0.01, foreach=False),
    "gradient penalty": _penalized,
    "loss scaling": _scaled,
    "tied": _tied,
    "frozen": _frozen,
    "distillation": _distilled,
    "branching": _branching,
}


# -- formats -------------------------------------------------------------------------------

FORMATS: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "autocast bfloat16": torch.float32,
    "autocast float16": torch.float32,
    "islands of bfloat16": torch.float32,
    "islands of float64": torch.float32,
}


def autocast(name: str) -> AbstractContextManager[Any]:
    """The context in which the forward pass of a format runs."""
    if not name.startswith("autocast"):
        return nullcontext()
    dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float16
    return torch.autocast("cpu", dtype)


def island(name: str, layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The layer's result, through another format where there are islands."""
    if not name.startswith("islands"):
        return layer
    dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float64
    return lambda h: layer(h).to(dtype).sin().to(h.dtype)
