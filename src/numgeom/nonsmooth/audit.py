"""Which ops of a model break torch's rule for kinks, and does it matter on this batch?

PyTorch's notes on autograd say that where a function has no derivative, the sub-gradient (or
super-gradient) of least norm is taken. Some ops do not keep to it. No list says which: each op that
a step calls is put onto its kink, with the settings of the call, and torch's own derivative there
is measured and compared with the element of least norm.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from numgeom.arithmetic.printing import nearest_short
from numgeom.failures import answers
from numgeom.nonsmooth.backward import FrozenStep, TiedCall
from numgeom.nonsmooth.clarke import least, tensor_arguments
from numgeom.nonsmooth.kinks import Family, KinkRule
from numgeom.nonsmooth.selection import KINKS, Selection
from numgeom.nonsmooth.sites import op_arguments
from numgeom.nonsmooth.variation import compare_gradients
from numgeom.ops.selection import op_call, op_name
from numgeom.recording import MISSING, Program, Recording, program_of
from numgeom.visible import visible

# Quotients such as g/3 are rounded: derivatives are taken for equal up to this share.
_SAME = 1e-12


@dataclass(frozen=True)
class AuditedOp:
    """What torch does at the kinks of one op of a step.

    Attributes:
        op: The op's name.
        family: Which field of a `Selection` decides its derivative.
        places: "module file.py:line" of its calls.
        norm: Euclidean norm of torch's derivative at the kink, for one unit; None if the op could
            not be put onto its kink.
        least_norm: The least norm that a Clarke derivative has there.
        n_tied: Tied units of these calls on this batch.
        difference: How far this batch's gradient would move (1-norm, float64 replay) if the
            derivatives of least norm were taken in these calls.
        rounding: What rounding alone can do to that replay.
    """

    op: str
    family: Family
    places: tuple[str, ...]
    norm: float | None
    least_norm: float | None
    n_tied: int
    difference: float
    rounding: float

    @property
    def breaks_rule(self) -> bool | None:
        """Whether torch's derivative is not the one of least norm; None if not measured."""
        if self.norm is None or self.least_norm is None:
            return None
        return self.norm > self.least_norm * (1 + _SAME) + _SAME

    @property
    def matters(self) -> bool:
        """Whether the rule is broken and keeping to it would move this batch's gradient.

        By more than rounding does; a NaN moves it.
        """
        return self.breaks_rule is not False and not self.difference <= self.rounding

    def __str__(self) -> str:
        """One line."""
        rule = "was not measured"
        if self.norm is not None and self.least_norm is not None:
            rule = "takes the least norm"
            if self.breaks_rule:
                least = nearest_short(self.least_norm)
                rule = f"breaks the rule (norm {nearest_short(self.norm)}, least {least})"
        if not self.n_tied:
            here = "no unit is tied on this batch"
        elif self.matters:
            here = f"{self.n_tied} tied units: the rule would move the gradient by "
            here += f"{nearest_short(self.difference)}"
        else:
            here = f"{self.n_tied} tied units, but the gradient does not depend on it"
        return visible(f"{self.op} ({', '.join(self.places)}): {rule}; {here}")


