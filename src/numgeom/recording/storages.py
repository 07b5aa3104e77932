"""Which value does a tensor hold now, when views and in-place writes share its memory?

Every storage that the step touches has a *base*: the value of its memory at this moment. A view
that was made by a recorded view op is known as that op's output, until somebody writes to the
memory; after a write it is read from the new base. A write replaces the base. So the recorded
program has no mutation and no aliasing.

Storages are told apart by their address while a weak reference pins it: the address cannot be
given to another storage, and the memory is not kept alive.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from numgeom.errors import UnsupportedOpError
from numgeom.recording.calls import TensorMeta
from numgeom.recording.functionalize import refuse_unsupported_tensor
from numgeom.recording.values import Constant, Value, meta_of

aten = torch.ops.aten
_STRIDED = torch.strided

# Emits one call of the program: (op, args, kwargs, meta of its output) -> its output.
Emit = Callable[[Any, tuple[Any, ...], dict[str, Any], TensorMeta], Value]


# How a tensor lies in its storage: shape, strides, dtype, offset, negative bit, conjugate bit.
# Equal layouts of one storage hold equal values. A plain tuple, since two are made for every call.
Layout = tuple[Any, Any, torch.dtype, int, bool, bool]


def layout_of(tensor: torch.Tensor) -> Layout:
    """Describe how a tensor lies in its storage."""
    return (
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        int(tensor.storage_offset()),
        tensor.is_neg(),
        tensor.is_conj(),
    )


def _meta(layout: Layout, device: torch.device) -> TensorMeta:
    return TensorMeta(tuple(layout[0]), layout[1], layout[2], device)


@dataclass(eq=False, slots=True)
class _Storage:
    pin: StorageWeakRef
    external: bool
    device: torch.device
    values: dict[Layout, Value] = field(default_factory=dict)
    base: tuple[Layout, Value] | None = None
    written: bool = False
    original: tuple[torch.UntypedStorage, torch.Tensor] | None = None


class Storages:
    """The values of all tensors of a step.

    Args:
        emit: Adds a call to the program; used for reads and writes through views.
        name: Role and name of a tensor that comes from outside, by `id`.
    """

    def __init__(self, emit: Emit, name: Callable[[torch.Tensor], tuple[str, str]]) -> None:
        """Start with no storage known."""
        self._emit = emit
        self._name = name
        self._known: dict[int, _Storage] = {}

    def announce(self, tensor: torch.Tensor, role: str, name: str) -> None:
        """Take a tensor from outside, that nobody will write to, as a constant."""
        storage = self._storage(tensor, external=True)
        value = Value(Constant(tensor.detach(), role, name))
        storage.values.setdefault(layout_of(tensor), value)

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Whether the step has touched this tensor's storage."""
        return tensor.untyped_storage()._cdata in self._known

    def find(self, tensor: torch.Tensor) -> Value | None:
        """The value of exactly this view of the storage, if it is known. Called for every tensor.

        Memory that is not strided is not known.
        """
        if tensor.layout is not _STRIDED:
            return None
        storage = self._known.get(tensor.untyped_storage()._cdata)
        return None if storage is None else storage.values.get(layout_of(tensor))

    def read(self, tensor: torch.Tensor) -> Value:
        """The value that a tensor holds now. A tensor from outside becomes a constant."""
        storage = self._storage(tensor, external=True)
        layout = layout_of(tensor)
        value = storage.values.get(layout)
        if value is None:
            if storage.external and not storage.written:
                value = self._constant(tensor, _meta(layout, storage.device))
            else:
                value = self._from_base(storage, layout)
            storage.values[layout] = value
        return value

    def read_strided(self, view: torch.Tensor, source: torch.Tensor) -> Value:
        """The value of a view that was cut from the memory of `source` by its strides."""
        value = self.read(source)
        storage = self._storage(source, external=True)
        if storage.base is None:
            base = (layout_of(source), value)
            if not _is_dense(meta_of(source)):
                whole = _whole(source)
                base = (layout_of(whole), self._constant(whole, meta_of(whole)))
            storage.base = base
        return self._from_base(storage, layout_of(view))

    def was_written(self, tensor: torch.Tensor) -> bool:
        """Whether the step has written to memory that this tensor brought from outside."""
        storage = self._known.get(tensor.untyped_storage()._cdata)
        return storage is not None and storage.original is not None and storage.written

    def bind(self, tensor: torch.Tensor, make: Callable[[TensorMeta], Value]) -> None:
        """Note that a call returned this tensor: fresh memory, or a view of known memory.

        `make` gives the value; it is not asked where the value of this view is known already.
        """
        storage = self._storage(tensor, external=False)
        layout = layout_of(tensor)
        if layout in storage.values:
            return
        value = storage.values[layout] = make(_meta(layout, storage.device))
        if storage.base is None and not storage.external:
            storage.base = (layout, value)

    def rebind(self, tensor: torch.Tensor, value: Value) -> None:
        """Note that a call replaced the memory's whole content and shape (resize)."""
        storage = self._storage(tensor, external=False)
        layout = layout_of(tensor)
        storage.values = {layout: value}
        storage.base = (layout, value)
        storage.written = True

    def prepare_write(self, tensor: torch.Tensor) -> None:
        """Note the memory's content before a call writes to it."""
        storage = self._storage(tensor, external=True)
        if storage.external and storage.original is None:
            value = self.read(tensor)
            if _covers(tensor):
                whole, base = tensor.detach(), (layout_of(tensor), value)
            else:
                whole = _whole(tensor)
                base = (layout_of(whole), self._constant(whole, meta_of(whole)))
            storage.base = base
            storage.original = (tensor.untyped_storage(), whole.clone())

    def write(self, tensor: torch.Tensor, value: Value) -> None:
        """Note that a call has written this value through this tensor."""
        storage = self._storage(tensor, external=False)
        layout = layout_of(tensor)
        if storage.base is None:
            raise UnsupportedOpError("a write to memory of which no value is known")
        base_layout, base = storage.base
        if layout == base_layout or _covers(tensor):
            storage.base = (layout, value)
            storage.values = {layout: value}
        else:
            new = self._scatter(storage, layout, value)
            storage.base = (base_layout, new)
            storage.values = {base_layout: new, layout: value}
        storage.written = True

    def restore(self) -> None:
        """Give all memory that came from outside the content that it had at first."""
        for storage in self._known.values():
            if storage.original is not None:
                memory, content = storage.original
                view = torch.empty(0, dtype=content.dtype, device=content.device)
                view.set_(memory, 0, content.shape, content.stride())
                if not torch.equal(view, content):
                    view.copy_(content)

    # -- helpers -------------------------------------------------------------------------

    def _storage(self, tensor: torch.Tensor, *, external: bool) -> _Storage:
        if tensor.layout is not _STRIDED:  # has no single memory
            refuse_unsupported_tensor(tensor)
        memory = tensor.untyped_storage()
        storage = self._known.get(memory._cdata)
        if storage is None:
            refuse_unsupported_tensor(tensor)
            storage = _Storage(StorageWeakRef(memory), external, tensor.device)
            self._known[memory._cdata] = storage
        return storage

    def _constant(self, tensor: torch.Tensor, meta: TensorMeta) -> Value:
        """Copy a tensor from outside; expanded dimensions are kept once."""
        role, name = self._name(tensor)
        plain = tensor.detach()
        if plain.is_contiguous() or not _overlaps(plain):
            return Value(Constant(plain.clone(), role, name))
        for dim, step in enumerate(plain.stride()):
            if step == 0 and plain.shape[dim] > 1:
                plain = plain.narrow(dim, 0, 1)
        if _overlaps(plain):  # sliding windows over one line of memory
            plain = tensor.detach().contiguous()
            return Value(Constant(plain, role, name))
        compact = Value(Constant(plain.clone(), role, name))
        return self._emit(aten.expand.default, (compact, list(meta.shape)), {}, meta)

    def _from_base(self, storage: _Storage, layout: Layout) -> Value:
        flat, start = self._flat(storage, layout)
        shape, stride, _, offset, *_ = layout
        args = (flat, list(shape), list(stride), offset - start)
        return self._emit(aten.as_strided.default, args, {}, _meta(layout, storage.device))

    def _scatter(self, storage: _Storage, layout: Layout, value: Value) -> Value:
        """The base after a value was written to a part of it."""
        flat, start = self._flat(storage, layout)
        assert storage.base is not None
        meta = _meta(storage.base[0], storage.device)
        shape, stride, _, offset, *_ = layout
        args = (flat, value, list(shape), list(stride), offset - start)
        line = meta._replace(shape=(_count(meta.shape),), stride=(1,))
        written = self._emit(aten.as_strided_scatter.default, args, {}, line)
        order = _memory_order(meta)
        lying = _permuted(meta, order)
        result = self._emit(aten.view.default, (written, list(lying.shape)), {}, lying)
        if list(order) == sorted(order):
            return result
        back = [order.index(i) for i in range(len(order))]
        return self._emit(aten.permute.default, (result, back), {}, meta)

    def _flat(self, storage: _Storage, wanted: Layout) -> tuple[Value, int]:
        """The memory behind a base as one line of numbers, and where that line begins."""
        if storage.base is None:
            raise UnsupportedOpError("a view of memory of which no value is known")
        layout, value = storage.base
        meta, start = _meta(layout, storage.device), layout[3]
        _, _, dtype, offset, neg, conj = wanted
        if meta.dtype != dtype or neg or conj or layout[4] or layout[5]:
            raise UnsupportedOpError(
                f"a tensor of {dtype} shares memory with one of {meta.dtype} that was "
                "written in place; bits cannot be reinterpreted in another format"
            )
        count = _count(meta.shape)
        reach = offset + _span(_meta(wanted, storage.device)) - start
        if not _is_dense(meta) or offset < start or reach > count:
            raise UnsupportedOpError(
                f"a view of shape {tuple(wanted[0])} reaches memory beyond the tensor of shape "
                f"{meta.shape} it was made from"
            )
        if meta.stride == (1,):
            return value, start
        order = _memory_order(meta)
        if list(order) != sorted(order):
            lying = _permuted(meta, order)
            value = self._emit(aten.permute.default, (value, list(order)), {}, lying)
        line = meta._replace(shape=(count,), stride=(1,))
        return self._emit(aten.view.default, (value, [count]), {}, line), start


