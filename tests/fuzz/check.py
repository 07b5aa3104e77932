"""Does every bound of a certificate hold, against the oracle, with no slack?

What is checked of each method: |computed - exact| entry by entry, per parameter and in total; and
|reference - exact| <= radius, the same three ways, which is the sharper test where the gradient was
computed in few bits.
"""

import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import flint
from flint import arb
from torch import Tensor

import numgeom
from numgeom.certificate import bounds
from numgeom.errors import NumgeomError
from numgeom.recording import Program
from tests.fuzz.recipe import Recipe, build, simpler
from tests.oracle.exact_program import exact_gradients
from tests.oracle.numbers import Numbers, UndecidedError, real, to_numbers, total

BITS = 400
MORE_BITS = 3000  # sums and products of floats are exact then, so that ties are seen
_CERTIFY = importlib.import_module("numgeom.certificate.certify")  # the name is the function's
METHODS = ("ball", "kantorovich", "functional", "auto")


@dataclass(frozen=True)
class Largest:
    """The largest error over its bound, and where; above 1 it is a violation."""

    ratio: float = 0.0
    where: str = ""

    def or_(self, ratio: float, where: str) -> "Largest":
        return Largest(ratio, where) if ratio > self.ratio else self


@dataclass(frozen=True)
class Judged:
    """One certificate beside the exact gradient.

    Attributes:
        method: What was asked for.
        by: What gave the bound; "reference" where there is none.
        guarantee: The word.
        error: Of the recorded gradients.
        radius: Of the reference.
        entries: Number of entries that were compared.
        skipped: Number of entries whose exact value the oracle could not tell sharply.
    """

    method: str
    by: str
    guarantee: str
    error: Largest = Largest()
    radius: Largest = Largest()
    entries: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of one recipe.

    Attributes:
        recipe: The recipe.
        status: "decided"; "undecided" and "unsupported" where the oracle has no answer; "cannot
            run" where torch refuses; "refused" where the package does, with its own error;
            "crashed" where it fails otherwise.
        why: The oracle's or the error's words.
        opened: Whether the oracle judged the opened program, for want of an op.
        judged: One for each certificate.
    """

    recipe: Recipe
    status: str
    why: str = ""
    opened: bool = False
    judged: tuple[Judged, ...] = field(default=())

    @property
    def violations(self) -> list[Judged]:
        return [j for j in self.judged if max(j.error.ratio, j.radius.ratio) > 1.0]

    @property
    def failed(self) -> bool:
        return self.status == "crashed" or bool(self.violations)


def check(recipe: Recipe, methods: tuple[str, ...] = METHODS) -> Outcome:
    """Record the program of a recipe, certify it by each method, and compare."""
    try:
        program = build(recipe)
    except NumgeomError as error:
        return Outcome(recipe, "refused", _said(error))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError) as error:
        return Outcome(recipe, "cannot run", _said(error))
    if not program.parameters:
        return Outcome(recipe, "cannot run", "no parameter got a gradient")
    exact, opened, why = _exact(program)
    judged = []
    for method in methods:
        try:
            judged.append(judge(program, exact, method))
        except NumgeomError as error:
            return Outcome(recipe, "refused", _said(error), opened, tuple(judged))
        except Exception as error:  # whatever it is, the package failed
            return Outcome(recipe, "crashed", f"{method}: {_said(error)}", opened, tuple(judged))
    if exact is None:
        return Outcome(recipe, why.partition(":")[0], why, opened, tuple(judged))
    return Outcome(recipe, "decided", why, opened, tuple(judged))


def judge(program: Program, exact: Mapping[str, Numbers] | None, method: str) -> Judged:
    """Certify, and compare with the exact gradients, if they are known."""
    with _seen_radii() as seen:
        certificate = numgeom.certify(program, method=method)
    by, word = certificate.method, str(certificate.guarantee)
    if not certificate.entrywise_bounds or exact is None:
        return Judged(method, by, word)
    error, radius, entries, skipped = Largest(), Largest(), 0, 0
    radii = seen[-1]
    computed, references = program.recorded.gradients, radii.midpoints
    sizes, errors, deviations = [], [], []
    before = flint.ctx.prec
    flint.ctx.prec = MORE_BITS
    try:
        for name, values in exact.items():
            known = [bool(v.is_finite()) for v in values.reshape(-1)]
            entries += sum(known)
            skipped += len(known) - sum(known)
            bound = certificate.entrywise_bound(name)
            error = _entrywise(error, values, computed[name], bound, name)
            radius = _entrywise(radius, values, references[name], radii.entries[name], name)
            if not all(known):
                sizes.append(arb("nan"))
                continue
            sizes.append(_norm(values))
            errors.append(_norm(values - to_numbers(computed[name])))
            deviations.append(_norm(values - to_numbers(references[name])))
            relative = certificate.parameters[name].error_bound
            error = error.or_(_relative(errors[-1], relative, sizes[-1]), f"{name}, norm")
            radius = radius.or_(_ratio(deviations[-1], radii.norms[name]), f"{name}, norm")
        if all(size.is_finite() for size in sizes):
            whole = _together(sizes)
            found = _relative(_together(errors), certificate.total.error_bound, whole)
            error = error.or_(found, "total")
            radius = radius.or_(_ratio(_together(deviations), radii.total), "total")
    finally:
        flint.ctx.prec = before
    return Judged(method, by, word, error, radius, entries, skipped)


def shrunk(recipe: Recipe, methods: tuple[str, ...] = METHODS, *, tries: int = 60) -> Recipe:
    """The simplest recipe near a failing one that fails, too."""
    progress = True
    while progress and tries > 0:
        progress = False
        for candidate in simpler(recipe):
            tries -= 1
            if check(candidate, methods).failed:
                recipe, progress = candidate, True
                break
    return recipe


# -- the parts -----------------------------------------------------------------------------


def _exact(program: Program) -> tuple[Mapping[str, Numbers] | None, bool, str]:
    """The exact gradients; of the opened program where the oracle lacks an op; or why not."""
    try:
        return _at_some_precision(program), False, ""
    except UndecidedError as error:
        return None, False, f"undecided: {error}"
    except Exception as error:  # UnsupportedError, or arguments that an oracle did not foresee
        lacking = _said(error)
    try:
        return _at_some_precision(program.decompose()), True, lacking
    except UndecidedError as error:
        return None, True, f"undecided: {error}"
    except Exception as error:
        return None, True, f"unsupported: {lacking}; opened: {_said(error)}"


def _at_some_precision(program: Program) -> Mapping[str, Numbers]:
    try:
        return exact_gradients(program, BITS)
    except UndecidedError:
        return exact_gradients(program, MORE_BITS)


@contextmanager
def _seen_radii() -> Iterator[list[bounds.Radii]]:
    """What bounded the reference, beside the certificate that is made from it."""
    seen: list[bounds.Radii] = []

    def agreeing(radii: bounds.Radii, reference: Mapping[str, Tensor]) -> bounds.Radii:
        seen.append(bounds.agreeing(radii, reference))
        return seen[-1]

    with mock.patch.object(_CERTIFY, "agreeing", agreeing):
        yield seen


def _entrywise(
    largest: Largest, exact: Numbers, middle: Tensor, bound: Tensor, name: str
) -> Largest:
    flat = zip(
        exact.reshape(-1), to_numbers(middle).reshape(-1), bound.reshape(-1).tolist(), strict=True
    )
    for i, (value, x, limit) in enumerate(flat):
        if value.is_finite():
            largest = largest.or_(_ratio(abs(value - x), limit), f"{name}[{i}]")
    return largest


def _ratio(distance: arb, bound: float | arb) -> float:
    """A lower bound of distance / bound."""
    low = distance.lower()
    if not low > 0 or (isinstance(bound, float) and math.isinf(bound)):
        return 0.0
    limit = real(bound)
    if limit == 0:
        return math.inf
    return float((low / limit).lower()) if low <= limit else max(
        float((low / limit).mid()), math.nextafter(1.0, 2.0)
    )  # fmt: skip


def _relative(error: arb, bound: float | None, size: arb) -> float:
    """Of an error bound that is relative to the exact norm."""
    if bound is None or math.isinf(bound):
        return 0.0
    return _ratio(error, (real(bound) * size).upper())


def _norm(values: Numbers) -> arb:
    return total(v * v for v in values.reshape(-1)).sqrt()


def _together(norms: list[arb]) -> arb:
    return total(n * n for n in norms).sqrt()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:160]}"
