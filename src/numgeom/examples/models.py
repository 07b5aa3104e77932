"""Which networks do the examples train?

Written out in public torch so that no model zoo is needed, with the defaults of torch for the
initial values unless a class says otherwise. Shapes: B samples, K classes, T tokens, C channels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """A chain of linear layers with one activation between them.

    Weights are Xavier uniform with the gain of the activation and biases are zero, so that the
    signal keeps its size through many layers (Glorot and Bengio 2010, eq. 16). Torch's own
    default would shrink it by sqrt(3) per layer.

    Args:
        sizes: Width of the input, of each hidden layer, and of the output.
        activation: What stands between two linear layers.
    """

    def __init__(self, sizes: Sequence[int], activation: Literal["relu", "tanh"] = "relu") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            if index > 0:
                layers.append(_ACTIVATIONS[activation]())
            linear = nn.Linear(fan_in, fan_out)
            nn.init.xavier_uniform_(linear.weight, gain=nn.init.calculate_gain(activation))
            nn.init.zeros_(linear.bias)
            layers.append(linear)
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [B, ...], flattened per sample, to logits [B, K]."""
        return self.layers(inputs.flatten(1))


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling, on 28x28 images with one channel.

    conv5 1-6, ReLU, pool2, conv5 6-16, ReLU, pool2, linear 256-120-84-K: 44,426 parameters for
    K = 10 without batch norm (after LeCun et al. 1998, whose units were tanh and average pools).

    Args:
        classes: Number K of logits.
        batch_norm: Put batch norm after each pool and after each hidden linear layer's ReLU.
    """

    def __init__(self, classes: int = 10, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(6) if batch_norm else nn.Identity(),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(16) if batch_norm else nn.Identity(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(256, 120),
            nn.ReLU(),
            nn.BatchNorm1d(120) if batch_norm else nn.Identity(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.BatchNorm1d(84) if batch_norm else nn.Identity(),
            nn.Linear(84, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 1, 28, 28] to logits [B, K]."""
        return self.classifier(self.features(images))


class VisionTransformer(nn.Module):
    """A small vision transformer with a class token (Dosovitskiy et al. 2021), without dropout.

    Args:
        image_size: Side of the square images, a multiple of `patch_size`.
        patch_size: Side of a patch, which becomes one token.
        classes: Number K of logits.
        in_channels: Channels of the images.
        width: Length of a token's vector, a multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads per block.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        classes: int = 10,
        *,
        in_channels: int = 1,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        patches = (image_size // patch_size) ** 2
        self.embed = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(VisionBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, side, side] to logits [B, K]."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, 0]))


class VisionBlock(nn.Module):
    """Attention of every token to every token, then a GELU network; each normalised before.

    Args:
        width: Length of a token's vector.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = _gelu_network(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T, width] to tokens [B, T, width]."""
        normed = self.norm_attention(tokens)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        tokens = tokens + attended
        return tokens + self.mlp(self.norm_mlp(tokens))


class GPT(nn.Module):
    """A decoder-only transformer over K symbols, shaped as GPT-2 (Radford et al. 2019).

    Weights are N(0, 0.02²); those that write to the residual stream are divided by
    sqrt(2 * depth) further, as there. No dropout.

    Args:
        symbols: Size K of the alphabet.
        context: Longest sequence.
        width: Length of a token's vector, a multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads per block.
        tied: Whether the output layer shares the embedding's weight (Press and Wolf 2017).
    """

    def __init__(
        self,
        symbols: int,
        context: int,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(CausalBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.project.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))

    def forward(self, symbols: Tensor) -> Tensor:
        """Map symbols [B, T] to logits [B, T, K] of the symbol that follows each."""
        positions = torch.arange(symbols.shape[1], device=symbols.device)
        tokens = self.embed(symbols) + self.positions(positions)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens))


class CausalBlock(nn.Module):
    """Attention of every token to itself and those before, then a GELU network.

    Args:
        width: Length of a token's vector.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = _gelu_network(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T, width] to tokens [B, T, width]."""
        tokens = tokens + self.attention(self.norm_attention(tokens))
        return tokens + self.mlp(self.norm_mlp(tokens))


class CausalAttention(nn.Module):
    """Multi-head attention with a causal mask, through `scaled_dot_product_attention`.

    Args:
        width: Length of a token's vector, a multiple of `heads`.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T, width] to tokens [B, T, width]."""
        split = self.query_key_value(tokens).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(attended.transpose(1, 2).flatten(2))


def _gelu_network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