def _permuted(meta: TensorMeta, order: tuple[int, ...]) -> TensorMeta:
    shape, stride = (tuple(part[i] for i in order) for part in (meta.shape, meta.stride))
    return meta._replace(shape=shape, stride=stride)


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _span(meta: TensorMeta) -> int:
    """How many entries of memory a tensor reaches over, from its first to its last."""
    if 0 in meta.shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(meta.shape, meta.stride, strict=True))


def _memory_order(meta: TensorMeta) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest in memory."""
    pairs = [
        (-step, -n, i) for i, (n, step) in enumerate(zip(meta.shape, meta.stride, strict=True))
    ]
    return tuple(i for _, _, i in sorted(pairs))


def _is_dense(meta: TensorMeta) -> bool:
    """Whether the entries fill one line of memory, each place once."""
    step = 1
    for i in reversed(_memory_order(meta)):
        if meta.shape[i] == 1:
            continue
        if meta.stride[i] != step:
            return 0 in meta.shape
        step *= meta.shape[i]
    return True


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether two entries may lie at the same place."""
    reach = 0
    meta = meta_of(tensor)
    for i in reversed(_memory_order(meta)):
        if meta.shape[i] <= 1:
            continue
        if meta.stride[i] <= reach:
            return True
        reach += (meta.shape[i] - 1) * meta.stride[i]
    return False


def _covers(tensor: torch.Tensor) -> bool:
    """Whether the tensor is the whole of its storage, each place once."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    if not whole or tensor.storage_offset() != 0:
        return False
    return tensor.is_contiguous() or _is_dense(meta_of(tensor))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The storage of a tensor as one line of numbers of its dtype."""
    memory = tensor.untyped_storage()
    line = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return line.set_(memory, 0, (memory.nbytes() // tensor.element_size(),), (1,))
