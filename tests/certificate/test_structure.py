"""Which calls reach the gradients, and how: on programs small enough to see."""

import torch

from numgeom.certificate.kantorovich import kantorovich
from numgeom.certificate.structure import pruned, structure
from numgeom.ops.table import functional_name
from numgeom.recording import Program, record, record_step


def _opened(step) -> Program:
    with record() as recording:
        step()
    return recording.program.decompose()


def _names(program: Program) -> set[str]:
    return {functional_name(n.target) for n in program.calls}


def test_what_no_gradient_depends_on_is_pruned_away():
    """The running statistics of a batch norm: results of the step, but not of its gradients."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    program = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(4, 3)).decompose()
    short = pruned(program)
    assert len(short) < len(program)
    expected, found = program.replay().gradients, short.replay().gradients
    assert {k: g.tolist() for k, g in found.items()} == {k: g.tolist() for k, g in expected.items()}


def test_the_last_product_is_a_tail_and_a_factor_of_it_is_not():
    w = torch.nn.Parameter(torch.tensor([[0.5], [2.0]], dtype=torch.float64))
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    program = pruned(_opened(lambda: torch.tanh(x @ w).sum().backward()))
    found = structure(program)
    tails = {functional_name(n.target) for n in found.tails if "call" in n.meta}
    assert "mm" in tails
    assert "tanh" not in tails
    (gradient,) = found.gradients.values()
    assert list(found.tails[gradient].values()) == [1]


def test_a_result_that_arrives_twice_counts_twice():
    w = torch.nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    program = pruned(_opened(lambda: w.sin().sum().backward()))
    before = structure(program)
    (gradient,) = before.gradients.values()
    end = next(n for n in program.graph.nodes if n.op == "output")
    with program.graph.inserting_before(end):
        twice = program.graph.call_function(torch.ops.aten.add.Tensor, (gradient, gradient))
    twice.meta.update(gradient.meta)
    end.args = ({**end.args[0], "gradients": {"w": twice}},)
    after = structure(program)
    assert before.tails[gradient] == dict.fromkeys(before.gradients, 1)
    assert after.tails[gradient] == {"w": 2}


def test_rounding_that_only_decides_is_no_column_and_its_kink_is_still_seen():
    """floor(exp(log 3)) is 2 or 3: nothing real connects it, but an index depends on it."""
    w = torch.nn.Parameter(torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=torch.float64))
    three = torch.tensor(3.0, dtype=torch.float64)

    def step(shift: float) -> None:
        index = (three.log().exp() + shift).long()
        w.index_select(0, index.reshape(1)).sin().sum().backward()

    doubtful = kantorovich(_opened(lambda: step(0.0)))
    assert not doubtful.holds
    assert "kink" in doubtful.reason
    assert doubtful.unresolved
    assert kantorovich(_opened(lambda: step(0.25))).holds


def test_a_doubt_that_a_certain_mask_covers_does_not_count():
    """The logarithm of 0 is chosen nowhere, as in the buckets of relative positions."""
    w = torch.nn.Parameter(torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=torch.float64))
    place = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)

    def step() -> None:
        large = (place.log() * 1.7 + 0.3).long()
        index = torch.where(place < 1.5, place.long(), large)
        w.index_select(0, index).sin().sum().backward()

    assert kantorovich(_opened(step)).holds
