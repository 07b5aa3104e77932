"""What does the package know about one ATen op, and how is it asked?

Notation of this folder: a call computes `y = f(x_1, ..., x_n)`. The inputs that a run really used
are the midpoints `x`; the exact inputs are `x + e` with |e| <= r entry by entry, r the radius. All
bounds are float64, rounded outward (`numgeom.arithmetic.rounding`), nonnegative, and infinite where
nothing is known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor

from numgeom.ops.kinks import Kinks
from numgeom.ops.traits import NO_TRAITS, Traits

Bound = Tensor | None  # None: exactly zero everywhere


class Kind(Enum):
    """The structural class of an op."""

    EXACT = "exact"  # moves, copies, fills or negates entries; computes none
    CAST = "cast"  # changes the format; the identity over the reals
    ELEMENTWISE = "elementwise"  # an entry of y depends on one entry of each x
    CONTRACTION = "contraction"  # sums of products of two inputs
    REDUCTION = "reduction"  # sums over entries of one input
    SELECTION = "selection"  # chooses among entries by their values
    RANDOM = "random"  # draws; its output is a constant of the program
    DECOMPOSED = "decomposed"  # opened into ops that have rules
    REFUSED = "refused"  # known not to be supported


@dataclass(frozen=True)
class Evaluation:
    """One call as it was evaluated in float64, with what is known of its inputs' errors.

    Attributes:
        name: Functional name of the op, without overload: "add".
        args: Arguments in the order of the schema; tensors are midpoints (float64) or decisions
            (integers, booleans).
        kwargs: Arguments by name.
        y: What the call returned: a tensor, or a tuple or list of them.
        radii: Radius of each tensor argument, by its position in `args` (or its name in `kwargs`);
            for a list of tensors a list. Missing or None: exact.
        doubts: For arguments that are decisions, a boolean mask, by position: True where the exact
            decision may be another one. Missing or None: all are certain.
        labels: For tensor arguments, integers, by position: two entries of one argument with equal
            labels have equal exact values. Missing: nothing is known of ties.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    y: Any
    radii: Mapping[int | str, Any] = field(default_factory=dict)
    doubts: Mapping[int | str, Any] = field(default_factory=dict)
    labels: Mapping[int | str, Any] = field(default_factory=dict)

    def arg(self, position: int, name: str = "", default: Any = None) -> Any:
        """An argument, given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def radius(self, position: int | str) -> Any:
        """Radius of an argument; None where it is exact."""
        return self.radii.get(position)

    def doubt(self, position: int | str) -> Any:
        """Mask of an argument's doubtful decisions; None where all are certain."""
        return self.doubts.get(position)


@dataclass(frozen=True)
class Example:
    """Arguments on which the laws are tried; `make(generator)` returns (args, kwargs)."""

    make: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]
    label: str = ""


Fact = Callable[[Evaluation], Any]


@dataclass(frozen=True)
class Op:
    """The facts about one op. Every fact is a function of an `Evaluation`, or None.

    A fact that is None is zero for every call: nothing rounds, nothing moves, f is linear, no
    decision is ever in doubt. For an op with several outputs a fact returns a tuple, one item per
    output, or None. The drivers ask through `rounding_of` and its kin, and only calls that
    `applies_to` admits.

    Attributes:
        name: Functional name without namespace and overload; all overloads share the entry.
        kind: The structural class.
        rounding: |fl(f(x)) - f(x)| entry by entry, for float64 inputs and evaluation; None: exact.
        spread: |f(x + e) - f(x)| for all |e| <= r: how far errors of the inputs move y. Without
            rounding. Handles doubtful decisions (`doubts`).
        second_order: |f(x + e) - f(x) - f'(x) e| for all |e| <= r; None: f is linear. Where a kink
            may be crossed it need not hold: `doubt` says where.
        multiplicity: Least m with ||R|| <= m * max(Q / (r_a r_b)) * ||e_a|| * ||e_b||, where Q is
            the second-order bound: in how many sums one product of errors may be counted, as a
            factor in the 2-norm. 1 for elementwise ops and matrix products.
        doubt: Mask over the entries of y (or of the decision that the op makes) where the branch
            taken may be another one for some |e| <= r; None: never. For y a decision this is the
            doubt about it.
        kinks: Where f has no derivative; "none" is a statement.
        domain: Where f is defined over the reals.
        source: Where the constants come from.
        examples: What the laws are tried on.
        traits: What the op does with its arguments, apart from how it rounds.
        complex_too: Whether the facts hold for complex entries, of which nothing but "certain" or
            "in doubt" is ever known. Without it a call with complex entries has no rule.
        tangent: How small changes of the inputs pass, to first order, and what is rounded on the
            way: gets the call and its inputs' tangents (`numgeom.ops.tangents`). None: there is no
            rule of ours, and no certificate by linearisation of a program where one is needed.
    """

    name: str
    kind: Kind
    rounding: Fact | None
    spread: Fact | None
    second_order: Fact | None
    doubt: Fact | None
    kinks: Kinks
    source: str
    examples: tuple[Example, ...] = ()
    domain: str = "the reals"
    multiplicity: Callable[[Evaluation], float] = lambda call: 1.0
    complex_too: bool = False
    traits: Traits = NO_TRAITS
    tangent: Callable[[Evaluation, Mapping[int | str, Any]], Any] | None = None

    def applies_to(self, call: Evaluation) -> bool:
        """Whether the facts hold for this call; if not, the call has no rule."""
        return self.complex_too or not _is_complex((call.y, call.args, call.kwargs))

    def with_traits(self, **more: Any) -> "Op":
        """The same entry, with further traits."""
        return replace(self, traits=replace(self.traits, **more))

    def rounding_of(self, call: Evaluation) -> Any:
        """The rounding of a call; None: exact."""
        return None if self.rounding is None else self.rounding(call)

    def spread_of(self, call: Evaluation) -> Any:
        """The spread of a call; None: nothing moves."""
        return None if self.spread is None else self.spread(call)

    def second_order_of(self, call: Evaluation) -> Any:
        """The second-order remainder of a call; None: it is zero."""
        return None if self.second_order is None else self.second_order(call)

    def doubt_of(self, call: Evaluation) -> Any:
        """The doubt about a call's branch or decision; None: it is certain."""
        return None if self.doubt is None else self.doubt(call)


def _is_complex(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_complex()
    if isinstance(value, Mapping):
        return any(map(_is_complex, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_is_complex, value))
    return isinstance(value, complex)
