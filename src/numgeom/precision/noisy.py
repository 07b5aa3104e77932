"""What does a step give when every operation rounds as its format does?

Monte Carlo arithmetic (Parker 1997) on a recorded program: it runs in float64, and every call's
result is rounded to the format that the call ran in. Rounding a result is known and done; the
errors that a kernel makes inside are unknown and drawn (`numgeom.ops.kernel_errors`). So casts,
underflow, overflow and units that change sides at a kink all happen as they would in the real run.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.formats import Format, format_of
from numgeom.ops.kernel_errors import MEAN_SQUARE
from numgeom.ops.table import traits_of
from numgeom.ops.traits import Traits
from numgeom.precision.rounding import round_operand
from numgeom.precision.storage import Storage, stored_values
from numgeom.recording import Program
from numgeom.recording.program import OnCall
from numgeom.recording.replay import ProgramInterpreter

Operands = Callable[[fx.Node], Format | None]
"""Tells to which format the operands of a call are rounded first; None: they stay as they are."""


def op_name(node: fx.Node) -> str:
    """The name of a call's op, without namespace and overload: "mm" of aten.mm.default."""
    return _name(node.target)


def traits(node: fx.Node) -> Traits:
    """What a call's op does with its arguments."""
    return traits_of(op_name(node))


def moves(node: fx.Node) -> bool:
    """Whether a call's results are entries of what went in: numbers of the format already."""
    return traits(node).never_rounds


@functools.cache
def _name(target: Any) -> str:
    return str(target).partition(".")[2].partition(".")[0] or str(target)


