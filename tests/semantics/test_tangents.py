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
            # An infinite value stays what it is: its changes do not count.
            counts = torch.isfinite(linear.values[node])
            torch.testing.assert_close(
                found[node][lane][counts], e[counts], rtol=1e-9, atol=1e-11 * scale, equal_nan=True
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


def _rows(x):
    return torch.var_mean(x, dim=[-1], correction=0, keepdim=True)


RULES = {
    "square by itself": lambda a, b: a * a,
    "quotient of two": lambda a, b: a / b,
    "quotient, one is spread out": lambda a, b: a / b[:, :1],
    "quotient of a constant": lambda a, b: 3.0 / b,
    "moments of rows": lambda a, b: (a - _rows(a)[1]) * _rows(a * b)[0],
    "moments of everything": lambda a, b: torch.var(a * b, correction=2) * a,
    "moments along two": lambda a, b: torch.var(a, dim=(0, 1), correction=1) + b,
    "sum along some": lambda a, b: (a * b).sum(-1) + (a / b).sum([0, -1]),
    "sum that keeps": lambda a, b: a * b.sum(0, keepdim=True),
    "a filled one": lambda a, b: torch.full_like(a, 2.0) * b,
    "products of both": lambda a, b: (a @ b.T) @ (b @ a.T),
    "batched products of both": lambda a, b: torch.bmm(a[None], (a * b).T[None]),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_for_stacked_tangents_are_the_derivatives(name):
    """Each rule that is written for stacks, against torch's own forward mode."""
    a = torch.nn.Parameter(torch.rand(3, 4, dtype=torch.float64) + 0.5)
    b = torch.nn.Parameter(torch.rand(3, 4, dtype=torch.float64) + 0.5)
    with record() as recording:
        RULES[name](a, b).square().sum().backward()
    program = recording.program.decompose()
    linear = Linearization(program)
    w = {n: torch.randn(3, *v.shape, dtype=torch.float64) for n, v in linear.values.items()}
    for known in (None, _values(program)):
        found = {}
        push(program, 3, lambda n, _: w[n], lambda n, e, f=found: f.update({n: e.clone()}),
             known=known)  # fmt: skip
        for lane in range(3):
            for node, e in linear.changes({n: v[lane] for n, v in w.items()}).items():
                torch.testing.assert_close(found[node][lane], e, rtol=1e-11, atol=1e-11)


def _values(program):
    found = {}
    program.replay(on_call=found.__setitem__)
    return found
