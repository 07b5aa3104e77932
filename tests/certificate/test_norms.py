"""Bounds of the scaled linear map against the map itself, written out as a matrix."""

import math

import pytest
import torch
from torch import nn

from numgeom.certificate.draws import Draws
from numgeom.certificate.norms import KEPT, ScaledMap
from numgeom.certificate.passes import Pass
from numgeom.certificate.probes import ProbePlan
from numgeom.certificate.scale import choose_scale
from numgeom.certificate.structure import pruned
from numgeom.certificate.survey import survey
from numgeom.ops.table import OPS
from numgeom.recording import record_step
from numgeom.semantics.sensitivity import Linearization
from numgeom.semantics.tangents import push


@pytest.fixture(scope="module")
def solved():
    """A small network, its scaled map, and that map as a dense matrix."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    step = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(2, 3))
    program = pruned(step.decompose())
    surveyed = survey(program, OPS, None, Draws(0))
    facts, scale = surveyed.facts, choose_scale(surveyed)
    solver = ScaledMap(program, facts, scale, None, Draws(1))
    offsets, size = {}, 0
    for node, t in scale.columns.items():
        offsets[node] = size
        size += t.numel()
    rows, gradients = {}, {}

    def inject(node, value):
        if node not in offsets:
            return None
        unit = torch.zeros(size, value.numel(), dtype=torch.float64)
        start = offsets[node]
        unit[start : start + value.numel()] = torch.diag(scale.columns[node].reshape(-1))
        return unit.reshape(size, *value.shape)

    def visit(node, e):
        if node in scale.rows:
            rows[node] = (e / scale.rows[node]).reshape(size, -1)
        if node in facts.gradients.values():
            gradients[node] = e.reshape(size, -1).clone()

    push(program, size, inject, visit)
    matrix = torch.cat(list(rows.values()), 1).T
    blocks = {name: gradients[n].T for name, n in facts.gradients.items() if n in gradients}
    return solver, facts, float(torch.linalg.matrix_norm(matrix, 2)), blocks


def test_plain_probes_bound_the_norm_and_every_block(solved):
    solver, facts, norm, blocks = solved
    found = solver.probe(20)
    plan = ProbePlan(20, 1e-9, solver.dimension)
    assert norm <= plan.bound(found.rows, rounding=found.rounding) < 100 * norm
    assert 0 < found.rounding < 1e-4
    for name in facts.gradients:
        block = float(torch.linalg.matrix_norm(blocks[name], 2)) if name in blocks else 0.0
        assert block <= plan.bound(found.blocks[name]) or block == 0.0
    everything = float(torch.linalg.matrix_norm(torch.cat(list(blocks.values())), 2))
    assert everything <= plan.bound(found.total)


def test_half_a_power_step_bounds_it_more_sharply_than_its_own_probes(solved):
    solver, _, norm, _ = solved
    found = solver.probe(9, keep=KEPT)
    plain = ProbePlan(KEPT, 1e-9, solver.dimension).bound(found.rows[:KEPT])
    assert norm <= solver.pull(found, 1e-9) < plain


@pytest.mark.parametrize("spoil", [0.9, 0.0, -1.0, 1 + 1e-6])
def test_a_wrong_transpose_makes_the_bound_wider_and_not_wrong(solved, monkeypatch, spoil):
    """Reverse passes are guesses: whatever they give, forward passes say how far they are off."""
    solver, _, norm, _ = solved
    right = solver.pull(solver.probe(9, keep=KEPT), 1e-9)

    def spoiled(self, y, *, wanted):
        found = vjps(self, y, wanted=wanted)
        return {n: a * (spoil if i % 2 else 1) for i, (n, a) in enumerate(found.items())}

    vjps = Linearization.vjps
    monkeypatch.setattr(Linearization, "vjps", spoiled)
    wrong = solver.pull(solver.probe(9, keep=KEPT), 1e-9)
    assert norm <= wrong
    assert spoil > 1 or wrong > 1.5 * right
    assert norm <= solver.power(8, 1, 1e-9)


def test_no_vector_is_pushed_twice(solved):
    solver, _, _, _ = solved
    found = solver.probe(45).rows
    assert len(set(found)) == 45


@pytest.mark.parametrize(("probes", "steps"), [(8, 1), (16, 3)])
def test_power_steps_bound_it_more_sharply(solved, probes, steps):
    solver, _, norm, _ = solved
    assert norm <= solver.power(probes, steps, 1e-9) < 4 * norm


@pytest.mark.parametrize(("probes", "steps"), [(8, 1), (16, 3)])
def test_judging_the_reverse_passes_costs_little_sharpness(solved, probes, steps, monkeypatch):
    """With a probability and with roundings as in a large program, few vectors say too little."""
    monkeypatch.setattr(Pass, "rounding", property(lambda self: 6e-5))
    solver, _, norm, _ = solved
    chance = 1e-11
    exact = ProbePlan(probes, chance / 2, solver.dimension).inflation() ** (1 / (2 * steps + 1))
    assert solver.power(probes, steps, chance) < 1.25 * exact * norm


def test_fewer_probes_than_the_blocks_need_cost_sharpness_and_not_safety(solved):
    solver, _, norm, _ = solved
    bound = ProbePlan(8, 1e-12, solver.dimension).bound(solver.probe(8).rows)
    assert norm <= bound < math.inf
