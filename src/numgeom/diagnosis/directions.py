"""How does a large tensor get random numbers that are cheap and reproducible?"""

import torch
from torch import Tensor

# A prime, so that the numbers repeat themselves with no period that a layer has.
_PERIOD = 8191


def direction(like: Tensor, seed: int) -> Tensor:
    """Normal numbers of a tensor's shape in float64, repeated after 8191 entries."""
    generator = torch.Generator("cpu").manual_seed(seed)
    count = like.numel()
    row = torch.randn(min(count, _PERIOD), generator=generator, dtype=torch.float64)
    if count > _PERIOD:
        row = row.repeat(-(-count // _PERIOD))[:count]
    return row.to(like.device).reshape(like.shape)
