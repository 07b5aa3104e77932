"""What does an op do with its arguments, apart from how it rounds?

Traits serve every part of the package that has to know what kind of thing an op is: a graph is read
backwards through ops that move entries, sums are added in another order, a pole is looked for where
there may be one. They are statements about the op over the reals, and each has a law that tries it
on the examples of the entry, where one can be written (`tests/ops/test_traits.py`). What no trait
says is not known.
"""

from dataclasses import dataclass
from enum import Enum

from numgeom.ops.kernel_errors import PLAIN, Kernel


class Places(Enum):
    """How often an entry of the data comes in the result."""

    ONCE = "each entry once"
    AT_MOST_ONCE = "each entry once or not at all"
    ANY = "each entry as often as it is asked for"


@dataclass(frozen=True)
class Moves:
    """An op whose result is made of entries of its arguments.

    Attributes:
        places: How often an entry comes.
        data: Positions of the arguments whose entries they are; one of them may be a list.
        in_order: Whether the result, read row by row, is the argument read row by row.
        fills: Whether there are zeros, or a stated number, between them.
        signed: Whether entries may come with the opposite sign.
        casts: Whether the format may change, so that entries may be rounded.
        joins: Whether the argument is a list of tensors that come beside one another.
        in_memory: Whether places are counted in memory, whose order may differ from the entries'.
        by_index: Whether indices that go in say which entries come.
        parts: Whether there are several results, which are the moved entries together.
    """

    places: Places
    data: tuple[int, ...] = (0,)
    in_order: bool = False
    fills: bool = False
    signed: bool = False
    casts: bool = False
    joins: bool = False
    in_memory: bool = False
    by_index: bool = False
    parts: bool = False

    @property
    def is_rearrangement(self) -> bool:
        """Whether the result is the first argument in another order, and nothing else."""
        return self.keeps_all and not (self.signed or self.casts)

    @property
    def keeps_all(self) -> bool:
        """Whether all entries of the first argument are in one result once, and nothing else is.

        Perhaps with the opposite sign, and in another format.
        """
        return self.of_one_tensor and self.places is Places.ONCE and not self.parts

    @property
    def of_one_tensor(self) -> bool:
        """Whether every entry is one of the first argument, which is one tensor."""
        return self.data == (0,) and not self.fills and not self.joins


RESHAPES = Moves(Places.ONCE, in_order=True)
REARRANGES = Moves(Places.ONCE)
DROPS = Moves(Places.AT_MOST_ONCE)
REPEATS = Moves(Places.ANY)


@dataclass(frozen=True)
class Product:
    """An op that is linear in each of two arguments, and in what it adds to their product.

    Attributes:
        left: Position of one factor.
        right: Position of the other.
        added: Position of the argument that is added; None: there is none.
        is_matrix: Whether its entries are sums over the last dimension of the left factor and the
            last but one of the right factor (the only one of a vector).
    """

    left: int = 0
    right: int = 1
    added: int | None = None
    is_matrix: bool = False


@dataclass(frozen=True)
class Poles:
    """Finite arguments at which a value, or a slope, is infinite or not defined.

    Attributes:
        argument: Position of the argument that comes to the pole.
        of_value: Whether the value is infinite or undefined there; if not, the slope alone.
        at_zero: Whether 0 is such a point.
        may_overflow: Whether the value may also be infinite far from every pole.
        entrywise: Whether an entry of the argument makes an entry of the result infinite.
    """

    argument: int = 0
    of_value: bool = True
    at_zero: bool = False
    may_overflow: bool = False
    entrywise: bool = True


class Autocast(Enum):
    """What torch.autocast does with an op (torch.amp's documentation, op reference)."""

    AS_GIVEN = "runs in the formats of its arguments"
    LOW = "runs in the low-precision format, its operands cast to it"
    WIDE_ON_CUDA = "runs in float32 on CUDA, not on CPUs"


@dataclass(frozen=True)
class Traits:
    """What is known of an op. The defaults say nothing of it.

    Attributes:
        moves: How it places entries, if its result is made of entries of its arguments.
        chooses: Whether every real entry of the result is an entry of a tensor that goes in, its
            negative, or 0, as the values decide: it rounds in no format.
        entrywise: Whether an entry of the result depends on the entries at its own place alone,
            after broadcasting. Every op of the kind ELEMENTWISE is, without saying so here.
        product: Its factors, if it is linear in each of two arguments.
        linear: Positions of the arguments in which it is linear, all of them together; of an op
            that moves entries those of its data, without saying so here (see `linear_in`).
        adds: Whether terms of either sign are added, so that they may cancel.
        sums: Whether it adds up entries of its first argument along dimensions, all with the same
            weight.
        largest: Whether a result is the largest entry of its first argument along dimensions, or
            hardly above it.
        poles: Where it is infinite or undefined.
        piecewise_constant: Whether its slope is 0 wherever it has one.
        stays: Whether its result does not depend on the values of its arguments at all.
        reads_ties: Whether its doubt asks for the labels of exact ties.
        last_wins: Whether one place may be written several times, and any of the writes may win.
        nondeterministic_on_cuda: Whether torch lists it under `use_deterministic_algorithms` as
            one that raises on CUDA.
        activation_backward: Whether it is the derivative of an activation: a cotangent, its first
            argument, entry by entry times a slope.
        normalizes: Whether a normalization consists of it: it makes a deviation or the reciprocal
            of one, or divides by it.
        autocast: What mixed precision does with it.
        kernel: The errors of its kernels beside the rounding of the result.
    """

    moves: Moves | None = None
    chooses: bool = False
    entrywise: bool = False
    product: Product | None = None
    linear: tuple[int, ...] = ()
    adds: bool = False
    sums: bool = False
    largest: bool = False
    poles: Poles | None = None
    piecewise_constant: bool = False
    stays: bool = False
    reads_ties: bool = False
    last_wins: bool = False
    nondeterministic_on_cuda: bool = False
    activation_backward: bool = False
    normalizes: bool = False
    autocast: Autocast = Autocast.AS_GIVEN
    kernel: Kernel = PLAIN

    @property
    def linear_in(self) -> tuple[int, ...]:
        """Positions of the arguments in which it is linear, all of them together."""
        return self.linear if self.moves is None else self.moves.data

    @property
    def only_moves(self) -> bool:
        """Whether every entry is one of the first argument, a tensor; it may have been cast."""
        return self.moves is not None and self.moves.of_one_tensor and not self.moves.signed

    @property
    def never_rounds(self) -> bool:
        """Whether the result is exact in every format that holds the arguments."""
        return self.chooses or (self.moves is not None and not self.moves.casts)


NO_TRAITS = Traits()
