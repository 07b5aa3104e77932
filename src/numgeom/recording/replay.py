"""What does a recorded program give when it is run again, in this or another format?"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import map_arg
from torch.utils._pytree import tree_any, tree_map_only

from numgeom.errors import ReplayError
from numgeom.failures import note_place
from numgeom.recording.calls import CallInfo
from numgeom.recording.decisions import decision_of
from numgeom.recording.environment import plain_evaluation, switches
from numgeom.recording.program import OnCall, Program, Replay
from numgeom.recording.references import REFERENCES, Reference

aten = torch.ops.aten


def run(
    program: Program,
    *,
    dtype: torch.dtype | None = torch.float64,
    device: torch.device | str | None = None,
    on_call: OnCall | None = None,
) -> Replay:
    """Run a program; see `Program.replay`."""
    interpreter = ProgramInterpreter(program, dtype=dtype, device=device, on_call=on_call)
    return interpreter.evaluate()


class ProgramInterpreter:
    """Runs a program node by node. Other ways to evaluate a program derive from it.

    Values are freed after their last use. With `opens` every fused op is evaluated by its
    reference, also where the op itself runs in float64.

    Args:
        program: What to run.
        dtype: Format of every floating-point call, None for the recorded ones.
        device: Where to run, None for where each call ran.
        on_call: Called with every node and its value.
    """

    opens = False

    def __init__(
        self,
        program: Program,
        *,
        dtype: torch.dtype | None = torch.float64,
        device: torch.device | str | None = None,
        on_call: OnCall | None = None,
    ) -> None:
        """Prepare a run."""
        if dtype is not None and not dtype.is_floating_point:
            raise ReplayError(f"a replay needs a floating-point dtype, not {dtype}")
        self.program = program
        self.dtype = dtype
        self.device = None if device is None else torch.device(device)
        self.on_call = on_call
        self._complex = None if dtype is None else _complex_of(dtype)

    def evaluate(self) -> Replay:
        """Run all nodes and collect the outputs.

        Raises:
            ReplayError: names the call that could not run.
        """
        default = self.program.default_dtype if self.dtype is None else self.dtype
        applied = self.program.switches if self.dtype is None else {}
        with plain_evaluation(default), switches(applied):
            found = self.finish(self._run())
        decisions = tuple(map(decision_of, found.get("decisions", ())))
        return Replay(found["gradients"], found["loss"], found["updates"], decisions)

    def finish(self, found: Any) -> Any:
        """Turn what the nodes gave into tensors; other evaluations keep more beside them."""
        return found

    def _run(self) -> Any:
        values: dict[fx.Node, Any] = {}
        last_uses = _last_uses(self.program.graph)
        for node in self.program.graph.nodes:
            if node.op == "output":
                return map_arg(node.args[0], values.__getitem__)
            try:
                values[node] = self.run_node(node, values)
            except Exception as error:
                note_place(error, _place(node))
                raise
            for done in last_uses.get(node, ()):
                del values[done]
        raise ReplayError("the program has no output")

    # -- nodes ---------------------------------------------------------------------------

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Run one node and show its value to `on_call`."""
        if node.op == "get_attr":
            value = self.constant(node)
        else:
            args = map_arg(node.args, values.__getitem__)
            kwargs = map_arg(node.kwargs, values.__getitem__) if node.kwargs else {}
            value = self.call(node, args, kwargs)
        if self.on_call is not None:
            self.on_call(node, value)
        return value

    def constant(self, node: fx.Node) -> torch.Tensor:
        """A constant, in the format and on the device of this run."""
        tensor = self.program.constants[str(node.target)]
        dtype = self._dtype_for(tensor.dtype)
        if dtype is not tensor.dtype or (self.device and self.device != tensor.device):
            tensor = tensor.to(device=self.device or tensor.device, dtype=dtype)
        return tensor

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run one call as it was recorded, or its reference in another format.

        Raises:
            ReplayError: names the call and why it could not run.
        """
        target: Any = node.target
        if target is operator.getitem:
            try:
                return args[0][args[1]]
            except (IndexError, TypeError, KeyError) as error:  # in a file that was changed
                raise ReplayError(
                    f"{node} takes part {args[1]!r} of a call that has no such part ({error}). The "
                    "program was changed after it was recorded; record the step again."
                ) from error
        try:
            if self.dtype is None:
                return _restride(_plain(self.apply(target, args, kwargs)), node)
            args, kwargs = self._translate(node, args, kwargs)
            reference = REFERENCES.get(target)
            if reference is not None and (self.opens or not _runs_itself(reference, args)):
                return reference.compute(*args, **kwargs)
            return _plain(self.apply(target, args, kwargs))
        except ReplayError:
            raise
        except Exception as error:
            raise ReplayError(_explain(node, args, self.dtype, error)) from error

    def apply(self, op: OpOverload, args: Any, kwargs: Any) -> Any:
        """Evaluate an op so that its meaning does not depend on how its inputs lie in memory."""
        if op is aten.view.default or op is aten._unsafe_view.default:
            return args[0].reshape(args[1])
        if op is aten.as_strided.default or op is aten.as_strided_scatter.default:
            # In a program the input of these two is one line of memory.
            line = args[0].contiguous()
            if line.storage_offset():
                line = line.clone()
            return op(line, *args[1:], **kwargs)
        return op(*args, **kwargs)

    # -- formats -------------------------------------------------------------------------

    def _dtype_for(self, dtype: torch.dtype) -> torch.dtype:
        if self.dtype is None:
            return dtype
        if dtype.is_floating_point:
            return self.dtype
        if dtype.is_complex and self._complex is not None:
            return self._complex
        return dtype

    def _translate(self, node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Write this run's format and device over those in the arguments."""
        if _names_dtype(node):
            args, kwargs = tree_map_only(torch.dtype, self._dtype_for, (args, kwargs))
        if self.device is not None and _names_device(node):
            args, kwargs = tree_map_only(torch.device, lambda _: self.device, (args, kwargs))
        if node.target in _HALF_TO_FLOAT:
            args = (*args[:2], False)
        return args, kwargs


