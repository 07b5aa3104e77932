"""Numbers that formulas derive carry their error; numbers that the user wrote are exact."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import flint
import pytest
import torch
from flint import arb
from torch import Tensor

from numgeom.errors import NumgeomError
from numgeom.recording import Program, decompose, reals
from numgeom.recording.reals import NAMED, PI, Real, exactly, square_root
from numgeom.recording.record import record_callable
from numgeom.recording.scalars import is_short, numbers_in

F = torch.nn.functional


def _opened(f: Callable[[Tensor], Tensor], n: int = 7) -> Program:
    torch.manual_seed(0)
    x = torch.rand(n, dtype=torch.float64, requires_grad=True)
    return record_callable(lambda: f(x).sum().backward()).decompose()


def _calls(program: Program) -> list:
    return [n for n in program.graph.nodes if n.op == "call_function" and "call" in n.meta]


def _derived(program: Program) -> set[float]:
    return {n.args[0] for n in _calls(program) if "real_number" in str(n.target)}


def _stated(program: Program) -> set[float]:
    nodes = [n for n in _calls(program) if "real_number" not in str(n.target)]
    return {c for n in nodes for c in numbers_in((n.args, n.kwargs)) if not is_short(c)}


@pytest.mark.parametrize("known", NAMED, ids=lambda known: repr(known.value))
def test_a_named_constant_has_two_hundred_bits(known: Real) -> None:
    assert abs(known.rest) <= math.ulp(known.value) / 2
    assert known.error < abs(known.value) * 2.0**-100


def test_named_constants_are_those_of_arb() -> None:
    before, flint.ctx.prec = flint.ctx.prec, 300
    pi, two = arb.pi(), arb(2)
    exact = {
        reals.PI: pi,
        reals.DEGREE: pi / 180,
        reals.RADIAN: 180 / pi,
        reals.ROOT_HALF: (1 / two).sqrt(),
        reals.ROOT_TWO: two.sqrt(),
        reals.ROOT_TWO_OVER_PI: (two / pi).sqrt(),
        reals.ROOT_OF_TWO_PI: (two * pi).sqrt(),
        reals.DENSITY_AT_ZERO: 1 / (two * pi).sqrt(),
        reals.TWO_OVER_ROOT_PI: 2 / pi.sqrt(),
        reals.HALF_ROOT_PI: pi.sqrt() / 2,
        reals.LOG_2: two.log(),
        reals.LOG_10: arb(10).log(),
        reals.INVERSE_LOG_2: 1 / two.log(),
        reals.INVERSE_LOG_10: 1 / arb(10).log(),
        reals.LOG_PI: pi.log(),
        reals.SELU_ALPHA: arb("1.6732632423543772848170429916717"),
        reals.SELU_SCALE: arb("1.0507009873554804934193349852946"),
    }
    assert set(NAMED) <= set(exact)
    for known, value in exact.items():
        assert abs(value - arb(known.value) - arb(known.rest)) <= arb(known.error), known
    flint.ctx.prec = before


@pytest.mark.parametrize("n", [2, 3, 5, 7, 48, 64, 100, 1000003])
def test_a_square_root_is_within_its_error(n: int) -> None:
    for number in (Fraction(n), Fraction(1, n)):
        root = square_root(number)
        middle = Fraction(root.value) + Fraction(root.rest)
        low, high = middle - Fraction(root.error), middle + Fraction(root.error)
        assert low**2 <= number <= high**2


def test_a_number_that_a_double_holds_stays_a_number() -> None:
    like = torch.zeros(3, dtype=torch.float64)
    assert exactly(Fraction(3, 8), like) == 0.375
    assert isinstance(exactly(1 - Fraction(0.1), like), Tensor)
    assert square_root(Fraction(1, 64)).as_factor(like) == 0.125


def test_a_real_number_is_its_double_in_any_format() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        made = PI.as_factor(torch.zeros(2, dtype=dtype))
        assert isinstance(made, Tensor)
        assert made.dtype == dtype
        assert made.item() == torch.tensor(math.pi, dtype=dtype).item()


# What a formula derives, by how it arises. The numbers that must carry an error in the opened
# program, and those that are the user's own.
DERIVED = [
    pytest.param(lambda x: x**0.3, {0.7, 0.3}, {0.3}, id="exponent minus one"),
    pytest.param(lambda x: 0.1**x, {-math.log(0.1)}, {0.1}, id="logarithm of a base"),
    pytest.param(torch.log10, {2.3025850929940455}, set(), id="log 10"),
    pytest.param(torch.erfinv, {math.sqrt(math.pi) / 2}, set(), id="half the root of pi"),
    pytest.param(lambda x: torch.lerp(x, 2 * x, 0.3), {0.7, 0.3}, {0.3}, id="1 - weight"),
    pytest.param(lambda x: F.celu(-x, 0.7), {1 / 0.7}, {0.7}, id="1 / alpha"),
    pytest.param(F.selu, {1.6732632423543772, 1.0507009873554805}, set(), id="selu"),
    pytest.param(lambda x: F.dropout(x, 0.1), {0.9}, set(), id="dropout"),
    pytest.param(lambda x: x.std(), {1 / 3}, set(), id="2 / (n - 1)"),
    pytest.param(lambda x: torch.special.ndtr(x), {math.sqrt(0.5), 2 / math.sqrt(math.pi)},
                 set(), id="root of one half"),
    pytest.param(lambda x: torch.logit(x, 0.3),
                 {0.7}, {0.3}, id="1 - eps"),
    pytest.param(lambda x: x * 0.3 + 0.7, set(), {0.3, 0.7}, id="the user's own"),
    pytest.param(lambda x: F.leaky_relu(x - 0.5), set(), {0.01}, id="a default"),
    pytest.param(lambda x: F.mse_loss(x, 0.3 * x), set(), {0.3}, id="a mean needs none"),
]  # fmt: skip


@pytest.mark.parametrize(("f", "derived", "stated"), DERIVED)
def test_derived_numbers_carry_an_error(f: Callable, derived: set, stated: set) -> None:
    program = _opened(f)
    assert {abs(c) for c in _derived(program)} == derived
    assert {abs(c) for c in _stated(program)} == stated


def test_a_derived_number_that_rounds_to_a_short_one_carries_what_it_lost() -> None:
    """1 - 1e-20 is 1.0 in a double, and x ** (5e-17 - 1) is not 1 / x."""
    program = _opened(lambda x: torch.lerp(x, 2 * x, 1e-20))
    errors = [n.args[1:] for n in _calls(program) if "real_number" in str(n.target)]
    assert any(abs(rest) + error >= 1e-20 for rest, error in errors)
    program = _opened(lambda x: x**5e-17)
    assert -1.0 in _derived(program)


def test_a_number_that_equals_one_of_the_users_by_chance_carries_an_error() -> None:
    """The variance of 21 numbers is differentiated with 2 / 20, which is not the user's 0.1."""
    program = _opened(lambda x: x.var() * 0.1, 21)
    assert 0.1 in _derived(program)


