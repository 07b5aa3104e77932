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
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch._C import _current_autograd_node, _current_graph_task_id
from torch._C._autograd import _get_sequence_nr
from torch._ops import OpOverload
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from numgeom.recording.functionalize import is_composite
from numgeom.recording.modules import Named, named
from numgeom.recording.reads import listening
from numgeom.recording.sources import NOWHERE, Place, here, is_seeding

_ONES_LIKE = torch.ops.aten.ones_like.default  # what a backward pass starts from
_new = tuple.__new__
_NEVER = 1 << 63  # AccumulateGrad nodes carry the largest sequence number


class Observer(Protocol):
    """What a stream reports to."""

    def before(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See a call before it runs. What it returns is handed to `after`, unless it is None."""
        ...

    def after(self, token: Any, outputs: Any, place: Place) -> None:
        """See what the call returned, and where it came from."""
        ...

    def read(self, tensor: torch.Tensor, reader: str, place: Place) -> None:
        """See a tensor whose values Python is about to read without a call."""
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
        self._origin: dict[int, Place] = {}  # of the call that made a node, by its number
        self._backward: dict[int, Place] = {}  # of the calls that a node makes
        self._roots: list[nn.Module] = []
        self._saw_backward = False
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
        self._exit.enter_context(listening(self._read))
        self._exit.enter_context(self._mode)
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching and forget the user's modules."""
        del error
        self._exit.close()
        self._stack.clear()
        self._origin.clear()
        self._backward.clear()
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

    def _read(self, tensor: torch.Tensor, reader: str) -> None:
        self._observer.read(tensor, reader, self.locate(None, (), sys._getframe(1)))

    def locate(
        self, op: OpOverload | None, args: tuple[Any, ...], frame: FrameType | None
    ) -> Place:
        """Where a call comes from that has just run, under this frame."""
        grad = torch.is_grad_enabled()
        node = _current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        if not grad and not self._stack:  # most calls of a backward pass
            place = self._backward.get(number)
            if place is not None:
                return place
        task = _current_graph_task_id()
        if task == -1:
            stack = self._stack
            if op is _ONES_LIKE and is_seeding(frame):
                self._observer.backward_from(args[0])
            update = self._saw_backward and not stack and not grad
            phase, module = "update" if update else "forward", stack[-1][0] if stack else ""
            place = _new(Place, (phase, module, (here(),)))
        else:
            self._saw_backward = True
            place = self._backward_origin(node, number)
            if self._stack and self._stack[-1][1] == task:  # a forward that is recomputed
                place = place._replace(module=self._stack[-1][0])
        if grad:  # in a backward pass too: what is made there may be differentiated again
            made = _get_sequence_nr() - 1
            if made >= self._first:
                self._origin.setdefault(made, place)
        return place

    def _backward_origin(self, node: Any, number: int) -> Place:
        if node is None:
            return Place("backward", "")
        if number >= _NEVER:
            owner = self._owners.get(id(getattr(node, "variable", None)), "")
            return Place("backward", owner)
        # Sequence numbers are counted per thread; the engine's own threads count anew.
        if number < self._first and threading.get_ident() == self._thread:
            self._observer.unrecorded_backward(node.name())
        origin = self._origin.get(number, NOWHERE)
        # Python code runs inside the engine: a custom backward, or a recomputed forward.
        if torch.is_grad_enabled() or isinstance(node, BackwardCFunction):
            return Place("backward", origin.module, (here(), *origin.stacks))
        place = self._backward[number] = Place("backward", origin.module, origin.stacks)
        return place


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
        if torch.is_inference_mode_enabled() and is_composite(func):
            # Elsewhere autograd takes composite ops apart before they get here.
            with self:
                return func.decompose(*args, **kwargs)
        observer = self._observer
        token = observer.before(func, args, kwargs)
        outputs = func._op(*args, **kwargs)  # what `func(...)` calls
        if token is not None:
            place = self._stream.locate(func, args, sys._getframe(1))
            observer.after(token, outputs, place)
        return outputs
