"""What is left of a program when its composite ops are opened?

A replay is recorded again, with a stream that opens every op that torch can decompose into core
ATen. So the same recorder that reads the user's in-place code reads that of the decompositions.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from numgeom.errors import RecordingError
from numgeom.recording.build import build_program, without_collection
from numgeom.recording.calls import CallInfo, TensorMeta
from numgeom.recording.complex_pairs import Pairs, is_about_complex_numbers
from numgeom.recording.decisions import row_of
from numgeom.recording.formulas import FORMULAS
from numgeom.recording.log import Log
from numgeom.recording.problems import describe
from numgeom.recording.program import Program, Replay
from numgeom.recording.reads import listening
from numgeom.recording.recorder import Recorder
from numgeom.recording.references import REFERENCES
from numgeom.recording.references.freedom import declared, free, is_declared
from numgeom.recording.replay import ProgramInterpreter
from numgeom.recording.scalars import Scalars
from numgeom.recording.values import Constant, Value, tensors_in

aten = torch.ops.aten
prims = torch.ops.prims

# Opened beyond core ATen: composite in arithmetic, so that each rounding is a call of its own.
_ALSO_OPENED = (
    aten._log_softmax_backward_data,
    aten._softmax_backward_data,
    aten.addmm,
    aten.elu,
    aten.elu_backward,
    aten.embedding_dense_backward,
    aten.gelu,
    aten.gelu_backward,
    aten.hardswish,
    aten.hardswish_backward,
    aten.leaky_relu_backward,
    aten.log_sigmoid_backward,
    aten.mse_loss,
    aten.mse_loss_backward,
    aten.native_batch_norm,
    aten.native_batch_norm_backward,
    aten.native_group_norm,
    aten.native_group_norm_backward,
    aten.native_layer_norm,
    aten.native_layer_norm_backward,
    aten.nll_loss_backward,
    aten.nll_loss_forward,
    aten.sigmoid_backward,
    aten.silu,
    aten.silu_backward,
    aten.softplus,
    aten.softplus_backward,
    aten.tanh_backward,
    aten.threshold_backward,
)

# Kept closed although torch can open them: movement of data, exact as it stands.
_KEPT = frozenset({"as_strided_scatter", "max_pool2d_with_indices_backward"})


@lru_cache(maxsize=1)
def decompositions() -> Mapping[OpOverload, Callable[..., Any]]:
    """The ops that are opened, with their meaning in simpler ops."""
    table: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    table.update(get_decompositions(list(_ALSO_OPENED)))
    kept = {
        op: meaning
        for op, meaning in table.items()
        if isinstance(op, OpOverload) and op._schema.name.partition("::")[2] not in _KEPT
    }
    # A fused op is opened by its reference; torch's own definitions of some of them are wrong.
    table = {**kept, **FORMULAS, **_OWN}
    return {op: meaning for op, meaning in table.items() if op not in _fused()}


def _fused() -> set[OpOverload]:
    """Ops that only occur as the user's calls, which the references open before they get here."""
    return {op for op in REFERENCES if op._overloadname == "dtype"}


def _embedding(weight: Tensor, indices: Tensor, *options: object) -> Tensor:
    """Rows of a table. What the options change is the gradient, and that was recorded."""
    del options
    return aten.index.Tensor(weight, [indices])


def _shift(x: Tensor, dim: int) -> Tensor:
    """The largest entry of each row, as a constant: softmax is the same for every shift.

    Over the reals exp(x - m) / sum exp(x - m) does not depend on m, so m may be the computed
    maximum, exactly; two equal entries are then no tie that could be broken in two ways.
    """
    with free():
        shift = x.amax(dim, keepdim=True) if x.dim() else x.clone()
    return declared(shift)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    del half_to_float
    if not x.numel():
        return aten.clone.default(x)
    powers = aten.exp.default(aten.sub.Tensor(x, _shift(x, dim)))
    return aten.div.Tensor(powers, aten.sum.dim_IntList(powers, [dim], True))


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    del half_to_float
    if not x.numel():
        return aten.clone.default(x)
    shifted = aten.sub.Tensor(x, _shift(x, dim))
    total = aten.sum.dim_IntList(aten.exp.default(shifted), [dim], True)
    return aten.sub.Tensor(shifted, aten.log.default(total))


