"""What has a forward pass really computed, given that it rounds?

At every call a pass computes t_i = f_i'(z~) t + w_i + rho_i, and the tangent rule of the call
bounds |rho_i| entry by entry (`numgeom.ops.tangents`). So what it returns is the *exact* map
applied to a slightly other vector, A (J T w + rho). Where rho_i lies at columns, rho = J T omega,
and the pass has pushed w + omega in place of w. `Pass` adds up

    eps_p >= ||T^-1 rho||_2

over all its nodes, for all of its lanes at once. Three things are counted at a column: what the
rule of the call rounds, the sum of what comes from the inputs and what arises, u |t_i|, and the
product T w itself, u T |w|. In the tails of the gradients (`structure`) there is no T: what is
rounded there arrives at a gradient as it is, and is added up as a norm of its own. Where T is 0
beside something that rounds, eps_p is infinite; `survey` gives such entries a T of their own.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import (
    UNIT_ROUNDOFF,
    add_up,
    cover_roundings,
    mul_up,
    norm_up,
)
from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts, fast_norm_up
from numgeom.ops.entry import Bound
from numgeom.ops.table import OpTable
from numgeom.ops.tangents import Pushed, Stack
from numgeom.recording import Program
from numgeom.semantics.tangents import Pusher, VisitMany


class Pass(Pusher):
    """One forward pass over an evaluated program, from given columns to wherever `visit` looks.

    Attributes:
        squares: Of eps_p so far.
        own: Norms of what the tails of the gradients rounded, by parameter.
        largest: The node that rounded most in units of T, and how much.

    Args:
        program: The opened program.
        lanes: How many vectors.
        facts: Its values, and how its nodes reach the gradients.
        columns: T, by node.
        device: Where to run.
        ops: The entries whose tangent rules are used.
        visit: Called with every node that changes, and its changes.
    """

    def __init__(
        self,
        program: Program,
        lanes: int,
        facts: Facts,
        columns: dict[fx.Node, Tensor],
        device: Any,
        ops: OpTable,
        visit: VisitMany,
    ) -> None:
        """Prepare a pass."""
        super().__init__(program, lanes, device, facts.trace, ops)
        self._facts = facts
        self._columns = columns
        self._visit = visit
        self.squares = 0.0
        self.own = dict.fromkeys(facts.values, 0.0)
        self.largest: tuple[float, fx.Node | None] = (0.0, None)
        self._reach = 1.0  # the largest entry of the vectors, where they were added last

    @property
    def rounding(self) -> float:
        """Eps_p: an upper bound of ||T^-1 rho|| for each lane."""
        return math.sqrt(self.squares) * (1 + 1e-9) if self.squares >= 0 else math.inf

    def added(self, node: fx.Node, t: Tensor, out: Tensor) -> float:
        """Add what arises at a column; returns ||T^-1 rho|| of forming the products T w."""
        raise NotImplementedError

    def arises_at(self, node: fx.Node) -> bool:
        """Whether anything arises at a column."""
        del node
        return True

    def joined(
        self, node: fx.Node, value: Tensor, tangents: Tensor | None, fresh: bool
    ) -> Tensor | None:
        """Add what arises at a node where it is added."""
        t = self._columns.get(node)
        if t is None or not self.arises_at(node):
            return tangents
        if tangents is None:
            tangents = value.new_zeros((self._count, *value.shape), dtype=torch.float64)
        elif not fresh:
            tangents = tangents.clone(memory_format=torch.contiguous_format)
        self._count_in(node, self.added(node, t, tangents))
        return tangents

    def rounded(self, node: fx.Node, stack: Stack, pushed: Pushed | None) -> None:
        """Count what was rounded on the way to a node."""
        if pushed is None or node not in self._facts.structure.connected:
            return
        t = self._columns.get(node)
        arises = t is not None and self.arises_at(node)
        if pushed.rounding is None and not arises:
            return
        total = stack.size
        if arises and t is not None:
            total = cover_roundings(total + t * self._reach, 4)
        bound = None if pushed.rounding is None else pushed.rounding(total)
        if arises and t is not None:
            sum_of_two = stack.size * UNIT_ROUNDOFF
            if t.numel() and not bool(t.amin() > 0):  # elsewhere 0 is added
                sum_of_two = torch.where(t > 0, sum_of_two, 0.0)
            bound = sum_of_two if bound is None else bound + sum_of_two
        assert bound is not None or pushed.rounding is not None
        if bound is not None:
            self._charge(node, t, _or_infinite(bound, stack))

    def passed(self, node: fx.Node, tangents: Tensor) -> None:
        """Show what passed."""
        self._visit(node, tangents)

    def _charge(self, node: fx.Node, t: Tensor | None, bound: Tensor) -> None:
        tails = self._facts.structure.tails
        if node in tails:
            size = fast_norm_up(bound)
            size = size if size >= 0.0 else math.inf
            for name, count in tails[node].items():
                self.own[name] = add_up(self.own[name], mul_up(size, float(count)))
        elif t is not None:
            self._count_in(node, _relative_norm(bound, t))
        elif bool((bound != 0).any()):
            self._count_in(node, math.inf)

    def _count_in(self, node: fx.Node, size: float) -> None:
        size = size if size >= 0.0 else math.inf
        self.squares += size * size
        if size > self.largest[0]:
            self.largest = size, node


class Drawn(Pass):
    """Fresh vectors w; the first ones come from branches, which can be drawn again.

    Attributes:
        branches: Each is the source of as many vectors as `each`.
        rest: The source of all further vectors.
    """

    branches: tuple[Draws, ...] = ()
    each: int = 0
    rest: Draws

    def added(self, node: fx.Node, t: Tensor, out: Tensor) -> float:
        """Draw what arises at a node."""
        done = 0
        for branch in self.branches:
            branch.add(t, out[done : done + self.each])
            done += self.each
        if done < len(out):
            self.rest.add(t, out[done:])
        return UNIT_ROUNDOFF * math.sqrt(t.numel()) * (1 + 1e-9)


class Given(Pass):
    """Vectors x that are given, by column; they are used up.

    Attributes:
        vectors: x, [lanes, *shape], by node.
    """

    vectors: dict[fx.Node, Tensor]

    def arises_at(self, node: fx.Node) -> bool:
        """Whether a column has a part in the vectors."""
        return node in self.vectors

    def added(self, node: fx.Node, t: Tensor, out: Tensor) -> float:
        """Add T x."""
        x = self.vectors[node]
        out.addcmul_(x, t)
        size = Stack(x).size
        self._reach = float(size.amax()) if size.numel() else 0.0
        return UNIT_ROUNDOFF * 2.0 * fast_norm_up(size) * (1 + 1e-9)


def _or_infinite(bound: Bound, stack: Stack) -> Tensor:
    """The bound; infinite where lanes are not finite."""
    assert bound is not None
    if math.isfinite(float(stack.size.sum())):
        return bound
    return torch.where(torch.isfinite(stack.size), bound, math.inf)


def _relative_norm(bound: Tensor, t: Tensor) -> float:
    """||bound / T||, rounded up; an entry that does not round counts nothing, whatever its T."""
    ratio = bound / t
    size = float(torch.linalg.vector_norm(ratio))
    if not 1e-100 < size < 1e100:
        ratio = torch.where(bound == 0, 0.0, ratio)
        size = float(norm_up(torch.nan_to_num(ratio, nan=math.inf)))
    return size * (1 + 1e-9)


__all__ = ["Drawn", "Given", "Pass"]
