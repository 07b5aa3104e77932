"""How do many small changes at once move everything after them, to first order?

`push` is the forward mode of `sensitivity` for a batch of k changes: one pass evaluates the program
once and carries k tangents, stacked, beside every value, e = A w for k vectors w. An op that is
linear is applied to the tangents themselves, an elementwise function multiplies them by its slope,
products follow the product rule; every other op gets its tangents from torch's forward mode, one
after the other.

The slope of an elementwise function is its directional derivative along a tensor of ones, by
torch's own formula (Griewank & Walther 2008, ch. 3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import forward_ad
from torch.fx.node import map_arg

from numgeom.ops.table import functional_name
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.sensitivity import load_forward_formulas, takes_part
from numgeom.semantics.stacks import moments, product, quotient, stacked

InjectMany = Callable[[fx.Node, Tensor], Tensor | None]
VisitMany = Callable[[fx.Node, Tensor], None]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Linear in all their tensors of real numbers together: the tangent of the result is the result of
# the tangents. Ops that also write constants (fill values, padding) are not here.
_LINEAR = _names(
    "view _unsafe_view _reshape_alias permute transpose t expand squeeze unsqueeze slice select "
    "diagonal split split_with_sizes chunk unbind clone alias detach contiguous repeat flip roll "
    "cat stack tril triu gather index_select index embedding where sum mean neg index_put "
    "_unsafe_index _unsafe_index_put unfold _to_copy max_pool2d_with_indices_backward"
)
# The commonest of them, written for stacked tangents t of an input, the other arguments, and y.
_MOVES: dict[str, Callable[[Tensor, Any, Tensor], Tensor]] = {
    "view": lambda t, rest, y: t.reshape(len(t), *y.shape),
    "_unsafe_view": lambda t, rest, y: t.reshape(len(t), *y.shape),
    "unsqueeze": lambda t, rest, y: t.reshape(len(t), *y.shape),
    "squeeze": lambda t, rest, y: t.reshape(len(t), *y.shape),
    "expand": lambda t, rest, y: stacked(t, y).expand(len(t), *y.shape),
    "permute": lambda t, rest, y: t.permute(0, *(d % y.dim() + 1 for d in rest[0])),
    "transpose": lambda t, rest, y: t.transpose(*(d % y.dim() + 1 for d in rest)),
    "clone": lambda t, rest, y: t,
    "neg": lambda t, rest, y: -t,
}
_PRODUCTS = {"mul": torch.mul, "mm": torch.mm, "bmm": torch.bmm}
_SUMS = {"add": 1.0, "sub": -1.0}
_STILL = _names("full_like zeros_like ones_like empty_like")  # their entries do not depend on x
_UNARY = _names(
    "exp expm1 log log1p log2 sqrt rsqrt reciprocal square pow tanh sigmoid erf erfc sin cos relu "
    "abs"
)


@dataclass(frozen=True)
class Moving:
    """A value with its tangents, stacked along a new first dimension; None: it does not move."""

    value: Any
    tangents: Any = None


def push(
    program: Program,
    count: int,
    inject: InjectMany,
    visit: VisitMany,
    *,
    device: torch.device | str | None = None,
    known: Mapping[fx.Node, Any] | None = None,
) -> None:
    """Push a batch of changes forward: e = A w for `count` vectors w.

    Args:
        program: What to linearise; opened, as for `Linearization`.
        count: k, the number of changes.
        inject: Asked with every node that takes part and its value; gives the changes that arise
            at this node itself, [k, *shape of the value], or None for none.
        visit: Called with every node that changes, in program order, and its changes,
            [k, *shape]; they must not be written to, and not be kept without a copy.
        device: Where to run, None for where each call ran.
        known: The values of all nodes, where the program was evaluated before; it is not evaluated
            again then.

    Raises:
        ReplayError: a call could not be run in float64.
    """
    _Asking(program, count, inject, visit, device, known).push()


class Pusher(ProgramInterpreter):
    """Runs the program on values with stacked tangents.

    Args:
        program: What to linearise.
        count: The number of tangents.
        device: Where to run, None for where each call ran.
        known: The values of all nodes, if they are not to be evaluated.
    """

    def __init__(
        self,
        program: Program,
        count: int,
        device: Any = None,
        known: Mapping[fx.Node, Any] | None = None,
    ) -> None:
        """Prepare a pass."""
        super().__init__(program, dtype=torch.float64, device=device)
        self._count = count
        self._values = known

    def push(self) -> None:
        """Make the pass; `evaluated`, `arising` and `passed` are called on the way."""
        load_forward_formulas()
        with torch.no_grad():
            self.evaluate()

    def evaluated(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> None:
        """Take note of a call's value; not called where values were known before."""

    def arising(self, node: fx.Node, value: Tensor) -> Tensor | None:
        """What arises at this node itself, [k, *shape of the value]; None: nothing."""
        del node, value
        return None

    def joined(
        self, node: fx.Node, value: Tensor, tangents: Tensor | None, fresh: bool
    ) -> Tensor | None:
        """The changes that come from a node's inputs, and what arises there; None: nothing.

        Args:
            node: The node.
            value: Its value.
            tangents: What comes from its inputs, if anything does.
            fresh: Whether nothing else holds the memory of `tangents`, so that it may be used.
        """
        added = self.arising(node, value)
        if tangents is None or added is None:
            return added if tangents is None else tangents
        return tangents.add_(added) if fresh else tangents + added

    def passed(self, node: fx.Node, tangents: Tensor) -> None:
        """Take note of a node that changes, and its changes."""

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Evaluate one node and its tangents, and add what arises there."""
        tangents, fresh = None, False
        if node.op == "get_attr":
            value = self.constant(node) if self._values is None else self._values[node]
        elif "call" not in node.meta:  # a part of a call with several outputs
            whole, i = values[node.args[0]], node.args[1]  # type: ignore[index]  # (node, int)
            value = whole.value[i]
            tangents = None if whole.tangents is None else whole.tangents[i]
        else:
            moving = [n for n in node.all_input_nodes if values[n].tangents is not None]
            args = kwargs = None
            if moving or self._values is None:
                args = map_arg(node.args, lambda n: values[n].value)
                kwargs = map_arg(node.kwargs, lambda n: values[n].value) if node.kwargs else {}
            if self._values is None:
                value = self.call(node, args, kwargs)
                self.evaluated(node, args, kwargs, value)
            else:
                value = self._values[node]
            if moving:
                tangents, fresh = self._moved(node, moving, values, args, value)
        if not takes_part(node, value):
            return Moving(value, tangents if isinstance(value, (tuple, list)) else None)
        tangents = self.joined(node, value, tangents, fresh)
        if tangents is not None:
            self.passed(node, tangents)
        return Moving(value, tangents)

    def finish(self, found: Any) -> Any:
        """Nothing is returned; `passed` has seen it all."""
        del found
        return {"gradients": {}, "loss": None, "updates": {}}

    # -- rules ---------------------------------------------------------------------------

    def _moved(
        self, node: fx.Node, moving: list[fx.Node], values: Mapping[fx.Node, Any], args: Any, y: Any
    ) -> tuple[Any, bool]:
        """The tangents of a call's result, and whether nothing else holds their memory."""
        name = functional_name(node.target)
        if isinstance(y, Tensor) and not y.is_floating_point():
            return None, False
        a, b = (*node.args, None, None)[:2]
        tangents = [values[n].tangents for n in moving]
        if name in _PRODUCTS and a is not b and not node.kwargs:
            return product(_PRODUCTS[name], node, values, args, y)
        if name in _SUMS and a is not b and not node.kwargs:
            return self._sum(_SUMS[name], node, values, y)
        if name in _STILL:
            return None, False
        if name == "mul" and a is b and moving == [a]:
            return tangents[0] * (2 * args[0]), True
        if name == "div" and len(args) == 2 and not node.kwargs and a is not b:
            return quotient(values[a].tangents if isinstance(a, fx.Node) else None,
                             values[b].tangents if isinstance(b, fx.Node) else None,
                             args[1], y), True  # fmt: skip
        plain = not node.kwargs or name == "clone"
        if name in _MOVES and moving == [a] and plain and y.dim() and _is_plain(args):
            return _MOVES[name](tangents[0], args[1:], y), False
        if name == "sum" and not node.kwargs and len(args) > 1 and args[1]:
            dims = [d % args[0].dim() + 1 for d in args[1]]
            return torch.sum(tangents[0], dims, keepdim=bool(args[2:3] and args[2])), True
        if name == "var_mean" and args[0].dim() and node.kwargs.keys() <= {"correction", "keepdim"}:
            return moments(tangents[0], args, node.kwargs), False
        if name in _LINEAR and not (name == "where" and not _tensors_only(node)):
            return self._linear(node, moving, values, tangents), False
        if name in _UNARY and moving == [a]:
            return tangents[0] * self._slope(node, values, args[0]), True
        return self._one_by_one(node, moving, values), False

    def _linear(
        self, node: fx.Node, moving: list[fx.Node], values: Mapping[fx.Node, Any], tangents: Any
    ) -> Any:
        """Apply the op to the tangents; real numbers that do not move have the tangent zero."""
        at = {n: i for i, n in enumerate(moving)}

        def apply(*given: Tensor) -> Any:
            def pick(n: fx.Node) -> Any:
                if n in at:
                    return given[at[n]]
                value = values[n].value
                real = isinstance(value, Tensor) and value.is_floating_point()
                return given[0].new_zeros(value.shape) if real else value

            args = map_arg(node.args, pick)
            kwargs = map_arg(node.kwargs, pick)
            return self.call(node, args, kwargs)

        return torch.vmap(apply)(*tangents)

    def _sum(
        self, sign: float, node: fx.Node, values: Mapping[fx.Node, Any], y: Tensor
    ) -> tuple[Tensor, bool]:
        parts = []
        for argument, factor in zip(node.args[:2], (1.0, sign), strict=True):
            moved = values[argument].tangents if isinstance(argument, fx.Node) else None
            if moved is not None:
                parts.append((stacked(moved, y), factor))
        if len(parts) == 2:
            (left, _), (right, factor) = parts
            return (left + right if factor > 0 else left - right), True
        only, factor = parts[0]
        only = only if factor > 0 else -only
        return only.expand(len(only), *y.shape), False

    def _slope(self, node: fx.Node, values: Mapping[fx.Node, Any], x: Tensor) -> Tensor:
        argument: Any = node.args[0]
        return self._derivative(node, values, {argument: torch.ones_like(x)})

    def _one_by_one(
        self, node: fx.Node, moving: list[fx.Node], values: Mapping[fx.Node, Any]
    ) -> Any:
        lanes = [
            self._derivative(node, values, {n: values[n].tangents[i] for n in moving})
            for i in range(len(values[moving[0]].tangents))
        ]
        if isinstance(lanes[0], tuple):
            parts = zip(*lanes, strict=True)
            return tuple(None if part[0] is None else torch.stack(part) for part in parts)
        return torch.stack(lanes)

    def _derivative(
        self, node: fx.Node, values: Mapping[fx.Node, Any], tangents: Mapping[Any, Tensor]
    ) -> Any:
        """One directional derivative of one call, by torch's forward mode."""
        with forward_ad.dual_level():

            def dual(n: fx.Node) -> Any:
                value = values[n].value
                if n not in tangents:
                    return value
                # A dual tensor needs memory of its own: not the shared places of an expanded one.
                return forward_ad.make_dual(value.contiguous(), tangents[n].contiguous())

            args = map_arg(node.args, dual)
            kwargs = map_arg(node.kwargs, dual)
            y = self.call(node, args, kwargs)
            if isinstance(y, Tensor):
                return _tangent(y)
            return tuple(
                _tangent(part) if isinstance(part, Tensor) and part.is_floating_point() else None
                for part in y
            )


def _tangent(y: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(y)
    return torch.zeros_like(primal) if tangent is None else tangent


def _is_plain(args: Any) -> bool:
    """Whether no other format is asked for, as a view of the bits can."""
    return not any(isinstance(a, torch.dtype) for a in args)


def _tensors_only(node: fx.Node) -> bool:
    """Whether no argument is a number, which an op would write into its result."""
    return all(isinstance(a, fx.Node) for a in node.args)


class _Asking(Pusher):
    """Asks others what arises, and tells them what passed."""

    def __init__(
        self,
        program: Program,
        count: int,
        inject: InjectMany,
        visit: VisitMany,
        device: Any,
        known: Mapping[fx.Node, Any] | None,
    ) -> None:
        super().__init__(program, count, device, known)
        self._inject = inject
        self._visit = visit

    def arising(self, node: fx.Node, value: Tensor) -> Tensor | None:
        return self._inject(node, value)

    def passed(self, node: fx.Node, tangents: Tensor) -> None:
        self._visit(node, tangents)
