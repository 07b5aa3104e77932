"""Random small networks of every kind that certificates are for, from a seed."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from numgeom.recording import Program, record

_SMOOTH: list[Callable[[], nn.Module]] = [
    nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus,
    lambda: nn.GELU(approximate="tanh"),
]  # fmt: skip
_KINKED: list[Callable[[], nn.Module]] = [nn.ReLU, nn.LeakyReLU, nn.ELU]


class _Attention(nn.Module):
    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int, hidden: int) -> None:
        super().__init__()
        self.rnn = kind(width, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


def random_program(seed: int, dtype: torch.dtype = torch.float32) -> tuple[str, Program]:
    """Record one training step of a random network; returns a label and the program."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kind = rng.choice(["mlp", "mlp", "cnn", "batch-norm", "attention", "recurrent"])
    activation = rng.choice(_SMOOTH + _KINKED)
    batch, classes = rng.randint(1, 4), rng.randint(2, 4)
    scale = rng.choice([1.0, 1.0, 1e-3, 30.0])
    if kind == "mlp":
        sizes = [rng.randint(1, 6) for _ in range(rng.randint(1, 4))]
        x = torch.randn(batch, sizes[0])
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), activation()]
        model = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
    elif kind in ("cnn", "batch-norm"):
        channels, padding = rng.randint(1, 3), rng.randint(0, 1)
        x = torch.randn(max(2, batch), channels, 6, 6)
        convolution = nn.Conv2d(channels, 2, 3, padding=padding, stride=rng.randint(1, 2))
        middle = nn.BatchNorm2d(2) if kind == "batch-norm" else nn.Identity()
        pool = nn.MaxPool2d(2) if rng.random() < 0.5 else nn.AdaptiveAvgPool2d(1)
        body = nn.Sequential(convolution, middle, activation(), pool, nn.Flatten())
        model = nn.Sequential(body, nn.Linear(body(x).shape[1], classes))
        batch = len(x)
    elif kind == "attention":
        width = rng.choice([2, 4])
        x = torch.randn(batch, rng.randint(2, 4), width)
        model = nn.Sequential(
            _Attention(width, rng.random() < 0.5), activation(), nn.Flatten(),
            nn.Linear(width * x.shape[1], classes),
        )  # fmt: skip
    else:
        width, hidden = rng.randint(1, 3), rng.randint(1, 3)
        x = torch.randn(batch, rng.randint(1, 4), width)
        recurrent = _Recurrent(rng.choice([nn.LSTM, nn.GRU, nn.RNN]), width, hidden)
        model = nn.Sequential(recurrent, nn.Linear(hidden, classes))
    x, model = (x * scale).to(dtype), model.to(dtype)
    y = torch.randint(0, classes, (batch,))
    with record(model) as recording:
        logits = model(x)
        loss = F.cross_entropy(logits, y) if rng.random() < 0.7 else logits.square().mean()
        loss.backward()
    return f"{kind}, seed {seed}", recording.program
