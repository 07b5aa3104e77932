"""What is noted of a step while it runs?

Each call as it was made, with notes in place of tensors, and copies of what no replay can find
again: parameters, inputs, random draws, decided positions, memory before it is written. Turning
the notes into a program is the recorder's work, and waits until somebody asks for the program.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
    deciding,
    has_mask,
    masks_in,
)
from numgeom.recording.decisions import READ, UNSEEN, Decided
from numgeom.recording.functionalize import (
    READS,
    SHAPED_BY,
    TRAITS,
    Traits,
    Treatment,
    fill_defaults,
    name_of,
    refusal_of,
    refuse_unsupported_tensor,
    traits_of,
    written_now,
)
from numgeom.recording.memories import Memories
from numgeom.recording.problems import Problem
from numgeom.recording.seen import Seen
from numgeom.recording.sources import Place, Sources
from numgeom.recording.values import tensors_in
from numgeom.recording.variants import argument_at, functional_variant

_DETACH = torch.ops.aten.detach.default  # a third of the calls of a backward pass
_new = tuple.__new__


class Noted(NamedTuple):
    """One call: its arguments as they were before it, its outputs as they were after it."""

    traits: Traits
    args: Any
    kwargs: Any
    outputs: Any
    place: Place | CallInfo
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
    covering: Sequence[Seen] = ()
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
        self.sources = Sources()
        self._known = self.memories.known
        self.calls: list[Noted] = []
        self.problems: dict[tuple[str, str], Problem] = {}
        self.leaves: dict[int, Tensor] = {}  # tensors that collect gradients, by id
        self.first_grads: dict[int, Tensor | None] = {}  # their .grad when first seen
        self.first_seen: list[tuple[int, int, Seen]] = []  # (call, id of a leaf, what it was)
        self.losses: list[tuple[int, Seen]] = []  # (call, root of a backward pass)
        self.decisions: list[Decided] = []
        self.loss_tensor: Tensor | None = None

    # -- observer ------------------------------------------------------------------------

    # The two methods that follow run for every call of the step, between kernels that have emptied
    # the processor's caches. So they call as little as they can: what happens to almost every
    # tensor, memory that the step has made and nobody has written to, is written out here.

    def before(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the inputs while they still hold what the call will see.

        Returns:
            What `after` is to be given; None where there is nothing to note.
        """
        known, flipped = self._known, self.memories.flipped
        try:
            if op is _DETACH:  # of memory that is known so far it makes a view that is known
                memory = known.get(args[0].untyped_storage()._cdata)
                if memory is not None and not memory.watched:
                    return None
            traits = TRAITS.get(id(op)) or traits_of(op)
            if not traits.plain or kwargs or self.problems or flipped:
                return self._before_other(traits, args, kwargs)
            found: list[Any] = []
            for item in args:
                memory = None
                if isinstance(item, Tensor):
                    memory = known.get(item.untyped_storage()._cdata)
                if memory is None:
                    found.append(self._input(item))
                    continue
                shape, strides = item.shape, item.stride()
                dtype, offset = item.dtype, item.storage_offset()
                seen = memory.first
                if (
                    seen is None
                    or seen[0] != shape
                    or seen[1] != strides
                    or seen[3] != offset
                    or seen[2] is not dtype
                ):
                    if memory.watched:
                        seen = self.memories.look(item)
                    else:
                        note = shape, strides, dtype, offset, False, False, memory
                        seen = _new(Seen, note)
                if item.requires_grad and item.is_leaf and id(item) not in self.leaves:
                    self._meet_leaf(item, seen)
                found.append(seen)
        except (UnsupportedOpError, NotImplementedError) as error:  # the latter: has no memory
            return op, _refusal(error, args)
        return traits, found, kwargs, None

    def after(self, token: Any, outputs: Any, place: Place | CallInfo) -> None:
        """Note what the call returned."""
        if len(token) == 2:
            self._refuse(token[0], token[1], place)
            return
        traits, args, kwargs, more = token
        try:
            if more is not None or self.problems:
                self._after_other(token, outputs, place)
                return
            if isinstance(outputs, Tensor):
                memory = self._known.get(outputs.untyped_storage()._cdata)
                if memory is None:
                    memory = self.memories.adopt(outputs, external=False)
                if memory.watched or self.memories.flipped:
                    seen = self.memories.made(outputs)
                else:
                    shape, strides = outputs.shape, outputs.stride()
                    dtype, offset = outputs.dtype, outputs.storage_offset()
                    seen = _new(Seen, (shape, strides, dtype, offset, False, False, memory))
                    if memory.first is None:
                        memory.first = seen
            else:
                seen = self._outputs(outputs)
            self.calls.append(_new(Noted, (traits, args, kwargs, seen, place, None)))
        except (UnsupportedOpError, NotImplementedError) as error:
            self._refuse(traits.op, _refusal(error, outputs), place)

    def read(self, tensor: Tensor, reader: str, place: Place | CallInfo) -> None:
        """Note a tensor whose values Python reads without a call."""
        if not self.problems and tensor.layout is torch.strided:
            with suppress(UnsupportedOpError, NotImplementedError):  # told where it is used
                self._decide(tensor, f"{READ}{reader}", place)

    def arrived(self, tensor: Tensor, op: str, place: CallInfo) -> None:
        """Note a tensor that nobody has announced: whatever decided about it was not seen."""
        if not self.memories.knows(tensor):
            self._decide(tensor, f"{UNSEEN}{op}", place)

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
        self.problems.setdefault((name, text), Problem(text, name, CallInfo("forward", "", "")))

    @property
    def ran_backward(self) -> bool:
        """Whether a backward pass was seen."""
        return any(call.place.phase == "backward" for call in self.calls)

    def close(self) -> None:
        """Let go of the step's tensors: of those from outside too, and of old gradients."""
        self.memories.close()
        self.leaves.clear()
        self.first_grads.clear()

    def _refuse(self, op: OpOverload, error: UnsupportedOpError, place: Place | CallInfo) -> None:
        key = (str(op), str(error))
        if key in self.problems:
            self.problems[key].count += 1
        else:
            self.problems[key] = Problem(str(error), str(op), self.sources.info(place))

    # -- calls that are not pure -----------------------------------------------------------

    def _before_other(self, traits: Traits, args: Any, kwargs: Any) -> Any:
        op, treatment = traits.op, traits.treatment
        if traits.flips:
            self.memories.flipped = True
        if traits.plain and not self.problems:
            return traits, self._inputs(args), self._named_inputs(kwargs), None
        if treatment is Treatment.REFUSE:
            raise UnsupportedOpError(refusal_of(op))
        if self.problems:  # nothing is noted any more, but all problems are told
            for tensor in tensors_in((*args, *kwargs.values())):
                refuse_unsupported_tensor(tensor)
            return traits, (), {}, (args, kwargs)
        if treatment is Treatment.ALLOCATE:
            return traits, (), {}, None
        if treatment is Treatment.IGNORE:
            return None
        if treatment is Treatment.READ:
            return traits, args, kwargs, (args, kwargs)
        if traits.has_defaults:
            args, kwargs = fill_defaults(op, args, kwargs)
        if traits.takes_indices and len(args) > 1 and has_mask(args[1]):
            for mask in masks_in(args[1]):
                self._decide(mask, str(op))
            args = (args[0], decided_indices(args[1]), *args[2:])
        elif name_of(op) in SHAPED_BY:
            self._decide(args[SHAPED_BY[name_of(op)]], str(op))
        elif treatment is Treatment.DECIDE:
            for tensor in deciding(op, args):
                self._decide(tensor, str(op))
        for i in written_now(traits, args):
            target = argument_at(op, args, kwargs, i)
            for tensor in (target,) if isinstance(target, Tensor) else tensors_in(target):
                self.memories.prepare_write(tensor)
        seen = self._inputs(args), self._named_inputs(kwargs) if kwargs else kwargs
        given = None if treatment is Treatment.PURE else (args, kwargs)
        return traits, *seen, given

    def _after_other(self, token: Any, outputs: Any, place: Place | CallInfo) -> None:
        traits, args, kwargs, given = token
        if self.problems:
            for tensor in tensors_in(outputs):
                refuse_unsupported_tensor(tensor)
            return
        if traits.treatment is Treatment.READ:
            self._answered(traits.op, args, kwargs, place)
            return
        more = self._more(traits, given[0], given[1], outputs)
        alone = isinstance(outputs, Tensor)
        seen = self.memories.made(outputs) if alone else self._outputs((outputs,))[0]
        self.calls.append(Noted(traits, args, kwargs, seen, place, more))

    def _decide(self, tensor: Tensor, op: str, place: Place | CallInfo | None = None) -> None:
        """Note a tensor that decides, while it still holds what decided."""
        seen = self.memories.look(tensor)
        copy = tensor.detach().clone()
        self.decisions.append(Decided(len(self.calls), seen, copy, op, place))

    def _answered(self, op: OpOverload, args: Any, kwargs: Any, place: Place | CallInfo) -> None:
        """Note what Python was told about tensors."""
        question = READS[name_of(op)]
        if question is None:
            self._decide(args[0], f"{READ}item", place)
            return
        if args[0].shape != args[1].shape and name_of(op) == "equal":
            return  # which no value decides
        with torch.no_grad():
            answer = question(*args, **kwargs)
        noted = self._inputs(args), self._named_inputs(kwargs)
        seen = self.memories.made(answer)
        self.calls.append(Noted(traits_of(question), *noted, seen, place, None))
        self.decisions.append(Decided(len(self.calls), seen, answer, f"{READ}{name_of(op)}", place))

    def _more(self, traits: Traits, args: Any, kwargs: Any, outputs: Any) -> More:
        op, treatment = traits.op, traits.treatment
        copied, indices = (), None
        if traits.copies:
            copied, indices = copies_after(traits, args, kwargs, outputs, copy=self.copy)
        elif treatment is Treatment.VIEW_IN_PLACE:
            self._viewed_in_place(op, args[0])
        elif treatment is Treatment.CUT_BY_STRIDES:
            self.memories.cut(args[0])
        covering: list[Seen] = []
        targets = tuple(
            [
                self._rewritten(argument_at(op, args, kwargs, i), covering)
                for i in written_now(traits, args)
            ]
        )
        copies: Copies = {}
        for tensor, copy in copied:
            seen = self.memories.made(tensor)
            copies[seen] = copy
            if covers_memory(tensor):
                covering.append(seen)
        return More(targets, covering, copies, indices)

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
            memory.written = memory.watched = True
            memory.layouts, memory.first = set(), None
        elif name_of(op) == "as_strided_":
            self.memories.cut(tensor)
        elif functional_variant(op) is None:
            raise UnsupportedOpError("it changes a view in place in a way that is not known")

    # -- tensors -------------------------------------------------------------------------

    def _inputs(self, args: Any) -> Any:
        """Arguments with notes in place of tensors."""
        found = [self._input(item) for item in args]
        return found if isinstance(args, list) else tuple(found)

    def _input(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            seen = self.memories.look(item)
            if item.requires_grad and item.is_leaf and id(item) not in self.leaves:
                self._meet_leaf(item, seen)
            return seen
        if isinstance(item, (list, tuple)) and not (item and type(item[0]) is int):
            return self._inputs(item)
        return item

    def _meet_leaf(self, leaf: Tensor, seen: Seen) -> None:
        self.leaves[id(leaf)] = leaf
        self.first_grads[id(leaf)] = leaf.grad
        self.first_seen.append((len(self.calls), id(leaf), seen))

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


def _refusal(error: Exception, tensors: Any) -> UnsupportedOpError:
    """What to tell where a tensor could not be noted."""
    if isinstance(error, UnsupportedOpError):
        return error
    try:
        for tensor in tensors_in(tensors):
            refuse_unsupported_tensor(tensor)
    except UnsupportedOpError as refusal:
        return refusal
    raise error
