"""Which error does an assignment of formats to modules add to a recorded step?

Errors are measured by replays of the step with the formats emulated: kinks, underflow and overflow
are in them (`numgeom.precision.emulation`). A number that overflows forbids its format, whatever
the gradient looks like afterwards.

Where a network has kinks, one unit on the other side can make a hundred times the usual error, and
a single replay may miss it. Then the same step with slightly other parameters is measured too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from numgeom.arithmetic.formats import FORMATS, float32
from numgeom.precision.emulation import EmulatedReplay
from numgeom.precision.sources import is_kinked
from numgeom.recording import Program
from numgeom.results.accuracy import combined_norm, norm, relative

# How often a step with kinks is measured with other parameters, and by how much they differ.
VARIANTS = 6
_JITTER = 2.0**-6
# Formats whose smallest numbers are far larger than those of float32.
_SHORT = frozenset(fmt.name for fmt in FORMATS if fmt.min_exponent > float32.min_exponent)


@dataclass
class Measurer:
    """Measures assignments on recorded steps, each one once.

    Attributes:
        programs: The recorded steps, one per batch.
        base: Relative error of the step as it was recorded.
        loss_scale: For float16.
        variants: The first step with other parameters; empty where it has no kinks.
        underflow: By module and format, the share of the nonzero numbers of the first step that
            the format made zero; of what was measured, formats with float32's range left out.
    """

    programs: Sequence[Program]
    base: float
    loss_scale: float
    variants: Sequence[Program] = ()
    underflow: dict[str, dict[str, float]] = field(default_factory=dict)
    _known: dict[tuple[int, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def error(self, formats: Mapping[str, str], *, varied: bool = True) -> float:
        """Relative error that the narrow formats add: root mean square over the steps."""
        steps = [*self.programs, *self.variants] if varied else self.programs
        found = [self._one(program, formats) for program in steps]
        return math.sqrt(sum(e * e for e in found) / len(found))

    def worst(self, formats: Mapping[str, str]) -> float:
        """The largest error over the variants and the mean over the steps, with the base error."""
        found = [self._one(program, formats) for program in self.variants]
        return math.hypot(self.base, max([self.error(formats, varied=False), *found]))

    def keeps(self, formats: Mapping[str, str], limit: float) -> bool:
        """Whether `worst` is at most the limit; stops at the first step that is beyond it."""
        if math.hypot(self.base, self.error(formats, varied=False)) > limit:
            return False
        return all(math.hypot(self.base, self._one(v, formats)) <= limit for v in self.variants)

    def _one(self, program: Program, formats: Mapping[str, str]) -> float:
        if all(f == "float32" for f in formats.values()):
            return 0.0
        key = (id(program), frozenset(formats.items()))
        if key not in self._known:
            self._known[key] = self._replayed(program, formats)
        return self._known[key]

    def _replayed(self, program: Program, formats: Mapping[str, str]) -> float:
        new = [
            m for m, f in formats.items()
            if f in _SHORT and f not in self.underflow.get(m, ())
        ]  # fmt: skip
        counts = program is self.programs[0] and bool(new)
        clean: Mapping[str, Tensor] = program.recorded.gradients
        replay = EmulatedReplay(program, formats, loss_scale=self.loss_scale, counts=counts)
        found = replay.evaluate().gradients
        if counts:
            for module in new:
                zeros, values = replay.underflow.get(module, (0, 0))
                self.underflow.setdefault(module, {})[formats[module]] = zeros / max(values, 1)
        if replay.overflowed:
            return math.inf
        error = relative(
            combined_norm(norm(found[n] - g) for n, g in clean.items()),
            combined_norm(norm(g) for g in clean.values()),
        )
        return error if math.isfinite(error) else math.inf


def varied(program: Program) -> list[Program]:
    """The same step with slightly other parameters, several times; none without kinks."""
    if not any(is_kinked(node) for node in program.calls):
        return []
    names = {
        str(n.target)
        for n in program.graph.nodes
        if n.op == "get_attr" and n.meta["role"] == "parameter"
    }
    found = []
    for seed in range(VARIANTS):
        generator = torch.Generator().manual_seed(seed)
        constants = dict(program.constants)
        for name in sorted(names):
            p = constants[name]
            if p.is_floating_point():
                noise = torch.randn(p.shape, generator=generator).to(p)
                constants[name] = p.detach() * (1.0 + _JITTER * noise)
        changed = replace(program, constants=constants)
        found.append(replace(changed, recorded=changed.replay(None)))
    return found
