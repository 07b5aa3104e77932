"""Which random vectors are pushed through a program?

Vectors with independent entries, uniform on [-1, 1) but for the grid that they are drawn from: an
entry is an integer of 32 random bits times `GRAIN`, so that a uniform number less at most `GRAIN`
has its distribution.
"""

import numpy as np
import torch
from torch import Tensor

GRAIN = 2.0**-31


class Draws:
    """Random numbers for one purpose.

    Args:
        seed: The caller's.
        purpose: Equal seeds give independent numbers for different purposes.
    """

    def __init__(self, seed: int, purpose: int = 0) -> None:
        """Start; the numbers depend on seed and purpose, and on what was drawn before."""
        sequence = np.random.SeedSequence(abs(seed), spawn_key=(purpose, int(seed < 0)))
        self._bits = np.random.SFC64(sequence)

    def times(self, t: Tensor, count: int, like: Tensor, *, sums: int = 0) -> Tensor:
        """Random vectors w, entry by entry times t: float64, [count + sums, *shape].

        Args:
            t: What to multiply by, at least 0, in the shape of the vectors or broadcast to them;
                normal numbers or zeros.
            count: How many vectors.
            like: Their shape and device.
            sums: How often the sum of all w, times t, is returned behind them.
        """
        n = count * like.numel()
        found = torch.empty((count + sums, *like.shape), dtype=torch.float64, device=like.device)
        # numpy promises the same raw bits in all versions.
        words = self._bits.random_raw((n + 1) // 2).view(np.int32)[:n]
        found[:count] = torch.from_numpy(words).reshape(count, *like.shape)
        if sums:
            found[count:] = found[:count].sum(0)
        return found.mul_(t * GRAIN)
