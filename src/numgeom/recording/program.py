"""What did a training step compute, as a program that can be run again?"""

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from numgeom.errors import FileFormatError
from numgeom.recording.calls import CallInfo, TensorMeta
from numgeom.recording.decisions import Decision, decisions_of
from numgeom.visible import visible

OnCall = Callable[[fx.Node, Any], None]


@dataclass(frozen=True)
class Replay:
    """What a run of a program produced.

    Attributes:
        gradients: Gradient of every parameter that got one, by name, in model order.
        loss: The loss, a tensor without dimensions; None where the backward pass did not
            start from a single scalar that was seen.
        updates: New values of the parameters and buffers that the step changed, by name.
        decisions: The program's decisions, with the tensors of this run.
    """

    gradients: dict[str, torch.Tensor]
    loss: torch.Tensor | None
    updates: dict[str, torch.Tensor] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """A recorded training step: functional ATen calls, and the constants they start from.

    The graph's calls are pure: no mutation, no aliasing that matters, no randomness. Its output
    node holds `{"gradients": ..., "loss": ..., "updates": ...}`, and `"decisions"` where there are
    any. Every call node has
    `meta["call"]` (`CallInfo`: phase, module, source) and `meta["tensors"]` (shape, strides and
    dtype of every output that was recorded); every constant's node has `meta["role"]`
    ("parameter", "buffer", "input", "drawn", "decision") and `meta["name"]`.

    Attributes:
        graph: The calls, forward and backward, in the order in which they ran.
        constants: Tensors by the target of their `get_attr` node.
        recorded: What the user's own run produced.
        switches: How torch's switches that change bits were set.
        default_dtype: torch's default dtype when the step ran.
        versions: Versions of torch and numgeom that recorded it.
    """

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    recorded: Replay
    switches: dict[str, Any]
    default_dtype: torch.dtype
    versions: dict[str, str]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that got a gradient, in model order."""
        return tuple(self.recorded.gradients)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The tensors that decided what no replay decides again, as nodes of the graph."""
        return decisions_of(self.graph)

    @property
    def calls(self) -> list[fx.Node]:
        """The call nodes, in order; the parts of a call with several outputs are not counted."""
        return [n for n in self.graph.nodes if n.op == "call_function" and "call" in n.meta]

    def __len__(self) -> int:
        """Number of calls."""
        return len(self.calls)

    def __iter__(self) -> Iterator[fx.Node]:
        """The call nodes, in order."""
        return iter(self.calls)

    def at(self, module: str) -> list[fx.Node]:
        """The calls of a module and of the modules inside it, both phases.

        Args:
            module: Path as in `model.named_modules()`; "" is everything.

        Raises:
            KeyError: if no call belongs to that path; names paths that are close to it.
        """
        found = [n for n in self.calls if _is_inside(n.meta["call"].module, module)]
        if not found:
            import difflib

            known = sorted({n.meta["call"].module for n in self.calls} - {""})
            near = difflib.get_close_matches(module, known, 3) or known[:5]
            raise KeyError(f"no call belongs to module {module!r}; known: {', '.join(near)}")
        return found

    def replay(
        self,
        dtype: torch.dtype | None = torch.float64,
        *,
        device: torch.device | str | None = None,
        on_call: OnCall | None = None,
    ) -> Replay:
        """Run the program again.

        Replaying in the recorded formats on the recorded device gives bit-identical gradients;
        that shows that the recording is the computation.

        Args:
            dtype: Format in which every floating-point call runs, float64 by default; casts
                between formats then vanish. None: the recorded formats.
            device: Where to run; by default each call where it ran.
            on_call: Called with every node and its value right after the node ran.

        Returns:
            Gradients, loss and updates of this run.

        Raises:
            ReplayError: names the call that could not run, and why.
        """
        from numgeom.recording.replay import run

        return run(self, dtype=dtype, device=device, on_call=on_call)

    def decompose(self, device: torch.device | str | None = None) -> "Program":
        """Open composite ops until core ATen is left, in float64.

        The result is a program of its own; replaying it gives the same gradients up to the
        rounding of float64. Every call keeps the origin of the call it came from.

        Raises:
            ReplayError: names the call that could not run, and why.
        """
        from numgeom.recording.decompose import decompose

        return decompose(self, device=device)

    def save(self, path: str | Path, **more: Any) -> None:
        """Write the program to a file that `load` reads, whole or not at all.

        Args:
            path: The file.
            more: Tensors, texts, numbers, and lists and dictionaries of them, to keep beside the
                program under these names.

        Raises:
            FileFormatError: if the file cannot be written; the old one is unchanged.
        """
        from numgeom.recording.files import save

        save(self, Path(path), more)

    @classmethod
    def load(cls, path: str | Path, *, allow: Collection[str] = ()) -> "Program":
        """Read a program that `save` wrote.

        Reading runs nothing: no code from the file, and no op that it names. A file may only call
        pure functions of tensors that torch and this package know, so that running it again has no
        effect outside of the program. Ops of other libraries are let in by name.

        Args:
            path: The file.
            allow: Names of further ops that the file may call, such as "mylib.scale.default"; you
                vouch for what they do. Ops that write to their arguments are never let in.

        Raises:
            FileFormatError: if the file is missing, damaged, foreign, of a later version, needs an
                op that this torch does not have, or calls one that it may not call.
        """
        from numgeom.recording.files import load

        return load(Path(path), allow)

    def digest(self) -> str:
        """SHA-256 of the calls and constants, whatever files and lines they came from."""
        from numgeom.recording.digest import bytes_of
        from numgeom.recording.graph_text import structure_of

        total = hashlib.sha256(structure_of(self, origins=False).encode())
        for name, tensor in self.constants.items():
            total.update(name.encode())
            total.update(bytes_of(tensor))
        return total.hexdigest()

    def __str__(self) -> str:
        """One line per call: number, op, inputs, result, phase, module, line."""
        return "\n".join(map(visible, _lines(self)))

    def __repr__(self) -> str:
        """Sizes only."""
        size = sum(t.numel() for t in self.constants.values())
        return (
            f"Program({len(self)} calls, {len(self.parameters)} parameters, "
            f"{len(self.constants)} constants of {size} entries)"
        )


