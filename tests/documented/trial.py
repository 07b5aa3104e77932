"""Is a certificate's bound of every entry kept, against what the documentation says?

With a loss sum_i w_i f(x_i), the gradient of w is f(x) and that of x is w f'(x): one certificate
tries the forward and the backward formula. No slack: an entry is violated if the distance between
the computed gradient and the exact one is above the bound for certain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import flint
import numpy as np
import torch
from flint import arb
from torch import Tensor, nn

import numgeom
from numgeom.arithmetic.rounding import add_up, difference_up
from numgeom.recording import record_step
from numgeom.semantics.ball import enclose
from tests.documented.arrays import Composite
from tests.documented.dual import Dual, UndecidedError
from tests.documented.functions import Function

BITS = (300, 4000)
FORMATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    2.5,
    3.0,
    7.0,
    20.0,
    88.0,
    1e-3,
    1e-8,
    1e3,
    1e5,
    1e10,
    0.1,
    1 / 3,
)
_EXTREME = (5e-324, 1e-310, 1e-300, 1e-40, 1e-30, 1e-20, 1e16, 1e30, 1e100, 1e300)
_WHOLE = (2.0**53, 2.0**53 - 1, 2.0**52 + 0.5, 2.0**24, 2.0**24 - 1, 255.5, 1023.5)


@dataclass
class Tried:
    """What became of the entries of some trials.

    Attributes:
        checked: Entries with a finite bound.
        unbounded: Entries without one.
        violations: What was violated, in words.
        worst: Largest error / bound.
    """

    checked: int = 0
    unbounded: int = 0
    violations: list[str] = field(default_factory=list)
    worst: float = 0.0

    def add(self, other: "Tried") -> None:
        self.checked += other.checked
        self.unbounded += other.unbounded
        self.violations += other.violations
        self.worst = max(self.worst, other.worst)


class _Weighted(nn.Module):
    def __init__(self, w: Tensor, inputs: list[Tensor], f: Callable[..., Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(w)
        self.inputs = nn.ParameterList(nn.Parameter(x) for x in inputs)
        self.f = f

    def forward(self) -> Tensor:
        return (self.w * self.f(*self.inputs)).sum()


def points(f: Function, dtype: torch.dtype, generator: torch.Generator, n: int) -> Tensor:
    """Inputs as nasty as they come: huge, tiny, subnormal, halves, close to what is special."""
    wanted = [*_PLAIN, *_EXTREME, *_WHOLE]
    wanted += [-v for v in wanted]
    tensor = torch.tensor(wanted, dtype=torch.float64).to(dtype)
    for centre in (*f.near, *f.kinks):
        middle = torch.tensor(centre, dtype=dtype)
        low = torch.nextafter(middle, torch.tensor(-math.inf, dtype=dtype))
        high = torch.nextafter(middle, torch.tensor(math.inf, dtype=dtype))
        close = torch.tensor([centre + d for d in (1e-9, -1e-9, 1e-5, -1e-5, 1e-2, -1e-2)])
        tensor = torch.cat([tensor, torch.stack([low, middle, high]), close.to(dtype)])
    drawn = torch.rand(n, generator=generator, dtype=torch.float64)
    low, high = f.typical
    drawn = (low + (high - low) * drawn).to(dtype)
    found = torch.cat([tensor, drawn])
    return found[torch.isfinite(found)]


def exactly(f: Function, values: tuple[float, ...]) -> list[arb] | None:
    """The value and the partial derivatives; None where they are not defined."""
    try:
        found: list[arb] = []
        for k in range(len(values)):
            y = f.exact(*(Dual(v, int(j == k)) for j, v in enumerate(values)))
            found = [y.v, *found[1:], y.d]
    except (UndecidedError, ZeroDivisionError, ValueError, OverflowError):
        return None
    return found if all(v.is_finite() for v in found) else None


def _is_defined(f: Function, values: tuple[float, ...]) -> bool:
    for bits in BITS:
        with flint.ctx.workprec(bits):
            if exactly(f, values) is not None:
                return True
    return False


def try_function(
    f: Function, dtype: torch.dtype, *, seed: int, n: int = 40, method: str = "ball"
) -> Tried:
    """Certify f at many points in one format, and check every entry."""
    generator = torch.Generator().manual_seed(seed)
    x = points(f, dtype, generator, n)
    inputs = [x[torch.randperm(len(x), generator=generator)] for _ in range(f.arguments)]
    if f.arguments == 1:
        inputs = [x]
    w = torch.randn(len(x), generator=generator, dtype=torch.float64).to(dtype)
    rows = [tuple(r) for r in zip(*(t.double().tolist() for t in inputs), strict=True)]
    leaves = [t.clone().requires_grad_() for t in inputs]
    w_leaf = w.clone().requires_grad_()
    y = f.computed(*leaves)
    (w_leaf * y).sum().backward()
    sound = torch.tensor([_is_defined(f, row) for row in rows])
    for t in (y, w_leaf.grad, *(leaf.grad for leaf in leaves)):
        sound &= torch.isfinite(t) if t is not None else True
    keep = sound.nonzero().reshape(-1)
    if not len(keep):
        return Tried()
    model = _Weighted(w[keep], [t[keep] for t in inputs], f.computed)
    radii = _enclosed(model)
    bounded = torch.stack([torch.isfinite(r) for r in radii.values()]).all(0)
    if method != "ball":
        keep = keep[bounded]  # an entry without a bound spoils the certificate of all
        if not len(keep):
            return Tried(unbounded=len(bounded) * (1 + f.arguments))
        model = _Weighted(w[keep], [t[keep] for t in inputs], f.computed)
        radii = numgeom.certify(model, lambda m, _: m(), None, method=method).entrywise_bounds
    model.zero_grad()
    model().backward()
    tried = Tried()
    for part, parameter in model.named_parameters():
        if part not in radii:
            tried.unbounded += len(keep)
            continue
        assert parameter.grad is not None
        place = 0 if part == "w" else 1 + int(part.rpartition(".")[2])
        weights = [1.0] * len(keep) if place == 0 else w[keep].double().tolist()
        got = parameter.grad.double().reshape(-1).tolist()
        bounds = radii[part].reshape(-1).tolist()
        for i, weight, computed, bound in zip(keep.tolist(), weights, got, bounds, strict=True):
            row = rows[i]
            if place and (any(v in f.kinks for v in row) or (f.ties and len(set(row)) == 1)):
                continue
            tried.add(_entry(f, row, place, weight, computed, bound, f"{dtype} {method}"))
    return tried


def try_composite(
    f: Composite, dtype: torch.dtype, *, seed: int, method: str = "ball", scale: float = 1.0
) -> Tried:
    """Certify f at one point, and check every entry of every gradient."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for shape in f.shapes:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        inputs.append(((f.low + (f.high - f.low) * drawn) * scale).to(dtype))
    y = f.computed(*inputs)
    w = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)
    model = _Weighted(w, inputs, f.computed)
    if method == "ball":
        bounds = _enclosed(model)
    else:
        found = numgeom.certify(model, lambda m, _: m(), None, method=method)
        bounds = dict(found.entrywise_bounds)
    model.zero_grad()
    model().backward()
    weights = [arb(v) for v in w.double().reshape(-1).tolist()]
    tried = Tried()
    for part, parameter in model.named_parameters():
        if part not in bounds or parameter.grad is None:
            tried.unbounded += parameter.numel()
            continue
        place = None if part == "w" else int(part.rpartition(".")[2])
        got = parameter.grad.double().reshape(-1).tolist()
        for i, (computed, bound) in enumerate(
            zip(got, bounds[part].reshape(-1).tolist(), strict=True)
        ):
            exact = partial(_of_composite, f, inputs, weights, place, i)
            where = f"{f.name} {dtype} {method} seed {seed}, {part}[{i}]"
            tried.add(_judged(exact, computed, bound, where))
    return tried


