"""Programs whose every op rounds to few bits, against float64: the error is within the radii.

The theorem speaks of local errors of any size. Here they are those of 24 to 48 bits, so large that
float64 tells the truth, for any op, without an oracle: |few bits - float64| <= radius, no slack.
"""

import pytest
import torch
from torch import Tensor

from numgeom.certificate.kantorovich import kantorovich
from numgeom.semantics.ball import enclose
from tests.oracle.networks import random_program
from tests.oracle.rounded import rounded, rounded_program
from tests.oracle.workloads import opened_workload

BITS = (48, 40, 32, 24)


def _largest(errors: dict[str, Tensor], radii: dict[str, Tensor]) -> float:
    """Largest error / radius over all entries; an error of 0 is within a radius of 0."""
    ratios = [(errors[k] / radii[k])[errors[k] > 0] for k in errors]
    return max((float(r.max()) for r in ratios if r.numel()), default=0.0)


def _norm(errors: dict[str, Tensor]) -> Tensor:
    return torch.cat([e.reshape(-1) for e in errors.values()]).norm()


def _check(seeds: range) -> tuple[int, float, float]:
    """Cases with a Newton-Kantorovich bound, the largest error / radius, the same by norms."""
    cases, worst, worst_norm = 0, 0.0, 0.0
    for seed in seeds:
        label, program = random_program(seed)
        program = program.decompose()
        truth = program.replay(torch.float64).gradients
        for bits in BITS:
            few, ops = rounded_program(program, bits)
            found = few.replay(torch.float64).gradients
            errors = {k: (found[k] - truth[k]).abs() for k in truth}
            balls = enclose(few, ops=ops)
            assert _largest(errors, balls.radii) <= 1, (label, bits)
            result = kantorovich(few, ops=ops, seed=seed)
            if not result.holds:
                assert result.reason
                continue
            by_norm = {k: e.norm() for k, e in errors.items()} | {"all": _norm(errors)}
            norms = {**result.norm_radii, "all": result.total_radius}
            entries = _largest(errors, result.entry_radii)
            ratio = _largest(by_norm, {k: torch.tensor(r) for k, r in norms.items()})
            assert max(entries, ratio) <= 1, (label, bits)
            cases, worst, worst_norm = cases + 1, max(worst, entries), max(worst_norm, ratio)
    return cases, worst, worst_norm


def test_rounding_to_few_bits_stays_within_the_radii() -> None:
    cases, worst, worst_norm = _check(range(6))
    assert cases >= 18
    assert 0 < worst_norm <= worst <= 1


@pytest.mark.campaign
def test_rounding_to_few_bits_stays_within_the_radii_in_many_cases() -> None:
    cases, worst, worst_norm = _check(range(5000, 5340))
    print(
        f"{cases} cases, largest error / radius: {worst:.3g} by entries, {worst_norm:.3g} by norm"
    )
    assert cases >= 1000


def test_facts_that_state_too_small_a_rounding_are_caught() -> None:
    program = opened_workload("mlp-tanh")
    truth = program.replay(torch.float64).gradients
    few, ops = rounded_program(program, 30, stated_bits=45)
    found = few.replay(torch.float64).gradients
    errors = {k: (found[k] - truth[k]).abs() for k in truth}
    result = kantorovich(few, ops=ops)
    assert result.holds
    assert _largest(errors, result.entry_radii) > 1
    assert _norm(errors) > result.total_radius


def test_rounding_to_24_bits_is_that_of_float32() -> None:
    x = torch.randn(1000, dtype=torch.float64)
    assert torch.equal(rounded(x, 24), x.float().double())
    assert torch.equal(rounded(rounded(x, 24), 24), rounded(x, 24))
    assert rounded(torch.tensor([0.0, -3e-320], dtype=torch.float64), 24)[0] == 0
