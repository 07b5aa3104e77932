"""How do the calls of a step become a program?

The recorder observes a stream. It keeps a flat list of functional calls whose tensors are
replaced by values; nothing of the step's intermediate memory is kept alive.
"""

from typing import Any

import torch
from torch._ops import OpOverload

from numgeom.errors import UnsupportedOpError
from numgeom.recording.calls import CallInfo, TensorMeta
from numgeom.recording.functionalize import (
    DRAWS,
    HIDDEN_WRITES,
    Traits,
    Treatment,
    draws_nothing,
    fill_defaults,
    frozen_mask_indices,
    has_mask,
    name_of,
    refusal_of,
    refuse_unsupported_tensor,
    running_statistics,
    traits_of,
)
from numgeom.recording.problems import Problem
from numgeom.recording.storages import Storages
from numgeom.recording.values import (
    Constant,
    Entry,
    Value,
    meta_of,
    mixes_dtypes,
    replace_tensors,
    tensors_in,
    with_paths,
)
from numgeom.recording.variants import argument_at, functional_variant, written_arguments

aten = torch.ops.aten
_NOWHERE = CallInfo("forward", "", "")


class Recorder:
    """Turn observed calls into functional entries.

    Args:
        names: Role and name of tensors that are known by name, by `id`.
    """

    def __init__(self, names: dict[int, tuple[str, str]] | None = None) -> None:
        """Start an empty recording."""
        self.entries: list[Entry] = []
        self.problems: dict[tuple[str, str], Problem] = {}
        self.leaves: dict[int, torch.Tensor] = {}  # tensors that collect gradients, by id
        self.first_grads: dict[int, torch.Tensor | None] = {}  # their .grad when first seen
        self.leaf_values: dict[int, Value] = {}  # what they held then
        self.loss: Value | None = None
        self.loss_tensor: torch.Tensor | None = None
        self.ran_backward = False
        self.storages = Storages(self._emit, self._name_of)
        self._names = names or {}
        self._info = _NOWHERE
        self._new: list[Entry] = []

    # -- observer ------------------------------------------------------------------------

    def before(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read the inputs while they still hold what the call will see."""
        self._new = []
        try:
            return self._before(op, args, kwargs)
        except UnsupportedOpError as error:
            return (op, error)

    def after(self, token: Any, outputs: Any, info: CallInfo) -> None:
        """Add the call to the program."""
        self.ran_backward = self.ran_backward or info.phase == "backward"
        if len(token) == 2:
            self._refuse(token[0], token[1], info)
            return
        traits, args, kwargs, read = token
        self._info = info
        for entry in self._new:  # reads of views that `before` had to add
            entry.info = info
        try:
            self._after(traits, args, kwargs, read, outputs)
        except UnsupportedOpError as error:
            self._refuse(traits.op, error, info)

    def backward_from(self, root: torch.Tensor) -> None:
        """Take the tensor from which a backward pass starts as the loss."""
        if not self.problems:
            self.loss = self.storages.read(root)
            self.loss_tensor = root.detach().clone()

    def announce(self, tensor: torch.Tensor, role: str, name: str) -> None:
        """Make a tensor from outside known under a name."""
        self.storages.announce(tensor, role, name)

    def unrecorded_backward(self, name: str) -> None:
        """Note that the backward pass left the recording."""
        text = (
            "its forward pass ran before the recording began, so the gradient depends on "
            "operations that were not seen; run the whole forward pass inside the recording"
        )
        self.problems.setdefault((name, text), Problem(text, name, _NOWHERE))

    def _refuse(self, op: OpOverload, error: UnsupportedOpError, info: CallInfo) -> None:
        key = (str(op), str(error))
        if key in self.problems:
            self.problems[key].count += 1
        else:
            self.problems[key] = Problem(str(error), str(op), info)

    # -- calls ---------------------------------------------------------------------------

    def _before(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        traits = traits_of(op)
        treatment, written = traits.treatment, traits.written
        if treatment is Treatment.REFUSE:
            raise UnsupportedOpError(refusal_of(op))
        if self.problems:  # nothing is recorded any more, but all problems are told
            for tensor in tensors_in((*args, *kwargs.values())):
                refuse_unsupported_tensor(tensor)
        if treatment in (Treatment.ALLOCATE, Treatment.IGNORE) or self.problems:
            return traits, args, kwargs, None
        if traits.has_defaults:
            args, kwargs = fill_defaults(op, args, kwargs)
        if traits.takes_indices and len(args) > 1 and has_mask(args[1]):
            args = (args[0], self._decided_all(args[1]), *args[2:])
        if treatment is Treatment.WRITE_HIDDEN:
            positions, training = HIDDEN_WRITES[name_of(op)]
            written = positions if args[training] else ()
        for i in written:
            for tensor in tensors_in(argument_at(op, args, kwargs, i)):
                self.storages.prepare_write(tensor)
        read = replace_tensors(args, self._read), replace_tensors(kwargs, self._read)
        return traits, args, kwargs, read

    def _after(self, traits: Traits, args: Any, kwargs: Any, read: Any, outputs: Any) -> None:
        op, treatment = traits.op, traits.treatment
        if self.problems:
            for tensor in tensors_in(outputs):
                refuse_unsupported_tensor(tensor)
        if treatment is Treatment.IGNORE or self.problems:
            return
        if treatment is Treatment.PURE:
            self._call(op, read[0], read[1], outputs)
        elif treatment is Treatment.ALLOCATE:
            self._allocate(outputs)
        elif treatment is Treatment.DRAW and draws_nothing(op, args, kwargs):
            self._call(op, read[0], read[1], outputs)
        elif treatment is Treatment.DRAW:
            self._draw(op, args, kwargs, read, outputs)
        elif treatment is Treatment.DECIDE:
            self._decide(op, args, read, outputs)
        elif treatment is Treatment.VIEW_IN_PLACE:
            self._view_in_place(op, args, read)
        elif treatment is Treatment.CUT_BY_STRIDES:
            self.storages.bind(outputs, lambda _: self.storages.read_strided(outputs, args[0]))
        elif treatment is Treatment.WRITE_HIDDEN:
            self._hidden_write(op, args, kwargs, read, outputs)
        else:
            self._write(op, args, kwargs, read, outputs)

    def _read(self, tensor: torch.Tensor) -> Value:
        value = self.storages.find(tensor)
        if not tensor.requires_grad:
            return self.storages.read(tensor) if value is None else value
        if tensor.is_leaf:
            if value is None:
                value = self.storages.read(tensor)
            if id(tensor) not in self.leaves:
                self.leaves[id(tensor)] = tensor
                self.first_grads[id(tensor)] = tensor.grad
                self.leaf_values[id(tensor)] = value
        elif value is None and not self.storages.is_known(tensor):
            maker = tensor.grad_fn.name() if tensor.grad_fn else "an operation"
            raise UnsupportedOpError(
                f"an input of shape {tuple(tensor.shape)} was computed by {maker} outside of "
                "the recording (before it began, or on another thread); run the whole forward "
                "pass inside the recording"
            )
        return self.storages.read(tensor) if value is None else value

    def _call(self, op: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        """A pure call. Views that are known already need no call: `detach`, `alias`."""
        if isinstance(outputs, torch.Tensor):
            self.storages.bind(outputs, lambda meta: self._emit(op, args, kwargs, meta))
            return
        found = with_paths(outputs)
        if all(self.storages.find(t) is not None for _, t in found):
            return
        entry = self._entry(op, args, kwargs, outputs)
        for path, tensor in found:
            self._bind(tensor, entry.output(*path))

    def _bind(self, tensor: torch.Tensor, value: Value) -> None:
        self.storages.bind(tensor, lambda _: value)

    def _allocate(self, output: torch.Tensor) -> None:
        options = {"dtype": output.dtype, "device": output.device}
        size = (list(output.shape),)
        self.storages.bind(output, lambda meta: self._emit(aten.zeros.default, size, options, meta))

    def _draw(self, op: Any, args: Any, kwargs: Any, read: Any, outputs: Any) -> None:
        name = name_of(op)
        if name in ("native_dropout", "_fused_dropout"):
            self._dropout(args, read, outputs, keep=args[1] if name[0] == "_" else 1 - args[1])
            return
        if name.startswith("rrelu_with_noise"):
            self._rrelu(op, args, kwargs, read, outputs)
            return
        if name not in DRAWS:
            raise UnsupportedOpError(
                "it draws random numbers inside a fused kernel, where they cannot be recorded; "
                "for attention use torch.nn.attention.sdpa_kernel(SDPBackend.MATH), for recurrent "
                "layers torch.backends.cudnn.flags(enabled=False), or set the dropout to 0"
            )
        written = written_arguments(op)
        for i in written:
            for tensor in tensors_in(argument_at(op, args, kwargs, i)):
                self._write_value(tensor, self._drawn(tensor))
        for tensor in tensors_in(outputs):
            if not self.storages.is_known(tensor):
                self._bind(tensor, self._drawn(tensor))

    def _dropout(self, args: Any, read: Any, outputs: Any, *, keep: float) -> None:
        """Dropout with the drawn mask: x · mask · 1/keep, in the order in which torch rounds."""
        output, mask = outputs
        drawn = self._drawn(mask)
        self._bind(mask, drawn)
        meta = meta_of(output)
        kept = self._emit(aten.mul.Tensor, (read[0][0], drawn), {}, meta)
        scale = 1 / keep if keep else 0.0
        self._bind(output, self._emit(aten.mul.Tensor, (kept, scale), {}, meta))

    def _rrelu(self, op: Any, args: Any, kwargs: Any, read: Any, outputs: Any) -> None:
        """Randomised leaky ReLU: x · noise, with the drawn slopes (1 where x > 0)."""
        noise = argument_at(op, args, kwargs, 1)
        slopes = self._drawn(noise)
        self._write_value(noise, slopes)
        target = args[0] if 0 in written_arguments(op) else tensors_in(outputs)[0]
        value = self._emit(aten.mul.Tensor, (read[0][0], slopes), {}, meta_of(target))
        if 0 in written_arguments(op):
            self._write_value(target, value)
        else:
            self._bind(target, value)

    def _decide(self, op: Any, args: Any, read: Any, outputs: Any) -> None:
        found = tensors_in(outputs)
        if name_of(op) == "masked_select":
            indices = self._decided_all([args[1]])
            source = read[0][0]
            if args[0].shape != args[1].shape:
                shape = list(torch.broadcast_shapes(args[0].shape, args[1].shape))
                indices = self._decided_all([args[1].expand(shape)])
                wide = args[0].expand(shape)
                source = self._emit(aten.expand.default, (source, shape), {}, meta_of(wide))
            self._call(aten.index.Tensor, (source, indices), {}, outputs)
        elif all(not t.is_floating_point() and not t.is_complex() for t in found):
            for tensor in found:
                self._bind(tensor, self._decided(tensor))
        elif name_of(op) in ("index", "_unsafe_index", "repeat_interleave", "nonzero_static"):
            self._call(op, read[0], read[1], outputs)
        else:
            raise UnsupportedOpError(
                "the shape of its floating-point result depends on the values of its input; "
                "index with positions instead"
            )

    def _view_in_place(self, op: Any, args: Any, read: Any) -> None:
        tensor = args[0]
        if name_of(op) == "resize_":
            options = {"dtype": tensor.dtype, "device": tensor.device}
            meta = meta_of(tensor)
            zeros = self._emit(aten.zeros.default, (list(tensor.shape),), options, meta)
            self.storages.rebind(tensor, zeros)
            return
        if name_of(op) == "as_strided_":
            self.storages.bind(tensor, lambda _: self.storages.read_strided(tensor, tensor))
            return
        variant = functional_variant(op)
        if variant is None:
            raise UnsupportedOpError("it changes a view in place in a way that is not known")
        self._call(variant.op, read[0], read[1], tensor)

    def _hidden_write(self, op: Any, args: Any, kwargs: Any, read: Any, outputs: Any) -> None:
        """Batch norm whose running statistics are written without the schema saying so."""
        del kwargs
        positions, training = HIDDEN_WRITES[name_of(op)]
        if not (args[training] and isinstance(args[positions[0]], torch.Tensor)):
            self._call(op, read[0], read[1], outputs)
            return
        if name_of(op) == "native_batch_norm":
            # The kernel that torch gives the functional op is that of native_batch_norm.
            functional = aten._native_batch_norm_legit_functional.default
            entry = self._entry(functional, read[0], {}, (*outputs, args[3], args[4]))
            new = [entry.output(3), entry.output(4)]
        else:
            blank = list(read[0])
            blank[positions[0]] = blank[positions[1]] = None
            entry = self._entry(op, tuple(blank), read[1], outputs)
            new = running_statistics(self._emit, args, read[0], momentum=args[training + 1])
        for path, tensor in with_paths(outputs):
            self._bind(tensor, entry.output(*path))
        for position, value in zip(positions, new, strict=True):
            self._write_value(args[position], value)

    def _write(self, op: Any, args: Any, kwargs: Any, read: Any, outputs: Any) -> None:
        target = argument_at(op, args, kwargs, written_arguments(op)[0])
        assigned = self._assigned(name_of(op), args, read, target)
        if assigned is not None:
            self.storages.write(target, assigned)
            return
        variant = functional_variant(op)
        if variant is None:
            others = [t for t in tensors_in((args, kwargs)) if t is not target]
            if others:
                raise UnsupportedOpError("it writes in place and has no functional counterpart")
            self.storages.write(target, Value(Constant(target.detach().clone(), "input")))
            return
        kwargs_read = {k: v for k, v in read[1].items() if k not in variant.dropped}
        targets = [argument_at(op, args, kwargs, i) for i in variant.written]
        fresh = list(outputs)[: variant.n_fresh] if variant.n_fresh else []
        if variant.n_fresh and isinstance(outputs, torch.Tensor):
            fresh = [outputs]
        results = [*fresh, *targets]
        alone = len(results) == 1
        example = results[0] if alone else tuple(results)
        entry = self._entry(variant.op, read[0], kwargs_read, example)
        mixed = mixes_dtypes(args, kwargs)
        for path, tensor in with_paths(example):
            value = entry.output(*path)
            if (path[0] if path else 0) < len(fresh) and not alone:
                self._bind(tensor, value)
                continue
            if mixed:  # the functional op promotes; the write rounds back to the target's format
                options = {"dtype": tensor.dtype}
                value = self._emit(aten._to_copy.default, (value,), options, meta_of(tensor))
            self._write_value(tensor, value)

    def _assigned(self, name: str, args: Any, read: Any, target: torch.Tensor) -> Value | None:
        """The value that an assignment gives, whatever its target held before."""
        if name not in ("zero_", "fill_", "copy_"):
            return None
        shape, meta = list(target.shape), meta_of(target)
        options = {"dtype": target.dtype, "device": target.device}
        if name == "zero_":
            return self._emit(aten.full.default, (shape, 0), options, meta)
        if name == "fill_" and not isinstance(args[1], torch.Tensor):
            return self._emit(aten.full.default, (shape, args[1]), options, meta)
        source, value = args[1], read[0][1]
        if source.dtype != target.dtype or source.device != target.device:
            like = TensorMeta(meta_of(source).shape, source.stride(), target.dtype, target.device)
            value = self._emit(aten._to_copy.default, (value,), options, like)
        if source.shape != target.shape:
            value = self._emit(
                aten.expand.default, (value, shape), {}, meta_of(source.expand(shape))
            )
        return self._emit(aten.clone.default, (value,), {}, meta)

    def _write_value(self, tensor: torch.Tensor, value: Value) -> None:
        self.storages.write(tensor, value)

    # -- entries -------------------------------------------------------------------------

    def _entry(self, op: Any, args: Any, kwargs: Any, outputs: Any) -> Entry:
        metas = {path: meta_of(tensor) for path, tensor in with_paths(outputs)}
        entry = Entry(op, tuple(args), dict(kwargs), self._info, metas)
        self.entries.append(entry)
        self._new.append(entry)
        return entry

    def _emit(self, op: Any, args: Any, kwargs: Any, meta: TensorMeta) -> Value:
        entry = Entry(op, tuple(args), dict(kwargs), self._info, {(): meta})
        self.entries.append(entry)
        self._new.append(entry)
        return entry.output()

    def _drawn(self, tensor: torch.Tensor) -> Value:
        return Value(Constant(tensor.detach().clone(), "drawn"))

    def _decided(self, tensor: torch.Tensor) -> Value:
        return Value(Constant(tensor.detach().clone(), "decision"))

    def _decided_all(self, indices: Any) -> list[Any]:
        """Index tensors, boolean ones replaced by the positions they chose, as constants."""
        return [
            self._decided(new) if new is not None and all(new is not i for i in indices) else new
            for new in frozen_mask_indices(indices)
        ]

    def _name_of(self, tensor: torch.Tensor) -> tuple[str, str]:
        return self._names.get(id(tensor), ("input", ""))
