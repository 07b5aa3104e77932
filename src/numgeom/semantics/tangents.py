"""How do many small changes at once move everything after them, to first order?

`push` is the forward mode of `sensitivity` for a batch of k changes: one pass evaluates the program
once and carries k tangents, stacked, beside every value, e = A w for k vectors w (Griewank &
Walther 2008, ch. 3). Each call is asked for its tangent rule (`numgeom.ops.tangents`), which also
bounds what it rounds. A call without a rule of ours gets its tangents from torch's forward mode,
one after the other; nothing is known of their rounding, and `Pusher.foreign` names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import forward_ad
from torch.fx.node import map_arg

from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS, OpTable
from numgeom.ops.tangents import NoTangentRuleError, Pushed, Stack
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.sensitivity import load_forward_formulas, takes_part

InjectMany = Callable[[fx.Node, Tensor], Tensor | None]
VisitMany = Callable[[fx.Node, Tensor], None]


@dataclass(frozen=True)
class Moving:
    """A value with its tangents.

    Attributes:
        value: What the node holds.
        stack: Its tangents; None: it does not move.
        parts: For a call with several outputs what its rule returned, one item per output.
    """

    value: Any
    stack: Stack | None = None
    parts: tuple[Pushed | None, ...] | None = None


def push(
    program: Program,
    count: int,
    inject: InjectMany,
    visit: VisitMany,
    *,
    device: torch.device | str | None = None,
    known: Mapping[fx.Node, Any] | None = None,
    ops: OpTable = OPS,
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
        ops: The entries whose tangent rules are used.

    Raises:
        ReplayError: a call could not be run in float64.
    """
    _Asking(program, count, inject, visit, device, known, ops).push()


class Pusher(ProgramInterpreter):
    """Runs the program on values with stacked tangents.

    Attributes:
        foreign: Names of the ops that have no tangent rule of ours, of calls that moved.

    Args:
        program: What to linearise.
        count: The number of tangents.
        device: Where to run, None for where each call ran.
        known: The values of all nodes, if they are not to be evaluated.
        ops: The entries whose tangent rules are used.
    """

    def __init__(
        self,
        program: Program,
        count: int,
        device: Any = None,
        known: Mapping[fx.Node, Any] | None = None,
        ops: OpTable = OPS,
    ) -> None:
        """Prepare a pass."""
        super().__init__(program, dtype=torch.float64, device=device)
        self._count = count
        self._values = known
        self._ops = ops
        self.foreign: dict[str, str] = {}

    def push(self) -> None:
        """Make the pass; the hooks below are called on the way."""
        with torch.no_grad():
            self.evaluate()

    # -- hooks ---------------------------------------------------------------------------

    def evaluated(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> None:
        """Take note of a call's value; not called where values were known before."""

    def arrived(self, node: fx.Node, value: Tensor, pushed: Pushed) -> None:
        """Take note of the changes that come from a node's inputs."""

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

    def rounded(self, node: fx.Node, stack: Stack, pushed: Pushed | None) -> None:
        """Take note of all changes of a node, and of the rule that part of them came from."""

    def passed(self, node: fx.Node, tangents: Tensor) -> None:
        """Take note of a node that changes, and its changes."""

    # -- nodes ---------------------------------------------------------------------------

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Evaluate one node and its tangents, and add what arises there."""
        pushed: Any = None
        if node.op == "get_attr":
            value = self.constant(node) if self._values is None else self._values[node]
        elif "call" not in node.meta:  # a part of a call with several outputs
            whole, i = values[node.args[0]], node.args[1]  # type: ignore[index]  # (node, int)
            value = whole.value[i]
            pushed = None if whole.parts is None else whole.parts[i]
        else:
            moves = any(_moves(values[n]) for n in node.all_input_nodes)
            args = kwargs = None
            if moves or self._values is None:
                args = map_arg(node.args, lambda n: values[n].value)
                kwargs = map_arg(node.kwargs, lambda n: values[n].value) if node.kwargs else {}
            if self._values is None:
                value = self.call(node, args, kwargs)
                self.evaluated(node, args, kwargs, value)
            else:
                value = self._values[node]
            if moves:
                pushed = self._pushed(node, values, args, kwargs, value)
        if isinstance(value, (tuple, list)):
            return Moving(value, parts=None if pushed is None else tuple(pushed))
        if not takes_part(node, value):
            return Moving(value)
        if pushed is not None:
            self.arrived(node, value, pushed)
        lanes = None if pushed is None else pushed.lanes
        tangents = self.joined(node, value, lanes, pushed is not None and pushed.fresh)
        if tangents is None:
            return Moving(value)
        stack = Stack(tangents)
        self.rounded(node, stack, pushed)
        self.passed(node, tangents)
        return Moving(value, stack)

    def finish(self, found: Any) -> Any:
        """Nothing is returned; `passed` has seen it all."""
        del found
        return {"gradients": {}, "loss": None, "updates": {}}

    # -- rules ---------------------------------------------------------------------------

    def _pushed(
        self, node: fx.Node, values: Mapping[fx.Node, Any], args: Any, kwargs: Any, y: Any
    ) -> Any:
        """What the call's tangent rule says, or torch in its place."""
        target: Any = node.target
        op = self._ops.lookup(target)
        if op is not None and op.tangent is not None:
            call = Evaluation(op.name, tuple(args), dict(kwargs), y)
            moved = {
                key: stack
                for key, argument in (*enumerate(node.args), *node.kwargs.items())
                if (stack := _stack_of(argument, values)) is not None
            }
            try:
                return op.tangent(call, moved)
            except NoTangentRuleError as error:
                self.foreign[str(target)] = str(error)
        self.foreign.setdefault(str(target), f"{target} has no tangent rule.")
        return self._by_torch(node, values)

    def _by_torch(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """The tangents of one call by torch's forward mode, one after the other."""
        load_forward_formulas()
        moving = {n: values[n].stack for n in node.all_input_nodes if _moves(values[n])}
        count = len(next(iter(moving.values())).lanes)
        each = [
            self._derivative(node, values, {n: s.lanes[i] for n, s in moving.items()})
            for i in range(count)
        ]
        if isinstance(each[0], tuple):
            parts = zip(*each, strict=True)
            return tuple(None if p[0] is None else Pushed(torch.stack(p)) for p in parts)
        return Pushed(torch.stack(each), fresh=True)

    def _derivative(
        self, node: fx.Node, values: Mapping[fx.Node, Any], tangents: Mapping[Any, Tensor]
    ) -> Any:
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


def _moves(moving: Moving) -> bool:
    return moving.stack is not None


def _stack_of(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    """The tangents of an argument, or of the members of a list; None where nothing moves."""
    if isinstance(argument, fx.Node):
        return values[argument].stack
    if isinstance(argument, (list, tuple)):
        each = [_stack_of(a, values) if isinstance(a, fx.Node) else None for a in argument]
        return each if any(s is not None for s in each) else None
    return None


def _tangent(y: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(y)
    return torch.zeros_like(primal) if tangent is None else tangent


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
        ops: OpTable,
    ) -> None:
        super().__init__(program, count, device, known, ops)
        self._inject = inject
        self._visit = visit

    def arising(self, node: fx.Node, value: Tensor) -> Tensor | None:
        return self._inject(node, value)

    def passed(self, node: fx.Node, tangents: Tensor) -> None:
        self._visit(node, tangents)
