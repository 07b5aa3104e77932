"""Is every number that a person reads written by `numgeom.arithmetic.printing`?

A format specification rounds to the nearest, so a bound that goes through one may be printed below
itself. The source is searched for them, and texts of results for numbers that are too small.
"""

import ast
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

import numgeom
from numgeom.certificate import certify, verify
from numgeom.report import headline, to_text

PACKAGE = Path(numgeom.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [PACKAGE, ROOT / "reproductions", ROOT / "docs"]
PRINTING = PACKAGE / "arithmetic" / "printing.py"
# Kinds of numbers with a fraction: "e", "f", "g", "%" or a precision.
ROUNDS = re.compile(r"\.\d*|[eEfFgGn%]$|\.\{")
ROUNDS_OLD = re.compile(r"%[-+ #0]*[\d*]*(\.[\d*]+)?[eEfFgG]")
ROUNDS_IN_BRACES = re.compile(r"\{[^{}]*:[^{}]*(\.\d|[eEfFgG%]\})")


def roundings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Places that write a number to the nearest on their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            spec = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}"
                for part in getattr(node.format_spec, "values", [])
            )
            if ROUNDS.search(spec):
                yield node.lineno, f"format specification {spec!r}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            left = node.left
            text = left.value if isinstance(left, ast.Constant) else None
            if isinstance(text, str) and ROUNDS_OLD.search(text):
                yield node.lineno, f"{text!r} % ..."
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "round" and isinstance(node.func, ast.Name) and len(node.args) > 1:
            yield node.lineno, "round(x, digits)"
        if name == "format" and isinstance(node.func, ast.Name):
            yield node.lineno, "format(x, ...)"
        if name == "format" and isinstance(node.func, ast.Attribute):
            text = node.func.value
            if isinstance(text, ast.Constant) and ROUNDS_IN_BRACES.search(str(text.value)):
                yield node.lineno, f"{text.value!r}.format"
        if name in ("format_float_scientific", "format_float_positional"):
            yield node.lineno, name


def test_no_module_rounds_numbers_on_its_own() -> None:
    found = [
        f"{path}:{line}: {what}; use arithmetic/printing.py"
        for folder in FOLDERS
        for path in sorted(folder.rglob("*.py"))
        if path != PRINTING
        for line, what in roundings(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'f"{x:.2e}"', 'f"{x:g}"', 'f"{x:9.3g}"', 'f"{x:.1%}"', 'f"{x:>{width}.{digits}e}"',
        'f"{x:.{digits}}"', "round(x, 3)", 'format(x, ".2e")', '"%.2e" % x', '"%g of %s" % (x, y)',
        '"{:.2e}".format(x)', '"{x:g}".format(x=x)', "numpy.format_float_scientific(x)",
    ],
)  # fmt: skip
def test_a_planted_rounding_is_found(source: str) -> None:
    assert list(roundings(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        'f"{x:>7}"', 'f"{x:<{width}}"', 'f"{n:,}"', 'f"{n:02x}"', 'f"{n:d}"', "round(x)", "n % 2",
        '"%s" % name', "x.round(decimals)", '"{:>7}".format(x)', "torch.round(x, decimals=2)",
    ],
)  # fmt: skip
def test_what_rounds_no_number_is_left_alone(source: str) -> None:
    assert not list(roundings(ast.parse(source)))


def read(pattern: str, text: str) -> list[Fraction]:
    """Numbers that a person reads at the one place where the pattern matches."""
    (found,) = re.findall(pattern, text)
    return [Fraction(found)] if isinstance(found, str) else list(map(Fraction, found))


@pytest.mark.parametrize("method", ["ball", "kantorovich", "functional"])
def test_no_text_of_a_certificate_shows_less_than_its_bounds(method: str) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        subject = model, (lambda m, x: m(x).square().mean()), torch.randn(5, 3)
        made = certify(*subject, method=method, probe_seed=seed)
        table = to_text(made, width=160)
        for row in [made.total, *made.parameters.values()]:
            line = re.findall(rf"^ {row.name} .*$", table, re.MULTILINE)[0].split()
            observed, entry, digits, bound, ratio = map(Fraction, line[-6:-1])
            assert row.error_bound is not None
            assert row.tightness is not None
            assert row.digits is not None
            assert bound >= Fraction(row.error_bound)
            assert ratio >= Fraction(row.tightness)
            assert digits <= Fraction(row.digits)
            assert observed >= Fraction(row.observed_error)
            assert entry >= Fraction(row.largest_entry_error)
        total = Fraction(made.total.error_bound or 0)
        for text in (table, str(made), headline(made).plain):
            assert read(r"at most (\d\.\d+e-\d+)[ ,]", text)[0] >= total
        for name in ("h", "eta", "beta", "curvature", "rho"):
            if name in made.constants:
                shown = read(rf"\b{name} (\d[^ ]*?)[.,]?\s", table)[0]
                assert shown >= Fraction(made.constants[name])
        other = verify(made.stamped(processor="another"), *subject[:2], torch.randn(5, 3))
        pattern = r"total relative error is (\S+), made again\s+here it is (\S+)\. "
        then, now = read(pattern, str(other))
        assert then >= total
        assert now >= Fraction(other.again.total.error_bound or 0)


def test_no_text_of_tracking_shows_less_than_its_bounds() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
        with numgeom.track(model) as tracking:
            model(torch.randn(5, 3)).square().mean().backward()
        result = tracking.result
        for name, row in [("Error of the gradient", result.total), *result.gradients.items()]:
            (line,) = [each for each in str(result).splitlines() if each.startswith(name)]
            f = row.functional
            bounds = [row.error_bound]
            if name in result.gradients:
                bounds += [f.stretch, f.added]
                shown = line.split()
                assert Fraction(shown[1]) >= Fraction(row.error_bound)
                assert Fraction(shown[3]) >= Fraction(f.stretch)
                assert Fraction(shown[4]) >= Fraction(f.added)
            else:
                assert Fraction(re.findall(r"at most (\S+)", line)[0]) >= Fraction(row.error_bound)
