"""Zeros, ties, masks, padding, cancelled gradients and draws: bounded, and against Arb.

Each case holds by ball arithmetic and by Newton-Kantorovich; no violation, no slack.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from numgeom.certificate import Guarantee, certify
from numgeom.certificate.kantorovich import KantorovichResult, kantorovich
from numgeom.recording import Program, record
from numgeom.semantics.ball import enclose
from tests.oracle.exact_program import contains, exact_gradients
from tests.oracle.numbers import Numbers
from tests.oracle.radii import ratios

TIES = 3000  # bits: sums of products of floats are then exact, so that the oracle can tell ties


def _checked(program: Program, bits: int = 200) -> tuple[KantorovichResult, dict[str, Numbers]]:
    """Both methods hold for the opened program, and the exact gradient is within their radii."""
    exact = exact_gradients(program, bits)
    balls = enclose(program, twins=True)
    assert not balls.unknown_ops
    assert max(contains(exact[k], balls.midpoints[k], balls.radii[k]) for k in exact) <= 1
    result = kantorovich(program)
    assert result.holds, result.reason
    assert not result.unresolved
    assert max(ratios(program, result, exact)) <= 1
    size = math.hypot(*(float(m.norm()) for m in result.midpoints.values()))
    assert result.total_radius < 1e-8 * size
    return result, exact


def test_a_unit_that_is_off_has_a_gradient_of_exactly_zero() -> None:
    """Structural zeros: every contribution is an exact zero, so the radius is zero, too."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].bias[1] = -100.0
    with record(model) as recording:
        model(torch.randn(5, 3)).square().sum().backward()
    result, exact = _checked(recording.program.decompose())
    assert all(e.is_zero() for e in exact["0.weight"][1])
    assert bool((result.entry_radii["0.weight"][1] == 0).all())
    assert bool((result.entry_radii["2.weight"][:, 1] == 0).all())
    assert bool((result.entry_radii["0.weight"] > 0).any())


def test_a_parameter_whose_gradient_is_exactly_zero_has_a_bound_of_zero() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    certificate = certify(
        model, lambda m, x: (m[0](x).square() + 0.0 * m[1](x)).sum(), torch.randn(3, 2)
    )
    for name in ("1.weight", "1.bias"):
        row = certificate.parameters[name]
        assert (row.computed_norm, row.error_bound, row.radius) == (0.0, 0.0, 0.0)
        assert not bool(certificate.entrywise_bound(name).any())
    assert certificate.guarantee is Guarantee.PROVED


def test_max_pooling_over_zeros_behind_relu_is_a_certain_tie() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)
    )
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-0.6, -50.0]))
    x = torch.randn(2, 1, 6, 6)
    windows = F.unfold(model[1](model[0](x)).reshape(4, 1, 6, 6), 2, stride=2)
    zeros = int((windows == 0).all(1).sum())
    assert 18 < zeros < 36  # all windows of the second channel, and some of the first
    with record(model) as recording:
        model(x).square().sum().backward()
    result, _ = _checked(recording.program.decompose(), TIES)
    assert bool((result.entry_radii["0.weight"][1] == 0).all())


class _Masked(nn.Module):
    """Attention with scores that are masked before the softmax."""

    def __init__(self, masked: float, added: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)
        self.masked, self.added = masked, added

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 2.0
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.added:
            mask = torch.zeros(later.shape).masked_fill(later, self.masked)
            scores = scores + mask
        else:
            scores = scores.masked_fill(later, self.masked)
        return self.out(scores.softmax(-1) @ v)


@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("added", [True, False])
def test_attention_masks(masked: float, added: bool) -> None:
    model, x = _Masked(masked, added), torch.randn(2, 4, 4)
    with record(model) as recording:
        model(x).square().sum().backward()
    _checked(recording.program.decompose())
    certificate = certify(recording.program, method="kantorovich")
    assert certificate.guarantee is Guarantee.CERTIFIED


@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min])
def test_padded_sequences_with_a_key_padding_mask(masked: float) -> None:
    """Padding tokens have an embedding of zeros, get no attention and no gradient."""
    tokens = torch.tensor([[3, 1, 2, 0, 0], [2, 2, 4, 1, 0]])
    embed, attend = nn.Embedding(5, 4, padding_idx=0), _Masked(0.0, True)
    head = nn.Linear(3, 3)
    model = nn.ModuleList([embed, attend.qkv, attend.out, head])

    def step() -> None:
        q, k, v = attend.qkv(embed(tokens)).chunk(3, -1)
        mask = torch.zeros(2, 1, 5).masked_fill((tokens == 0)[:, None], masked)
        mixed = attend.out((q @ k.transpose(-1, -2) / 2.0 + mask).softmax(-1) @ v)
        kept = head(mixed) * (tokens != 0)[..., None]
        kept.square().sum().backward()

    with record(model) as recording:
        step()
    result, exact = _checked(recording.program.decompose())
    assert all(e.is_zero() for e in exact["0.weight"][0])
    assert bool((result.entry_radii["0.weight"][0] == 0).all())


def test_targets_that_are_ignored() -> None:
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    y = torch.tensor([0, -100, 2, -100, 1])
    with record(model) as recording:
        F.cross_entropy(model(x), y).backward()
    _checked(recording.program.decompose())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_of_images(mode: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=2, padding_mode=mode), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)
    )
    x = torch.randn(2, 1, 5, 5)
    model(x)
    with record(model) as recording:
        model(x).square().sum().backward()
    _checked(recording.program.decompose())


def test_a_bias_in_front_of_batch_norm_has_no_gradient_and_says_so() -> None:
    """Exactly zero over the reals, rounding noise as computed: bounded, and no relative bound."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(6, 3)
    with record(model) as recording:
        model(x).square().sum().backward()
    program = recording.program
    result, exact = _checked(program.decompose())
    assert all(e.contains(0) and e.rad() < 1e-40 for e in exact["0.bias"])
    assert bool((result.midpoints["0.bias"].abs() <= result.entry_radii["0.bias"]).all())
    for method in ("ball", "kantorovich"):
        certificate = certify(program, method=method)
        row = certificate.parameters["0.bias"]
        assert row.computed_norm > 0
        assert row.error_bound == math.inf
        computed = program.recorded.gradients["0.bias"].double()
        assert bool((computed.abs() <= certificate.entrywise_bound("0.bias")).all())
        assert certificate.total.error_bound is not None
        assert certificate.total.error_bound < 1e-5


def test_dropout_is_part_of_the_step() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    with record(model) as recording:
        model(torch.randn(2, 3)).square().sum().backward()
    program = recording.program
    result, exact = _checked(program.decompose())
    dropped = [all(e.is_zero() for e in row) for row in exact["0.weight"]]
    zero = [bool((r == 0).all()) for r in result.entry_radii["0.weight"]]
    assert dropped == zero
    first = certify(program)
    assert first.parameters == certify(program).parameters
    assert first.guarantee is Guarantee.PROVED
