"""Does the explained method keep what it says, against arbitrary precision?"""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import flint
import numpy as np
import pytest

FILE = Path(__file__).resolve().parent.parent.parent / "docs" / "explain.py"


@pytest.fixture
def explain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("explain", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exact(calls: list[Any], inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The step at 200 bits, on Arb matrices."""
    flint.ctx.prec = 200
    values = {name: flint.arb_mat(x.astype(np.float64).tolist()) for name, x in inputs.items()}

    def entrywise(f: Any, a: Any, b: Any) -> Any:
        rows, columns = max(a.nrows(), b.nrows()), max(a.ncols(), b.ncols())
        return flint.arb_mat([
            [
                f(a[i % a.nrows(), j % a.ncols()], b[i % b.nrows(), j % b.ncols()])
                for j in range(columns)
            ]
            for i in range(rows)
        ])  # fmt: skip

    for call in calls:
        a = values[call.a].transpose() if call.ta else values[call.a]
        b = values[call.b or call.a]
        b = b.transpose() if call.tb else b
        if call.op == "mm":
            values[call.y] = a * b
        elif call.op == "tanh":
            values[call.y] = entrywise(lambda x, _: x.tanh(), a, a)
        else:
            f = (lambda x, y: x + y) if call.op == "add" else (lambda x, y: x * y)
            values[call.y] = entrywise(f, a, b)
    return values


def distance(true: Any, found: np.ndarray) -> float:
    """Lower bound of the 2-norm of the difference."""
    total = flint.arb(0)
    for i in range(true.nrows()):
        for j in range(true.ncols()):
            total += (true[i, j] - flint.arb(float(found[i, j]))) ** 2
    return float(total.sqrt().abs_lower())


def ratios(explain: ModuleType, depth: int, seed: int) -> list[float]:
    calls, inputs = explain.example(depth, seed, width=6)
    reference = explain.evaluate(calls, {k: v.astype(np.float64) for k, v in inputs.items()})
    true = exact(calls, inputs)
    radii = explain.radii(calls, reference, seed)
    return [distance(true[name], reference[name]) / radius for name, radius in radii.items()]


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_the_exact_gradient_lies_within_the_radius(explain: ModuleType, depth: int) -> None:
    found = [r for seed in range(4) for r in ratios(explain, depth, seed)]
    assert 1e-6 < max(found) <= 1


def test_a_roundoff_that_is_too_small_is_caught(
    explain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = explain.local_error
    monkeypatch.setattr(explain, "local_error", lambda c, v: honest(c, v) * 1e-6)
    assert max(ratios(explain, 3, 0)) > 1


def test_a_sensitivity_that_is_too_small_is_caught(
    explain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = explain.sensitivity
    monkeypatch.setattr(
        explain, "sensitivity", lambda *a: {k: v * 1e-6 for k, v in honest(*a).items()}
    )
    assert max(ratios(explain, 3, 0)) > 1


def test_the_second_order_term_alone_can_break_the_bound(
    explain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x = w a - c is 0 as computed and 1e-17 over the reals; x * x is seen to second order only."""
    calls = [
        explain.Call("product", "mul", "w", "a"),
        explain.Call("x", "add", "product", "c"),
        explain.Call("dW", "mul", "x", "x"),
    ]
    inputs = {"w": 0.1, "a": 3.3, "c": -(0.1 * 3.3)}
    values = explain.evaluate(calls, {k: np.array([[v]]) for k, v in inputs.items()})
    assert values["x"] == 0
    true = exact(calls, {k: np.array([[v]]) for k, v in inputs.items()})
    error = distance(true["dW"], values["dW"])
    assert error > 0
    assert error <= explain.radii(calls, values)["dW"]
    monkeypatch.setattr(explain, "second_order", lambda call, scale: np.zeros((1, 1)))
    monkeypatch.setattr(explain, "TINY", 0.0)
    values["dW"] = values["dW"] + 1e-60  # a scale must not be zero
    assert error > explain.radii(calls, values)["dW"]


def test_where_the_theorem_does_not_apply_there_is_no_bound(
    explain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = explain.second_order
    calls, inputs = explain.example(3)
    values = explain.evaluate(calls, {k: v.astype(np.float64) for k, v in inputs.items()})
    scale = explain.choose_scale(calls, values, np.random.default_rng(0))
    monkeypatch.setattr(explain, "choose_scale", lambda *_: scale)
    monkeypatch.setattr(explain, "second_order", lambda c, s: honest(c, s) * 1e40)
    with pytest.raises(ArithmeticError, match="no bound: h ="):
        explain.radii(calls, values)


def test_it_runs_and_is_short() -> None:
    assert len(FILE.read_text().splitlines()) < 300
    assert "numgeom" not in FILE.read_text()
    out = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=True)
    rows = [line.split() for line in out.stdout.splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [1, 2, 5, 10, 20]
    assert all(1 <= float(row[3]) < 1.1 for row in rows)
    assert all(math.isfinite(float(row[2])) for row in rows)
