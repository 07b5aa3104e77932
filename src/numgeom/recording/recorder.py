"""How do the notes of a step become a program?

The recorder reads a log and makes a flat list of functional calls whose tensors are replaced by
values. It may read a log while it grows.
"""

from collections.abc import Mapping
from typing import Any

import torch

from numgeom.errors import RecordingError, UnsupportedOpError
from numgeom.recording.calls import CallInfo, TensorMeta
from numgeom.recording.decisions import UNSEEN, Decided, Decision
from numgeom.recording.functionalize import (
    HIDDEN_WRITES,
    Treatment,
    draws_nothing,
    name_of,
    running_statistics,
)
from numgeom.recording.log import Log, More, Noted
from numgeom.recording.problems import Problem, describe
from numgeom.recording.seen import (
    Seen,
    expanded,
    mixes_dtypes,
    replace_seen,
    seen_in,
    with_paths,
)
from numgeom.recording.storages import Storages
from numgeom.recording.values import Constant, Entry, Value
from numgeom.recording.variants import argument_at, functional_variant, written_arguments

aten = torch.ops.aten
_NOWHERE = CallInfo("forward", "", "")


class Recorder:
    """Turn a log into functional entries.

    Args:
        log: The notes.
        names: Names of leaves of a step without a model, by `id`.
    """

    def __init__(self, log: Log, names: Mapping[int, str] | None = None) -> None:
        """Start at the log's beginning."""
        self.entries: list[Entry] = []
        self.loss: Value | None = None
        self.decisions: list[Decision] = []
        self._decided: set[tuple[int, tuple[int, ...], bool]] = set()
        self.storages = Storages(self._emit, log.memories.captured, log.memories.wholes)
        self._log = log
        self._names = names or {}
        self._info = _NOWHERE
        self._next = 0
        self._next_leaf = self._next_loss = self._next_decision = 0

    def play(self) -> None:
        """Read what the log has gained.

        Raises:
            RecordingError: a call cannot be read as a function; names its place.
        """
        log = self._log
        log.sources.learn(call.place for call in log.calls[self._next :])
        while self._next < len(log.calls):
            call = log.calls[self._next]
            self._info = log.sources.info(call.place)
            try:
                self._edges()
                self._play(call)
            except UnsupportedOpError as error:
                problem = Problem(str(error), str(call.traits.op), self._info)
                raise RecordingError(describe([problem])) from error
            self._next += 1
        self._edges()

    def read(self, seen: Seen) -> Value:
        """The value that a tensor holds after all that was played."""
        return self.storages.read(seen)

    def _edges(self) -> None:
        """Leaves, losses and decisions that were first seen at this call."""
        log = self._log
        while self._next_leaf < len(log.first_seen) and (
            log.first_seen[self._next_leaf][0] <= self._next
        ):
            _, key, seen = log.first_seen[self._next_leaf]
            self._next_leaf += 1
            origin = self.storages.read(seen).origin
            if key in self._names and isinstance(origin, Constant):
                origin.role, origin.name = "parameter", self._names[key]
        while self._next_loss < len(log.losses) and log.losses[self._next_loss][0] <= self._next:
            self.loss = self.storages.read(log.losses[self._next_loss][1])
            self._next_loss += 1
        while self._next_decision < len(log.decisions) and (
            log.decisions[self._next_decision].call <= self._next
        ):
            self._decision(log.decisions[self._next_decision])
            self._next_decision += 1

    def _decision(self, noted: Decided) -> None:
        """Link a decision to what decided; what came from outside is what it is."""
        value = self.storages.read(noted.seen)
        if isinstance(value.origin, Constant) and not noted.op.startswith(UNSEEN):
            return
        place = self._log.calls[noted.call].place if noted.place is None else noted.place
        info = self._log.sources.info(place)
        taken = Value(Constant(noted.taken, "decision"))
        decision = Decision(value, taken, noted.op, info)
        key = id(value.origin), value.path, decision.is_read
        if key not in self._decided:  # a mask decides in the backward pass what it decided before
            self._decided.add(key)
            self.decisions.append(decision)

    # -- calls ---------------------------------------------------------------------------

    def _play(self, call: Noted) -> None:
        op, args, kwargs, outputs = call.traits.op, call.args, call.kwargs, call.outputs
        treatment = call.traits.treatment
        more = call.more or More()
        if treatment is Treatment.ALLOCATE:
            self._allocate(outputs)
            return
        if more.targets:
            for i in self._written(call):
                for seen in seen_in(argument_at(op, args, kwargs, i)):
                    self.storages.prepare_write(seen)
        read = replace_seen(args, self.storages.read), replace_seen(kwargs, self.storages.read)
        draws = treatment is Treatment.DRAW and not draws_nothing(op, args, kwargs)
        if treatment is Treatment.PURE or (treatment is Treatment.DRAW and not draws):
            self._call(op, read[0], read[1], outputs)
        elif draws:
            self._draw(call, more, read)
        elif treatment is Treatment.DECIDE:
            self._decide(call, more, read)
        elif treatment is Treatment.VIEW_IN_PLACE:
            self._view_in_place(op, outputs, read)
        elif treatment is Treatment.CUT_BY_STRIDES:
            self.storages.bind(outputs, lambda _: self.storages.read_strided(outputs, args[0]))
        elif treatment is Treatment.WRITE_HIDDEN:
            self._hidden_write(call, more, read)
        else:
            self._write(call, more, read)

    def _written(self, call: Noted) -> tuple[int, ...]:
        """Positions of the arguments that a call wrote to."""
        if call.traits.treatment is Treatment.WRITE_HIDDEN:
            return HIDDEN_WRITES[name_of(call.traits.op)][0]
        return call.traits.written

    def _call(self, op: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        """A pure call. Views that are known already need no call: `detach`, `alias`."""
        if isinstance(outputs, Seen):
            self.storages.bind(outputs, lambda meta: self._emit(op, args, kwargs, meta))
            return
        found = with_paths(outputs)
        if all(self.storages.find(seen) is not None for _, seen in found):
            return
        entry = self._entry(op, args, kwargs, outputs)
        for path, seen in found:
            self._bind(seen, entry.output(*path))

    def _bind(self, seen: Seen, value: Value) -> None:
        self.storages.bind(seen, lambda _: value)

    def _allocate(self, output: Seen) -> None:
        options = {"dtype": output.dtype, "device": output.device}
        size = (list(output.shape),)
        self.storages.bind(output, lambda meta: self._emit(aten.zeros.default, size, options, meta))

    def _draw(self, call: Noted, more: More, read: Any) -> None:
        name = name_of(call.traits.op)
        if name in ("native_dropout", "_fused_dropout"):
            keep = call.args[1] if name[0] == "_" else 1 - call.args[1]
            self._dropout(more, read, call.outputs, keep=keep)
            return
        if name.startswith("rrelu_with_noise"):
            self._rrelu(call, more, read)
            return
        for seen in seen_in(more.targets):
            self._write_value(more, seen, more.copies[seen])
        for seen in seen_in(call.outputs):
            if not self.storages.is_known(seen):
                self._bind(seen, more.copies[seen])

    def _dropout(self, more: More, read: Any, outputs: Any, *, keep: float) -> None:
        """Dropout with the drawn mask: x · mask · 1/keep, in the order in which torch rounds."""
        output, mask = outputs
        drawn = more.copies[mask]
        self._bind(mask, drawn)
        meta = output.meta()
        kept = self._emit(aten.mul.Tensor, (read[0][0], drawn), {}, meta)
        scale = 1 / keep if keep else 0.0
        # The overload for numbers that torch made: it rounds 1 - p and its reciprocal.
        self._bind(output, self._emit(aten.mul.Scalar, (kept, scale), {}, meta))

    def _rrelu(self, call: Noted, more: More, read: Any) -> None:
        """Randomised leaky ReLU: x · noise, with the drawn slopes (1 where x > 0)."""
        op = call.traits.op
        slopes = next(iter(more.copies.values()))
        self._write_value(more, argument_at(op, call.args, call.kwargs, 1), slopes)
        target = call.args[0] if 0 in written_arguments(op) else seen_in(call.outputs)[0]
        value = self._emit(aten.mul.Tensor, (read[0][0], slopes), {}, target.meta())
        if 0 in written_arguments(op):
            self._write_value(more, target, value)
        else:
            self._bind(target, value)

    def _decide(self, call: Noted, more: More, read: Any) -> None:
        op, args, outputs = call.traits.op, call.args, call.outputs
        if more.indices is not None:  # a selection by a mask
            source, shape = read[0][0], list(args[0].shape)
            if args[0].shape != args[1].shape:
                shape = list(torch.broadcast_shapes(args[0].shape, args[1].shape))
                meta = expanded(args[0].meta(), tuple(shape))
                source = self._emit(aten.expand.default, (source, shape), {}, meta)
            self._call(aten.index.Tensor, (source, more.indices), {}, outputs)
        elif more.copies:
            for seen in seen_in(outputs):
                self._bind(seen, more.copies[seen])
        else:
            self._call(op, read[0], read[1], outputs)

    def _view_in_place(self, op: Any, seen: Seen, read: Any) -> None:
        if name_of(op) == "resize_":
            options = {"dtype": seen.dtype, "device": seen.device}
            shape = (list(seen.shape),)
            self.storages.rebind(seen, self._emit(aten.zeros.default, shape, options, seen.meta()))
            return
        if name_of(op) == "as_strided_":
            self.storages.bind(seen, lambda _: self.storages.read_strided(seen, seen))
            return
        variant = functional_variant(op)
        assert variant is not None  # the log refuses others
        self._call(variant.op, read[0], read[1], seen)

    def _hidden_write(self, call: Noted, more: More, read: Any) -> None:
        """Batch norm whose running statistics are written without the schema saying so."""
        op, args, outputs = call.traits.op, call.args, call.outputs
        positions, training = HIDDEN_WRITES[name_of(op)]
        if not (args[training] and isinstance(args[positions[0]], Seen)):
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
        for path, seen in with_paths(outputs):
            self._bind(seen, entry.output(*path))
        for target, value in zip(more.targets, new, strict=True):
            self._write_value(more, target, value)

    def _write(self, call: Noted, more: More, read: Any) -> None:
        op, outputs, targets = call.traits.op, call.outputs, more.targets
        target = targets[0]
        assigned = self._assigned(name_of(op), call.args, read, target)
        if assigned is not None:
            self._write_value(more, target, assigned)
            return
        variant = functional_variant(op)
        if variant is None:
            self._write_value(more, target, more.copies[target])
            return
        kwargs_read = {k: v for k, v in read[1].items() if k not in variant.dropped}
        fresh = list(outputs)[: variant.n_fresh] if variant.n_fresh else []
        if variant.n_fresh and isinstance(outputs, Seen):
            fresh = [outputs]
        results = [*fresh, *targets]
        alone = len(results) == 1
        example = results[0] if alone else tuple(results)
        entry = self._entry(variant.op, read[0], kwargs_read, example)
        mixed = mixes_dtypes(call.args, call.kwargs)
        for path, seen in with_paths(example):
            value = entry.output(*path)
            if (path[0] if path else 0) < len(fresh) and not alone:
                self._bind(seen, value)
                continue
            if mixed:  # the functional op promotes; the write rounds back to the target's format
                options = {"dtype": seen.dtype}
                value = self._emit(aten._to_copy.default, (value,), options, seen.meta())
            self._write_value(more, seen, value)

    def _assigned(self, name: str, args: Any, read: Any, target: Seen) -> Value | None:
        """The value that an assignment gives, whatever its target held before."""
        if name not in ("zero_", "fill_", "copy_"):
            return None
        shape, meta = list(target.shape), target.meta()
        options = {"dtype": target.dtype, "device": target.device}
        if name == "zero_":
            return self._emit(aten.full.default, (shape, 0), options, meta)
        if name == "fill_" and not isinstance(args[1], Seen):
            return self._emit(aten.full.default, (shape, args[1]), options, meta)
        source, value = args[1], read[0][1]
        like = source.meta()
        if source.dtype != target.dtype or source.device != target.device:
            like = like._replace(dtype=target.dtype, device=target.device)
            value = self._emit(aten._to_copy.default, (value,), options, like)
        if source.shape != target.shape:
            wide = expanded(like, tuple(shape))
            value = self._emit(aten.expand.default, (value, shape), {}, wide)
        return self._emit(aten.clone.default, (value,), {}, meta)

    def _write_value(self, more: More, seen: Seen, value: Value) -> None:
        self.storages.write(seen, value, covers=seen in more.covering)

    # -- entries -------------------------------------------------------------------------

    def _entry(self, op: Any, args: Any, kwargs: Any, outputs: Any) -> Entry:
        metas = {path: seen.meta() for path, seen in with_paths(outputs)}
        entry = Entry(op, tuple(args), dict(kwargs), self._info, metas)
        self.entries.append(entry)
        return entry

    def _emit(self, op: Any, args: Any, kwargs: Any, meta: TensorMeta) -> Value:
        entry = Entry(op, tuple(args), dict(kwargs), self._info, {(): meta})
        self.entries.append(entry)
        return entry.output()
