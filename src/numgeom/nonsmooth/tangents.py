"""Are the pieces that meet at a kink one and the same function of the parameters?

Two entries of a window that are tied because they were computed from equal input patches stay tied
for every value of the parameters: they are one function, so every choice between them gives the
same gradient over the reals. A tie by accident of rounding is between different functions. The two
are told apart by how they move: along one random direction of the parameters equal functions have
equal directional derivatives, and functions with different gradients have different ones with
probability one.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.autograd import forward_ad
from torch.fx.node import map_arg

from numgeom.errors import ReplayError
from numgeom.nonsmooth.backward import FrozenStep, TiedCall
from numgeom.nonsmooth.paths import ancestors
from numgeom.nonsmooth.sites import op_arguments
from numgeom.recording.replay import ProgramInterpreter

# Tangents are computed in float64, so equal ones differ by some 1e-14 of their size. Unequal ones
# that agree to nine digits along a random direction have a probability of about 1e-9.
_SAME = 1e-9


@dataclass(frozen=True, eq=False)
class Pieces:
    """What meets at each tied unit of a call, [T] each.

    Attributes:
        moves: Whether any of its pieces depends on the parameters, to first order. A unit that
            does not, such as a pool over dead ReLUs, cannot be seen in the gradient.
        identical: Whether all its pieces depend on the parameters in the same way.
    """

    moves: Tensor
    identical: Tensor


def classify(step: FrozenStep, *, seed: int = 0) -> dict[TiedCall, Pieces] | None:
    """Tell structural ties from accidental ones.

    Args:
        step: The step; its forward values are taken as they were computed.
        seed: Seed of the direction.

    Returns:
        For every call with ties, what meets there. None if that is not known: some forward call
        has no forward-mode derivative, or the program does not name its parameters.
    """
    if not step.ties:
        return {}
    runner = _Tangents(step, seed)
    try:
        with warnings.catch_warnings():
            # torch.autograd.forward_ad compiles its formulas with it at the first use.
            warnings.filterwarnings("ignore", "`torch.jit.script` is", DeprecationWarning)
            runner.evaluate()
    except ReplayError:
        return None
    if not runner.has_parameters:
        return None
    return {tie: _pieces(tie, runner.tangents[tie.node]) for tie in step.ties}


def _pieces(tie: TiedCall, tangents: tuple[Tensor | None, ...]) -> Pieces:
    pieces = tie.kink.pieces(tangents)
    scale = max(
        (float(t.abs().max()) for t in tangents if t is not None and t.numel()), default=0.0
    )
    spread = pieces.amax(dim=1) - pieces.amin(dim=1)
    return Pieces(pieces.abs().amax(dim=1) > _SAME * scale, spread <= _SAME * scale)


class _Tangents(ProgramInterpreter):
    """Carries a direction of the parameters through the frozen forward pass, in float64."""

    def __init__(self, step: FrozenStep, seed: int) -> None:
        super().__init__(step.program, dtype=torch.float64)
        self._step = step
        self._generator = torch.Generator().manual_seed(seed)
        self._parameters = frozenset(step.program.parameters)
        self._moving: dict[fx.Node, Any] = {}
        self._wanted = {tie.node for tie in step.ties}
        self._before = ancestors(self._wanted)  # what follows the ties moves none of them
        self.tangents: dict[fx.Node, tuple[Tensor | None, ...]] = {}
        self.has_parameters = False

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Find the tangents of one node; its value is the frozen one."""
        del values
        if node not in self._before or node not in self._step.values:
            return None
        if node in self._wanted:
            tensors = (n for n in op_arguments(node).values() if isinstance(n, fx.Node))
            self.tangents[node] = tuple(self._moving.get(n) for n in tensors)
        if node.op == "get_attr":
            if node.meta["role"] == "parameter" and node.meta["name"] in self._parameters:
                self._moving[node] = self._direction(self._step.values[node])
                self.has_parameters = True
        elif any(self._moving.get(source) is not None for source in node.all_input_nodes):
            self._moving[node] = self._tangent(node)
        return None

    def _direction(self, parameter: Tensor) -> Tensor:
        shape, size = parameter.shape, parameter.double().square().mean().sqrt()
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(parameter.device) * torch.where(size > 0, size, 1.0)

    def _tangent(self, node: fx.Node) -> Any:
        if "call" not in node.meta:  # a part of a call with several outputs
            parent, index = cast(tuple[fx.Node, int], node.args)
            return self._moving[parent][index]
        with forward_ad.dual_level():
            args = map_arg(node.args, self._dual)
            kwargs = map_arg(node.kwargs, self._dual)
            out = self.call(node, args, kwargs)
            if isinstance(out, Tensor):
                return forward_ad.unpack_dual(out).tangent
            return [
                forward_ad.unpack_dual(t).tangent if isinstance(t, Tensor) else None for t in out
            ]

    def _dual(self, node: fx.Node) -> Any:
        value, tangent = self._step.values[node], self._moving.get(node)
        if isinstance(value, Tensor):
            value = value.to(self._dtype_for(value.dtype))
            if tangent is None:
                return value
            # A dual tensor needs memory of its own: not the shared places of an expanded one.
            return forward_ad.make_dual(value.contiguous(), tangent.contiguous())
        return value
