"""Training steps of recurrent layers and attention."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Step = Callable[[], Any]


def classify(model: nn.Module, x: Tensor, classes: int = 5) -> Step:
    """A step with cross-entropy against random labels."""
    y = torch.randint(0, classes, (len(x),))

    def step() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return step


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], packed: bool, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 7, batch_first=True, **options)
        self.head = nn.Linear(7 * (2 if options.get("bidirectional") else 1), 5)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            lengths = torch.tensor([5, 4, 2])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            out, _ = self.rnn(packed)
            out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        else:
            out, _ = self.rnn(x)
        return self.head(out.mean(1))


def rnn_step(kind: type[nn.RNNBase], *, packed: bool = False, **options: Any) -> Any:
    model = Recurrent(kind, packed, **options)
    return model, classify(model, torch.randn(3, 5, 6))


def attention_step(weights: bool) -> tuple[nn.Module, Step]:
    model = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1 if weights else 0.0)
    x = torch.randn(2, 6, 8)

    def step() -> None:
        out, found = model(x, x, x, need_weights=weights)
        loss = out.square().mean() + (found.square().mean() if weights else 0)
        loss.backward()

    return model, step


def encoder_layer_step(dropout: float) -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True),
        nn.Flatten(),
        nn.Linear(48, 5),
    )
    return model, classify(model, torch.randn(3, 6, 8))


def sdpa_step(backend: SDPBackend, *, causal: bool) -> tuple[nn.Module, Step]:
    model = nn.Linear(8, 24)
    x = torch.randn(2, 6, 8)

    def step() -> None:
        q, k, v = model(x).view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out.pow(2).sum().backward()

    return model, step
