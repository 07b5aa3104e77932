"""Which memory has a step seen, what did it hold before, and which views of it are known?

Memory is told apart by its address while a weak reference pins it: the address cannot be given to
another storage, and the memory is not kept alive.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from numgeom.errors import UnsupportedOpError
from numgeom.recording.contents import covers_memory, line_of, outside_copy
from numgeom.recording.functionalize import refuse_unsupported_tensor
from numgeom.recording.seen import Memory, Seen, is_dense
from numgeom.recording.values import Constant

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_FEW = 1 << 12  # entries; more are copied when they are used, if they are
_free_weak_reference = torch.UntypedStorage._free_weak_ref


class _Original(NamedTuple):
    memory: torch.UntypedStorage
    content: Tensor


class Memories:
    """The memory of a step; `close` lets go of it.

    Args:
        names: Role and name of tensors that are known by name, by `id`.
        copy: Makes copies of tensors that fill their memory.

    Attributes:
        known: The memory that was seen, by its address.
        captured: Copies of what came from outside, in the form in which it was seen first, and
            whether dimensions that are expanded were left out of the copy.
        wholes: Notes that cover memory from outside that was written, or cut by strides.
        uncertain: Whether some memory was read or written in another form than that in which it
            was made. Whether a program can say so is known only when it is made.
    """

    def __init__(
        self,
        names: Mapping[int, tuple[str, str]],
        *,
        copy: Callable[[Tensor], Tensor] = Tensor.clone,
    ) -> None:
        """Start with no memory known."""
        self._copy = copy
        self.known: dict[int, Memory] = {}  # by the address, which is a weak reference
        self.captured: dict[Seen, tuple[Constant, bool]] = {}
        self.wholes: dict[Memory, Seen] = {}
        self.uncertain = False
        self.flipped = False  # whether a tensor may have a negative or conjugate bit
        self._originals: dict[Memory, _Original] = {}
        self._names = names

    # -- before the step and after it --------------------------------------------------------

    def announce(self, tensor: Tensor, role: str, name: str) -> None:
        """Take a tensor from outside, that nobody will write to, as a constant, uncopied."""
        memory = self.known.get(tensor.untyped_storage()._cdata)
        if memory is None:
            memory = self.adopt(tensor, external=True)
        seen = self._seen(tensor, memory)
        if seen not in memory.layouts:
            memory.layouts.add(seen)
            self.captured[seen] = Constant(tensor.detach(), role, name), False

    def foresee(self, tensors: Iterable[Tensor]) -> None:
        """Copy those of the tensors known by name that are small, all at once.

        One by one, between the calls that use them, the copies would take longer.
        """
        with torch.no_grad():
            for tensor in tensors:
                if type(tensor) in _PLAIN and tensor.numel() <= _FEW:
                    with suppress(UnsupportedOpError, NotImplementedError):  # told where it is used
                        self.look(tensor)

    def knows(self, tensor: Tensor) -> bool:
        """Whether this tensor's memory was announced, seen or made by a call."""
        return tensor.untyped_storage()._cdata in self.known

    def was_touched(self, tensor: Tensor) -> bool:
        """Whether the step has made this tensor's memory, or has written to it."""
        memory = self.known.get(tensor.untyped_storage()._cdata)
        return memory is not None and (memory.written or not memory.external)

    def was_written(self, tensor: Tensor) -> bool:
        """Whether the step has written to memory that this tensor brought from outside."""
        memory = self.known.get(tensor.untyped_storage()._cdata)
        return memory is not None and memory.written and memory in self._originals

    def restore(self) -> None:
        """Give all memory that came from outside the content that it had at first."""
        for memory, content in self._originals.values():
            view = torch.empty(0, dtype=content.dtype, device=content.device)
            view.set_(memory, 0, content.shape, content.stride())
            if not torch.equal(view, content):
                view.copy_(content)

    def close(self) -> None:
        """Let go of the step's memory; nothing can be noted afterwards."""
        known, self.known = self.known, {}
        for pin in known:
            _free_weak_reference(pin)

    def __del__(self) -> None:
        """Let go of the memory of a step that was abandoned."""
        self.close()

    # -- tensors of calls ------------------------------------------------------------------

    def look(self, tensor: Tensor) -> Seen:
        """Note a tensor that is there already. One from outside is copied."""
        try:
            memory = self.known.get(tensor.untyped_storage()._cdata)
        except NotImplementedError:  # has no single memory
            refuse_unsupported_tensor(tensor)
            raise
        if memory is None:
            memory = self._arrived(tensor)
        return self.view_of(tensor, memory)

    def view_of(self, tensor: Tensor, memory: Memory) -> Seen:
        """Note a tensor whose memory is known."""
        first = memory.first
        if (
            first is not None
            and first[0] == tensor.shape
            and first[1] == tensor.stride()
            and first[3] == tensor.storage_offset()
            and first[2] is tensor.dtype
            and not self.flipped
        ):
            return first
        seen = self._seen(tensor, memory)
        if not memory.watched or seen in memory.layouts:
            return seen
        return self._first_look(tensor, seen)

    def _first_look(self, tensor: Tensor, seen: Seen) -> Seen:
        """Note a view of watched memory that no call of the step has made."""
        memory = seen.memory
        if not self.flipped and (tensor.is_neg() or tensor.is_conj()):
            self.flipped = True
            return self.look(tensor)
        memory.layouts.add(seen)
        if memory.external and not memory.written:
            memory.first = memory.first or seen
            role, name = self._names.get(id(tensor), ("input", ""))
            self.captured[seen] = outside_copy(tensor, role, name, copy=self._copy)
        else:
            self.uncertain = True
        return seen

    def made(self, tensor: Tensor) -> Seen:
        """Note a tensor that a call returned."""
        try:
            memory = self.known.get(tensor.untyped_storage()._cdata)
        except NotImplementedError:
            refuse_unsupported_tensor(tensor)
            raise
        if memory is None:
            memory = self.adopt(tensor, external=False)
        seen = self._seen(tensor, memory)
        if memory.watched:
            memory.layouts.add(seen)
        return seen

    def _seen(self, tensor: Tensor, memory: Memory) -> Seen:
        # Of all that is done for every tensor of a step this costs most: no keyword, no class
        # method, and the bits that only complex numbers bring are asked for once there are some.
        flipped = self.flipped
        return tuple.__new__(
            Seen,
            (
                tensor.shape,
                tensor.stride(),
                tensor.dtype,
                tensor.storage_offset(),
                flipped and tensor.is_neg(),
                flipped and tensor.is_conj(),
                memory,
            ),
        )

    def _arrived(self, tensor: Tensor) -> Memory:
        """Memory that no call of the step has made."""
        if tensor.requires_grad and not tensor.is_leaf:
            maker = tensor.grad_fn.name() if tensor.grad_fn else "an operation"
            raise UnsupportedOpError(
                f"an input of shape {tuple(tensor.shape)} was computed by {maker} outside of "
                "the recording (before it began, or on another thread); run the whole forward "
                "pass inside the recording"
            )
        return self.adopt(tensor, external=True)

    def adopt(self, tensor: Tensor, *, external: bool) -> Memory:
        """Note memory that is seen for the first time."""
        refuse_unsupported_tensor(tensor)
        pin: Any = tensor.untyped_storage()._weak_ref()  # the address, by its name in torch
        memory = self.known[pin] = Memory(tensor.device, external)
        return memory

    # -- writes ----------------------------------------------------------------------------

    def prepare_write(self, tensor: Tensor) -> None:
        """Copy memory from outside before a call writes to it for the first time."""
        known = self.known.get(tensor.untyped_storage()._cdata)
        if known is not None and (known.written or not known.external):
            return
        if known is not None and known in self._originals:
            return
        seen = self.look(tensor)
        memory = seen.memory
        if not covers_memory(tensor):
            tensor = line_of(tensor)
            seen = self.look(tensor)
        self.wholes[memory] = seen
        kept = self.captured.get(seen)  # nobody writes to it: one copy serves both
        content = tensor.detach().clone() if kept is None or kept[1] else kept[0].tensor
        self._originals[memory] = _Original(tensor.untyped_storage(), content)

    def rewritten(self, tensor: Tensor) -> tuple[Seen, bool]:
        """Note a tensor that a call wrote to; tells also whether it is all of its memory."""
        memory = self.known.get(tensor.untyped_storage()._cdata)
        if memory is None:
            memory = self.adopt(tensor, external=False)
            self.uncertain = True
        seen = self._seen(tensor, memory)
        covers = self.wholes.get(memory) == seen or covers_memory(tensor)
        memory.written = memory.watched = True
        memory.first = seen
        memory.layouts = {seen}  # other views are read through the memory from now on
        self.uncertain = self.uncertain or not covers
        return seen, covers

    def cut(self, source: Tensor) -> None:
        """Keep all of the memory of which a view is cut by strides."""
        self.uncertain = True
        seen = self.look(source)
        memory = seen.memory
        if memory.external and not memory.written and memory not in self.wholes:
            if is_dense(seen.meta()):
                return
            self.wholes[memory] = self.look(line_of(source))
