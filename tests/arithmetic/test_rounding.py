"""Every bound against exact rational arithmetic: never below, and not far above. No tolerance."""

import itertools
import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from numgeom.arithmetic import lower_bounds as lower
from numgeom.arithmetic import rounding as upper
from numgeom.arithmetic.formats import FormatError, float32, float64
from numgeom.arithmetic.rounding import TINY, UNIT_ROUNDOFF

INF, NAN = math.inf, math.nan
LARGEST = float64.largest
u = Fraction(UNIT_ROUNDOFF)
tiny = Fraction(TINY)
largest = Fraction(LARGEST)
NASTY = [0.0, TINY, 3 * TINY, 2.0**-1022, 2.0**-1022 - TINY, 2.0**-1021 + TINY, 2.0**-538]
NASTY += [2.0**-537 * (1 + 2.0**-52), 1e-160, 0.1, 1 - 2.0**-53, 1.0, 1 + 2.0**-52, 1.5, 3.0]
NASTY += [1e160, 2.0**511 * 1.7, LARGEST / 2, math.nextafter(LARGEST, 0.0), LARGEST]
CASES = 3000


def nonnegative(seed: int, count: int) -> list[float]:
    """Finite numbers: random bit patterns (all exponents alike) and numbers around 1."""
    rng = random.Random(seed)
    numbers = list(NASTY)
    while len(numbers) < count:
        exponent = rng.choice([rng.randint(-1074, 1023), rng.randint(-30, 30), -1060, -1022])
        mantissa = rng.choice([rng.random() + 1, 1.0, 1 + 2.0**-52, 2 - 2.0**-52])
        numbers.append(math.ldexp(mantissa, exponent))
    return numbers


def pairs(seed: int) -> tuple[list[float], list[float]]:
    a, b = nonnegative(seed, CASES), nonnegative(seed + 1, CASES)
    random.Random(seed).shuffle(b)
    corners = list(itertools.product(NASTY, NASTY))
    return a + [x for x, _ in corners], b + [y for _, y in corners]


