"""How is the derivative of one executed op replaced, in the backward pass of unmodified code?

At a kink autograd picks one derivative and offers no switch. `Substitution` replaces the pick op by
op, and leaves the forward pass alone: a dispatch mode sees each call as it runs (also those inside
torch's own composite functions), a caller who knows the op answers with a new derivative, and that
answer becomes a hook on the autograd node which differentiates the call. So:

- the forward pass runs the same kernels on the same inputs, hence gives the same bits;
- a node without an answer keeps its backward pass, hence its bits;
- the answer lives exactly as long as the graph, also outside of the block; it serves activation
  checkpointing, hooks on saved tensors, retained graphs and double backward.

Replacing the backward *ops* instead would see too little: `threshold_backward` gets relu's output,
where x = 0 and x < 0 look alike, and abs, clamp, amax or norm have no backward op of their own.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

from numgeom.errors import NumgeomError

Gradients = tuple[torch.Tensor | None, ...]

# (gradients of the inputs as torch computed them, gradients of the outputs) -> new gradients of
# the inputs. One entry per differentiable argument, in the order of the op's schema.
Derivative = Callable[[Gradients, Gradients], Gradients]


class SelectionError(NumgeomError):
    """A derivative at a kink cannot be replaced here, or was asked for wrongly."""


@dataclass(frozen=True, slots=True)
class OpCall:
    """One executed op with its values.

    Attributes:
        name: Name of the op without namespace, overload and the underscore of in-place ops.
        arguments: Every argument by its name in the schema, defaults filled in, tensors detached.
        outputs: What the op returned, as a tuple. Empty for an in-place op that is about to run.
    """

    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[torch.Tensor, ...]


def op_name(op: OpOverload) -> str:
    """Name of an op without namespace, overload, and the underscore of in-place ops."""
    return op._schema.name.partition("::")[2].rstrip("_")


def bound_arguments(
    op: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by their names in the schema, defaults filled in."""
    return {
        argument.name: args[i]
        if i < len(args)
        else kwargs.get(argument.name, argument.default_value)
        for i, argument in enumerate(op._schema.arguments)
    }