@answers("audit")
def audit(
    subject: nn.Module | Program | Recording | Callable[[], Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    seed: int = 0,
) -> tuple[AuditedOp, ...]:
    """Compare torch's derivatives at kinks with the documented rule, for the ops of one step.

    Args:
        subject: A model, with `loss_fn` and `batch`; a function that runs one step; a recording;
            or a program. Left as it was.
        loss_fn: `loss_fn(model, batch)` returns the loss; with a model only.
        batch: Anything that `loss_fn` understands; with a model only.
        seed: Of the rounding sample.

    Raises:
        SubjectError: if the arguments do not fit together.
        RecordingError: if the step cannot be recorded.
    """
    return audit_of(program_of(subject, loss_fn, batch, question="audit"), seed=seed)


@answers("audit")
def audit_of(program: Program | FrozenStep, *, seed: int = 0) -> tuple[AuditedOp, ...]:
    """Audit a recorded step; see `audit`."""
    step = program if isinstance(program, FrozenStep) else FrozenStep(program)
    native = step.gradients(Selection())
    noise = torch.Generator().manual_seed(seed)
    rounding = compare_gradients(native, step.gradients(Selection(), noise=noise)).l1
    groups: dict[tuple[str, Family, float | None, float | None], list[fx.Node]] = {}
    for node in dict.fromkeys(site.forward for site in step.sites.found):
        for family, norms in _measured(step, node):
            groups.setdefault((_name(node), family, *norms), []).append(node)
    found = []
    for (op, family, norm, least_norm), nodes in groups.items():
        ties = [t for t in step.ties if t.family == family and t.node in nodes]
        if norm is None and not ties and _is_measured(op, groups):
            continue  # a norm of another order has no such kink
        difference = 0.0
        if ties:
            changed = step.gradients(Selection(), weights={t: least(t) for t in ties})
            difference = compare_gradients(native, changed).l1
        found.append(
            AuditedOp(
                op,
                family,
                tuple(dict.fromkeys(_place(node) for node in nodes)),
                norm,
                least_norm,
                sum(len(t.kink.units) for t in ties),
                difference,
                rounding,
            )
        )
    return tuple(found)


def _measured(
    step: FrozenStep, node: fx.Node
) -> list[tuple[Family, tuple[float | None, float | None]]]:
    """Torch's norm and the least norm at a kink of one call, for each of its families."""
    found: dict[Family, tuple[float, float]] = {}
    tensors = [step.values[n].detach().to(torch.float64) for n in tensor_arguments(node)]
    for number in _candidates(node):
        first, *others = tensors
        put = torch.full_like(first, number)
        for rest in (others, [torch.full_like(t, number) for t in others]):
            for rule in KINKS[_name(node)]:
                if rule.family not in found:
                    norms = _norms(node, rule, [put, *rest])
                    found |= {} if norms is None else {rule.family: norms}
    return [(rule.family, found.get(rule.family, (None, None))) for rule in KINKS[_name(node)]]


def _is_measured(op: str, groups: Iterable[tuple[str, Family, float | None, object]]) -> bool:
    return any(name == op and norm is not None for name, _, norm, _ in groups)


def _candidates(node: fx.Node) -> list[float]:
    """Numbers at which an op may have a kink: those in its arguments, and the usual ones."""
    given = [float(v) for v in op_arguments(node).values() if isinstance(v, (int, float))]
    return list(dict.fromkeys([*given, 0.0, 1.0, 3.0]))


def _norms(node: fx.Node, rule: KinkRule, inputs: list[Tensor]) -> tuple[float, float] | None:
    """Norm of torch's derivative at the first tied unit of such inputs, and the least norm."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    by_node = dict(zip(tensor_arguments(node), leaves, strict=True))
    target: Any = node.target
    args = map_arg(node.args, by_node.__getitem__)
    kwargs = map_arg(node.kwargs, by_node.__getitem__)
    out = target(*args, **kwargs)
    call = op_call(target, args, kwargs, out)
    kink = rule.find(call)
    if kink is None or not len(kink.units):
        return None
    first = out[0] if isinstance(out, (tuple, list)) else out
    upstream = torch.zeros(first.numel(), dtype=first.dtype)
    upstream[kink.units[0]] = 1
    upstream = upstream.reshape(first.shape)
    native = torch.autograd.grad(first, leaves, upstream, allow_unused=True)
    tie = TiedCall(node, call.name, first.shape, rule.family, kink)
    best = kink.redo(least(tie), tuple(None if g is None else g * 0 for g in native), (upstream,))
    return _norm(native), _norm(best)


def _norm(gradients: tuple[Tensor | None, ...]) -> float:
    parts = [float(g.square().sum()) for g in gradients if g is not None]
    return math.sqrt(sum(parts))


def _name(node: fx.Node) -> str:
    target: Any = node.target
    return op_name(target)


def _place(node: fx.Node) -> str:
    info = node.meta["call"]
    return " ".join(part for part in (info.module, info.source) if part)
