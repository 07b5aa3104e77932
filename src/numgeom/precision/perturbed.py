"""What does a small change of every result do to the gradient, in the step's own format?

A replay in float64 shows the error of a float32 step, and costs twice the step. Cheaper: replay
in float32, and change every result by noise that is `AMPLIFICATION` times as large as its rounding
error. The recorded gradients are the clean run. Their difference holds the noise and, because the
values are others, the roundings of both runs, whose squares add: it is divided by
sqrt(AMPLIFICATION^2 + 2). (Parker 1997 perturbs results likewise, with random rounding.)
"""

import math
import random
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.ops.entry import Kind
from numgeom.ops.kernel_errors import MEAN_SQUARE
from numgeom.ops.table import kind_of
from numgeom.precision.noisy import moves, op_name, traits
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter

# Large enough that the roundings of the two runs matter little, small enough that units cross
# their kinks about as often as in the real run.
AMPLIFICATION = 2.0
# What a difference of two runs is divided by.
PER_ERROR = math.sqrt(AMPLIFICATION**2 + 2.0)
_U = 2.0**-24
_SPARE = 1 << 16


def in_float32_alone(program: Program) -> bool:
    """Whether every floating-point result of a program is in float32."""
    dtypes = {
        meta.dtype for node in program.calls for meta in node.meta["tensors"].values()
        if meta.dtype.is_floating_point or meta.dtype.is_complex
    }  # fmt: skip
    return dtypes == {torch.float32}


class PerturbedReplay(ProgramInterpreter):
    """One run of a float32 program with amplified rounding errors.

    Args:
        program: A program in float32 alone.
        seed: Decides the noise.
    """

    def __init__(self, program: Program, *, seed: int) -> None:
        """Prepare a run."""
        super().__init__(program, dtype=None)
        self._pools: dict[torch.device, Tensor] = {}
        self._seed = seed
        largest = max(
            (math.prod(m.shape) for n in program.calls for m in n.meta["tensors"].values()),
            default=1,
        )
        self._length = largest + _SPARE
        self._random = random.Random(seed)

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run one call and change its results."""
        y = super().call(node, args, kwargs)
        if "call" not in node.meta or _is_exact(node):
            return y
        kernel = traits(node).kernel
        if isinstance(y, Tensor):
            return self._changed(y, kernel.inside(args, [y])[0]) if _is_float32(y) else y
        if not isinstance(y, (list, tuple)):
            return y
        parts = [p if _is_float32(p) else None for p in y]
        inside = kernel.inside(args, parts)
        return [
            p if x is None else self._changed(x, d)
            for p, x, d in zip(y, parts, inside, strict=True)
        ]

    def _changed(self, y: Tensor, deviation: Tensor | None) -> Tensor:
        """Rounding of the result, and what the kernel errs inside; deviation is consumed."""
        if not y.numel():
            return y
        found = torch.addcmul(y, y, self._noise(y), value=AMPLIFICATION * _U * _ROUNDING)
        if deviation is not None:
            found.addcmul_(deviation, self._noise(y), value=AMPLIFICATION * _U)
        if not math.isfinite(float(found.sum())):  # masks: infinities, and numbers next to them
            return torch.where(found.isfinite(), found, y)
        return found

    def _noise(self, like: Tensor) -> Tensor:
        """Noise of mean 0 and variance 1: a stretch of one pool, from a random place on."""
        pool = self._pools.get(like.device)
        if pool is None:
            generator = torch.Generator(like.device).manual_seed(self._seed)
            pool = torch.rand(self._length, generator=generator, device=like.device)
            pool = self._pools[like.device] = pool.sub_(0.5).mul_(math.sqrt(12.0))
        count = like.numel()
        start = self._random.randrange(self._length - count + 1)
        return pool[start : start + count].view(like.shape)


_ROUNDING = math.sqrt(MEAN_SQUARE)


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _is_exact(node: fx.Node) -> bool:
    """Whether a call only moves numbers of the format, or multiplies by a power of two."""
    name = op_name(node)
    if moves(node) or traits(node).moves is not None or kind_of(name) is Kind.EXACT:
        return True
    if name in ("mul", "div") and isinstance(node.args[1], (int, float)):
        return abs(math.frexp(node.args[1])[0]) == 0.5
    return False