def _of_composite(
    f: Composite, inputs: list[Tensor], weights: list[arb], place: int | None, i: int
) -> arb | None:
    """Entry i of f, or of the gradient of sum w f with respect to the input at a place."""
    arrays = []
    for k, x in enumerate(inputs):
        flat = np.array(
            [
                Dual(v, int(k == place and j == i))
                for j, v in enumerate(x.double().reshape(-1).tolist())
            ]
            + [None],
            dtype=object,
        )
        arrays.append(flat[:-1].reshape(tuple(x.shape)))
    try:
        y = np.asarray(f.exact(*arrays), dtype=object).reshape(-1)
    except UndecidedError:
        return None
    assert len(y) == len(weights), "the documented result has another shape"
    if place is None:
        return y[i].v
    return sum((w * v.d for w, v in zip(weights, y, strict=True)), arb(0))


def _enclosed(model: _Weighted) -> dict[str, Tensor]:
    """Bounds of the computed gradients by ball arithmetic."""
    program = record_step(model, lambda m, _: m(), None)
    found = enclose(program.decompose())
    computed = program.recorded.gradients
    return {
        name: add_up(difference_up(computed[name].double(), middle), found.radii[name])
        for name, middle in found.midpoints.items()
    }


def _entry(
    f: Function, row: tuple, place: int, weight: float, computed: float, bound: float, where: str
) -> Tried:
    def exact() -> arb | None:
        found = exactly(f, row)
        return None if found is None else arb(weight) * found[place]

    return _judged(exact, computed, bound, f"{f.name} {where} at {row}, output {place}")


def _judged(exact: Callable[[], arb | None], computed: float, bound: float, where: str) -> Tried:
    if not math.isfinite(bound):
        return Tried(unbounded=1)
    for bits in BITS:
        with flint.ctx.workprec(bits):
            value = exact()
            if value is None:
                continue
            error = abs(value - arb(computed))
            if error <= bound:
                return Tried(1, 0, [], float((error / bound).upper()) if bound else 0.0)
            if error > bound:
                ratio = float((error / bound).lower()) if bound else math.inf
                return Tried(1, 0, [f"{where}: {ratio:.4g} x {bound:.4g}"], ratio)
    return Tried(unbounded=1)
