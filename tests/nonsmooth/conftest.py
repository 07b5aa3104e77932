"""Which data and network do the tests of nonsmooth differentiation share?"""

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from numgeom.examples.models import LeNet5

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def digits() -> Callable[..., Batch]:
    """Mini-batch q of the digits, as 28x28 images: nearest neighbours, threefold, padded by 2."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.pad(F.interpolate(images, scale_factor=3, mode="nearest"), (2, 2, 2, 2))
    labels = torch.tensor(data.target)

    def batch(q: int = 0, size: int = 128, dtype: torch.dtype = torch.float32) -> Batch:
        part = slice(q * size, (q + 1) * size)
        return images[part].to(dtype), labels[part]

    return batch


@pytest.fixture
def lenet() -> Callable[..., LeNet5]:
    def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> LeNet5:
        torch.manual_seed(seed)
        return LeNet5().to(dtype)

    return make
