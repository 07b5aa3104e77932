"""Which operations does the error of a gradient come from?

A noisy replay makes a local error d_i at every call i and ends with the error e of all gradients.
With a = A^T e, the cotangents of a reverse pass that starts from that very error,

    |e|^2 = sum_i <a_i, d_i> + sum_i <a_i, r_i>,

where r_i is what call i does with the errors of its operands beyond first order. The identity is
exact: at each call the change of the result splits into its own error d_i, the derivative times the
changes of the operands (which the reverse pass hands on to them), and r_i. So shares sum to 1 by
construction. For independent local errors <a_i, d_i> has the mean |A_i d_i|^2, the call's variance.
A share below zero says that an error undoes others in this sample.

r_i at a kink is a unit on the other side: the gradient jumps there. r_i elsewhere is curvature.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from numgeom.arithmetic.printing import percent
from numgeom.errors import NumgeomError
from numgeom.ops.differentiable import DIFFERENTIABLE
from numgeom.ops.table import kinks_of
from numgeom.precision.noisy import NoisyReplay, Operands, difference, moves, op_name, traits
from numgeom.precision.storage import Storage
from numgeom.recording import CallInfo, Program
from numgeom.recording.replay import ProgramInterpreter
from numgeom.results.guarantee import Guarantee
from numgeom.results.source import Source


def is_kinked(node: fx.Node) -> bool:
    """Whether a call branches on a value inside.

    A decision that comes in as an operand is seen by itself.
    """
    kinks = kinks_of(op_name(node))
    return kinks is not None and kinks.branches and kinks.may_occur(node.args, node.kwargs)


class Cause(Enum):
    """What makes the error at a call."""

    ROUNDING = "rounding"  # the call's own rounding, and that of its kernel
    KINK = "kink"  # a unit on the other side of its kink, because its operand was moved
    CURVATURE = "curvature"  # products and curves of errors that came in
    UNKNOWN = "unknown"  # errors that passed through a call without derivative


@dataclass(frozen=True)
class ErrorSource:
    """A part of the error of the whole gradient.

    Attributes:
        op: Name of the operation.
        module: Path of the module that ran it, "" outside of every module.
        phase: "forward", "backward", or "weight gradient": what only makes gradients of
            parameters. "update" for what follows the backward pass.
        source: "file.py:line" of the user's line.
        cause: What makes the error.
        error_share: Its part of the squared error, relative to the whole; shares sum to 1.
        calls: How many calls were taken together.
    """

    op: str
    module: str
    phase: str
    source: str
    cause: Cause
    error_share: float
    calls: int = 1


@dataclass(frozen=True)
class Sources:
    """Where the error of one sample comes from.

    Attributes:
        parts: All sources, largest share first, calls of the same op, module, phase, line and
            cause taken together. Their shares sum to 1; empty if there is no error.
        predicted_error: Relative error of that sample.
    """

    parts: tuple[ErrorSource, ...]
    predicted_error: float

    def __iter__(self) -> Any:
        """The sources, largest share first."""
        return iter(self.parts)

    def __len__(self) -> int:
        """Number of sources."""
        return len(self.parts)

    def by(self, *fields: str) -> dict[Any, float]:
        """Sum the shares by one field of `ErrorSource` or by several, largest first.

        Example:
            >>> Sources((), 0.0).by("module")
            {}
        """
        found: dict[Any, float] = {}
        for part in self.parts:
            key = tuple(getattr(part, name) for name in fields)
            key = key[0] if len(key) == 1 else key
            found[key] = found.get(key, 0.0) + part.error_share
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def share(self, cause: Cause) -> float:
        """The share of one cause; of kinks, for instance."""
        return sum(part.error_share for part in self.parts if part.cause is cause)

    def __str__(self) -> str:
        """Say in a sentence what makes the error; how much of it are crossings of kinks."""
        shares = sorted(((self.share(cause), cause.value) for cause in Cause), reverse=True)
        named = ", ".join(
            f"{percent(share, 0)} {name}" for share, name in shares if abs(share) >= 0.005
        )
        return f"Causes of the error [share of its square]: {named or 'none'}."

    def for_certificate(self) -> tuple[Source, ...]:
        """The sources in the form in which a certificate holds them."""
        return tuple(
            Source(
                op=p.op if p.cause is Cause.ROUNDING else f"{p.op} ({p.cause.value})",
                module=p.module,
                phase=p.phase,
                source=p.source,
                error_share=p.error_share,
                guarantee=Guarantee.ESTIMATED,
            )
            for p in self.parts
        )

    def to_document(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "schema": "numgeom.sources",
            "version": 1,
            "predicted_error": self.predicted_error,
            "units": {"error_share": "part of the squared error", "predicted_error": "relative"},
            "causes": {cause.value: self.share(cause) for cause in Cause},
            "sources": [
                {**{k: getattr(p, k) for k in _FIELDS}, "cause": p.cause.value} for p in self.parts
            ],
        }


_FIELDS = ("op", "module", "phase", "source", "error_share", "calls")


def attribute(
    program: Program,
    *,
    seed: int = 0,
    operands: Operands | None = None,
    stored: Storage | None = None,
) -> Sources:
    """Find the sources of the error of one noisy replay.

    Memory: about three times all values of the program in float64.

    Args:
        program: A recorded program.
        seed: Of the noisy replay.
        operands: Formats of operands that differ from the recorded ones.
        stored: What becomes of the values that the backward pass reads.

    Returns:
        The sources. Guarantee: ESTIMATED.

    Raises:
        ReplayError: if the program cannot be run in float64.
    """
    noisy: dict[fx.Node, Any] = {}
    sample = NoisyReplay(
        program,
        seed=seed,
        operands=operands,
        stored=stored,
        keep_local=True,
        on_call=noisy.__setitem__,
    )
    gradients = sample.evaluate().gradients
    sweep = _Sweep(program, noisy, sample.local, gradients)
    sweep.evaluate()
    return sweep.sources()


class _Sweep(ProgramInterpreter):
    """Runs the program cleanly, then walks back from the error that the noisy run ended with."""

    opens = True  # the plain definitions of fused ops can be differentiated

    def __init__(
        self,
        program: Program,
        noisy: Mapping[fx.Node, Any],
        local: Mapping[fx.Node, Mapping[tuple[int, ...], Tensor]],
        gradients: Mapping[str, Tensor],
    ) -> None:
        super().__init__(program, dtype=torch.float64)
        self._noisy = noisy
        self._local = local
        self._gradients = gradients
        self._clean: dict[fx.Node, Any] = {}
        self._cotangents: dict[fx.Node, dict[tuple[int, ...], Tensor]] = {}
        self._parts: dict[tuple[Any, ...], ErrorSource] = {}
        self._weight_gradients = _weight_gradients(program)
        self._whole = 0.0
        self._size = 0.0

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        value = super().run_node(node, values)
        self._clean[node] = value
        return value

    def finish(self, found: Any) -> Any:
        """Walk back over the calls, in the same surroundings in which they ran."""
        outputs = next(n for n in self.program.graph.nodes if n.op == "output").args[0]["gradients"]
        for name, clean in found["gradients"].items():
            error = self._gradients[name] - clean
            if not error.is_floating_point() or not bool(torch.isfinite(error).all()):
                continue
            self._whole += float(error.pow(2).sum())
            self._size += float(clean.pow(2).sum())
            self._add(outputs[name], error)
        if self._whole > 0.0:
            for node in reversed(self.program.calls):
                self._visit(node)
        return found

    def sources(self) -> Sources:
        """What was found."""
        parts = sorted(self._parts.values(), key=lambda part: -part.error_share)
        error = (self._whole / self._size) ** 0.5 if self._size else float(self._whole > 0.0)
        return Sources(tuple(parts), error)

    # -- one call --------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        cotangents = self._cotangents.pop(node, None)
        if not cotangents:
            return
        arrived = 0.0
        for path, a in cotangents.items():
            clean, noisy = _at(self._clean[node], path), _at(self._noisy[node], path)
            delta = self._local.get(node, {}).get(path)
            share = 0.0 if delta is None else _dot(a, delta)
            arrived += _dot(a, difference(noisy, clean)) - share
            self._note(node, self._phase(node, path), Cause.ROUNDING, share)
        handed_on, known = self._hand_on(node, cotangents)
        self._note(node, self._phase(node), self._cause(node, known), arrived - handed_on)

    def _hand_on(
        self, node: fx.Node, cotangents: Mapping[tuple[int, ...], Tensor]
    ) -> tuple[float, bool]:
        """Give the operands their cotangents; return <a, derivative * changes of operands>."""
        moved = {
            n: c
            for n in node.all_input_nodes
            if _is_real(c := self._clean[n]) and not torch.equal(c, self._noisy[n])
        }
        if not moved:
            return 0.0, True
        names = list(moved)
        found = self._derivative(node, leaves := _leaves(moved, names), cotangents)
        if found is None:  # torch has no derivative in some operand: find those that have one
            names = [n for n in moved if self._derivative(node, _leaves(moved, [n]), cotangents)]
            found = self._derivative(node, leaves := _leaves(moved, names), cotangents)
        if not names or found is None:
            return 0.0, False
        total = 0.0
        for n, a in zip(leaves, found, strict=True):
            if a is not None:
                total += _dot(a, difference(self._noisy[n], self._clean[n]))
                self._add(n, a)
        return total, len(names) == len(moved)

    def _derivative(
        self,
        node: fx.Node,
        leaves: Mapping[fx.Node, Tensor],
        cotangents: Mapping[tuple[int, ...], Tensor],
    ) -> Any:
        """Cotangents of some operands; None where torch has no derivative for them."""

        def value(n: fx.Node) -> Any:
            return leaves.get(n, self._clean[n])

        args = map_arg(node.args, value)
        kwargs = map_arg(node.kwargs, value)
        try:
            stand_in = DIFFERENTIABLE.get(op_name(node))
            y = stand_in(*args, **kwargs) if stand_in else self.call(node, args, kwargs)
            pairs = [(_at(y, path), a) for path, a in cotangents.items()]
            pairs = [(part, a) for part, a in pairs if part.requires_grad]
            if not pairs:
                return [None] * len(leaves)
            return torch.autograd.grad(
                [part for part, _ in pairs],
                list(leaves.values()),
                grad_outputs=[a for _, a in pairs],
                allow_unused=True,
            )
        except (RuntimeError, NumgeomError):  # NotImplementedError is a RuntimeError
            return None

    def _add(self, node: fx.Node, cotangent: Tensor) -> None:
        path: tuple[int, ...] = ()
        while node.op == "call_function" and "call" not in node.meta:  # a part of a call
            path = (node.args[1], *path)  # type: ignore[assignment]  # getitem's index
            node = node.args[0]  # type: ignore[assignment]  # getitem's whole
        if node.op == "get_attr":
            return
        parts = self._cotangents.setdefault(node, {})
        parts[path] = parts[path] + cotangent if path in parts else cotangent

    # -- names -----------------------------------------------------------------------------

    def _phase(self, node: fx.Node, path: tuple[int, ...] = ()) -> str:
        info: CallInfo = node.meta["call"]
        ends = {(node, path), (node, ())} & self._weight_gradients
        return "weight gradient" if info.phase == "backward" and ends else info.phase

    def _cause(self, node: fx.Node, known: bool) -> Cause:
        if not known:
            return Cause.UNKNOWN
        decided = any(
            isinstance(self._clean[n], Tensor)
            and not _is_real(self._clean[n])
            and not torch.equal(self._clean[n], self._noisy[n])
            for n in node.all_input_nodes
        )
        return Cause.KINK if decided or is_kinked(node) else Cause.CURVATURE

    def _note(self, node: fx.Node, phase: str, cause: Cause, amount: float) -> None:
        if amount == 0.0:
            return
        info: CallInfo = node.meta["call"]
        key = (op_name(node), info.module, phase, info.source, cause)
        before = self._parts.get(key) or ErrorSource(*key, error_share=0.0, calls=0)
        self._parts[key] = replace(
            before,
            error_share=before.error_share + amount / self._whole,
            calls=before.calls + 1,
        )


def _weight_gradients(program: Program) -> set[tuple[fx.Node, tuple[int, ...]]]:
    """Backward results that reach the gradient of a parameter by moves, casts and sums alone."""
    found: set[tuple[fx.Node, tuple[int, ...]]] = set()
    nodes: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        if all(user.op == "output" or (user in nodes and _passes_on(user)) for user in node.users):
            nodes.add(node)
            if "call" in node.meta:
                found.add((node, ()))
            else:
                whole, index = node.args
                found.add((whole, (index,)))
    return found


def _passes_on(node: fx.Node) -> bool:
    known = traits(node)
    adds = known.adds and known.product is None and (known.sums or known.entrywise)
    scales = op_name(node) == "_amp_foreach_non_finite_check_and_unscale"
    return "call" not in node.meta or moves(node) or known.moves is not None or adds or scales


def _at(value: Any, path: Iterable[int]) -> Any:
    for i in path:
        value = value[i]
    return value


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _leaves(values: Mapping[fx.Node, Tensor], names: list[fx.Node]) -> dict[fx.Node, Tensor]:
    return {n: values[n].detach().requires_grad_() for n in names}


def _dot(a: Tensor, b: Tensor) -> float:
    """<a, b>; where b is zero the product is, whatever a (a derivative at infinity is NaN)."""
    return float(torch.where(b == 0.0, 0.0, a * b).sum())


__all__ = ["Cause", "ErrorSource", "Sources", "attribute"]
