"""How are the errors of a program sampled at the least cost?

Three ways, each where it is valid:

- float32 alone: replays in float32 with amplified rounding errors, against the recorded gradients
  (`numgeom.precision.perturbed`);
- results or operands in narrower formats: noisy replays in float32, whose own roundings are small
  beside those;
- everything else, and whatever the first two cannot be trusted with: noisy replays in float64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.precision.noisy import NoisyReplay, Operands
from numgeom.precision.perturbed import PER_ERROR, PerturbedReplay, in_float32_alone
from numgeom.precision.recomputed import gradients_recomputed
from numgeom.precision.storage import Storage
from numgeom.recording import Program
from numgeom.results.accuracy import combined_norm, norm, relative

# Errors of float32 steps beyond this one are sampled again in float64: units changed sides, or
# tokens their expert, where the amplified noise has no meaning.
_LARGEST_PERTURBED = 1e-3
# Errors below this one, from narrower formats, may be those of the replay in float32 itself.
_SMALLEST_NARROW = 1e-5


@dataclass(frozen=True)
class Asked:
    """What the program is assumed to do otherwise than it did.

    Attributes:
        operands: Formats of operands that differ from the recorded ones.
        stored: What becomes of the values that the backward pass reads.
        recomputed: Whether the backward pass reads recomputed values.
    """

    operands: Operands | None = None
    stored: Storage | None = None
    recomputed: bool = False

    @property
    def nothing(self) -> bool:
        """Whether the program runs as it was recorded."""
        return self.operands is None and self.stored is None and not self.recomputed


@dataclass(frozen=True)
class Samples:
    """Absolute errors of every gradient, one per sample, by parameter; and the gradients' norms."""

    errors: Mapping[str, list[float]]
    sizes: Mapping[str, float]

    def totals(self) -> list[float]:
        """Errors of all gradients together, one per sample."""
        return [combined_norm(found) for found in zip(*self.errors.values(), strict=True)]

    def mean(self) -> float:
        """Root mean square of the total errors, relative; NaN where one is not finite."""
        totals = self.totals()
        size = combined_norm(self.sizes.values())
        return relative(math.sqrt(sum(e * e for e in totals) / max(len(totals), 1)), size)


def sampled(program: Program, asked: Asked, *, samples: int, seed: int) -> Samples:
    """Sample the errors of a program in the cheapest way that is valid."""
    seeds = range(seed, seed + samples)
    if asked.nothing and in_float32_alone(program):
        clean = program.recorded.gradients
        runs = [PerturbedReplay(program, seed=s).evaluate().gradients for s in seeds]
        found = _compared(clean, runs, PER_ERROR)
        if found.mean() <= _LARGEST_PERTURBED:
            return found
    elif not asked.recomputed and _is_narrow(program, asked):
        found = _noisy(program, asked, seeds, torch.float32)
        if found.mean() >= _SMALLEST_NARROW:
            return found
    return _noisy(program, asked, seeds, torch.float64)


def _is_narrow(program: Program, asked: Asked) -> bool:
    if asked.operands is not None or asked.stored is not None:
        return True
    metas = [m for node in program.calls for m in node.meta["tensors"].values()]
    return any(m.dtype.is_floating_point and m.dtype.itemsize < 4 for m in metas)


def _noisy(program: Program, asked: Asked, seeds: range, dtype: torch.dtype) -> Samples:
    clean = program.replay(dtype).gradients
    return _compared(clean, [_one(program, asked, s, dtype) for s in seeds], 1.0)


def _one(program: Program, asked: Asked, seed: int, dtype: torch.dtype) -> Mapping[str, Tensor]:
    if asked.recomputed:
        return gradients_recomputed(program, seed=seed, dtype=dtype)
    sample = NoisyReplay(
        program, seed=seed, operands=asked.operands, stored=asked.stored, dtype=dtype
    )
    return sample.evaluate().gradients


def _compared(
    clean: Mapping[str, Tensor], runs: Sequence[Mapping[str, Tensor]], per_error: float
) -> Samples:
    wide = {name: _plain(gradient) for name, gradient in clean.items()}
    errors = {n: [norm(_plain(run[n]) - g) / per_error for run in runs] for n, g in wide.items()}
    return Samples(errors, {name: norm(g) for name, g in wide.items()})


def _plain(gradient: Tensor) -> Tensor:
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
