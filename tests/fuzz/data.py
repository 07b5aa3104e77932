"""Inputs of many sizes, with ties, zeros and repeated rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.fuzz.maker import Maker


def _scaled(low: float, high: float) -> Callable[[Maker, Tensor], Tensor]:
    """By a power of ten between two bounds."""
    return lambda make, x: x * 10.0 ** make.rng.uniform(low, high)


def _mixed(make: Maker, x: Tensor) -> Tensor:
    """Entries of very different sizes."""
    powers = torch.tensor([make.rng.uniform(-6, 2) for _ in range(x.numel())])
    return x * (10.0 ** powers.double()).reshape(x.shape)


def _ties(make: Maker, x: Tensor) -> Tensor:
    return (x * 1.5).round()


def _halves(make: Maker, x: Tensor) -> Tensor:
    """Few bits: many results are exact."""
    return (x * 8).round() / 4


def _zeros(make: Maker, x: Tensor) -> Tensor:
    return torch.where(make.mask(*x.shape), x, torch.zeros_like(x))


def _repeated(make: Maker, x: Tensor) -> Tensor:
    return x[:1].expand_as(x).clone()


def _offset(make: Maker, x: Tensor) -> Tensor:
    """Nearly equal numbers far from zero."""
    return x * 1e-3 + make.choice(1.0, 100.0, -7.0)


def _absorbed(make: Maker, x: Tensor) -> Tensor:
    """In each row one number, and others that are rounded away when they are added to it."""
    u = torch.finfo(make.dtype).eps / 2
    tiny = u * (0.8 + 0.2 * x.abs().clamp(max=1.0))
    return torch.cat([torch.ones_like(x[:, :1]), tiny[:, 1:]], 1) * make.choice(1.0, -2.0)


SCALES: dict[str, Callable[[Maker, Tensor], Tensor]] = {
    "unit": lambda make, x: x,
    "small": _scaled(-6, -1),
    "large": _scaled(0.5, 2),
    "tiny": _scaled(-30, -8),
    "huge": _scaled(3, 12),
    "least": _scaled(-310, -100),
    "greatest": _scaled(20, 150),
    "mixed": _mixed,
    "ties": _ties,
    "few bits": _halves,
    "zeros": _zeros,
    "repeated rows": _repeated,
    "offset": _offset,
    "absorbed": _absorbed,
}
# How often each is drawn; the extremes overflow soon, in most formats at once.
WEIGHTS = {"unit": 12, "small": 4, "large": 3, "tiny": 2, "huge": 1, "least": 1, "greatest": 1,
           "mixed": 2, "ties": 3, "few bits": 3, "zeros": 3, "repeated rows": 2,
           "offset": 2, "absorbed": 2}  # fmt: skip
