"""What gradient would a recorded step have with other formats in some of its modules?

The step is replayed as it was recorded, and rounded where the other formats would round. As
under autocast, matrix products, convolutions and attention take operands of the module's format
and give results of it; what works on such results alone does so too; what leaves the module is
widened. Formats without kernels of their own results (TF32, 8 bits) round operands only. A replay
costs about a plain step, whatever a processor needs to run the format itself.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from numgeom.arithmetic.formats import Format, format_named
from numgeom.ops.kernel_errors import MEAN_SQUARE
from numgeom.ops.traits import Autocast
from numgeom.precision.noisy import moves, op_name, traits
from numgeom.precision.operations import has_kernels
from numgeom.precision.rounding import round_operand
from numgeom.recording import CallInfo, Program
from numgeom.recording.replay import ProgramInterpreter

# Larger numbers are masks: they stand for infinity.
_MASK = 2.0**100


class Rounds(NamedTuple):
    """To which formats a call rounds its operands and its results; None: not at all.

    Attributes:
        operands: Format of the operands.
        results: Format of the results.
        module: The module of the assignment that says so.
    """

    operands: Format | None
    results: Format | None
    module: str


class EmulatedReplay(ProgramInterpreter):
    """A replay that rounds as an assignment of formats to modules does.

    After `evaluate`, `overflowed` holds the modules in which a number became infinite (masks, which
    are as large as float32 goes, do not count), and `underflow`, where counts were asked for, how
    many nonzero numbers became zero in a module, of how many.

    Args:
        program: A recorded step; calls outside of the assignment run as they were recorded.
        formats: Format name by module path. A module that is not named has the format of the
            module around it.
        loss_scale: Power of two that the loss is multiplied by, for the range of float16.
        seed: Decides the errors inside fused attention.
        counts: Whether to count numbers that become zero.
    """

    def __init__(
        self,
        program: Program,
        formats: Mapping[str, str],
        *,
        loss_scale: float = 1.0,
        seed: int = 0,
        counts: bool = False,
    ) -> None:
        """Find out where to round."""
        super().__init__(program, dtype=None)
        self._rounds = rounds_of(program, formats)
        self._scaled = scaled_values(program) if loss_scale != 1.0 else frozenset[fx.Node]()
        self._scale = loss_scale
        self._generator = torch.Generator().manual_seed(seed)
        self._counts = counts
        self.overflowed: set[str] = set()
        self.underflow: dict[str, tuple[int, int]] = {}

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run one call between the roundings of its operands and of its results."""
        rounds = self._rounds.get(node)
        if rounds is None:
            return super().call(node, args, kwargs)
        plain = args
        product = traits(node).product
        # A bias is added in the format of the sums.
        added = None if product is None else product.added
        if rounds.operands is not None:
            args = tuple(
                a if i == added and rounds.results is None
                else self._operand(n, a, rounds.operands, rounds.module)
                for i, (n, a) in enumerate(zip(node.args, args, strict=True))
            )  # fmt: skip
        y = super().call(node, args, kwargs)
        if rounds.results is None:
            return _with_plain_bias(node, y, plain)
        backward = node.meta["call"].phase == "backward"
        if isinstance(y, Tensor):
            return self._result(node, 0, y, rounds)
        if isinstance(y, (list, tuple)):
            # The further results of a forward call are statistics, kept in float32.
            kept = len(y) if backward else 1
            return [
                self._result(node, i, part, rounds) if i < kept else part
                for i, part in enumerate(y)
            ]
        return y

    def _operand(self, source: Any, value: Any, fmt: Format, module: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._operand(n, v, fmt, module) for n, v in zip(source, value, strict=True)]
        if not isinstance(value, Tensor):
            return value
        return self._rounded(value, fmt, source in self._scaled, module)

    def _result(self, node: fx.Node, i: int, y: Any, rounds: Rounds) -> Any:
        fmt = rounds.results
        assert fmt is not None
        low = traits(node).kernel.low
        if low and isinstance(y, Tensor) and y.is_floating_point() and y.numel():
            # Fused attention keeps the weights in the narrow format too.
            size = y.pow(2).mean(-1, keepdim=True).sqrt()
            noise = torch.rand(y.shape, generator=self._generator).to(y.device) - 0.5
            factor = low[min(i, len(low) - 1)] * fmt.unit_roundoff * math.sqrt(12.0 * MEAN_SQUARE)
            y = y + noise * size * factor
        return self._rounded(y, fmt, node in self._scaled, rounds.module)

    def _rounded(self, value: Any, fmt: Format, scaled: bool, module: str) -> Any:
        if not isinstance(value, Tensor) or value.dtype is not torch.float32:
            return value
        scale = self._scale if scaled and fmt.name == "float16" else 1.0
        found = round_operand(value if scale == 1.0 else value * scale, fmt)
        if _is_short_of_range(fmt) and _overflows(value, found):
            self.overflowed.add(module)
        if self._counts:
            zeros, values = self.underflow.get(module, (0, 0))
            before = int(value.count_nonzero())
            lost = before - int(found.count_nonzero())
            self.underflow[module] = (zeros + lost, values + before)
        return found if scale == 1.0 else found / scale