# Ops that torch would leave closed, whose derivative in torch is not that of their values, or that
# torch opens in a way that invents a kink.
_OWN: Mapping[OpOverload, Callable[..., Any]] = {
    aten._log_softmax.default: _log_softmax,
    aten._softmax.default: _softmax,
    aten.embedding.default: _embedding,
    # Higher derivatives in torch.func come in these; they mean what their namesakes do.
    prims.add.default: aten.add.Tensor,
    prims.sub.default: aten.sub.Tensor,
    prims.mul.default: aten.mul.Tensor,
    prims.div.default: aten.div.Tensor,
    prims.neg.default: aten.neg.default,
    prims.exp.default: aten.exp.default,
    prims.log.default: aten.log.default,
    prims.sqrt.default: aten.sqrt.default,
    prims.tanh.default: aten.tanh.default,
    prims.where.default: aten.where.self,
}


def decompose(program: Program, *, device: torch.device | str | None = None) -> Program:
    """Open a program; see `Program.decompose`."""
    opened, _ = _decompose(program, device, anchored=False)
    return opened


def decompose_anchored(
    program: Program, *, device: torch.device | str | None = None
) -> tuple[Program, dict[fx.Node, fx.Node]]:
    """Open a program and tell where the values of the closed one are found in it.

    Returns:
        The opened program, and for every node of the closed one that holds a floating-point tensor
        the node that holds the same value over the reals. A cast and what it casts share one.
    """
    return _decompose(program, device, anchored=True)


@without_collection()
def _decompose(
    program: Program, device: torch.device | str | None, *, anchored: bool
) -> tuple[Program, dict[fx.Node, fx.Node]]:
    log = Log()
    recorder = _OpenedRecorder(log)
    interpreter = _Reader(program, recorder, log, device)
    interpreter.anchors = {} if anchored else None
    try:
        with listening(interpreter.read_into_python):
            result = interpreter.evaluate()
        read = interpreter.read
        anchors = interpreter.anchors or {}
        outputs: dict[str, Any] = {
            "gradients": {name: read(t) for name, t in result.gradients.items()},
            "loss": None if result.loss is None else read(result.loss),
            "updates": {name: read(t) for name, t in result.updates.items()},
            "anchors": list(anchors.values()),
        }
        recorder.play()
        decisions = [d._replace(value=read(d.value), taken=read(d.taken)) for d in result.decisions]
        decisions += recorder.decisions
        if decisions:
            outputs["decisions"] = tuple(map(row_of, decisions))
    finally:
        log.memories.close()
    if log.problems:
        raise RecordingError(describe(log.problems.values()))
    opened = build_program(
        recorder.entries,
        outputs,
        Replay(result.gradients, result.loss, result.updates),
        default_dtype=torch.float64,
        versions=program.versions,
    )
    end = next(node for node in opened.graph.nodes if node.op == "output")
    results: Any = end.args[0]
    places = results["anchors"]
    end.args = ({key: found for key, found in results.items() if key != "anchors"},)
    return opened, dict(zip(anchors, places, strict=True))


class _OpenedRecorder(Recorder):
    """Writes views by strides as gathers and scatters, which every analysis understands.

    In a program the input of `as_strided` and `as_strided_scatter` is one line of memory.
    """

    def _emit(self, op: Any, args: Any, kwargs: Any, meta: TensorMeta) -> Value:
        if op is aten.as_strided.default:
            line, size, stride, offset = args
            places = self._places(size, stride, offset, meta.device)
            flat = TensorMeta((_count(size),), (1,), meta.dtype, meta.device)
            row = super()._emit(aten.index_select.default, (line, 0, places), {}, flat)
            return super()._emit(aten.view.default, (row, size), {}, _contiguous(meta))
        if op is aten.as_strided_scatter.default:
            line, source, size, stride, offset = args
            places = self._places(size, stride, offset, meta.device)
            flat = TensorMeta((_count(size),), (1,), meta.dtype, meta.device)
            row = super()._emit(aten.view.default, (source, [_count(size)]), {}, flat)
            if len(meta.shape) == 1:
                return super()._emit(aten.scatter.src, (line, 0, places, row), {}, meta)
            # A call of the user's, whose input may have any shape.
            whole = TensorMeta((_count(meta.shape),), (1,), meta.dtype, meta.device)
            line = super()._emit(aten.view.default, (line, list(whole.shape)), {}, whole)
            found = super()._emit(aten.scatter.src, (line, 0, places, row), {}, whole)
            return super()._emit(aten.view.default, (found, list(meta.shape)), {}, meta)
        return super()._emit(op, args, kwargs, meta)

    def _places(self, size: Any, stride: Any, offset: int, device: torch.device) -> Value:
        """Where the entries of a view by strides lie, in the order of the view; a constant."""
        with _disable_current_modes():
            places = torch.full((1,), offset, device=device)
            for n, step in zip(size, stride, strict=True):
                places = (places[:, None] + step * torch.arange(n, device=device)).reshape(-1)
        return Value(Constant(places, "decision"))


