"""What do the ops on complex numbers compute, in real numbers?

While a program is opened, every complex tensor z that is known carries its real and its imaginary
part, and an op on z is recorded as ops on these. A rule gets the parts and gives parts, or a real
tensor. What has no rule stays closed: its result carries no parts, and no analysis takes it for
exact.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from numgeom.recording.fourier import complex_to_complex, complex_to_real, real_to_complex
from numgeom.recording.references.freedom import declared, free

aten = torch.ops.aten
Parts = tuple[Tensor, Tensor]
Rule = Callable[..., Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Linear with real coefficients, the same for both parts: moves, copies and sums of entries.
_BY_PARTS = _names(
    """
    _reshape_alias _unsafe_view add alias cat clone constant_pad_nd contiguous copy cumsum detach
    diagonal diagonal_backward expand flip gather index index_add index_put index_select lift_fresh
    mean neg new_zeros permute repeat roll scatter_add select select_backward select_scatter slice
    slice_backward slice_scatter split split_with_sizes squeeze stack sub sum t transpose tril triu
    unbind unfold unsqueeze view zeros zeros_like
    """
)
# The same, on one line of memory.
_BY_STRIDES = frozenset({"as_strided", "as_strided_scatter"})


class Pairs:
    """The parts of complex tensors, as far as they are known."""

    def __init__(self) -> None:
        """Know none."""
        self._parts: Any = WeakIdKeyDictionary()

    def know_constant(self, z: Tensor) -> None:
        """Take the parts of a constant of the program."""
        if z.is_complex():
            with free():  # parts of a constant are constants
                whole = z.resolve_conj()
                self._parts[z] = declared(whole.real.clone()), declared(whole.imag.clone())

    def open(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The parts of an op's result, a real result, or NotImplemented; runs the real ops.

        Nothing is run where a complex argument has no known parts.
        """
        if func in _FROM_REALS and not tree_any(_is_complex, args):
            return made_of_reals(func, args)
        name = func._opname
        rule = _rule_of(name)
        known = not tree_any(lambda x: isinstance(x, Tensor) and not self._known(x), (args, kwargs))
        if rule is None or not known:
            return NotImplemented
        given = tree_map_only(Tensor, self._split, (args, kwargs))
        return rule(func, *given[0], **given[1])

    def keep(self, z: Tensor, parts: Parts) -> None:
        """Remember the parts of a tensor."""
        self._parts[z] = parts

    def _known(self, x: Tensor) -> bool:
        return not x.is_complex() or x in self._parts

    def _split(self, x: Tensor) -> Any:
        return _Complex(*self._parts[x]) if x.is_complex() else x


class _Complex:
    """The parts of an argument of a rule."""

    def __init__(self, re: Tensor, im: Tensor) -> None:
        self.re, self.im = re, im


