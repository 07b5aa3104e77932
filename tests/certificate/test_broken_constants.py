"""Does a certificate fail as soon as one of its constants is wrong?

Programs in which one constant alone decides, so that nothing else can hide that it is too small.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from numgeom.certificate.kantorovich import kantorovich
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program, record
from tests.oracle.exact_program import contains, exact_gradients
from tests.oracle.radii import ratios


def _with(name: str, **facts: Callable[[Evaluation], torch.Tensor | None]) -> OpTable:
    return OpTable(tuple(replace(op, **facts) if op.name == name else op for op in OPS))


def _product() -> Program:
    """The gradient of sum(w a b) is fl(a b): one rounding, and nothing before it."""
    w = torch.nn.Parameter(torch.ones(40, dtype=torch.float64))
    a, b = torch.randn(40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    with record() as recording:
        (w * a * b).sum().backward()
    return recording.program.decompose()


@pytest.mark.parametrize(("part", "fails"), [(1.0 + 1e-9, False), (0.5, True)])
def test_half_of_the_real_rounding_error_is_too_little(part: float, fails: bool) -> None:
    """eta from the real local errors gives a bound; half of them does not."""

    def real_error(call: Evaluation) -> torch.Tensor:
        a, b = torch.broadcast_tensors(*(torch.as_tensor(x).double() for x in call.args))
        triples = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), call.y.reshape(-1).tolist(),
                      strict=True)  # fmt: skip
        errors = [float(abs(Fraction(x) * Fraction(y) - Fraction(z))) for x, y, z in triples]
        return torch.tensor(errors, dtype=torch.float64).reshape(call.y.shape) * part

    program = _product()
    result = kantorovich(program, ops=_with("mul", rounding=real_error))
    assert result.holds
    exact = exact_gradients(program)
    worst = max(contains(exact[k], result.midpoints[k], result.entry_radii[k]) for k in exact)
    assert (worst > 1) is fails
    assert worst == pytest.approx(1 / part)


def _second_order() -> Program:
    """The gradient by v is x^2, where x is 0 as computed and 1e-17 over the reals.

    To first order nothing reaches it.
    """
    w = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    v = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    assert float((w * 3.3 - 0.1 * 3.3).detach()) == 0.0  # not recorded: it would be a decision
    with record() as recording:
        x = w * 3.3 - 0.1 * 3.3
        (x * (x * v)).backward()
    return recording.program.decompose()


@pytest.mark.parametrize("blind", [False, True])
def test_without_its_curvature_a_product_breaks_the_bound(blind: bool) -> None:
    program = _second_order()
    ops = _with("mul", second_order=lambda call: None) if blind else OPS
    result = kantorovich(program, ops=ops)
    assert result.holds
    norms, _, entries = ratios(program, result)
    assert (norms > 1) is blind
    assert (entries > 1) is blind


def test_a_kink_is_cleared_exactly_as_long_as_it_lies_outside_of_the_radius() -> None:
    """relu(x) with x = 0.1 up to rounding, less 0.1, plus a margin; the radius is about 1e-16."""

    def holds(margin: float) -> bool:
        w = torch.nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
        with record() as recording:
            x = w.tanh().atanh() - 0.1 + margin
            (torch.relu(x) * 3).sum().backward()
        result = kantorovich(recording.program.decompose())
        assert result.holds or "kink" in result.reason
        assert result.holds or not result.norm_radii
        assert result.holds or math.isinf(result.total_radius)
        return result.holds

    assert not any(holds(sign * margin) for margin in (1e-18, 1e-17) for sign in (1, -1))
    assert all(holds(sign * margin) for margin in (1e-14, 1e-6) for sign in (1, -1))