# softmax(x, dim, half_to_float): the widening is a cast, and casts vanish in a replay.
_HALF_TO_FLOAT = (aten._softmax.default, aten._log_softmax.default)


def _plain(value: Any) -> Any:
    """A result as it is, if it is made of dense tensors, as all that is recorded.

    Raises:
        ValueError: if it is sparse, nested or quantized: nobody has checked what such a tensor,
            made of the numbers in a file, refers to.
    """
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested or value.is_quantized:
            raise ValueError("the result is no dense tensor of plain numbers")
    elif isinstance(value, (list, tuple)):
        for part in value:
            _plain(part)
    return value


def _names_dtype(node: fx.Node) -> bool:
    if "names_dtype" not in node.meta:
        node.meta["names_dtype"] = _holds_dtype(node.args) or _holds_dtype(node.kwargs)
    return node.meta["names_dtype"]


def _holds_dtype(tree: Any) -> bool:
    if isinstance(tree, (list, tuple)):
        return any(map(_holds_dtype, tree))
    if isinstance(tree, Mapping):
        return any(map(_holds_dtype, tree.values()))
    return isinstance(tree, torch.dtype)


def _names_device(node: fx.Node) -> bool:
    return tree_any(lambda x: isinstance(x, torch.device), (node.args, node.kwargs))


def _runs_itself(reference: Reference, args: Any) -> bool:
    """Whether a fused op may run in place of its reference: in float64 on the CPU, where it can."""
    return reference.float64_on_cpu and all(
        a.is_cpu and (a.dtype is torch.float64 or not a.is_floating_point())
        for a in args
        if isinstance(a, torch.Tensor)
    )


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the values that nobody needs after it ran."""
    seen: set[fx.Node] = set()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                if node.op != "output":
                    last.setdefault(node, []).append(source)
    return last


def _complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype is torch.float64 else torch.complex64


def _restride(value: Any, node: fx.Node) -> Any:
    """Lay results out as they lay in the recorded run: kernels choose their order by strides."""
    metas = node.meta["tensors"]
    if isinstance(value, torch.Tensor):
        meta = metas.get(())
        return value if meta is None else _laid_out(value, meta)
    if isinstance(value, (list, tuple)):
        for path, meta in metas.items():
            part = value
            for i in path:
                part = part[i]
            if isinstance(part, torch.Tensor) and part.stride() != meta.stride:
                return _restride_parts(value, metas, ())
    return value


def _restride_parts(value: Any, metas: Any, path: tuple[int, ...]) -> Any:
    if isinstance(value, torch.Tensor):
        return _laid_out(value, metas[path]) if path in metas else value
    if isinstance(value, (list, tuple)):
        return [_restride_parts(v, metas, (*path, i)) for i, v in enumerate(value)]
    return value


def _laid_out(value: torch.Tensor, meta: Any) -> torch.Tensor:
    if value.stride() == meta.stride or value.shape != meta.shape or value.numel() == 0:
        return value
    if any(n > 1 and step == 0 for n, step in zip(meta.shape, meta.stride, strict=True)):
        return value
    room = torch.empty_strided(meta.shape, meta.stride, dtype=value.dtype, device=value.device)
    return room.copy_(value)


def _place(node: fx.Node) -> str:
    """The op of a node, and where its call comes from."""
    info: CallInfo | None = node.meta.get("call")
    if info is None:
        return str(node.target)
    module = f" in {info.module}" if info.module else ""
    source = f" at {info.source}" if info.source else ""
    return f"{node.target} ({info.phase}{module}{source})"


def _explain(node: fx.Node, args: Any, dtype: torch.dtype | None, error: Exception) -> str:
    shapes = ", ".join(
        f"{a.dtype}{list(a.shape)}".removeprefix("torch.")
        for a in args
        if isinstance(a, torch.Tensor)
    )
    run_as = "the recorded formats" if dtype is None else str(dtype).removeprefix("torch.")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{_place(node)} cannot be replayed in {run_as} on inputs [{shapes}]: {reason}. "
        "If the op has no kernel for this format, it needs a reference in plain ATen "
        "(numgeom/recording/references); please report it."
    )
