"""Training steps of many kinds, small and seeded, for tests that hold on any of them.

A workload is a function that builds `(model, step)`; `step()` runs forward and backward on the
model's parameters. `build(name)` seeds first.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

from tests.recording.workloads_ops import indexing_step, losses_step, no_dims_step
from tests.recording.workloads_sequences import (
    Step,
    attention_step,
    classify,
    encoder_layer_step,
    rnn_step,
    sdpa_step,
)
from tests.recording.workloads_transformers import transformers_step

Workload = Callable[[], tuple[nn.Module, Step]]


def build(name: str) -> tuple[nn.Module, Step]:
    """Make a workload, with a fixed seed."""
    torch.manual_seed(0)
    return WORKLOADS[name]()


def _mlp(activation: Callable[[], nn.Module]) -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(12, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 5)
    )
    return model, classify(model, torch.randn(9, 12))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def _lenet() -> tuple[nn.Module, Step]:
    model = LeNet()
    return model, classify(model, torch.randn(4, 1, 28, 28))


def _lenet_channels_last() -> tuple[nn.Module, Step]:
    model = LeNet().to(memory_format=torch.channels_last)
    return model, classify(model, torch.randn(4, 1, 28, 28).to(memory_format=torch.channels_last))


def _batch_norm_cnn(mode: bool = True) -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).train(mode)  # fmt: skip
    return model, classify(model, torch.randn(4, 3, 10, 10))


def _norms() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True),
        nn.Flatten(), nn.Linear(8 * 36, 12), nn.LayerNorm(12), nn.RMSNorm(12), nn.Linear(12, 5),
    )  # fmt: skip
    return model, classify(model, torch.randn(4, 3, 8, 8))


def _dropout() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(12, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 8), nn.AlphaDropout(0.2),
        nn.RReLU(), nn.Linear(8, 5), nn.Dropout(1.0), nn.Dropout(0.0),
    )  # fmt: skip
    step = classify(model, torch.randn(9, 12))
    return model, step


class Assigning(nn.Module):
    """Writes in place in the ways that people do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty(len(x), 12)
        h = self.fc(x)
        out[:, :6] = h
        out[:, 6:] = h.tanh()
        out[::2, 1] += 3.0
        out.mul_(0.5).add_(1)
        rest = torch.zeros(12, len(x))
        rest.t()[:, 3:7] = out[:, 3:7].sigmoid()
        view = rest.view(4, 3, -1)
        view[1].copy_(out[:, :3].t())
        rest[0].fill_(2.0)
        mask = out > 1.2
        out = out.masked_fill(mask, 0.3)
        picked = out[out > 0.9]
        chosen = torch.where(out > 0.5, out, -out)
        chosen[chosen < -0.4] = 0.25
        buffer = torch.empty(len(x), 12)
        with torch.no_grad():
            torch.add(x.sum(), 1.0, out=torch.empty(()))
            torch.mul(buffer.zero_(), 2, out=buffer)
        return chosen + rest.t() + picked.sum() + buffer + out.transpose(0, 1).clone().t_()


def _in_place() -> tuple[nn.Module, Step]:
    model = Assigning()
    x = torch.randn(5, 6)

    def step() -> None:
        model(x).pow(2).mean().backward()

    return model, step


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.fc(x)
            if x.norm().item() > 2:
                x = x / x.norm().item()
            x = x * float(x.max())
        return x


def _item() -> tuple[nn.Module, Step]:
    model = Branching()
    x = torch.randn(5, 6)

    def step() -> None:
        model(x).square().sum().backward()

    return model, step


def _checkpointed(reentrant: bool) -> tuple[nn.Module, Step]:
    body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.GELU(), nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(8, 8), body, nn.Linear(8, 5))
    x, y = torch.randn(6, 8), torch.randint(0, 5, (6,))

    def step() -> None:
        h = model[0](x)
        h = checkpoint(body, h, use_reentrant=reentrant)
        F.cross_entropy(model[2](h), y).backward()

    return model, step


def _autocast() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 16),
        nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5),
    )  # fmt: skip
    x, y = torch.randn(4, 1, 8, 8), torch.randint(0, 5, (4,))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    return model, step


def _half(dtype: torch.dtype) -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).to(dtype)
    return model, classify(model, torch.randn(9, 12).to(dtype))