def _count(size: Any) -> int:
    return math.prod(size)


def _contiguous(meta: TensorMeta) -> TensorMeta:
    steps, step = [], 1
    for n in reversed(meta.shape):
        steps.append(step)
        step *= max(n, 1)
    return TensorMeta(meta.shape, tuple(reversed(steps)), meta.dtype, meta.device)


class _Reader(ProgramInterpreter):
    """Replays a program in float64 under a mode that opens ops and records what is left."""

    opens = True

    def __init__(self, program: Program, recorder: Recorder, log: Log, device: Any) -> None:
        super().__init__(program, dtype=torch.float64, device=device)
        self._recorder = recorder
        self._log = log
        self._mode = _OpeningMode(log, Scalars(program))
        self.anchors: dict[fx.Node, Value] | None = None

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        value = super().run_node(node, values)
        if self.anchors is not None and isinstance(value, Tensor) and value.is_floating_point():
            self.anchors[node] = self.read(value)
        return value

    def read_into_python(self, tensor: Tensor, reader: str) -> None:
        """Note that a reference reads a tensor into Python."""
        self._log.read(tensor, reader, self._mode.info)

    def read(self, tensor: Tensor) -> Value:
        """What a tensor of the replay is in the opened program, now."""
        seen = self._log.memories.look(tensor)
        self._recorder.play()
        return self._recorder.read(seen)

    def constant(self, node: fx.Node) -> torch.Tensor:
        tensor = super().constant(node)
        self._log.memories.announce(tensor, node.meta["role"], node.meta["name"])
        self._mode.pairs.know_constant(tensor)
        return tensor

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        info = node.meta.get("call")
        if not isinstance(info, CallInfo):
            return super().call(node, args, kwargs)
        self._mode.info = info
        self._mode.scalars.enter(node.target, args, kwargs, phase=info.phase)
        with self._mode:
            return super().call(node, args, kwargs)


class _OpeningMode(TorchDispatchMode):
    def __init__(self, log: Log, scalars: Scalars) -> None:
        super().__init__()
        self._log = log
        self.scalars = scalars
        self._table = decompositions()
        self.pairs = Pairs()
        self.info = CallInfo("forward", "", "")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in the stream: nothing is compiled here

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if is_about_complex_numbers(func, args, kwargs):
            with self:
                parts = self.pairs.open(func, args, kwargs)
            if parts is not NotImplemented:
                return self._made(parts)
        meaning = self._table.get(func)
        if meaning is not None:
            with self:
                return meaning(*args, **kwargs)
        with self:
            opened = func.decompose(*args, **kwargs)
        if opened is not NotImplemented:
            return opened
        with self:
            func, args, kwargs = self.scalars.true(func, args, kwargs)
        return self._recorded(func, args, kwargs)

    def _recorded(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        if func is not aten.lift_fresh.default:  # numbers that Python has
            for tensor in tensors_in((args, kwargs)):
                if not is_declared(tensor):
                    self._log.arrived(tensor, str(func), self.info)
        token = self._log.before(func, args, kwargs)
        outputs = func(*args, **kwargs)
        if token is not None:
            self._log.after(token, outputs, self.info)
        return outputs

    def _made(self, parts: Any) -> Any:
        """A real tensor as it is, or the complex tensor that has these parts."""
        if isinstance(parts, Tensor):
            return parts
        if isinstance(parts, list):
            return [self._made(p) for p in parts]
        z = self._recorded(aten.complex.default, parts, {})
        self.pairs.keep(z, parts)
        return z
