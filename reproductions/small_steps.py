"""Which small networks are certificates and bounds compared on?

One of every common kind, small enough for seconds on two cores: networks on 32 digits, and models
of transformers with random weights on a few tokens or on noise.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.examples.data import load_digits
from numgeom.examples.models import MLP, LeNet5
from numgeom.examples.recipes import Step
from reproductions.outcome import ReproductionError

_TRAINED = 30  # steps


class RowLSTM(nn.Module):
    """An LSTM that reads a digit row by row."""

    def __init__(self) -> None:
        """Set up 32 units and 10 classes."""
        super().__init__()
        self.rnn = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the last state."""
        # The fused kernel runs in bf16 on some processors only.
        with torch.backends.mkldnn.flags(enabled=False):
            return self.head(self.rnn(x.squeeze(1))[0][:, -1])


def train(step: Step) -> None:
    """Train a few steps of SGD on the one batch, with clipped gradients."""
    model, loss_fn, batch = step
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(_TRAINED):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    optimizer.zero_grad()


def _on_digits(make: Callable[[], nn.Module], size: int | None = None) -> Callable[[int], Step]:
    """A network on the digits, resized where it asks for it."""

    def step(seed: int) -> Step:
        torch.manual_seed(seed)
        x, y = (part[:32] for part in load_digits().train)
        x = x if size is None else F.interpolate(x, size=(size, size))
        return Step(make(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x, y))

    return step


def _transformers(kind: str, layers: int) -> Callable[[int], Step]:
    def step(seed: int) -> Step:
        try:
            import transformers as hf
        except ImportError as error:
            raise ReproductionError(
                f"The {kind} row needs transformers, which cannot be imported ({error}); install "
                "it with: pip install transformers"
            ) from error
        torch.manual_seed(seed)
        tokens = torch.randint(1, 40, (2, 16))
        image, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
        size: dict[str, Any] = {
            "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2,
            "intermediate_size": 64,
        }  # fmt: skip
        ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
        if kind == "gpt2":
            model: nn.Module = hf.GPT2LMHeadModel(
                hf.GPT2Config(
                    n_embd=32, n_layer=layers, n_head=2, vocab_size=40, n_positions=16, **ends
                )
            )
        elif kind == "llama":
            model = hf.LlamaForCausalLM(
                hf.LlamaConfig(**size, **ends, num_key_value_heads=1, vocab_size=40)
            )
        elif kind == "vit":
            model = hf.ViTForImageClassification(hf.ViTConfig(**size, image_size=32, patch_size=8))
        else:
            model = hf.ResNetForImageClassification(
                hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
            )
        model.train()
        if kind in ("gpt2", "llama"):
            return Step(model, _loss_of_text, (tokens, tokens))
        return Step(model, _loss_of_images, (image, labels))

    return step


def _loss_of_text(model: nn.Module, batch: Any) -> Tensor:
    return model(input_ids=batch[0], labels=batch[1]).loss


def _loss_of_images(model: nn.Module, batch: Any) -> Tensor:
    return model(pixel_values=batch[0], labels=batch[1]).loss


SMALL_STEPS: Mapping[str, Callable[[int], Step]] = {
    "MLP-Small": _on_digits(lambda: MLP((64, 256, 10), "relu")),
    "MLP-Deep": _on_digits(lambda: MLP((64, *(128,) * 8, 10), "tanh")),
    "MLP, 20 tanh layers": _on_digits(lambda: MLP((64, *(64,) * 20, 10), "tanh")),
    "LeNet": _on_digits(lambda: LeNet5(10), 28),
    "batch-norm CNN": _on_digits(lambda: LeNet5(10, batch_norm=True), 28),
    "LSTM": _on_digits(RowLSTM),
    "ResNet (transformers)": _transformers("resnet", 2),
    "ViT, 2 layers": _transformers("vit", 2),
    "GPT-2, 2 layers": _transformers("gpt2", 2),
    "GPT-2, 6 layers": _transformers("gpt2", 6),
    "GPT-2, 12 layers": _transformers("gpt2", 12),
    "Llama, 4 layers": _transformers("llama", 4),
}
"""By name: makes the step from a seed."""