def _grad_scaler() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
    x, y = torch.randn(9, 12), torch.randint(0, 5, (9,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    return model, step


def _accumulation() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    x, y = torch.randn(2, 9, 12), torch.randint(0, 5, (2, 9))

    def step() -> None:
        for i in range(2):
            (F.cross_entropy(model(x[i]), y[i]) / 2).backward()

    return model, step


def _double_backward() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1)
    )
    x = torch.randn(6, 4, requires_grad=True)

    def step() -> None:
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        ((slope.norm(dim=1) - 1) ** 2).mean().backward()

    return model, step


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # one input
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 3)


def _custom_function() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    x, y = torch.randn(6, 6), torch.randint(0, 5, (6,))

    def step() -> None:
        h = StraightThrough.apply(3 * model[0](x))
        F.cross_entropy(model[1](h), y).backward()

    return model, step


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.embed(tokens))))


def _tied() -> tuple[nn.Module, Step]:
    model = Tied()
    tokens = torch.randint(0, 11, (3, 7))

    def step() -> None:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.reshape(-1, 11), tokens[:, 1:].reshape(-1)).backward()

    return model, step


def _frozen() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    model[2].requires_grad_(False)
    return model, classify(model, torch.randn(9, 12))


def _optimizer(make: Callable[[Any], torch.optim.Optimizer], warm: int = 2) -> Any:
    """A whole training step, optimizer included, after a few steps that are not recorded."""
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 5))
    optimizer = make(model.parameters())
    forward = classify(model, torch.randn(9, 12))

    def step() -> None:
        optimizer.zero_grad()
        forward()
        optimizer.step()

    for _ in range(warm):
        step()
    return model, step


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "prelu": nn.PReLU,
    "glu-free-relu6": nn.ReLU6,
}

_OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "sgd-loop": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "adam-loop": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, foreach=False),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, foreach=False),
}

_MODELS = ("gpt2", "llama", "bert", "mixtral", "t5", "whisper", "vit")

WORKLOADS: Mapping[str, Workload] = {
    **{f"mlp-{name}": partial(_mlp, make) for name, make in _ACTIVATIONS.items()},
    "lenet": _lenet,
    "lenet-channels-last": _lenet_channels_last,
    "batch-norm-cnn": _batch_norm_cnn,
    "batch-norm-cnn-eval": partial(_batch_norm_cnn, False),
    "norms": _norms,
    "dropout": _dropout,
    "in-place": _in_place,
    "item": _item,
    "checkpoint-reentrant": partial(_checkpointed, True),
    "checkpoint": partial(_checkpointed, False),
    "lstm": partial(rnn_step, nn.LSTM),
    "lstm-packed": partial(rnn_step, nn.LSTM, packed=True),
    "lstm-bidirectional": partial(rnn_step, nn.LSTM, bidirectional=True, num_layers=2, dropout=0.2),
    "lstm-projected": partial(rnn_step, nn.LSTM, packed=True, bidirectional=True, num_layers=2),
    "gru": partial(rnn_step, nn.GRU, num_layers=2),
    "gru-packed": partial(rnn_step, nn.GRU, packed=True),
    "rnn": partial(rnn_step, nn.RNN),
    "rnn-packed": partial(rnn_step, nn.RNN, packed=True, nonlinearity="relu"),
    "attention": partial(attention_step, False),
    "attention-weights": partial(attention_step, True),
    "encoder-layer": partial(encoder_layer_step, 0.0),
    "encoder-layer-dropout": partial(encoder_layer_step, 0.2),
    "sdpa-math": partial(sdpa_step, SDPBackend.MATH, causal=True),
    "sdpa-flash": partial(sdpa_step, SDPBackend.FLASH_ATTENTION, causal=False),
    "sdpa-flash-causal": partial(sdpa_step, SDPBackend.FLASH_ATTENTION, causal=True),
    "autocast-bf16": _autocast,
    "bfloat16": partial(_half, torch.bfloat16),
    "float16": partial(_half, torch.float16),
    "float64": partial(_half, torch.float64),
    "grad-scaler": _grad_scaler,
    "accumulation": _accumulation,
    "double-backward": _double_backward,
    "custom-function": _custom_function,
    "tied": _tied,
    "frozen": _frozen,
    "indexing": indexing_step,
    "losses": losses_step,
    "no-dims": no_dims_step,
    **{f"optimizer-{name}": partial(_optimizer, make) for name, make in _OPTIMIZERS.items()},
    **{f"hf-{m}-{a}": partial(transformers_step, m, a) for m in _MODELS for a in ("eager", "sdpa")},
    **{f"hf-{m}": partial(transformers_step, m, "eager") for m in ("mamba", "resnet", "convnext")},
}