class NoisyReplay(ProgramInterpreter):
    """One sample of what a program gives in finite precision.

    After `evaluate`, `local` holds what rounding and kernels added at each call, by call and path
    of the output, where `keep_local` was asked for: computed result minus the result over the
    reals for the operands that the call really got.

    Args:
        program: A program as it was recorded; one that `decompose` opened knows no formats.
        seed: Decides the errors inside the kernels.
        operands: Formats of operands that differ from the recorded ones.
        stored: What becomes of the values that the backward pass reads.
        keep_local: Whether to keep the local errors.
        on_call: Called with every node and its value.
        dtype: float64, or float32 where only the roundings of narrower formats matter.
    """

    def __init__(
        self,
        program: Program,
        *,
        seed: int,
        operands: Operands | None = None,
        stored: Storage | None = None,
        keep_local: bool = False,
        on_call: OnCall | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Prepare a sample."""
        super().__init__(program, dtype=dtype, on_call=on_call)
        self._operands = operands
        self._stored = stored
        self._activations = frozenset[fx.Node]() if stored is None else stored_values(program)
        self._keep = keep_local
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self.local: dict[fx.Node, dict[tuple[int, ...], Tensor]] = {}

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run one call, then err as its kernel would."""
        if node.target is operator.getitem:
            return super().call(node, args, kwargs)
        taken = self._taken(node, args)
        y = super().call(node, taken, kwargs)
        if taken is args or not self._keep:
            return self._perturbed(node, taken, y, y)
        return self._perturbed(node, taken, y, super().call(node, args, kwargs))

    def _taken(self, node: fx.Node, args: Any) -> Any:
        """The operands as the call takes them in."""
        taken = args
        if self._reads_stored(node):
            stored: Any = self._stored
            taken = tuple(
                stored(a) if isinstance(n, fx.Node) and n in self._activations else a
                for n, a in zip(node.args, args, strict=True)
            )
        fmt = None if self._operands is None else self._operands(node)
        return taken if fmt is None else tuple(round_operand(a, fmt) for a in taken)

    def _reads_stored(self, node: fx.Node) -> bool:
        return (
            bool(self._activations)
            and node.meta["call"].phase == "backward"
            and not self._activations.isdisjoint(node.all_input_nodes)
        )

    def _perturbed(self, node: fx.Node, args: Any, y: Any, exact: Any) -> Any:
        metas = node.meta["tensors"]
        moving = moves(node)
        if isinstance(y, Tensor):
            return self._one(node, args, y, exact, metas) if not moving or exact is not y else y
        if moving or not isinstance(y, (list, tuple)):
            return y
        parts = [p if _is_real(p) else None for p in y]
        widest = max((m.dtype.itemsize for m in metas.values()), default=0)
        skip = self.dtype is torch.float32 and widest >= 4
        deviations = [None] * len(y) if skip else traits(node).kernel.inside(args, parts)
        found = []
        for i, part in enumerate(y):
            meta = metas.get((i,))
            if not _is_real(part) or meta is None:
                found.append(part)
            else:
                found.append(self._rounded(node, (i,), part, exact[i], meta.dtype, deviations[i]))
        return found

    def _one(self, node: fx.Node, args: Any, y: Tensor, exact: Tensor, metas: Any) -> Tensor:
        meta = metas.get(())
        if not _is_real(y) or meta is None:
            return y
        narrow = meta.dtype.itemsize < 4
        kernel = traits(node).kernel
        plain = (narrow and not kernel.low) or meta.dtype.itemsize >= y.dtype.itemsize
        deviations = [None] if plain else kernel.inside(args, [y])
        return self._rounded(node, (), y, exact, meta.dtype, deviations[0])

    def _rounded(
        self,
        node: fx.Node,
        path: tuple[int, ...],
        y: Tensor,
        exact: Tensor,
        dtype: torch.dtype,
        deviation: Tensor | None,
    ) -> Tensor:
        if not dtype.is_floating_point or dtype.itemsize >= y.dtype.itemsize:
            if self._keep and exact is not y:
                self.local.setdefault(node, {})[path] = difference(y, exact)
            return y
        found = y
        u = format_of(dtype).unit_roundoff
        if dtype.itemsize < 4:  # such kernels compute in float32
            u = 2.0**-24
            deviation = None if y.dtype is torch.float32 else deviation
            found = self._kept_in_16_bits(node, path, found, format_of(dtype).unit_roundoff)
        if deviation is not None:
            found = found + self._noise(deviation.mul_(u).expand_as(y))
        found = found.to(dtype).to(y.dtype)
        if self._keep:
            self.local.setdefault(node, {})[path] = difference(found, exact)
        return found

    def _kept_in_16_bits(self, node: fx.Node, path: tuple[int, ...], y: Tensor, u: float) -> Tensor:
        low = traits(node).kernel.low
        factor = low[min(path[0] if path else 0, len(low) - 1)] if low else 0.0
        if not factor or not y.numel():
            return y
        size = y.pow(2).mean(-1, keepdim=True).sqrt() if y.dim() else y.abs()
        deviation = size.mul_(factor * u * math.sqrt(MEAN_SQUARE))
        return y + self._noise(deviation.expand_as(y))

    def _noise(self, deviation: Tensor) -> Tensor:
        """Uniform noise of mean 0 with the given standard deviation, float32.

        Every byte that the generator gives makes one number: 256 levels are enough here, and
        torch's own uniform numbers would take most of the time of a noisy replay.
        """
        generator = self._generators.get(deviation.device)
        if generator is None:
            generator = torch.Generator(deviation.device).manual_seed(self._seed)
            self._generators[deviation.device] = generator
        count = deviation.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64, device=deviation.device)
        levels = words.random_(-(2**63), None, generator=generator).view(torch.int8)[:count]
        noise = levels.to(torch.float32).add_(0.5).mul_(_LEVEL)
        return noise.view(deviation.shape).mul_(deviation)


# -127.5, -126.5, ..., 127.5 times this have the mean square 1.
_LEVEL = math.sqrt(12.0 / (256.0**2 - 1.0))


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Subtract b from a; equal entries differ by nothing, infinities (masks) and NaN included."""
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, a - b)


def gradients_of(
    program: Program, *, seed: int, operands: Operands | None = None
) -> Mapping[str, Tensor]:
    """One sample of the gradients in finite precision, float64 tensors by parameter."""
    return NoisyReplay(program, seed=seed, operands=operands).evaluate().gradients