def test_a_recognised_formula_is_known_to_the_last_digit() -> None:
    """CELU's backward call holds the reciprocal of alpha as a float32 number; 1 / 0.7 is meant."""
    program = _opened(lambda x: F.celu(-x, 0.7))
    (node,) = [n for n in _calls(program) if "real_number" in str(n.target)]
    middle = Fraction(node.args[0]) + Fraction(node.args[1])
    assert abs(middle - 1 / Fraction(0.7)) <= Fraction(node.args[2])


def test_beside_a_celu_other_numbers_keep_their_small_error() -> None:
    """Only powers of its alpha come from a float32 number."""
    program = _opened(lambda x: F.celu(-x, 0.7) + F.rrelu(x, training=False))
    errors = {n.args[0]: n.args[2] for n in _calls(program) if "real_number" in str(n.target)}
    (slope,) = [c for c in errors if abs(c - 11 / 48) < 1e-9]
    assert errors[slope] <= 1e-15


def test_an_epsilon_that_torch_rounded_to_float32_carries_that_error() -> None:
    """RMS norm of float32 numbers adds the float32 number next to 1e-5."""
    w = torch.ones(5, requires_grad=True)
    program = record_callable(lambda: F.rms_norm(2 * w, (5,), w, 1e-5).sum().backward()).decompose()
    (node,) = [n for n in _calls(program) if "real_number" in str(n.target)]
    assert abs(node.args[0] - 1e-5) <= node.args[2] <= 1e-12


def test_an_opened_program_with_real_numbers_is_saved_and_loaded(tmp_path: Path) -> None:
    program = _opened(F.gelu)
    assert _derived(program)
    program.save(tmp_path / "gelu.pt")
    loaded = Program.load(tmp_path / "gelu.pt")
    assert str(loaded) == str(program)
    (name,) = program.recorded.gradients
    assert torch.equal(loaded.replay().gradients[name], program.replay().gradients[name])


def test_an_unknown_number_in_a_place_for_no_tensor_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is exact for want of a rule."""
    aten = torch.ops.aten
    table = {**decompose.decompositions()}
    table[aten.tanh.default] = lambda x: aten.leaky_relu.default(x, 1 / 3)
    monkeypatch.setattr(decompose, "decompositions", lambda: table)
    with pytest.raises(NumgeomError, match=r"0\.333.*no argument of the call"):
        _opened(torch.tanh)
