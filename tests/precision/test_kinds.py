"""Are the parts of a network told apart?"""

import math
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.examples import load_example
from numgeom.precision.kinds import OpKind, kinds_of
from numgeom.precision.noisy import op_name
from numgeom.recording import Program, record_step


class Attention(nn.Module):
    """One head; written out, or through the fused op."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if self.fused:
            parts = (part[:, None] for part in (q, k, v))
            return self.out(F.scaled_dot_product_attention(*parts, is_causal=True)[:, 0])
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(8) + 0.0
        return self.out(torch.softmax(scores, -1) @ v)


def products(program: Program, path: str) -> Counter[tuple[str, OpKind]]:
    kinds = kinds_of(program)
    return Counter(
        (node.meta["call"].phase, kind)
        for node, kind in kinds.items()
        if op_name(node) == "bmm" and node.meta["call"].module == path
    )


def attention_program(fused: bool) -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(Attention(fused))
    return record_step(model, lambda m, x: m(x).square().sum(), torch.randn(2, 5, 8)).decompose()


def test_the_products_of_attention_are_told_apart() -> None:
    assert products(attention_program(fused=False), "0") == {
        ("forward", OpKind.SCORES): 1,
        ("forward", OpKind.VALUES): 1,
        ("backward", OpKind.SCORES): 2,  # dQ and dK
        ("backward", OpKind.VALUES): 2,  # dP and dV
    }


def test_fused_attention_computes_the_scores_again() -> None:
    assert products(attention_program(fused=True), "0") == {
        ("forward", OpKind.SCORES): 1,
        ("forward", OpKind.VALUES): 1,
        ("backward", OpKind.SCORES): 3,
        ("backward", OpKind.VALUES): 2,
    }


def test_layers_have_the_kind_of_their_module() -> None:
    model, loss_fn, batch = load_example("text-gpt", batch_size=2)
    program = record_step(model, loss_fn, batch).decompose()
    found: dict[str, set[OpKind]] = {}
    for node, kind in kinds_of(program).items():
        found.setdefault(node.meta["call"].module, set()).add(kind)
    assert found["blocks.0.norm_mlp"] == {OpKind.NORMALIZATION}
    assert found["blocks.0.mlp.0"] == found["blocks.0.mlp.1"] == {OpKind.MLP}
    assert found["blocks.1.attention.project"] == {OpKind.PROJECTION}
    assert OpKind.SOFTMAX in found["blocks.1.attention"]
    assert found["embed"] == {OpKind.OTHER}


def test_a_convolution_and_a_softmax_without_products() -> None:
    model, loss_fn, batch = load_example("digits-lenet", batch_size=2)
    kinds = set(kinds_of(record_step(model, loss_fn, batch).decompose()).values())
    assert kinds == {OpKind.CONVOLUTION, OpKind.MLP, OpKind.OTHER}
    alone = record_step(
        nn.Linear(4, 4), lambda m, x: m(x).softmax(-1).square().sum(), torch.randn(2, 4)
    ).decompose()
    assert OpKind.SOFTMAX not in set(kinds_of(alone).values())
