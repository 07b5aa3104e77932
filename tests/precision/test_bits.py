"""Are the bits that are reported enough, and the fewest?"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from numgeom.arithmetic.formats import round_to_bits
from numgeom.precision import PrecisionError, bits_needed, estimate
from numgeom.precision.bits import RoundedReplay, error_with
from numgeom.recording import Program, record_step


def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(8, 12), torch.randint(0, 3, (8,))
    return record_step(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x, y))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(8) + 0.0
        return self.out(torch.softmax(scores, -1) @ v)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4])
def test_the_bits_are_enough_and_one_less_is_not(tolerance):
    step = program()
    reference = step.replay().gradients
    for part, need in bits_needed(step, tolerance).items():
        nodes = [n for n in step.calls if n.meta["call"].module == part]
        assert need.error <= tolerance
        assert error_with(step, reference, nodes, need.bits) <= tolerance
        if need.bits > 1:
            assert error_with(step, reference, nodes, need.bits - 1) > tolerance


def test_a_smaller_tolerance_needs_more_bits():
    step = program()
    loose, tight = bits_needed(step, 1e-2), bits_needed(step, 1e-5)
    assert list(loose) == list(tight)
    for part in loose:
        assert 8 <= tight[part].bits - loose[part].bits <= 12 or tight[part].bits <= 1


def test_every_kind_of_op_gets_its_bits():
    torch.manual_seed(0)
    step = record_step(Attention(), lambda m, b: m(b).square().sum(), torch.randn(2, 5, 8))
    needs = bits_needed(step, 1e-3, by="kind")
    assert {"softmax", "normalization", "attention scores", "attention values"} <= set(needs)
    assert all(1 <= need.bits <= 24 for need in needs.values())


def test_one_replay_predicts_the_bits_of_a_smooth_network():
    for tolerance in (1e-2, 1e-4):
        for need in bits_needed(program(), tolerance).values():
            assert abs(need.predicted_bits - need.bits) <= 1


def test_an_estimate_gives_the_bits_of_its_step():
    step = program()
    assert estimate(step).bits(1e-3) == bits_needed(step, 1e-3)
    kinds = estimate(step).bits(1e-3, by="kind")
    assert kinds["MLP"].bits > 1


def test_rounding_to_all_bits_is_the_float64_replay():
    step = program()
    plain = step.replay().gradients
    same = RoundedReplay(step, lambda node: 53).evaluate().gradients
    assert all(torch.equal(plain[n], same[n]) for n in plain)
    coarse = RoundedReplay(step, lambda node: 4).evaluate().gradients
    for name, g in coarse.items():
        assert torch.equal(round_to_bits(g, 4), g)
        assert not torch.equal(g, plain[name])


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(PrecisionError, match="positive"):
        bits_needed(program(), 0.0)
    with pytest.raises(PrecisionError, match="by="):
        bits_needed(program(), 0.1, by="line")