def scaled_values(program: Program) -> frozenset[fx.Node]:
    """The values of the backward pass that a factor of the loss multiplies."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "call_function" and _phase(node) == "backward":
            moved = "call" not in node.meta or moves(node)
            if not moved or any(n in found for n in node.all_input_nodes):
                found.add(node)
    return frozenset(found)


def rounds_of(program: Program, formats: Mapping[str, str]) -> dict[fx.Node, Rounds]:
    """Where an assignment rounds, for the calls that it touches."""
    named = {path: format_named(name) for path, name in formats.items() if name != "float32"}
    ends = frozenset(path for path, name in formats.items() if name == "float32")
    found: dict[fx.Node, Rounds] = {}
    narrow: dict[fx.Node, str] = {}  # values in a narrow format, and the module they are in
    gives_narrow: set[str] = set()
    regions: dict[str, str | None] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if "call" not in node.meta:  # a part of a call
            if node.args[0] in narrow:
                narrow[node] = narrow[node.args[0]]
            continue
        path = node.meta["call"].module
        if path not in regions:
            regions[path] = _region(path, named.keys() | ends)
        region = regions[path]
        if region is None or region not in named:
            continue
        fmt = named[region]
        if traits(node).autocast is Autocast.LOW:
            found[node] = Rounds(fmt, fmt if has_kernels(fmt) else None, region)
        elif has_kernels(fmt) and _stays_narrow(node, region, narrow, gives_narrow, program):
            found[node] = Rounds(fmt, None if moves(node) else fmt, region)
        else:
            continue
        if has_kernels(fmt):
            narrow[node] = region
            gives_narrow.add(region)
    return found


def _region(path: str, named: Any) -> str | None:
    """The innermost named module around a path."""
    while path and path not in named:
        path = path.rpartition(".")[0]
    return path if path in named else None


def _stays_narrow(
    node: fx.Node,
    region: str,
    narrow: Mapping[fx.Node, str],
    gives_narrow: set[str],
    program: Program,
) -> bool:
    """Whether all operands are narrow, or cotangents that enter the module."""
    info: CallInfo = node.meta["call"]
    metas = node.meta["tensors"].values()
    wide = traits(node).autocast is Autocast.WIDE_ON_CUDA
    if wide and any(m.device.type == "cuda" for m in metas):
        return False
    some = False
    for source in node.all_input_nodes:
        if source in narrow and narrow[source] == region:
            some = True
        elif source.op == "get_attr":
            constant = program.constants[str(source.target)]
            if constant.is_floating_point() and constant.dim():
                return False
        elif _phase(source) == info.phase == "backward" and region in gives_narrow:
            some = True  # the module gave narrow results, so their gradient is rounded on entry
        elif _is_real(source):
            return False
    return some


def _call_of(node: fx.Node) -> fx.Node | None:
    whole: Any = node
    while isinstance(whole, fx.Node) and "call" not in whole.meta and whole.args:
        whole = whole.args[0]
    return whole if isinstance(whole, fx.Node) and "call" in whole.meta else None


def _phase(node: fx.Node) -> str | None:
    whole = _call_of(node)
    return None if whole is None else whole.meta["call"].phase


def _with_plain_bias(node: fx.Node, y: Any, args: Any) -> Any:
    """The gradient of a convolution's bias is a sum, with no operands to round."""
    if op_name(node) != "convolution_backward" or y[2] is None:
        return y
    return [y[0], y[1], args[0].transpose(0, 1).flatten(1).sum(1)]


def _overflows(value: Tensor, rounded: Tensor) -> bool:
    """Whether a number became infinite."""
    if math.isfinite(float(rounded.sum())):
        return False
    return bool((rounded.isinf() & (value.abs() < _MASK)).any())


def _is_short_of_range(fmt: Format) -> bool:
    """Whether numbers overflow in a format; 8 bits are scaled, others range as float32 does."""
    return has_kernels(fmt) and fmt.max_exponent < 127


def _is_real(node: fx.Node) -> bool:
    whole = _call_of(node)
    if whole is None:
        return True
    return any(m.dtype.is_floating_point for m in whole.meta["tensors"].values())
