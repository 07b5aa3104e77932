"""What is noted of a step while it runs?

Each call as it was made, with notes in place of tensors, and copies of what no replay can find
again: parameters, inputs, random draws, decided positions, memory before it is written. Turning
the notes into a program is the recorder's work, and waits until somebody asks for the program.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from numgeom.errors import UnsupportedOpError
from numgeom.recording.calls import CallInfo
from numgeom.recording.contents import (
    Copies,
    copies_after,
    covers_memory,
    decided_indices,
    has_mask,
)
from numgeom.recording.functionalize import (
    HIDDEN_WRITES,
    Traits,
    Treatment,
    fill_defaults,
    name_of,
    refusal_of,
    refuse_unsupported_tensor,
    traits_of,
)
from numgeom.recording.memories import Memories
from numgeom.recording.problems import Problem
from numgeom.recording.seen import Seen
from numgeom.recording.values import tensors_in
from numgeom.recording.variants import argument_at, functional_variant

_DETACH = torch.ops.aten.detach.default  # a third of the calls of a backward pass
_NOWHERE = CallInfo("forward", "", "")


class Noted(NamedTuple):
    """One call: its arguments as they were before it, its outputs as they were after it."""

    traits: Traits
    args: Any
    kwargs: Any
    outputs: Any
    info: CallInfo
    more: "More | None"


class More(NamedTuple):
    """What is noted of a call that is not a pure function of its arguments.

    Attributes:
        targets: The arguments that it wrote to, as they were after it.
        covering: Those that are all of their memory.
        copies: What it drew or decided, by the tensor that held it.
        indices: The positions that it decided on.
    """

    targets: tuple[Any, ...] = ()
    covering: frozenset[Seen] = frozenset()
    copies: Copies = {}
    indices: Any = None


class Log:
    """Note the calls of a step; an observer of a stream.

    Args:
        names: Role and name of tensors that are known by name, by `id`.
        copy: Makes copies of parameters, inputs and results.
    """

    def __init__(
        self,
        names: Mapping[int, tuple[str, str]] | None = None,
        *,
        copy: Callable[[Tensor], Tensor] = Tensor.clone,
    ) -> None:
        """Start an empty log."""
        self.copy = copy
        self.memories = Memories(names or {}, copy=copy)
        self.calls: list[Noted] = []
        self.problems: dict[tuple[str, str], Problem] = {}
        self.leaves: dict[int, Tensor] = {}  # tensors that collect gradients, by id
        self.first_grads: dict[int, Tensor | None] = {}  # their .grad when first seen
        self.first_seen: list[tuple[int, int, Seen]] = []  # (call, id of a leaf, what it was)
        self.losses: list[tuple[int, Seen]] = []  # (call, root of a backward pass)
        self.loss_tensor: Tensor | None = None
        self.ran_backward = False

    # -- observer ------------------------------------------------------------------------

    def before(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the inputs while they still hold what the call will see.

        Returns:
            What `after` is to be given; None where there is nothing to note.
        """
        if op is _DETACH and self.memories.is_noted(args[0]):
            return None
        traits = traits_of(op)
        if traits.flips:
            self.memories.flipped = True
        try:
            if not traits.plain or self.problems:
                return self._before_other(traits, args, kwargs)
            seen = self._inputs(args)
            return traits, seen, self._named_inputs(kwargs) if kwargs else kwargs, None
        except UnsupportedOpError as error:
            return op, error

    def after(self, token: Any, outputs: Any, info: CallInfo) -> None:
        """Note what the call returned."""
        if info.phase == "backward":
            self.ran_backward = True
        if len(token) == 2:
            self._refuse(token[0], token[1], info)
            return
        traits, args, kwargs, more = token
        try:
            if more is not None or self.problems:
                self._after_other(traits, args, kwargs, more, outputs, info)
                return
            alone = isinstance(outputs, Tensor)
            seen = self.memories.made(outputs) if alone else self._outputs(outputs)
            self.calls.append(Noted(traits, args, kwargs, seen, info, None))
        except UnsupportedOpError as error:
            self._refuse(traits.op, error, info)

    def backward_from(self, root: Tensor) -> None:
        """Take the tensor from which a backward pass starts as the loss."""
        if self.problems:
            return
        try:
            self.losses.append((len(self.calls), self.memories.look(root)))
        except UnsupportedOpError:  # the call that takes it is refused as well
            return
        self.loss_tensor = root.detach().clone()

    def unrecorded_backward(self, name: str) -> None:
        """Note that the backward pass left the recording."""
        text = (
            "its forward pass ran before the recording began, so the gradient depends on "
            "operations that were not seen; run the whole forward pass inside the recording"
        )
        self.problems.setdefault((name, text), Problem(text, name, _NOWHERE))

    def close(self) -> None:
        """Let go of the step's tensors: of those from outside too, and of old gradients."""
        self.memories.close()
        self.leaves.clear()
        self.first_grads.clear()

    def _refuse(self, op: OpOverload, error: UnsupportedOpError, info: CallInfo) -> None:
        key = (str(op), str(error))
        if key in self.problems:
            self.problems[key].count += 1
        else:
            self.problems[key] = Problem(str(error), str(op), info)

    # -- calls that are not pure -----------------------------------------------------------

    def _before_other(self, traits: Traits, args: Any, kwargs: Any) -> Any:
        op, treatment = traits.op, traits.treatment
        if treatment is Treatment.REFUSE:
            raise UnsupportedOpError(refusal_of(op))
        if self.problems:  # nothing is noted any more, but all problems are told
            for tensor in tensors_in((*args, *kwargs.values())):
                refuse_unsupported_tensor(tensor)
        if treatment in (Treatment.ALLOCATE, Treatment.IGNORE) or self.problems:
            return traits, (), {}, (args, kwargs)
        if traits.has_defaults:
            args, kwargs = fill_defaults(op, args, kwargs)
        if traits.takes_indices and len(args) > 1 and has_mask(args[1]):
            args = (args[0], decided_indices(args[1]), *args[2:])
        for i in _written(traits, args):
            for tensor in tensors_in(argument_at(op, args, kwargs, i)):
                self.memories.prepare_write(tensor)
        seen = self._inputs(args), self._named_inputs(kwargs)
        given = None if treatment is Treatment.PURE else (args, kwargs)
        return traits, *seen, given

    def _after_other(
        self, traits: Traits, args: Any, kwargs: Any, given: Any, outputs: Any, info: CallInfo
    ) -> None:
        treatment = traits.treatment
        if self.problems:
            for tensor in tensors_in(outputs):
                refuse_unsupported_tensor(tensor)
        if treatment is Treatment.IGNORE or self.problems:
            return
        more = More()
        if treatment is not Treatment.ALLOCATE:
            more = self._more(traits, given[0], given[1], outputs)
        self.calls.append(Noted(traits, args, kwargs, self._outputs((outputs,))[0], info, more))

    def _more(self, traits: Traits, args: Any, kwargs: Any, outputs: Any) -> More:
        op, treatment = traits.op, traits.treatment
        copied, indices = copies_after(traits, args, kwargs, outputs)
        if treatment is Treatment.VIEW_IN_PLACE:
            self._viewed_in_place(op, args[0])
        elif treatment is Treatment.CUT_BY_STRIDES:
            self.memories.cut(args[0])
        covering: list[Seen] = []
        targets = [
            self._rewritten(argument_at(op, args, kwargs, i), covering)
            for i in _written(traits, args)
        ]
        copies = {}
        for tensor, copy in copied:
            seen = self.memories.made(tensor)
            copies[seen] = copy
            if covers_memory(tensor):
                covering.append(seen)
        return More(tuple(targets), frozenset(covering), copies, indices)

    def _rewritten(self, target: Any, covering: list[Seen]) -> Any:
        """Note what a call wrote to, one tensor or a list of them."""
        if isinstance(target, Tensor):
            seen, covers = self.memories.rewritten(target)
            if covers:
                covering.append(seen)
            return seen
        if isinstance(target, (list, tuple)):
            return [self._rewritten(each, covering) for each in target]
        return target

    def _viewed_in_place(self, op: OpOverload, tensor: Tensor) -> None:
        memory = self.memories.look(tensor).memory
        if name_of(op) == "resize_":
            memory.written = True
            memory.layouts.clear()
        elif name_of(op) == "as_strided_":
            self.memories.cut(tensor)
        elif functional_variant(op) is None:
            raise UnsupportedOpError("it changes a view in place in a way that is not known")

    # -- tensors -------------------------------------------------------------------------

    def _inputs(self, args: Any) -> Any:
        """Arguments with notes in place of tensors."""
        found = []
        for item in args:
            if isinstance(item, Tensor):
                seen = self.memories.look(item)
                if item.requires_grad and item.is_leaf and id(item) not in self.leaves:
                    self.leaves[id(item)] = item
                    self.first_grads[id(item)] = item.grad
                    self.first_seen.append((len(self.calls), id(item), seen))
                found.append(seen)
            elif isinstance(item, (list, tuple)) and not (item and type(item[0]) is int):
                found.append(self._inputs(item))
            else:
                found.append(item)
        return found if isinstance(args, list) else tuple(found)

    def _named_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(kwargs, self._inputs(tuple(kwargs.values())), strict=True))

    def _outputs(self, outputs: Any) -> Any:
        found = []
        for item in outputs if isinstance(outputs, (list, tuple)) else ():
            if isinstance(item, Tensor):
                found.append(self.memories.made(item))
            elif isinstance(item, (list, tuple)):
                found.append(self._outputs(item))
            else:
                found.append(item)
        return found if isinstance(outputs, list) else tuple(found)


def _written(traits: Traits, args: Any) -> tuple[int, ...]:
    """Positions of the arguments whose values a call writes to."""
    if traits.treatment is Treatment.WRITE_HIDDEN:
        positions, training = HIDDEN_WRITES[name_of(traits.op)]
        return positions if args[training] else ()
    if traits.treatment is Treatment.VIEW_IN_PLACE and name_of(traits.op) != "resize_":
        return ()
    return traits.written
