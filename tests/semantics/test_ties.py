"""Exact ties are told by labels, nothing else is, and the exact gradient stays enclosed."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from numgeom.certificate.kantorovich import kantorovich
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS
from numgeom.recording import Program, record
from numgeom.semantics.ball import enclose
from numgeom.semantics.twins import Twins
from tests.oracle.exact_program import contains, exact_gradients

BITS = 3000  # sums of products of floats are exact, so that the oracle can tell ties


def _tied_network(seed: int) -> Program:
    """Convolutions and max pooling on upsampled images: windows with repeated patches."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = rng.choice([torch.float32, torch.float64])
    size = rng.choice([2, 3])
    images = torch.rand(2, 1, 4, 4, dtype=dtype).round(decimals=rng.choice([0, 1, 4]))
    images = F.interpolate(images, scale_factor=size)
    kernel, padding = rng.choice([(1, 0), (2, 1), (3, 1)])
    layers: list[nn.Module] = [nn.Conv2d(1, 2, kernel, padding=padding)]
    if rng.random() < 0.6:
        layers.append(nn.ReLU())
    layers.append(rng.choice([nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(4)]))
    if rng.random() < 0.5:
        layers += [nn.Conv2d(2, 2, 2), nn.ReLU(), nn.MaxPool2d(2, 1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3, dtype=dtype)).to(dtype)
    model(images)
    with record(model) as recording:
        F.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    return recording.program.decompose(device="cpu")


def _known_to_the_oracle(program: Program) -> bool:
    return not any("adaptive_max" in str(n.target) for n in program.graph.nodes)


def test_ties_are_certain_and_the_gradient_is_enclosed():
    resolved = 0
    for seed in range(24):
        program = _tied_network(seed)
        blind, found = enclose(program), enclose(program, twins=True, seed=seed)
        assert not blind.twins
        assert not found.doubtful
        resolved += found.twins
        for name, radius in found.radii.items():
            assert float(radius.norm()) < 1e-8 * max(1e-3, float(found.midpoints[name].norm()))
        if _known_to_the_oracle(program):
            exact = exact_gradients(program, bits=BITS)
            assert max(contains(exact[k], found.midpoints[k], found.radii[k]) for k in exact) <= 1
    assert resolved > 8


def test_kantorovich_clears_ties():
    cleared = 0
    for seed in range(6):
        program = _tied_network(seed)
        result = kantorovich(program)
        assert result.holds, result.reason
        assert not result.unresolved
        cleared += bool(enclose(program).doubtful)
        if _known_to_the_oracle(program):
            exact = exact_gradients(program, bits=BITS)
            for name, radius in result.entry_radii.items():
                assert contains(exact[name], result.midpoints[name], radius) <= 1
    assert cleared > 1


def _nearly_tied(spots: list[float]) -> Program:
    """Windows of sums that are equal in float64; where the largest is decides the gradient."""
    w = nn.Parameter(torch.tensor([[1.0], [1.0]], dtype=torch.float64))
    rows = torch.tensor([[1.0, spot] for spot in spots], dtype=torch.float64)
    gain = torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    shift = nn.Parameter(torch.zeros(1, 1, 2, 2, dtype=torch.float64))
    with record() as recording:
        image = (rows @ w).reshape(1, 1, 2, 2) + shift * gain
        F.max_pool2d(image, 2).sum().backward()
    return recording.program.decompose(device="cpu")


def _largest_ratio(program: Program) -> float:
    found, exact = enclose(program, twins=True), exact_gradients(program, bits=BITS)
    return max(contains(exact[k], found.midpoints[k], found.radii[k]) for k in exact)


NEARLY = [2.0**-62, 2.0**-60, 2.0**-62, 2.0**-61]


def test_equal_midpoints_of_different_numbers_stay_in_doubt():
    program = _nearly_tied(NEARLY)
    found = enclose(program, twins=True)
    assert found.doubtful
    assert not found.twins  # they told nothing, so that the bound is proved
    assert _largest_ratio(program) <= 1


def test_a_tie_of_some_and_a_doubt_about_another():
    found = enclose(_nearly_tied([2.0**-60, 2.0**-60, 2.0**-60, 2.0**-61]), twins=True)
    assert found.doubtful
    assert not enclose(_nearly_tied([2.0**-60] * 4), twins=True).doubtful


def test_a_wrong_merge_is_caught(monkeypatch):
    right = Twins.label
    monkeypatch.setattr(Twins, "label", lambda self, *a: torch.ones_like(right(self, *a)))
    program = _nearly_tied(NEARLY)
    assert not enclose(program, twins=True).doubtful
    assert _largest_ratio(program) > 1


def test_the_first_of_equal_entries_must_have_won():
    """An earlier entry of the same label is no certain loser."""
    x = torch.tensor([[1.0, 1.0 + 2.0**-52, 0.0]], dtype=torch.float64)
    r = torch.full_like(x, 1e-15)
    labels = torch.tensor([[5, 5, 9]])
    for name, settings in (("argmax", (1,)), ("max", (1,)), ("argmax", ())):
        for values, certain in ((x, False), (x[:, [1, 0, 2]], True)):
            y = getattr(torch.ops.aten, name)(values, *settings)
            op = OPS.named(name)
            assert op is not None
            call = _call(name, (values, *settings), y, r, labels)
            doubt = op.doubt_of(call)
            doubt = doubt[1] if isinstance(doubt, tuple) else doubt
            assert bool(doubt.any()) is not certain


def test_the_first_of_equal_entries_of_a_window_must_have_won():
    x = torch.tensor([1.0, 1.0 + 2.0**-52, 0.0, 0.0], dtype=torch.float64)
    r = torch.full((1, 1, 2, 2), 1e-15, dtype=torch.float64)
    labels = torch.tensor([5, 5, 8, 9]).reshape(1, 1, 2, 2)
    op = OPS.named("max_pool2d_with_indices")
    assert op is not None
    for values, certain in ((x, False), (x[[1, 0, 2, 3]], True)):
        values = values.reshape(1, 1, 2, 2)
        y = torch.ops.aten.max_pool2d_with_indices(values, [2, 2])
        doubt = op.doubt_of(_call(op.name, (values, [2, 2]), y, r, labels))
        assert bool(doubt[1].any()) is not certain


def _call(name: str, args: tuple[Any, ...], y: Any, r: Tensor, labels: Tensor) -> Any:
    return Evaluation(name, args, {}, y, {0: r}, {}, {0: labels})