def op_call(op: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> OpCall:
    """Describe a call by its values."""
    given = {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in bound_arguments(op, args, kwargs).items()
    }
    outputs = out if isinstance(out, (tuple, list)) else (out,)
    found = tuple(t.detach() for t in outputs if isinstance(t, torch.Tensor))
    return OpCall(op_name(op), given, found)


class Substitution:
    """Answer executed ops with derivatives of one's own, inside a `with` block.

    Of nested blocks the innermost alone is asked. Derivatives in forward mode are torch's.

    Args:
        answer: Gets a call, returns its new derivative, or None to keep torch's. It sees the
            call before it runs if the op works in place, and after it ran otherwise.
        names: The ops to ask about, by `op_name`. Only calls that autograd will differentiate
            are asked about.
    """

    def __init__(
        self, answer: Callable[[OpCall], Derivative | None], names: frozenset[str]
    ) -> None:
        """Prepare; nothing happens until the block is entered."""
        self._answer = answer
        self._names = names
        self.transformed = False  # by torch.func, while one function runs
        self._outer: list[Substitution] = []
        self._inner = 0  # blocks inside this one
        self._waiting: list[_Waiting] = []
        self._dispatch = _Dispatch(self)
        self._functions = _Functions(self)

    def __enter__(self) -> "Substitution":
        """Start answering, in place of the blocks around this one."""
        modes = _get_current_dispatch_mode_stack()
        self._outer = [m.substitution for m in modes if isinstance(m, _Dispatch)]
        for outer in self._outer:
            outer._inner += 1
        self._dispatch.__enter__()
        self._functions.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop answering. Graphs that were built inside the block keep their answers."""
        self._functions.__exit__(*error)
        self._dispatch.__exit__(*error)
        for outer in self._outer:
            outer._inner -= 1
        self.attach()

    def attach(self) -> None:
        """Hand the answers to the autograd nodes that were made since the last time."""
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            item.attach()

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call and ask for its derivative."""
        self.attach()
        if self._inner:
            return op(*args, **kwargs)
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
            self._functions.resume()
        name = op_name(op)
        asked = name in self._names and (self.transformed or _is_differentiated(args, kwargs))
        if not asked:
            return op(*args, **kwargs)
        in_place = op._schema.is_mutable
        derivative = self._ask(op, args, kwargs, ()) if in_place else None
        out = op(*args, **kwargs)
        if not in_place:
            derivative = self._ask(op, args, kwargs, out)
        if derivative is not None:
            if self.transformed:
                _refuse_transform(op)
            _refuse_view(op, args)
            self._waiting.append(_Waiting(op, out, derivative))
        return out

    def _ask(self, op: OpOverload, args: Any, kwargs: Any, out: Any) -> Derivative | None:
        # Other modes (a recorder) must not see what the answer computes.
        with _disable_current_modes(), torch.no_grad():
            return self._answer(op_call(op, args, kwargs, out))


class _Waiting:
    """An answer whose autograd node exists but is not attached to an output yet."""

    def __init__(self, op: OpOverload, out: Any, derivative: Derivative) -> None:
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        self._outputs = [weakref.ref(t) for t in outputs if isinstance(t, torch.Tensor)]
        # Autograd numbers its nodes; that of this call was made just before the call ran. An
        # in-place op may have cloned its input in between, which makes a node too.
        last = _get_sequence_nr() - 1
        self._numbers = (last, last - 1) if op._schema.is_mutable else (last,)
        self._op = op
        self._derivative = derivative

    def attach(self) -> None:
        """Hook the node. Where all outputs are gone nobody used them: there is nothing to hook."""
        alive = [t for t in (reference() for reference in self._outputs) if t is not None]
        for tensor in alive:
            node = tensor.grad_fn
            if node is not None and node._sequence_nr() in self._numbers:
                node.register_hook(_hook(self._derivative))
                return
        if any(t.grad_fn is not None for t in alive):
            raise SelectionError(
                f"the autograd node of {self._op} could not be found, so its derivative at a kink "
                "cannot be replaced. Record the step and select on the recorded program; please "
                "report the code around this call."
            )


def _hook(derivative: Derivative) -> Callable[[Gradients, Gradients], Gradients | None]:
    def replace(inputs: Gradients, outputs: Gradients) -> Gradients | None:
        if all(g is None for g in outputs) or all(g is None for g in inputs):
            return None
        return derivative(inputs, outputs)

    return replace


class _Dispatch(TorchDispatchMode):
    """Sees every call below autograd."""

    def __init__(self, substitution: Substitution) -> None:
        super().__init__()
        self.substitution = substitution

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        return self.substitution.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Sees every function above autograd: there the outputs have their nodes."""

    def __init__(self, substitution: Substitution) -> None:
        super().__init__()
        self._substitution = substitution

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        substitution = self._substitution
        substitution.attach()
        outer = substitution.transformed
        substitution.transformed = outer or _in_transform()
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            substitution.transformed = outer
        substitution.attach()
        return out

    def resume(self) -> None:
        """Be active in the code that runs inside a backward pass.

        torch suspends a function mode inside the functions it sees, `backward` among them. The
        engine restores the stack of modes after every node, so this needs no counterpart.
        """
        if self not in _get_current_function_mode_stack():
            torch._C._push_on_torch_function_stack(self)


def _in_transform() -> bool:
    """Whether a transform of torch.func differentiates what runs now."""
    stack = get_interpreter_stack()
    differentiating = (TransformType.Grad, TransformType.Jvp)
    return stack is not None and any(i.key() in differentiating for i in stack)


def _is_differentiated(args: Any, kwargs: Any) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(a, torch.Tensor) and a.requires_grad for a in (*args, *kwargs.values()))


def _refuse_view(op: OpOverload, args: Any) -> None:
    """Raise where autograd merges a call's node into another, which cannot be hooked."""
    if op._schema.is_mutable and args[0]._is_view():
        raise SelectionError(
            f"{op} runs at a kink and writes into a view (shape {tuple(args[0].shape)}); autograd "
            "merges such a write into one node, whose derivative cannot be replaced. Write it out "
            "of place (inplace=False), or record the step and select on the recorded program."
        )


def _refuse_transform(op: OpOverload) -> None:
    raise SelectionError(
        f"{op} runs at a kink inside a torch.func transform, whose derivatives cannot be replaced. "
        "Use loss.backward() or torch.autograd.grad, or record the step and select on the recorded "
        "program."
    )
