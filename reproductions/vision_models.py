"""Which VGG, residual and densely connected networks does the max-pooling study train?

Written out in public torch, for 32x32 images by default; with the large stem and 1000 classes they
are the published ImageNet networks. Max-pooling stands in the stem. Shapes: B samples, K classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

VGGDepth = Literal[11, 13, 16, 19]

Stem = Literal["small", "large"]
"""What comes before the first block.

"small": a 3x3 convolution and a 2x2 max-pool with stride 2, for 32x32 images. "large": a 7x7
convolution with stride 2 and a 3x3 max-pool with stride 2, as published for ImageNet.
"""

# 3x3 convolutions before each of the five pools (Simonyan and Zisserman 2015, table 1).
_VGG_STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_DENSE_BLOCKS = (6, 12, 24, 16)  # Huang et al. 2017, table 1, DenseNet-121
_GROWTH = 32


class VGG(nn.Module):
    """VGG for 32x32 images: stages of 3x3 convolutions, each ending in a pool, then one Linear.

    The variant that is usual on CIFAR, in place of the three large linear layers of Simonyan and
    Zisserman (2015). VGG(11) has 9,225,610 parameters without batch norm.

    Args:
        depth: 11, 13, 16 or 19, counted as in the paper.
        classes: Number K of logits.
        batch_norm: Put batch norm between each convolution and its ReLU.
        in_channels: Channels of the images.
        width: Channels of the first stage; the stages have 1, 2, 4, 8 and 8 times as many.
    """

    def __init__(
        self,
        depth: VGGDepth,
        classes: int = 10,
        *,
        batch_norm: bool = False,
        in_channels: int = 3,
        width: int = 64,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for convolutions, multiple in zip(_VGG_STAGES[depth], (1, 2, 4, 8, 8), strict=True):
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, multiple * width, kernel_size=3, padding=1))
                channels = multiple * width
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                layers.append(nn.ReLU())
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, 32, 32] to logits [B, K]."""
        return self.classifier(self.features(images).flatten(1))


class ResNet18(nn.Module):
    """ResNet-18: four stages of two basic blocks (He et al. 2016, table 1).

    Parameters with batch norm: 11,173,962 with the small stem and 10 classes, 11,689,512 with the
    large stem and 1000.

    Args:
        classes: Number K of logits.
        batch_norm: Put batch norm behind each convolution; without it there is nothing there.
        in_channels: Channels of the images.
        width: Channels of the first stage; each stage has twice as many as the one before.
        stem: What comes before the first block.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        batch_norm: bool = True,
        in_channels: int = 3,
        width: int = 64,
        stem: Stem = "small",
    ) -> None:
        super().__init__()
        self.stem = _stem(in_channels, width, stem, batch_norm=batch_norm)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(4):
            for block in range(2):
                wide = width * 2**stage
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_BasicBlock(channels, wide, stride, batch_norm=batch_norm))
                channels = wide
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, side, side] to logits [B, K]."""
        return self.classifier(self.blocks(self.stem(images)).mean(dim=(2, 3)))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, wide: int, stride: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, wide, 3, stride=stride, padding=1, bias=False),
            _norm(wide, batch_norm),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            _norm(wide, batch_norm),
        )
        same = channels == wide and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(channels, wide, 1, stride=stride, bias=False), _norm(wide, batch_norm)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class DenseNet121(nn.Module):
    """DenseNet-121: dense blocks of 6, 12, 24 and 16 layers (Huang et al. 2017, table 1).

    Parameters with batch norm: 6,956,426 with the small stem and 10 classes, 7,978,856 with the
    large stem and 1000.

    Args:
        classes: Number K of logits.
        batch_norm: Put batch norm before each activation; without it there is nothing there.
        in_channels: Channels of the images.
        growth: Channels that each layer adds; the stem has twice as many.
        stem: What comes before the first block.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        batch_norm: bool = True,
        in_channels: int = 3,
        growth: int = _GROWTH,
        stem: Stem = "small",
    ) -> None:
        super().__init__()
        channels = 2 * growth
        parts: list[nn.Module] = [_stem(in_channels, channels, stem, batch_norm=batch_norm)]
        for index, layers in enumerate(_DENSE_BLOCKS):
            for _ in range(layers):
                parts.append(_DenseLayer(channels, growth, batch_norm=batch_norm))
                channels += growth
            if index < len(_DENSE_BLOCKS) - 1:
                parts += [
                    _norm(channels, batch_norm),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels // 2, 1, bias=False),
                    nn.AvgPool2d(2),
                ]
                channels //= 2
        self.features = nn.Sequential(*parts, _norm(channels, batch_norm), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, side, side] to logits [B, K]."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


class _DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution whose result is appended to the input's channels."""

    def __init__(self, channels: int, growth: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.new = nn.Sequential(
            _norm(channels, batch_norm),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            _norm(4 * growth, batch_norm),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.new(x)], dim=1)


def kaiming_uniform_(model: nn.Module) -> nn.Module:
    """Draw new initial values in place: the initialisation of the volume experiments.

    Convolutions are uniform with the gain of ReLU over the fan-in (He et al. 2015, eq. 10), linear
    layers N(0, 0.01²), biases zero; norms are left as they are. Returns the model.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def _stem(in_channels: int, channels: int, kind: Stem, *, batch_norm: bool) -> nn.Sequential:
    side, stride, pool = {"small": (3, 1, 2), "large": (7, 2, 3)}[kind]
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, side, stride=stride, padding=side // 2, bias=False),
        _norm(channels, batch_norm),
        nn.ReLU(),
        nn.MaxPool2d(pool, stride=2, padding=(pool - 1) // 2),
    )


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
