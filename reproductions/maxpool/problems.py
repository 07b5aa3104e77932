"""On which networks and data does the max-pooling study run, at each scale?

A *problem* is a network of the study with its data. The data are the published ones where the
caller has them on disk, and else the digits of scikit-learn as a stand-in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.examples.data import Dataset, load_digits
from numgeom.examples.models import LeNet5
from numgeom.nonsmooth import NATIVE, Minimal, Selection
from reproductions.disk_data import load_from_disk
from reproductions.outcome import ReproductionError, Settings
from reproductions.vision_models import VGG, DenseNet121, ResNet18, kaiming_uniform_

FORMATS: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float32": torch.float32,
        "float64": torch.float64,
    }
)
"""The floating-point formats of the study, by name."""

POOL_PAIR = (NATIVE, Selection(maxpool=Minimal()))
"""Native against minimal max-pooling, the P and Q of Boustany (2024)."""

RELU_PAIR = (Selection(relu=0.0), Selection(relu=1.0))
"""ReLU'(0) = 0 against 1, the R0 and R1 of Boustany (2024)."""

_DISK_NAMES = {"MNIST": "mnist", "CIFAR10": "cifar10", "CIFAR100": "cifar100", "SVHN": "svhn"}
_SMALL_IMAGES = 2000  # of each part of a data set on disk, at the small scale
_SEED_STEP = 1_000_003  # points of neighbouring seeds share no initial values


@dataclass(frozen=True, eq=False)
class Problem:
    """A network and its data.

    Attributes:
        network: "LeNet-5", "VGG-11", ..., "ResNet-18", "DenseNet-121".
        data: Name of the published data set.
        dataset: The data that are used.
        stand_in: Whether they are not the published ones.
        width: Channels of the first stage; None: as published.
    """

    network: str
    data: str
    dataset: Dataset
    stand_in: bool
    width: int | None = None

    @property
    def label(self) -> str:
        """The network and its data, for a table."""
        narrow = "" if self.width is None else f" (width {self.width})"
        return f"{self.network}{narrow}, {'digits' if self.stand_in else self.data}"

    def model(
        self,
        number: int,
        *,
        seed: int = 0,
        batch_norm: bool = False,
        kaiming: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> nn.Module:
        """Make the network with initial values that `number` and `seed` alone decide.

        The values are drawn in float32 and rounded to `dtype`, so that formats start from the same
        point. With `kaiming` they are those of the volume experiments, else torch's defaults.
        """
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed * _SEED_STEP + number)
            channels = self.dataset.train[0].shape[1]
            model = _NETWORKS[self.network](
                self.dataset.classes, channels, self.width, batch_norm=batch_norm
            )
            if kaiming:
                kaiming_uniform_(model)
        return model.to(device=device, dtype=dtype)

    def batches(
        self, count: int | None, size: int, *, dtype: torch.dtype, device: str = "cpu"
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Cut the training data into mini-batches, in their order; `count` None: all of them."""
        images, labels = self.dataset.train
        if count is not None:
            images, labels = images[: count * size], labels[: count * size]
        return tuple(
            (x.to(device=device, dtype=dtype), y.to(device))
            for x, y in zip(images.split(size), labels.split(size), strict=True)
        )


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of a mini-batch; the paper sums, which is larger by the batch size."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def problem(network: str, data: str, settings: Settings, *, width: int | None = None) -> Problem:
    """Choose the data of a network.

    Args:
        network: A key of the networks above.
        data: The published data set: "MNIST", "CIFAR10", "CIFAR100" or "SVHN".
        settings: With a data folder the published data are read from it, else the digits stand in.
        width: Channels of the first stage at the small scale; the published width at the large.

    Raises:
        DataError: If the data folder does not hold the data set.
        ReproductionError: If there is no such network.
    """
    if network not in _NETWORKS:
        raise ReproductionError(
            f"There is no network {network!r}; known are {', '.join(_NETWORKS)}."
        )
    if settings.data is None:
        scale, padding = (3, 2) if network == "LeNet-5" else (4, 0)
        dataset = load_digits(scale=scale, padding=padding)
    else:
        limit = _SMALL_IMAGES if settings.is_small else None
        dataset = load_from_disk(_DISK_NAMES[data], settings.data, limit=limit)
    return Problem(
        network=network,
        data=data,
        dataset=dataset,
        stand_in=settings.data is None,
        width=width if settings.is_small else None,
    )


def standing(settings: Settings, *problems: Problem) -> tuple[str, ...]:
    """Sentences that say in what a result on these problems differs from the paper's."""
    notes = []
    stand_ins = sorted({each.data for each in problems if each.stand_in})
    if stand_ins:
        notes.append(
            f"Stand-in data: the digits of scikit-learn in place of {', '.join(stand_ins)}, so "
            "numbers are not the paper's. Name a folder with the published files by --data."
        )
    narrow = sorted({each.network for each in problems if each.width is not None})
    if narrow:
        notes.append(
            f"Small scale: {', '.join(narrow)} with fewer channels than published, and fewer "
            "initialisations, mini-batches and epochs."
        )
    elif settings.is_small:
        notes.append("Small scale: fewer initialisations, mini-batches and epochs.")
    return tuple(notes)


def _lenet(classes: int, channels: int, width: int | None, *, batch_norm: bool) -> nn.Module:
    if channels != 1 or width is not None:
        raise ReproductionError("LeNet-5 takes 28x28 images with one channel, in one width.")
    return LeNet5(classes, batch_norm=batch_norm)


def _vgg(
    classes: int, channels: int, width: int | None, *, depth: Any, batch_norm: bool
) -> nn.Module:
    return VGG(depth, classes, batch_norm=batch_norm, in_channels=channels, width=width or 64)


def _resnet(classes: int, channels: int, width: int | None, *, batch_norm: bool) -> nn.Module:
    return ResNet18(classes, batch_norm=batch_norm, in_channels=channels, width=width or 64)


def _densenet(classes: int, channels: int, width: int | None, *, batch_norm: bool) -> nn.Module:
    growth = 32 if width is None else max(1, width // 2)
    return DenseNet121(classes, batch_norm=batch_norm, in_channels=channels, growth=growth)


_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "LeNet-5": _lenet,
    **{f"VGG-{depth}": partial(_vgg, depth=depth) for depth in (11, 13, 16, 19)},
    "ResNet-18": _resnet,
    "DenseNet-121": _densenet,
}
