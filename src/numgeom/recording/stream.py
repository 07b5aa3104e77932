"""Which operations does a step execute, in which order, and where do they come from?

`Stream` is the package's only dispatch mode that watches. It hands every executed ATen call
to an observer, twice: before it runs (its inputs still hold the old values) and after.

Where a backward call comes from is known exactly. The autograd engine numbers the nodes of
its graph (their sequence numbers); a node is created just before its forward kernel runs, so
the number that is current when a forward call is seen is that of the node that will
differentiate it. The table of these numbers carries module and line from forward to backward.
"""

import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch._C import _current_autograd_node, _current_graph_task_id
from torch._C._autograd import _get_sequence_nr
from torch._ops import OpOverload
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from numgeom.recording.calls import CallInfo
from numgeom.recording.modules import Named, named

_TORCH = str(Path(nn.__file__).parent.parent)
_PACKAGE = str(Path(__file__).parent.parent)
_EXAMPLES = str(Path(__file__).parent.parent / "experiments")  # counts as user code
_NEVER = 1 << 63  # AccumulateGrad nodes carry the largest sequence number


class Observer(Protocol):
    """What a stream reports to."""

    def before(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See a call before it runs. What it returns is handed to `after`, unless it is None."""
        ...

    def after(self, token: Any, outputs: Any, info: CallInfo) -> None:
        """See what the call returned, and where it came from."""
        ...

    def backward_from(self, root: torch.Tensor) -> None:
        """See the tensor from which a backward pass is about to start."""
        ...

    def unrecorded_backward(self, name: str) -> None:
        """See that the backward pass reached a node created before the stream began."""
        ...


class Stream:
    """Watch the calls of this thread, and of the backward passes it starts.

    A context manager. Inside the block every ATen call that reaches a backend is reported to
    `observer`. Results are bitwise what they are without it.

    Args:
        observer: Receives the calls.
        held: What the model holds: names its modules and parameters. A module that is called
            outside of it becomes a root of its own, named by its class.
    """

    def __init__(self, observer: Observer, *, held: Named | None = None) -> None:
        """Prepare a stream; nothing is watched until the block is entered."""
        self._observer = observer
        self._names: dict[int, str] = {}  # module path, by id of a module that is kept alive
        self._owners: dict[int, str] = {}  # module path, by id of its parameter
        if held is not None:
            self._learn(held, "")
        self._stack: list[tuple[str, int]] = []  # (module path, graph task at entry)
        self._origin: dict[int, tuple[str, str]] = {}  # sequence number -> (module, source)
        self._roots: list[nn.Module] = []
        self._saw_backward = False
        self._sources = _Sources()
        self._mode = _Mode(self, observer)
        self._exit = ExitStack()
        self._first = 0
        self._thread = 0

    @property
    def roots(self) -> list[nn.Module]:
        """Modules that were called from outside of every known module, in order."""
        return self._roots

    def __enter__(self) -> "Stream":
        """Start watching."""
        self._first = _get_sequence_nr()
        self._thread = threading.get_ident()
        before = register_module_forward_pre_hook(self._enter_module)
        self._exit.callback(before.remove)
        after = register_module_forward_hook(self._leave_module, always_call=True)
        self._exit.callback(after.remove)
        self._exit.enter_context(self._mode)
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching and forget the user's modules."""
        del error
        self._exit.close()
        self._stack.clear()
        self._origin.clear()
        self._names.clear()
        self._roots.clear()

    # -- module path ---------------------------------------------------------------------

    def _enter_module(self, module: nn.Module, inputs: object) -> None:
        del inputs
        name = self._names.get(id(module))
        if name is None:
            name = self._adopt(module)
        self._stack.append((name, _current_graph_task_id()))

    def _leave_module(self, module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs, output
        if self._stack:
            self._stack.pop()

    def _adopt(self, module: nn.Module) -> str:
        """Name a module that was not announced, and all modules below it."""
        label = type(module).__name__
        if self._stack:  # made on the fly inside a known module
            label = f"{self._stack[-1][0]}.{label}".lstrip(".")
        else:
            taken = set(self._names.values())
            plain, n = label, 2
            while label in taken:
                label, n = f"{plain}_{n}", n + 1
        self._roots.append(module)  # keeps it alive, so that its id stays its own
        self._learn(named(module), label)
        return label

    def _learn(self, held: Named, label: str) -> None:
        for path, child in held.modules.items():
            name = f"{label}.{path}".strip(".") if label else path
            self._names.setdefault(id(child), name)
            for parameter in child._parameters.values():
                self._owners.setdefault(id(parameter), name)

    # -- calls ---------------------------------------------------------------------------

    def locate(self, op: OpOverload, args: tuple[Any, ...], frame: FrameType | None) -> CallInfo:
        """Where a call comes from that has just run, under this frame."""
        task = _current_graph_task_id()
        made = _get_sequence_nr() - 1
        if task == -1:
            source, seeds = self._sources.find(frame)
            module = self._stack[-1][0] if self._stack else ""
            if seeds and op is torch.ops.aten.ones_like.default:
                self._observer.backward_from(args[0])
            if made >= self._first:
                self._origin.setdefault(made, (module, source))
            phase = "forward"
            if self._saw_backward and not self._stack and not torch.is_grad_enabled():
                phase = "update"
            return CallInfo(phase, module, source)
        self._saw_backward = True
        module, source = self._backward_origin(frame)
        if self._stack and self._stack[-1][1] == task:  # a forward that is recomputed
            module = self._stack[-1][0]
        if made >= self._first:  # double backward: what is made here can be differentiated
            self._origin.setdefault(made, (module, source))
        return CallInfo("backward", module, source)

    def _backward_origin(self, frame: FrameType | None) -> tuple[str, str]:
        node = _current_autograd_node()
        if node is None:
            return "", ""
        number = node._sequence_nr()
        if number >= _NEVER:
            return self._owners.get(id(getattr(node, "variable", None)), ""), ""
        # Sequence numbers are counted per thread; the engine's own threads count anew.
        if number < self._first and threading.get_ident() == self._thread:
            self._observer.unrecorded_backward(node.name())
        module, source = self._origin.get(number, ("", ""))
        # Python code runs inside the engine: a custom backward, or a recomputed forward.
        if torch.is_grad_enabled() or isinstance(node, BackwardCFunction):
            source = self._sources.find(frame)[0] or source
        return module, source


class _Mode(TorchDispatchMode):
    def __init__(self, stream: Stream, observer: Observer) -> None:
        super().__init__()
        self._stream = stream
        self._observer = observer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled. The wrapper that torch would put around every call costs more
        # than the call, and imports the whole compiler (3 s) at the first one.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Tensor subclasses take themselves apart first; their plain tensors are seen then.
        for kind in types:
            if kind not in (torch.Tensor, nn.Parameter) and (
                kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
            ):
                return NotImplemented
        kwargs = kwargs or {}
        observer = self._observer
        token = observer.before(func, args, kwargs)
        outputs = func(*args, **kwargs)
        if token is not None:
            info = self._stream.locate(func, args, sys._getframe(1))
            observer.after(token, outputs, info)
        return outputs


_PLUMBING, _USER, _ENGINE, _SEEDING = range(4)


class _Sources:
    """Find the user's line in a stack of frames."""

    def __init__(self) -> None:
        # By id: hashing a code object reads all of it. Those that are known are kept alive.
        self._kinds: dict[int, int] = {}
        self._text: dict[tuple[int, int], str] = {}
        self._kept: list[CodeType] = []

    def find(self, frame: FrameType | None) -> tuple[str, bool]:
        """Return the innermost line outside torch, and whether a backward pass is being seeded.

        The line is "" where the autograd engine stands between the call and user code.
        """
        seeds = False
        kinds = self._kinds
        while frame is not None:
            code = frame.f_code
            kind = kinds.get(id(code))
            if kind is None:
                kind = self._learn(code)
            if kind:
                if kind == _USER:
                    return self._describe(code, frame.f_lineno), seeds
                if kind == _ENGINE:
                    return "", seeds
                seeds = True
            frame = frame.f_back
        return "", seeds

    def _learn(self, code: CodeType) -> int:
        self._kept.append(code)
        if not _is_plumbing(code.co_filename):
            kind = _USER
        elif code.co_name == "_engine_run_backward":
            kind = _ENGINE
        else:  # `_make_grads` makes the 1 that a backward pass starts from
            kind = _SEEDING if code.co_name == "_make_grads" else _PLUMBING
        self._kinds[id(code)] = kind
        return kind

    def _describe(self, code: CodeType, line: int) -> str:
        text = self._text.get((id(code), line))
        if text is None:
            text = self._text[id(code), line] = f"{short_path(code.co_filename)}:{line}"
        return text


def _is_plumbing(file: str) -> bool:
    if file.startswith("<"):  # generated code, unless it was typed in
        return not file.startswith(("<stdin>", "<string>", "<ipython"))
    return file.startswith((_TORCH, _PACKAGE)) and not file.startswith(_EXAMPLES)


def short_path(path: str) -> str:
    """Shorten a path: relative to the working folder or to site-packages, else its name."""
    _, found, rest = path.rpartition("site-packages/")
    if found:
        return rest
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return Path(path).name