def _is_inside(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(module + ".")


_SHORT = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "b8", torch.complex64: "c64",
    torch.complex128: "c128",
}  # fmt: skip


def describe(meta: TensorMeta) -> str:
    """A tensor's dtype and shape in short, `f32[64, 10]`."""
    name = _SHORT.get(meta.dtype, str(meta.dtype).removeprefix("torch."))
    return f"{name}[{', '.join(map(str, meta.shape))}]"


def _lines(program: Program) -> Iterator[str]:
    for node in program.graph.nodes:
        if node.op == "get_attr":
            tensor = program.constants[node.target]
            meta = TensorMeta(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
            label = f"{node.meta['role']} {node.meta['name']}".strip()
            yield f"%{node.name} = {describe(meta)}  # {label}"
        elif node.op == "call_function" and "call" in node.meta:
            info: CallInfo = node.meta["call"]
            given = ", ".join(_show(a) for a in node.args)
            named = "".join(f", {k}={_show(v)}" for k, v in node.kwargs.items())
            results = ", ".join(describe(m) for m in node.meta["tensors"].values())
            place = f"{info.phase} {info.module} {info.source}".strip()
            yield f"%{node.name} = {node.target}({given}{named}) -> {results}  # {place}"
        elif node.op == "call_function":
            yield f"%{node.name} = {_show(node.args[0])}[{node.args[1]}]"
        elif node.op == "output":
            for name, value in node.args[0]["gradients"].items():
                yield f"gradient {name} = {_show(value)}"


def _show(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_show(v) for v in value)}]"
    return str(value)


__all__ = ["FileFormatError", "Program", "Replay", "describe"]
