"""The two directions of the linearised program against each other and against differences."""

import warnings

import pytest
import torch

from numgeom.recording import Program, record
from numgeom.semantics import Linearization
from tests.recording.workloads import build

# Kinds of program that certificates are for: each opens into core ATen.
NAMES = (
    "mlp-relu", "mlp-tanh", "mlp-gelu", "mlp-softplus", "lenet", "batch-norm-cnn", "norms",
    "dropout", "lstm", "gru", "attention-weights", "encoder-layer", "sdpa-flash-causal",
    "autocast-bf16", "double-backward", "tied", "in-place", "checkpoint", "optimizer-adam",
    "hf-gpt2-sdpa", "hf-llama-sdpa", "hf-bert-eager", "hf-resnet", "hf-convnext",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet_libraries():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(name: str) -> Program:
    model, step = build(name)
    torch.manual_seed(1)
    with record(model) as recording:
        step()
    return recording.program.decompose()


def _random(linear: Linearization, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(z.shape, generator=generator, dtype=torch.float64)
        for n, z in linear.values.items()
    }


def _dot(a: dict, b: dict) -> float:
    return float(sum((a[n] * b[n]).sum() for n in a if n in b))


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_reverse_are_transposes(name):
    linear = Linearization(_opened(name))
    w, v = _random(linear, 0), _random(linear, 1)
    forward, reverse = linear.changes(w), linear.vjp(v)
    left, right = _dot(forward, v), _dot(w, reverse)
    size = sum(float((forward[n] * v[n]).abs().sum()) for n in forward)
    assert abs(left - right) <= 1e-9 * size
    assert abs(left) > 0


@pytest.mark.parametrize("name", ["mlp-tanh", "attention-weights", "lstm", "batch-norm-cnn"])
def test_forward_is_the_limit_of_differences(name):
    """Perturb the parameters; the gradients move by A w, to second order in the step."""
    program = _opened(name)
    linear = Linearization(program)
    nodes = [n for n in linear.nodes if n.op == "get_attr" and n.meta["role"] == "parameter"]
    generator = torch.Generator().manual_seed(2)
    w = {
        n: torch.randn(linear.values[n].shape, generator=generator, dtype=torch.float64)
        for n in nodes
    }
    change = linear.changes(w)
    originals = {n: program.constants[n.target] for n in nodes}

    def gradients(step: float) -> dict[str, torch.Tensor]:
        for n in nodes:
            program.constants[n.target] = originals[n] + step * w[n]
        return program.replay().gradients

    h = 1e-6
    after, before = gradients(h), gradients(-h)
    for name_, node in linear.outputs.items():
        slope = (after[name_] - before[name_]) / (2 * h)
        torch.testing.assert_close(
            slope, change[node], rtol=1e-5, atol=1e-6 * slope.abs().max() + 1e-9
        )


def test_one_row_of_the_map():
    """A unit cotangent gives the row of A: the exact influence of every local error."""
    linear = Linearization(_opened("mlp-tanh"))
    node = next(iter(linear.outputs.values()))
    unit = torch.zeros_like(linear.values[node])
    unit.view(-1)[3] = 1.0
    row = linear.vjp({node: unit})
    w = _random(linear, 3)
    exact = float(linear.changes(w)[node].reshape(-1)[3])
    assert _dot(row, w) == pytest.approx(exact, rel=1e-10)


def test_nodes_that_nothing_reaches_are_left_out():
    linear = Linearization(_opened("mlp-relu"))
    last = linear.nodes[-1]
    assert linear.changes({last: torch.ones_like(linear.values[last])}).keys() == {last}
    assert linear.vjp({}) == {}
