"""Batched tangents agree with one forward pass per tangent, for every kind of program."""

import warnings

import pytest
import torch

from numgeom.recording import record
from numgeom.semantics.sensitivity import Linearization
from numgeom.semantics.tangents import push
from tests.recording.workloads import build

NAMES = (
    "mlp-gelu", "mlp-softplus", "mlp-prelu", "mlp-hardswish", "lenet", "batch-norm-cnn", "norms",
    "lstm", "attention-weights", "encoder-layer", "sdpa-math", "tied", "indexing",
    "no-dims", "in-place", "double-backward", "hf-llama-eager", "hf-resnet",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_stacked_tangents_are_those_of_single_passes(name):
    if name.startswith("hf-"):
        pytest.importorskip("transformers")
    with warnings.catch_warnings():  # the libraries' own
        warnings.simplefilter("ignore")
        model, step = build(name)
        with record(model) as recording:
            step()
        program = recording.program.decompose()
    linear = Linearization(program)
    generator = torch.Generator().manual_seed(0)
    count = 2
    injected = {
        node: torch.randn((count, *value.shape), generator=generator, dtype=torch.float64)
        for node, value in linear.values.items()
        if torch.isfinite(value).all()
    }
    found = {}
    push(program, count, lambda n, _: injected.get(n), lambda n, e: found.update({n: e.clone()}))
    for lane in range(count):
        single = linear.changes({node: w[lane] for node, w in injected.items()})
        assert single.keys() == found.keys()
        for node, e in single.items():
            scale = float(e.abs().nan_to_num(posinf=0.0).max()) if e.numel() else 0.0
            torch.testing.assert_close(
                found[node][lane], e, rtol=1e-9, atol=1e-11 * scale, equal_nan=True
            )


def test_constants_of_an_op_are_no_tangents():
    """where(mask, x, 3) and x + 5 are affine: what they write does not move."""
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    with record() as recording:
        torch.where(w > 0, w + 5, 3.0).square().sum().backward()
    program = recording.program.decompose()
    seen = []
    parameter = next(n for n in program.graph.nodes if n.op == "get_attr")

    def inject(node, value):
        return torch.ones(1, *value.shape, dtype=torch.float64) if node is parameter else None

    push(program, 1, inject, lambda node, e: seen.append((node, e.clone())))
    (gradient,) = (e for node, e in seen if node is _gradient(program))
    assert gradient.tolist() == [[2.0, 0.0]]


def _gradient(program):
    end = next(n for n in program.graph.nodes if n.op == "output")
    (node,) = end.args[0]["gradients"].values()
    return node
