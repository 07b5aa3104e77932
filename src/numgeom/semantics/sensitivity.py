"""How do small changes anywhere in a program move everything after them, to first order?

`jvp` is one forward pass with dual numbers in which a change is injected at every node; `vjp` is
one reverse pass that collects a cotangent at every node (Griewank & Walther 2008, ch. 3). The two
are transposes of each other: <A w, v> = <w, A^T v>.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import forward_ad

from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter

Inject = Callable[[fx.Node], Tensor | None]
Visit = Callable[[fx.Node, Tensor], None]


class Linearization:
    """A program's derivative at its float64 values: the map A and its transpose.

    Every node that holds one floating-point tensor takes part: calls, parts of calls with several
    outputs, and constants. Decisions (comparisons, indices) are as the float64 run took them. The
    derivatives of the single ops are torch's own, in forward and in reverse mode.

    Memory is that of all values of the program, kept for the reverse passes.

    Args:
        program: What to linearise; open it with `decompose` first, since fused ops have no
            derivative of their derivative.
        device: Where to run; by default where the calls ran.

    Raises:
        ReplayError: a call could not be run in float64.
    """

    def __init__(self, program: Program, *, device: torch.device | str | None = None) -> None:
        """Evaluate the program once and keep the graph of its derivatives."""
        self._program = program
        self._device = device
        recorder = _Reverse(program, device)
        with torch.enable_grad():
            recorder.evaluate()
        self._differentiable = recorder.tensors
        self.values: dict[fx.Node, Tensor] = {n: t.detach() for n, t in recorder.tensors.items()}
        self.outputs: dict[str, fx.Node] = {
            name: node
            for name, node in _output(program)["gradients"].items()
            if node in self.values
        }

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The nodes that hold a floating-point tensor, in program order."""
        return tuple(self.values)

    def jvp(self, inject: Inject | Mapping[fx.Node, Tensor], visit: Visit) -> None:
        """Push changes forward: e = A w.

        Args:
            inject: w, the change that arises at a node itself, in the shape of its value; None or
                missing for none.
            visit: Called with every node that changes, in program order, and its change e.
        """
        source = inject if callable(inject) else inject.get
        forward = _Forward(self._program, self._device, source, visit)
        load_forward_formulas()
        with torch.no_grad(), forward_ad.dual_level():
            forward.evaluate()

    def changes(self, inject: Inject | Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """Push changes forward and return them all: e = A w, by node."""
        found: dict[fx.Node, Tensor] = {}
        self.jvp(inject, found.__setitem__)
        return found

    def vjp(self, cotangents: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """Pull cotangents back: a = A^T v.

        Args:
            cotangents: v at any nodes, each in the shape of the node's value.

        Returns:
            a, by node; nodes that no cotangent reaches are missing.
        """
        if not cotangents:
            return {}
        nodes = list(self._differentiable)
        found = torch.autograd.grad(
            [self._differentiable[n] for n in cotangents],
            [self._differentiable[n] for n in nodes],
            grad_outputs=[v.to(torch.float64) for v in cotangents.values()],
            retain_graph=True,
            allow_unused=True,
        )
        return {n: a for n, a in zip(nodes, found, strict=True) if a is not None}

    def vjps(
        self, cotangents: Mapping[fx.Node, Tensor], *, wanted: Iterable[fx.Node]
    ) -> dict[fx.Node, Tensor]:
        """Pull a batch of cotangents back: a = A^T v for k vectors v.

        Args:
            cotangents: v at any nodes, [k, *shape of the value].
            wanted: The nodes where a is asked for.

        Returns:
            a, [k, *shape], by node; nodes that no cotangent reaches are missing.
        """
        if not cotangents:
            return {}
        nodes = [n for n in wanted if n in self._differentiable]
        found = torch.autograd.grad(
            [self._differentiable[n] for n in cotangents],
            [self._differentiable[n] for n in nodes],
            grad_outputs=[v.to(torch.float64) for v in cotangents.values()],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        return {n: a for n, a in zip(nodes, found, strict=True) if a is not None}


def load_forward_formulas() -> None:
    """Let torch load its forward-mode formulas, which it compiles in a way that it deprecates."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _output(program: Program) -> Any:
    return next(n for n in program.graph.nodes if n.op == "output").args[0]


def takes_part(node: fx.Node, value: Any) -> bool:
    """Real numbers that can change; what was drawn cannot."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return node.op != "get_attr" or node.meta["role"] != "drawn"


class _Reverse(ProgramInterpreter):
    """Runs the program so that every node can be differentiated with respect to every other."""

    def __init__(self, program: Program, device: torch.device | str | None) -> None:
        super().__init__(program, dtype=torch.float64, device=device)
        self.tensors: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        value = super().run_node(node, values)
        if takes_part(node, value):
            if not value.requires_grad:  # a constant, or made of constants only
                value = value.detach().requires_grad_()
            elif any(value is values.get(p) for p in node.all_input_nodes):
                value = value.view_as(value)  # an op that returned its input: a node of its own
            self.tensors[node] = value
        return value


class _Forward(ProgramInterpreter):
    """Runs the program on dual numbers, adding the injected changes node by node."""

    def __init__(
        self, program: Program, device: torch.device | str | None, inject: Inject, visit: Visit
    ) -> None:
        super().__init__(program, dtype=torch.float64, device=device)
        self._inject = inject
        self._visit = visit

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        value = super().run_node(node, values)
        if not takes_part(node, value):
            return value
        primal, tangent = forward_ad.unpack_dual(value)
        added = self._inject(node)
        if added is not None:
            added = added.to(primal)
            tangent = added if tangent is None else tangent + added
            # A dual tensor needs memory of its own: not the shared places of an expanded one.
            plain = primal.detach().contiguous()
            value = forward_ad.make_dual(plain, tangent.contiguous())
        if tangent is not None:
            self._visit(node, tangent)
        return value
