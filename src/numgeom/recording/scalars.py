"""Which Python numbers in an opened program stand for themselves?

A number that the user wrote stands for its double value: so do the numbers of the recorded forward
calls. A number that a formula derives stands for a real number, of which the double is a rounding:
1/n from n, exponent - 1 from an exponent, ln 10. Such numbers occur

- in what composite ops are opened into;
- in recorded backward calls, whose numbers torch's derivative formulas made;
- in forward calls that torch's own composite functions made (dropout divides by 1 - p). They use
  overloads for numbers, `mul.Scalar`, where Python's `x * 0.3` arrives as `mul.Tensor`.

The rule: a number is exact if it is a short binary fraction, or if it is, up to its sign and powers
of two, a number of the call that was opened (for a backward call: of some forward call). Every
other one is replaced by a call that carries its error (`numgeom.recording.reals`), at most four
roundings of a double, or one of a float32 number if it is one; a constant that has a name is known
to the last digit. A number whose place in a call can hold no tensor ends the opening: nothing is
exact for want of a rule.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from numgeom.errors import RecordingError
from numgeom.recording.program import Program
from numgeom.recording.reals import NAMED, REAL_NUMBER, Real

aten = torch.ops.aten

_SHORT_BITS = 11  # longest binary fraction that is taken for exact: 1/2, 0.75, 3.125, ...
_ROUNDINGS = 4  # between a derived double and the number it stands for
_NAMED = {sign * known.value: (sign, known) for known in NAMED for sign in (1, -1)}

# Numbers that torch's formulas choose, and round nothing by: a guard against division by zero, a
# stand-in for minus infinity.
_CONVENTIONS = frozenset((1e-12, 1e-7, -torch.finfo(torch.float64).max))


class Scalars:
    """Numbers of the calls of one program.

    Args:
        program: The recorded program, before it is opened.
    """

    def __init__(self, program: Program) -> None:
        """Collect the numbers of the forward calls."""
        self._forward: set[float] = set()
        # The derivative formulas of CELU multiply by up to three reciprocals of alpha, which are
        # float32 numbers.
        self._alphas: set[float] = set()
        exponents: set[float] = set()
        weights: set[float] = set()  # of ops that are more than a sum, a product or a power
        for node in program.graph.nodes:
            info = node.meta.get("call")
            self._alphas |= set(_alphas_of_celu(node.target, node.args))
            if info is None or info.phase == "backward" or node.target in _MADE_BY_TORCH:
                continue
            found = set(_numbers_of(node.target, node.args, node.kwargs))
            self._forward |= found
            if node.target is aten.pow.Tensor_Scalar:
                exponents |= found
            elif node.target not in _SCALAR_TWINS and node.target not in _FILLS:
                weights |= found
        self._exponents = _lost(exponents, lambda p: [p - 1])
        self._factors = _lost(weights, lambda w: [w - 1, 1 - w, 1 / w])
        self._stated: Collection[float] = ()
        self._op: Any = None
        self._is_backward = False

    def enter(self, op: Any, args: Any, kwargs: Any, *, phase: str) -> None:
        """Note the recorded call that is being opened, or kept."""
        self._op, self._is_backward = op, phase == "backward"
        own = set(_numbers_of(op, args, kwargs))
        if self._is_backward:
            own &= self._forward
        # A number of torch's own may equal one of the user's by chance: 2 / (n - 1) and 0.1.
        is_torchs = op in _MADE_BY_TORCH or (self._is_backward and op is aten.pow.Tensor_Scalar)
        self._stated = () if is_torchs else own

    def true(self, op: OpOverload, args: Any, kwargs: Any) -> tuple[OpOverload, Any, Any]:
        """A call with every derived number as the real number that it stands for.

        Raises:
            RecordingError: a derived number has a place that can hold no tensor.
        """
        if op is REAL_NUMBER:
            return op, args, kwargs
        derived = {c: real for c in numbers_in((args, kwargs)) if (real := self.real(c, op))}
        if not derived:
            return op, args, kwargs
        rewrite = _REWRITES.get(op)
        found = None if rewrite is None else rewrite(args, kwargs, derived)
        if found is not None:
            return found
        if all(c in _NAMED for c in derived):
            return op, args, kwargs  # a place for no real number; the user's own, then
        raise RecordingError(
            f"{self._op} is opened into {op} with the number {next(iter(derived))!r}, which is no "
            "argument of the call and stands for a real number that is not known; no bound can be "
            "given. Please report it: the op needs a formula of its own "
            "(numgeom/recording/formulas.py)."
        )

    def real(self, c: float, op: Any = None) -> Real | None:
        """The real number that a number stands for; None if that is the number itself."""
        if c in _NAMED:
            sign, known = _NAMED[c]
            return known if sign > 0 else Real(c, -known.rest, known.error)
        lost = self._exponents if op is aten.pow.Tensor_Scalar else self._factors
        if self._is_backward and op in _SCALAR_TWINS and c in lost:
            return Real.near(c, lost[c])
        if is_short(c) or c in _CONVENTIONS or self._is_stated(c):
            return None
        unit = 2.0**-24 if _is_float32(c) else _ROUNDINGS * 2.0**-53
        if self._is_of_celu(c):
            unit = 2.0**-22
        return Real(c, 0.0, unit * abs(c) + 5e-324)

    def _is_of_celu(self, c: float) -> bool:
        """Whether a number is, up to rounding in float32, a power of an alpha of CELU."""
        powers = (alpha**k for alpha in self._alphas for k in range(-3, 4))
        return any(abs(abs(c) - power) <= 2.0**-20 * power for power in powers)

    def _is_stated(self, c: float) -> bool:
        mantissa = abs(math.frexp(c)[0])
        return any(abs(math.frexp(s)[0]) == mantissa for s in self._stated)


def _alphas_of_celu(target: Any, args: Any) -> Iterator[float]:
    """Alpha, as a call of CELU or of its derivative has it; the derivative has 1/alpha, too."""
    if target is aten.celu.default:
        yield abs(float(args[1])) if len(args) > 1 else 1.0
    elif target is aten.elu_backward.default and args[3] != 1:
        yield from (abs(float(args[1])), 1 / abs(float(args[3])))


def _numbers_of(op: Any, args: Any, kwargs: Any) -> Iterator[float]:
    """The numbers of a call, with those that its schema fills in."""
    yield from numbers_in((args, kwargs))
    if isinstance(op, OpOverload):
        yield from numbers_in([a.default_value for a in op._schema.arguments])


def numbers_in(tree: Any) -> Iterator[float]:
    """The finite floating-point numbers in arguments."""
    if isinstance(tree, float):
        if math.isfinite(tree):
            yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from numbers_in(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from numbers_in(item)


def _is_float32(c: float) -> bool:
    """Whether a number was rounded to float32, as RMS norm does with its epsilon."""
    return float(torch.tensor(c, dtype=torch.float32)) == c


def is_short(c: float) -> bool:
    """Whether a number is an integer below 2^53, or a binary fraction of few digits."""
    mantissa, _ = math.frexp(c)
    return (mantissa * 2**_SHORT_BITS).is_integer() or (c.is_integer() and abs(c) < 2**53)


def _lost(
    numbers: Collection[float], formulas: Callable[[Fraction], list[Fraction]]
) -> dict[float, Fraction]:
    """What derivative formulas make of a number, where rounding hides it: 1 - 1e-20 is 1.0.

    Returns:
        By the rounded number, how far the exact one may be from it.
    """
    found: dict[float, Fraction] = {}
    for c in numbers:
        for exact in formulas(Fraction(c)) if c and not is_short(c) else ():
            try:
                rounded = float(exact)
            except OverflowError:
                continue
            if is_short(rounded):
                error = abs(exact - Fraction(rounded))
                found[rounded] = max(found.get(rounded, Fraction(0)), error)
    return {c: error for c, error in found.items() if error}


# ------------------------------------------------------------------- calls with numbers as tensors

_Reals = Mapping[float, Real]
_Rewritten = tuple[OpOverload, Any, Any] | None


def _tensor_in_place_of(position: int, twin: OpOverload) -> Callable[..., _Rewritten]:
    """A call whose other overload takes a tensor where this one takes a number."""

    def rewrite(args: Any, kwargs: Any, reals: _Reals) -> _Rewritten:
        number = args[position]
        beside = next((a for a in args if isinstance(a, Tensor)), None)
        if beside is None or not isinstance(number, float) or number not in reals:
            return None
        if set(numbers_in((args, kwargs))) & reals.keys() != {number}:
            return None
        made = reals[number].as_factor(beside)
        return twin, (*args[:position], made, *args[position + 1 :]), kwargs

    return rewrite


def _filled(args: Any, kwargs: Any, reals: _Reals) -> _Rewritten:
    size, number = args[:2]
    if number not in reals:
        return None
    made = _made(reals[number], kwargs)
    return aten.expand.default, (made, size), {}


def _alone(args: Any, kwargs: Any, reals: _Reals) -> _Rewritten:
    return aten.alias.default, (_made(reals[args[0]], kwargs),), {}


def _made(real: Real, options: Any) -> Any:
    return real.tensor(options.get("dtype"), options.get("device"))


_SCALAR_TWINS = {
    aten.mul.Tensor: aten.mul.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.add.Tensor: aten.add.Tensor,
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.rsub.Scalar: aten.rsub.Tensor,
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.le.Scalar: aten.le.Tensor,
    aten.gt.Scalar: aten.gt.Tensor,
    aten.ge.Scalar: aten.ge.Tensor,
}
_REWRITES: Mapping[OpOverload, Callable[..., _Rewritten]] = {
    **{op: _tensor_in_place_of(1, twin) for op, twin in _SCALAR_TWINS.items()},
    aten.full.default: _filled,
    aten.scalar_tensor.default: _alone,
}
# Torch's composite functions call these; a number that the user wrote comes as `mul.Tensor`.
_MADE_BY_TORCH = frozenset((aten.mul.Scalar, aten.div.Scalar, aten.add.Scalar, aten.sub.Scalar))
_FILLS = frozenset((aten.full.default, aten.full_like.default, aten.scalar_tensor.default))