def _is_complex(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.is_complex()
    return isinstance(x, complex) or (isinstance(x, torch.dtype) and x.is_complex)


def _has_complex(items: Iterable[Any]) -> bool:
    # ATen nests arguments in lists and tuples alone; asked for every call of a program.
    return any(_has_complex(x) if isinstance(x, (list, tuple)) else _is_complex(x) for x in items)


def _rule_of(name: str) -> Rule | None:
    if name in _BY_PARTS:
        return _by_parts
    return _by_strides if name in _BY_STRIDES else _RULES.get(name)


def _parts_of(x: Any) -> Parts:
    """Parts of a complex or a real argument."""
    if isinstance(x, _Complex):
        return x.re, x.im
    return x, torch.zeros_like(x)


def _real_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _by_parts(func: Any, *args: Any, **kwargs: Any) -> Any:
    numbers = any(isinstance(x, complex) for x in (*args, *kwargs.values()))
    if numbers and func._opname not in ("add", "sub"):
        return NotImplemented
    if func._opname == "copy" and not isinstance(args[0], _Complex):
        return func(args[0], args[1].re)
    kwargs = {k: _real_dtype(v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}

    def part(which: int) -> Any:
        def pick(x: Any) -> Any:
            if isinstance(x, _Complex):
                return (x.re, x.im)[which]
            if isinstance(x, complex):
                return (x.real, x.imag)[which]
            if isinstance(x, Tensor):
                return x if which == 0 or not x.is_floating_point() else torch.zeros_like(x)
            if isinstance(x, (list, tuple)):
                return type(x)(pick(v) for v in x)
            return x

        if which and func._opname == "constant_pad_nd":
            return func(pick(args[0]), args[1])  # a real number is padded with
        if which and func._opname in ("add", "sub") and isinstance(args[1], (int, float)):
            return pick(args[0])
        if func._opname in ("view", "_unsafe_view"):
            return pick(args[0]).reshape(args[1])
        return func(*map(pick, args), **kwargs)

    re, im = part(0), part(1)
    return [*zip(re, im, strict=True)] if isinstance(re, (list, tuple)) else (re, im)


def _by_strides(func: Any, *args: Any, **kwargs: Any) -> Any:
    lines = [_Complex(x.re.clone(), x.im.clone()) if isinstance(x, _Complex) else x for x in args]
    return _by_parts(func, *lines, **kwargs)


def _product(a: Any, b: Any) -> Parts:
    """The product with a complex or a real tensor or number, on either side."""
    if not isinstance(a, _Complex):
        a, b = b, a
    if isinstance(b, _Complex):
        return a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re
    if isinstance(b, complex):
        return a.re * b.real - a.im * b.imag, a.re * b.imag + a.im * b.real
    return a.re * b, a.im * b


def _mul(func: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Tensor) and isinstance(b, complex):
        return a * b.real, a * b.imag
    return _product(a, b)


def _div(func: Any, a: Any, b: Any) -> Any:
    if isinstance(b, complex):
        return NotImplemented
    if isinstance(b, _Complex):
        size = b.re * b.re + b.im * b.im
        re, im = _product(a, _Complex(b.re, -b.im))
        return re / size, im / size
    return a.re / b, a.im / b


def _matmul(func: Any, a: Any, b: Any) -> Parts:
    (p, q), (r, s) = _parts_of(a), _parts_of(b)
    return func(p, r) - func(q, s), func(p, s) + func(q, r)


def _abs(func: Any, z: _Complex) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([z.re, z.im], -1), 2, [-1])


def _sgn(func: Any, z: _Complex) -> Parts:
    size = _abs(func, z)
    some = size != 0
    divisor = torch.where(some, size, 1.0)
    return torch.where(some, z.re / divisor, 0.0), torch.where(some, z.im / divisor, 0.0)


def _reciprocal(func: Any, z: _Complex) -> Parts:
    size = z.re * z.re + z.im * z.im
    return z.re / size, -z.im / size


def _exp(func: Any, z: _Complex) -> Parts:
    size = torch.exp(z.re)
    return size * torch.cos(z.im), size * torch.sin(z.im)


def _pow(func: Any, z: Any, exponent: Any) -> Any:
    """Products for the first few powers; others stay closed."""
    if isinstance(exponent, (_Complex, Tensor)) or not isinstance(z, _Complex):
        return NotImplemented
    if exponent not in (1, 2, 3, 4):
        return NotImplemented
    power = z
    for _ in range(int(exponent) - 1):
        power = _Complex(*_product(power, z))
    return power.re, power.im


def _conjugate(func: Any, z: Any) -> Parts:
    if isinstance(z, complex):  # a number, as autograd hands it on
        return torch.tensor(z.real, dtype=torch.float64), torch.tensor(-z.imag, dtype=torch.float64)
    return z.re, -z.im


def _to_copy(func: Any, x: Any, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    del options
    if isinstance(x, _Complex) and dtype is not None and not dtype.is_complex:
        return x.re.to(dtype)
    if isinstance(x, Tensor):
        x = x.to(_real_dtype(dtype)) if dtype is not None else x
    return _parts_of(x)


def _transform(rule: Callable[..., Any]) -> Rule:
    def opened(func: Any, x: Any, *settings: Any) -> Any:
        return rule(*_parts_of(x), *settings)

    return opened


# Ops that are there for complex numbers alone.
COMPLEX_OPS = frozenset(
    {"_conj", "_conj_physical", "_fft_c2c", "_fft_c2r", "_fft_r2c", "conj_physical",
     "view_as_complex", "view_as_real"}
)  # fmt: skip

_RULES: Mapping[str, Rule] = {
    "_conj": _conjugate,
    "_conj_physical": _conjugate,
    "conj_physical": _conjugate,
    "_to_copy": _to_copy,
    "abs": _abs,
    "bmm": _matmul,
    "div": _div,
    "mm": _matmul,
    "mul": _mul,
    "exp": _exp,
    "pow": _pow,
    "reciprocal": _reciprocal,
    "sgn": _sgn,
    "view_as_real": lambda func, z: torch.stack([z.re, z.im], -1),
    "_fft_c2c": _transform(complex_to_complex),
    "_fft_c2r": _transform(complex_to_real),
}


_FROM_REALS = (aten.view_as_complex.default, aten.complex.default, aten._fft_r2c.default)


def is_about_complex_numbers(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call takes or makes complex numbers."""
    return func in _FROM_REALS or _has_complex(args) or _has_complex(kwargs.values())


def made_of_reals(func: Any, args: Any) -> Parts:
    """The parts of the complex result of an op on real numbers."""
    if func is aten.view_as_complex.default:
        return args[0].select(-1, 0), args[0].select(-1, 1)
    if func is aten.complex.default:
        shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
        return args[0].expand(shape), args[1].expand(shape)
    return real_to_complex(*args)
