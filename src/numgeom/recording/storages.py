"""Which value does a tensor hold now, when views and in-place writes share its memory?

Every storage that the step touches has a *base*: the value of its memory at this moment. A view
that was made by a recorded view op is known as that op's output, until somebody writes to the
memory; after a write it is read from the new base. A write replaces the base. So the recorded
program has no mutation and no aliasing.

What is read here are the notes of a step that has ended, in the order in which they were taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from numgeom.errors import UnsupportedOpError
from numgeom.recording.calls import TensorMeta
from numgeom.recording.seen import Memory, Seen, count, is_dense, memory_order, span
from numgeom.recording.values import Constant, Value

aten = torch.ops.aten

# Emits one call of the program: (op, args, kwargs, meta of its output) -> its output.
Emit = Callable[[Any, tuple[Any, ...], dict[str, Any], TensorMeta], Value]


@dataclass(eq=False, slots=True)
class _Storage:
    memory: Memory
    values: dict[Seen, Value] = field(default_factory=dict)
    base: tuple[Seen, Value] | None = None
    written: bool = False


class Storages:
    """The values of all tensors of a step.

    Args:
        emit: Adds a call to the program; used for reads and writes through views.
        captured: Copies of what came from outside, in the form in which it was seen first, and
            whether dimensions that are expanded were left out of the copy.
        wholes: The content that memory from outside had at first, where it was kept, by the note
            of the tensor that covers it.
    """

    def __init__(
        self,
        emit: Emit,
        captured: Mapping[Seen, tuple[Constant, bool]],
        wholes: Mapping[Memory, Seen],
    ) -> None:
        """Start with no storage known."""
        self._emit = emit
        self._captured = captured
        self._wholes = wholes
        self._known: dict[Memory, _Storage] = {}

    def is_known(self, seen: Seen) -> bool:
        """Whether the step has touched this memory."""
        return seen.memory in self._known

    def find(self, seen: Seen) -> Value | None:
        """The value of exactly this view of the memory, if it is known."""
        storage = self._known.get(seen.memory)
        return None if storage is None else storage.values.get(seen)

    def read(self, seen: Seen) -> Value:
        """The value that a tensor holds now. A tensor from outside becomes a constant."""
        storage = self._storage(seen)
        value = storage.values.get(seen)
        if value is None:
            if seen.memory.external and not storage.written:
                value = self._constant(seen)
            else:
                value = self._from_base(storage, seen)
            storage.values[seen] = value
        return value

    def read_strided(self, view: Seen, source: Seen) -> Value:
        """The value of a view that was cut from the memory of `source` by its strides."""
        value = self.read(source)
        storage = self._storage(source)
        if storage.base is None:
            whole = self._wholes.get(source.memory)
            storage.base = (source, value) if whole is None else (whole, self._constant(whole))
        return self._from_base(storage, view)

    def bind(self, seen: Seen, make: Callable[[TensorMeta], Value]) -> None:
        """Note that a call returned this tensor: fresh memory, or a view of known memory.

        `make` gives the value; it is not asked where the value of this view is known already.
        """
        storage = self._storage(seen)
        if seen in storage.values:
            return
        value = storage.values[seen] = make(seen.meta())
        if storage.base is None and not seen.memory.external:
            storage.base = (seen, value)

    def rebind(self, seen: Seen, value: Value) -> None:
        """Note that a call replaced the memory's whole content and shape (resize)."""
        storage = self._storage(seen)
        storage.values = {seen: value}
        storage.base = (seen, value)
        storage.written = True

    def prepare_write(self, seen: Seen) -> None:
        """Note the memory's content before a call writes to it."""
        storage = self._storage(seen)
        if seen.memory.external and not storage.written:
            whole = self._wholes[seen.memory]
            storage.base = (whole, self.read(whole))

    def write(self, seen: Seen, value: Value, *, covers: bool) -> None:
        """Note that a call has written this value through this tensor.

        Args:
            seen: The tensor.
            value: What it holds now.
            covers: Whether it is all of its memory.
        """
        storage = self._storage(seen)
        if storage.base is None:
            raise UnsupportedOpError("a write to memory of which no value is known")
        base_seen, base = storage.base
        if seen == base_seen or covers:
            storage.base = (seen, value)
            storage.values = {seen: value}
        else:
            new = self._scatter(storage, seen, value)
            storage.base = (base_seen, new)
            storage.values = {base_seen: new, seen: value}
        storage.written = True

    # -- helpers -------------------------------------------------------------------------

    def _storage(self, seen: Seen) -> _Storage:
        storage = self._known.get(seen.memory)
        if storage is None:
            storage = self._known[seen.memory] = _Storage(seen.memory)
        return storage

    def _constant(self, seen: Seen) -> Value:
        """What was copied of a tensor from outside."""
        if seen not in self._captured:
            raise UnsupportedOpError("a tensor from outside was read before it was copied")
        constant, compact = self._captured[seen]
        if not compact:
            return Value(constant)
        meta = seen.meta()
        args = (Value(constant), list(meta.shape))
        return self._emit(aten.expand.default, args, {}, meta)

    def _from_base(self, storage: _Storage, seen: Seen) -> Value:
        flat, start = self._flat(storage, seen)
        args = (flat, list(seen.shape), list(seen.strides), seen.offset - start)
        return self._emit(aten.as_strided.default, args, {}, seen.meta())

    def _scatter(self, storage: _Storage, seen: Seen, value: Value) -> Value:
        """The base after a value was written to a part of it."""
        flat, start = self._flat(storage, seen)
        assert storage.base is not None
        meta = storage.base[0].meta()
        args = (flat, value, list(seen.shape), list(seen.strides), seen.offset - start)
        line = meta._replace(shape=(count(meta.shape),), stride=(1,))
        written = self._emit(aten.as_strided_scatter.default, args, {}, line)
        order = memory_order(meta)
        lying = _permuted(meta, order)
        result = self._emit(aten.view.default, (written, list(lying.shape)), {}, lying)
        if list(order) == sorted(order):
            return result
        back = [order.index(i) for i in range(len(order))]
        return self._emit(aten.permute.default, (result, back), {}, meta)

    def _flat(self, storage: _Storage, wanted: Seen) -> tuple[Value, int]:
        """The memory behind a base as one line of numbers, and where that line begins."""
        if storage.base is None:
            raise UnsupportedOpError("a view of memory of which no value is known")
        seen, value = storage.base
        meta, start = seen.meta(), seen.offset
        bits = wanted.negative or wanted.conjugate or seen.negative or seen.conjugate
        if seen.dtype != wanted.dtype or bits:
            raise UnsupportedOpError(
                f"a tensor of {wanted.dtype} shares memory with one of {meta.dtype} that was "
                "written in place; bits cannot be reinterpreted in another format"
            )
        n = count(meta.shape)
        reach = wanted.offset + span(wanted.meta()) - start
        if not is_dense(meta) or wanted.offset < start or reach > n:
            raise UnsupportedOpError(
                f"a view of shape {tuple(wanted.shape)} reaches memory beyond the tensor of shape "
                f"{meta.shape} it was made from"
            )
        if meta.stride == (1,):
            return value, start
        order = memory_order(meta)
        if list(order) != sorted(order):
            lying = _permuted(meta, order)
            value = self._emit(aten.permute.default, (value, list(order)), {}, lying)
        line = meta._replace(shape=(n,), stride=(1,))
        return self._emit(aten.view.default, (value, [n]), {}, line), start


def _permuted(meta: TensorMeta, order: tuple[int, ...]) -> TensorMeta:
    shape, stride = (tuple(part[i] for i in order) for part in (meta.shape, meta.stride))
    return meta._replace(shape=shape, stride=stride)
