"""Which entry describes an ATen op, and which ops have none?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

from torch._ops import OpOverload

from numgeom.errors import NumgeomError
from numgeom.ops.averaging import AVERAGING
from numgeom.ops.casting import CASTING
from numgeom.ops.choice import CHOICE
from numgeom.ops.composites import COMPOSITES
from numgeom.ops.contraction import CONTRACTION
from numgeom.ops.convolution import CONVOLUTION
from numgeom.ops.counting import COUNTING
from numgeom.ops.distances import DISTANCES
from numgeom.ops.elementwise_activations import ACTIVATIONS
from numgeom.ops.elementwise_arithmetic import ARITHMETIC
from numgeom.ops.elementwise_choices import CHOICES
from numgeom.ops.elementwise_compound import COMPOUND
from numgeom.ops.elementwise_decisions import DECISIONS
from numgeom.ops.elementwise_division import DIVISION
from numgeom.ops.elementwise_gates import GATES
from numgeom.ops.elementwise_pairs import PAIRS
from numgeom.ops.elementwise_smooth import SMOOTH
from numgeom.ops.elementwise_steps import STEP_OPS
from numgeom.ops.entry import Kind, Op
from numgeom.ops.exact import EXACT
from numgeom.ops.factories import FACTORIES
from numgeom.ops.indexing import INDEXING
from numgeom.ops.interpolation import INTERPOLATION
from numgeom.ops.kinks import Kinks
from numgeom.ops.logic import LOGIC
from numgeom.ops.masking import MASKING
from numgeom.ops.moments import MOMENTS
from numgeom.ops.pooling import POOLING
from numgeom.ops.products import PRODUCTS
from numgeom.ops.randomness import RANDOM
from numgeom.ops.reduction import REDUCTION
from numgeom.ops.running_logs import RUNNING_LOGS
from numgeom.ops.scatter import SCATTER
from numgeom.ops.traits import NO_TRAITS, Traits
from numgeom.ops.vector_norms import VECTOR_NORMS
from numgeom.recording.variants import functional_variant


class OpTableError(NumgeomError):
    """A table of ops was put together wrongly."""


@dataclass(frozen=True, eq=False)
class OpTable:
    """The entries that an analysis may use; an op without entry is unknown, never exact.

    Attributes:
        ops: One entry per functional op, in the order in which they were given.
    """

    ops: tuple[Op, ...]

    def __post_init__(self) -> None:
        """Refuse two entries of one name."""
        names = [op.name for op in self.ops]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise OpTableError(
                f"Two entries describe the same op: {', '.join(twice)}. One entry in one place: "
                "remove one of them, or build a table without the one you replace: "
                "OpTable((*(op for op in OPS if op.name not in mine), *my_ops))."
            )

    def lookup(self, op: OpOverload) -> Op | None:
        """The entry for an op, or None; in-place and `out=` variants share the functional's."""
        return self._by_name.get(functional_name(op))

    def named(self, name: str) -> Op | None:
        """The entry of a functional name ("add"; "namespace::name" outside of ATen), or None."""
        return self._by_name.get(name)

    def extend(self, *ops: Op) -> "OpTable":
        """A table with further entries; this one stays as it is.

        Raises:
            OpTableError: if an op has an entry already.
        """
        return OpTable((*self.ops, *ops))

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.ops)

    def __iter__(self) -> Iterator[Op]:
        """The entries, in order."""
        return iter(self.ops)

    @cached_property
    def _by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}


@cache
def functional_name(op: OpOverload) -> str:
    """Name of the functional op that computes what `op` does: "add" for `aten.add_.Tensor`.

    Overloads share a name. Ops outside of ATen keep their namespace: "mylib::scale".
    """
    if op._schema.is_mutable:
        variant = functional_variant(op)
        if variant is not None:
            op = variant.op
    namespace, _, name = op._schema.name.partition("::")
    return name if namespace == "aten" else f"{namespace}::{name}"


OPS = OpTable(
    (
        *ARITHMETIC,
        *DIVISION,
        *COMPOUND,
        *STEP_OPS,
        *DECISIONS,
        *CHOICES,
        *SMOOTH,
        *ACTIVATIONS,
        *GATES,
        *PAIRS,
        *EXACT,
        *FACTORIES,
        *CASTING,
        *MASKING,
        *INDEXING,
        *CONTRACTION,
        *CONVOLUTION,
        *REDUCTION,
        *COUNTING,
        *RUNNING_LOGS,
        *MOMENTS,
        *VECTOR_NORMS,
        *CHOICE,
        *RANDOM,
        *INTERPOLATION,
        *DISTANCES,
        *SCATTER,
        *PRODUCTS,
        *POOLING,
        *LOGIC,
        *AVERAGING,
    )
)

_COMPOSITES = {composite.name: composite for composite in COMPOSITES}


@cache
def traits_of(name: str) -> Traits:
    """What an op does, by its functional name; of an op that is not known, nothing is said."""
    entry = OPS.named(name)
    if entry is None:
        composite = _COMPOSITES.get(name)
        return NO_TRAITS if composite is None else composite.traits
    if entry.kind is Kind.ELEMENTWISE:
        return replace(entry.traits, entrywise=True)
    return entry.traits


def kinks_of(name: str) -> Kinks | None:
    """Where an op has no derivative, by its functional name; None: it is not known."""
    known = OPS.named(name) or _COMPOSITES.get(name)
    return None if known is None else known.kinks


def kind_of(name: str) -> Kind | None:
    """The structural class of an op that has an entry, by its functional name."""
    entry = OPS.named(name)
    return None if entry is None else entry.kind
