"""Which random vectors are pushed through a program?

Vectors with independent entries, uniform on [-1, 1) but for the grid that they are drawn from: an
entry is an integer of 32 random bits times `GRAIN`, so that a uniform number less at most `GRAIN`
has its distribution.
"""

import numpy as np
import torch
from torch import Tensor

GRAIN = 2.0**-31
_TOGETHER = 2**15  # numbers that are drawn at once


class Draws:
    """Random numbers for one purpose.

    Args:
        seed: The caller's.
        purpose: Equal seeds give independent numbers for different purposes.
        branch: And for different branches of one purpose.
    """

    def __init__(self, seed: int, purpose: int = 0, *, branch: int = 0) -> None:
        """Start; the numbers depend on seed and purpose, and on what was drawn before."""
        key = (purpose, int(seed < 0)) if branch == 0 else (purpose, int(seed < 0), branch)
        self._seed, self._purpose = seed, purpose
        self._bits = np.random.SFC64(np.random.SeedSequence(abs(seed), spawn_key=key))

    def branch(self, number: int) -> "Draws":
        """Further numbers, independent of these, which can be drawn again."""
        return Draws(self._seed, self._purpose, branch=number)

    def times(self, t: Tensor, count: int, like: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Random vectors w, entry by entry times t: float64, [count, *shape].

        Args:
            t: What to multiply by, at least 0, in the shape of the vectors or broadcast to them;
                normal numbers or zeros.
            count: How many vectors.
            like: Their shape and device.
            out: Where to write them; by default in memory of their own.
        """
        found = out
        if found is None:
            shape = (count, *like.shape)
            found = torch.empty(shape, dtype=torch.float64, device=like.device)
        scale = t * GRAIN
        varies = scale.dim() == found.dim()
        lanes = self._together(like.numel())
        for start in range(0, count, lanes):
            some = slice(start, min(start + lanes, count))
            self._fill(found[some]).mul_(scale[some] if varies else scale)
        return found

    def add(self, t: Tensor, out: Tensor) -> None:
        """Add random vectors, entry by entry times t, to some vectors.

        They are those that `times` would give for as many vectors.

        Args:
            t: As for `times`, in the shape of the vectors.
            out: What to add to: float64, [count, *shape].
        """
        scale = t * GRAIN
        lanes = self._together(scale.numel())
        room = torch.empty((min(lanes, len(out)), *scale.shape), dtype=out.dtype, device=out.device)
        for start in range(0, len(out), lanes):
            part = out[start : start + lanes]
            part.add_(self._fill(room[: len(part)]).mul_(scale))

    def _fill(self, out: Tensor) -> Tensor:
        """Write random words of 32 bits, as integers."""
        n = out.numel()
        # numpy promises the same raw bits in all versions.
        words = self._bits.random_raw((n + 1) // 2).view(np.int32)[:n]
        return out.copy_(torch.from_numpy(words).view(out.shape))

    @staticmethod
    def _together(n: int) -> int:
        """How many vectors of n entries are drawn at once: they stay in the processor's cache."""
        return max(1, _TOGETHER // max(1, n))