def tensor(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def is_upper(bound: float, exact: Fraction, *, roundings: int, underflows: int = 2) -> bool:
    """At least exact, with zero slack; and within a few roundings of it."""
    if bound == INF:
        return exact * (1 + roundings * u) > largest
    loosest = exact * (1 + roundings * u) + underflows * tiny
    return exact <= Fraction(bound) <= loosest


def is_lower(bound: float, exact: Fraction, *, roundings: int, underflows: int = 2) -> bool:
    loosest = min(exact, largest) * (1 - roundings * u) - underflows * tiny
    return max(Fraction(0), loosest) <= Fraction(bound) <= exact


def exact_of(name: str, a: float, b: float) -> Fraction:
    x, y = Fraction(a), Fraction(b)
    return {"add": x + y, "mul": x * y, "div": x / y if y else Fraction(0), "sub": x - y}[name]


def apply(
    operation: Callable[..., Tensor | float], a: list[float], b: list[float], form: str
) -> list[float]:
    if form == "tensors":
        return operation(tensor(a), tensor(b)).tolist()
    wrap = {
        "floats": lambda x, y: (x, y),
        "tensor and float": lambda x, y: (tensor(x), y),
        "float and tensor": lambda x, y: (x, tensor(y)),
    }[form]
    bounds = [operation(*wrap(x, y)) for x, y in zip(a, b, strict=True)]
    assert all(isinstance(bound, float) == (form == "floats") for bound in bounds)
    return [float(bound) for bound in bounds]


@pytest.mark.parametrize("name", ["add", "mul", "div"])
@pytest.mark.parametrize("form", ["tensors", "floats", "tensor and float", "float and tensor"])
def test_up_of_two_operands(name: str, form: str):
    operation = getattr(upper, f"{name}_up")
    a, b = pairs(seed=10)
    if "and" in form:
        a, b = a[::5], b[::5]
    bounds = apply(operation, a, b, form)
    for x, y, bound in zip(a, b, bounds, strict=True):
        if name == "div" and y == 0:
            assert bound == INF
            continue
        exact = exact_of(name, x, y)
        assert is_upper(bound, exact, roundings=6), (x, y)
        if exact == 0:
            assert bound == 0.0, (x, y)


@pytest.mark.parametrize("name", ["mul", "div", "sub"])
@pytest.mark.parametrize("form", ["tensors", "floats", "tensor and float", "float and tensor"])
def test_down_of_two_operands(name: str, form: str):
    operation = getattr(lower, f"{name}_down")
    a, b = pairs(seed=20)
    if "and" in form:
        a, b = a[::5], b[::5]
    bounds = apply(operation, a, b, form)
    for x, y, bound in zip(a, b, bounds, strict=True):
        if name == "div" and y == 0:
            assert bound == (0.0 if x == 0 else LARGEST)
        elif name == "sub":
            exact = exact_of(name, x, y)
            if bound == -INF:
                assert exact * (1 + 4 * u) <= -largest
                continue
            assert exact - abs(exact) * 4 * u - 2 * tiny <= Fraction(bound) <= exact, (x, y)
        else:
            assert is_lower(bound, exact_of(name, x, y), roundings=4), (x, y)


def test_square_roots():
    a = nonnegative(seed=30, count=CASES)
    for bounds in (upper.sqrt_up(tensor(a)).tolist(), [upper.sqrt_up(x) for x in a]):
        for x, bound in zip(a, bounds, strict=True):
            assert Fraction(x) <= Fraction(bound) ** 2 <= Fraction(x) * (1 + 20 * u), x
    for bounds in (lower.sqrt_down(tensor(a)).tolist(), [lower.sqrt_down(x) for x in a]):
        for x, bound in zip(a, bounds, strict=True):
            assert Fraction(x) * (1 - 20 * u) <= Fraction(bound) ** 2 <= Fraction(x), x


def test_next_up_and_next_down_step_by_one_number():
    a = nonnegative(seed=31, count=CASES)
    signed = a + [-x for x in a]
    assert upper.next_up(tensor(signed)).tolist() == [math.nextafter(x, INF) for x in signed]
    assert lower.next_down(tensor(signed)).tolist() == [math.nextafter(x, -INF) for x in signed]
    assert [upper.next_up(x) for x in signed] == [math.nextafter(x, INF) for x in signed]
    assert [lower.next_down(x) for x in signed] == [math.nextafter(x, -INF) for x in signed]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_difference_of_any_signs_and_dtypes(dtype: torch.dtype):
    a, b = pairs(seed=40)
    rng = random.Random(41)
    x = (tensor(a) * tensor([rng.choice([1.0, -1.0]) for _ in a])).to(dtype)
    y = tensor(b) * tensor([rng.choice([1.0, -1.0]) for _ in b])
    y = torch.where(tensor(range(len(b))) % 7 == 0, x.double(), y)
    for p, q, bound in zip(x.tolist(), y.tolist(), upper.difference_up(x, y).tolist(), strict=True):
        if math.isinf(p):
            assert bound == INF
            continue
        exact = abs(Fraction(p) - Fraction(q))
        assert is_upper(bound, exact, roundings=6, underflows=0), (p, q)


UNKNOWN: list[tuple[Callable[..., Tensor | float], tuple[float, ...], float]] = [
    (upper.add_up, (NAN, 1.0), INF),
    (upper.add_up, (INF, 0.0), INF),
    (upper.mul_up, (0.0, INF), INF),
    (upper.mul_up, (NAN, 0.0), INF),
    (upper.div_up, (1.0, INF), INF),
    (upper.div_up, (0.0, 0.0), INF),
    (upper.div_up, (0.0, NAN), INF),
    (upper.div_up, (INF, INF), INF),
    (upper.sqrt_up, (NAN,), INF),
    (upper.sqrt_up, (INF,), INF),
    (upper.next_up, (NAN,), INF),
    (upper.next_up, (-INF,), -LARGEST),
    (lower.next_down, (NAN,), -INF),
    (lower.next_down, (INF,), LARGEST),
    (lower.sub_down, (INF, INF), -INF),
    (lower.sub_down, (1.0, NAN), -INF),
    (lower.mul_down, (0.0, INF), 0.0),
    (lower.mul_down, (NAN, 2.0), 0.0),
    (lower.div_down, (NAN, 1.0), 0.0),
    (lower.div_down, (1.0, INF), 0.0),
    (lower.div_down, (INF, INF), 0.0),
    (lower.sqrt_down, (NAN,), 0.0),
]


@pytest.mark.parametrize(("operation", "operands", "expected"), UNKNOWN)
def test_what_is_unknown_stays_unknown(
    operation: Callable[..., Tensor | float], operands: tuple[float, ...], expected: float
):
    assert operation(*operands) == expected
    as_tensors = operation(*(tensor([x]) for x in operands))
    assert isinstance(as_tensors, Tensor)
    assert as_tensors.tolist() == [expected]


def test_differences_with_something_not_finite_are_unknown():
    x, y = tensor([INF, INF, NAN, 1.0]), tensor([INF, 1.0, 1.0, -INF])
    assert upper.difference_up(x, y).tolist() == [INF] * 4


# ------------------------------------------------------------------------------- accumulations


def fractions(x: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in x.flatten().tolist()]


def random_tensor(rng: random.Random, *shape: int, scale: int = 0, spread: int = 3) -> Tensor:
    """Nonnegative, around 2^scale, with zeros; the spread is in powers of two."""
    count = math.prod(shape)
    values = []
    for _ in range(count):
        value = math.ldexp(rng.random() + 0.5, scale + rng.randint(-spread, spread))
        values.append(rng.choice([value, value, value, 0.0]))
    return tensor(values).reshape(shape)


SCALES = [(0, 3), (0, 60), (-1070, 4), (-1022, 3), (-600, 400), (1000, 20), (600, 300)]


@pytest.mark.parametrize(("scale", "spread"), SCALES)
def test_sums(scale: int, spread: int):
    rng = random.Random(50)
    for count in [0, 1, 2, 3, 8, 100, 1000]:
        for _ in range(8):
            terms = random_tensor(rng, count, scale=scale, spread=spread)
            exact = sum(fractions(terms), Fraction(0))
            bound = upper.sum_up(terms).item()
            assert is_upper(bound, exact, roundings=2 * count + 4, underflows=0)
            assert is_upper(upper.sum_up(terms.tolist()), exact, roundings=4, underflows=0)
            assert is_lower(lower.sum_down(terms).item(), exact, roundings=2 * count + 4)


def test_a_sum_that_rounds_down_at_every_step_is_covered():
    """1 + u + u + ...: each addition to 1 loses its term when they are added one by one."""
    terms = tensor([1.0] + [UNIT_ROUNDOFF] * 1000)
    computed = 1.0
    for term in terms.tolist()[1:]:
        computed += term
    assert computed == 1.0
    assert Fraction(upper.cover_roundings(computed, 1000)) >= 1 + 1000 * u


def test_a_norm_that_rounds_down_at_many_steps_is_covered():
    x = tensor([1.0] + [0.99 * 2.0**-27] * 5000)
    assert Fraction(upper.norm_up(x).item()) ** 2 >= sum(value**2 for value in fractions(x))


def test_sums_over_some_dimensions():
    x = random_tensor(random.Random(51), 3, 4, 5)
    bound = upper.sum_up(x, (0, -1))
    assert bound.shape == (4,)
    assert upper.sum_up(x, 1, keepdim=True).shape == (3, 1, 5)
    for j in range(4):
        assert is_upper(bound[j].item(), sum(fractions(x[:, j])), roundings=40)
    assert torch.equal(upper.sum_up(x, ()), x)
    assert upper.sum_up(tensor(2.5)).item() == 2.5
    assert upper.sum_up(torch.ones(3, 0, dtype=torch.float64), 1).tolist() == [0.0] * 3
    assert upper.sum_up(tensor([1.0, NAN])).item() == INF
    assert lower.sum_down(tensor([1.0, NAN])).item() == 0.0
    assert LARGEST / 2 <= lower.sum_down(tensor([LARGEST, LARGEST])).item() <= LARGEST
    assert upper.sum_up([1.0, NAN]) == upper.sum_up([LARGEST, LARGEST]) == INF


@pytest.mark.parametrize(("scale", "spread"), SCALES)
def test_matrix_products(scale: int, spread: int):
    rng = random.Random(60)
    for m, k, n in [(1, 1, 1), (3, 0, 2), (0, 3, 2), (2, 5, 3), (3, 17, 4), (2, 130, 2)]:
        # The second scale varies: products in range, underflowing and overflowing.
        for second in (0, -scale, -scale // 2, scale):
            a = random_tensor(rng, m, k, scale=scale, spread=spread)
            b = random_tensor(rng, k, n, scale=max(-1070, min(1000, second)), spread=spread)
            check_matrix_product(a, b)
            check_matrix_product(a.T.contiguous().T, b.repeat(1, 2)[:, ::2])


def check_matrix_product(a: Tensor, b: Tensor) -> None:
    k = a.shape[1]
    bound = upper.matmul_up(a, b)
    assert bound.shape == (a.shape[0], b.shape[1])
    for i, j in itertools.product(range(a.shape[0]), range(b.shape[1])):
        exact = sum(
            (x * y for x, y in zip(fractions(a[i]), fractions(b[:, j]), strict=True)), u * 0
        )
        ours = bound[i, j].item()
        assert is_upper(ours, exact, roundings=2 * k + 8, underflows=2 * k + 4), (i, j, k)
        if exact == 0:
            assert ours == 0.0


def test_batches_of_matrices():
    rng = random.Random(61)
    a, b = random_tensor(rng, 2, 1, 3, 4), random_tensor(rng, 5, 4, 2)
    bound = upper.matmul_up(a, b)
    assert bound.shape == (2, 5, 3, 2)
    for p, q in itertools.product(range(2), range(5)):
        assert torch.equal(bound[p, q], upper.matmul_up(a[p, 0], b[q]))


def test_matrix_products_with_unknown_entries():
    a, b = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    a[1, 2] = INF
    assert upper.matmul_up(a, b).tolist() == [[0.0, 0.0], [INF, INF], [0.0, 0.0]]
    b[0, 1] = NAN
    assert upper.matmul_up(a, b).tolist() == [[0.0, INF], [INF, INF], [0.0, INF]]
    with pytest.raises(FormatError, match="matrices"):
        upper.matmul_up(torch.ones(3, dtype=torch.float64), b)


def test_matrix_products_that_skip_zeros_hide_nothing(monkeypatch: pytest.MonkeyPatch):
    """A BLAS may leave 0 * NaN out of its sums."""
    matmul = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b: matmul(a.nan_to_num(0), b.nan_to_num(0)))
    a, b = torch.ones(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    a[0, 0] = b[1, 1] = NAN
    assert torch.isinf(upper.matmul_up(a, b)).tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(("scale", "spread"), SCALES)
def test_norms(scale: int, spread: int):
    rng = random.Random(70)
    for count in [1, 2, 3, 10, 300]:
        for _ in range(10):
            x = random_tensor(rng, count, scale=scale, spread=spread)
            signs = tensor([rng.choice([-1.0, 1.0]) for _ in range(count)])
            bound = upper.norm_up(x * signs).item()
            exact_square = sum((value**2 for value in fractions(x)), Fraction(0))
            if bound == INF:
                assert exact_square * (1 + (2 * count + 40) * u) > largest**2
                continue
            assert Fraction(bound) ** 2 >= exact_square
            smaller = max(Fraction(bound) - 2 * tiny, Fraction(0))
            assert smaller**2 <= exact_square * (1 + (2 * count + 40) * u)


def test_norms_over_some_dimensions():
    x = tensor([[3.0, -4.0], [0.0, 0.0], [1e200, 1e200], [1e-200, 0.0], [NAN, 1.0], [-INF, 0.0]])
    bound = upper.norm_up(x, 1)
    assert bound[1].item() == 0.0
    assert bound[4:].tolist() == [INF, INF]
    expected = [5.0, 0.0, math.sqrt(2) * 1e200, 1e-200]
    assert bound[:4].tolist() == pytest.approx(expected, rel=1e-14)
    assert upper.norm_up(x, 1, keepdim=True).shape == (6, 1)
    assert upper.norm_up(x[:2]).item() == pytest.approx(5.0, rel=1e-14)
    assert upper.norm_up(x[:0]).item() == 0.0
    assert upper.norm_up(x[:, :0], -1).tolist() == [0.0] * 6
    assert upper.norm_up(tensor(-2.0)).item() == pytest.approx(2.0, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covered_sums_and_norms_of_a_format(dtype: torch.dtype):
    """Summed up one by one in the format itself, as the worst kernels do."""
    fmt = float32 if dtype == torch.float32 else float64
    rng = random.Random(80)
    for n in [2, 10, 500]:
        terms = random_tensor(rng, n).to(dtype)
        total = torch.zeros((), dtype=dtype)
        squares = torch.zeros((), dtype=dtype)
        for term in terms:
            total = total + term
            squares = squares + term * term
        bound = upper.cover_roundings(total.double(), n - 1, unit_roundoff=fmt.unit_roundoff)
        exact = sum(fractions(terms))
        assert exact <= Fraction(bound.item()) <= exact * (1 + 3 * n * Fraction(fmt.unit_roundoff))
        norm = torch.sqrt(squares).double().item()
        bound = upper.cover_roundings(norm, n // 2 + 1, unit_roundoff=fmt.unit_roundoff)
        assert Fraction(bound) ** 2 >= sum(value**2 for value in fractions(terms))
    with pytest.raises(FormatError, match="n u >= 1"):
        upper.cover_roundings(1.0, 2**24, unit_roundoff=float32.unit_roundoff)
