"""Equal labels must mean equal numbers; `test_ties` is about what they are good for."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flint
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from numgeom.ops.table import OPS
from numgeom.recording import Program, record
from numgeom.semantics import twins
from numgeom.semantics.ball import BallWalk, Enclosure
from numgeom.semantics.twins import COLLISION_PROBABILITY, Twins
from tests.oracle.exact_program import exact_values
from tests.oracle.networks import random_program

NEAR_ONE = 1 + 2.0**-40


# -- labels against exact values -----------------------------------------------------------


class _Labelled(BallWalk):
    """Keeps the labels of every node."""

    def __init__(self, program: Program, seed: int = 0) -> None:
        super().__init__(program, OPS, None)
        last = next(iter(reversed(program.graph.nodes)))
        self.twins = Twins([last], seed=seed)
        self.labels: dict[fx.Node, Any] = {}

    def run_node(self, node: fx.Node, values: Any) -> Enclosure:
        found = super().run_node(node, values)
        self.labels[node] = found.labels
        return found


def _labels(program: Program, seed: int = 0) -> dict[fx.Node, Tensor]:
    walk = _Labelled(program, seed)
    walk.evaluate()
    return {n: found for n, found in walk.labels.items() if isinstance(found, Tensor)}


def _wrong_merges(labels: dict[fx.Node, Tensor], values: dict[fx.Node, Any]) -> list[str]:
    """Nodes with two entries of one label whose exact values differ."""
    wrong = []
    for node, found in labels.items():
        if not isinstance(values[node], np.ndarray):
            continue
        first: dict[int, Any] = {}
        entries = zip(found.reshape(-1).tolist(), values[node].reshape(-1), strict=True)
        if not all(first.setdefault(label, v).overlaps(v) for label, v in entries):
            wrong.append(str(node.target))
    return wrong


def _recorded(f: Callable[[Tensor], Tensor], x: Tensor) -> Program:
    """sum f(w c^2)^2 and its gradient in float64, in which w c^2 is not exact; in Arb it is."""
    w = nn.Parameter(x.double())

    def step() -> None:
        f(w * NEAR_ONE * NEAR_ONE).square().sum().backward()

    with record() as recording:
        step()
    return recording.program.decompose(device="cpu")


_TAPS = torch.tensor([[[[1.0, 2.0], [2.0, 1.0]]], [[[1.0, 1.0], [1.0, 3.0]]]]).double()
_MATRIX = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]).double()

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "elementwise": lambda x: (x * 3 - x.flip(3)).exp(),
    "sum of products": lambda x: x @ _MATRIX,
    "product with itself": lambda x: x @ x.transpose(2, 3),
    "convolution": lambda x: F.conv2d(x, _TAPS.repeat(1, 2, 1, 1), stride=1, padding=1),
    "convolution and bias": lambda x: F.conv2d(
        x, _TAPS, torch.tensor([0.5, 0.5]).double(), stride=2, dilation=2, padding=1, groups=2
    ),
    "two biases": lambda x: F.conv2d(
        x, _TAPS.repeat(1, 2, 1, 1)[[0, 0, 0]], torch.tensor([0.5, 0.25, 0.5]).double()
    ),
    "maximum": lambda x: F.max_pool2d(x, 2),
    "overlapping maxima": lambda x: F.max_pool2d(x * x.flip(2), 3, stride=1, padding=1),
    "relu": lambda x: F.relu(x - 1 / 3),
    "sum": lambda x: x.sum(3),
    "mean": lambda x: x.mean((2, 3), keepdim=True) * x,
    "largest": lambda x: x.amax(3),
    "choice": lambda x: torch.where(x > 0.5, x, -x),
    "padding": lambda x: F.pad(x, (1, 0, 0, 1), value=2.0) + 1,
    "moved": lambda x: torch.cat([x.permute(0, 1, 3, 2), x], 1)[:, 1:, :, ::2],
    "indexed": lambda x: x[:, :, [0, 0, 3, 1]] * x,
    "norm": lambda x: x / x.square().sum(1, keepdim=True).add(1).sqrt(),
}


@pytest.fixture
def _many_bits():
    before, flint.ctx.prec = flint.ctx.prec, 400
    yield
    flint.ctx.prec = before


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("_many_bits")
def test_equal_labels_are_equal_numbers_and_ties_are_found(name):
    g = torch.Generator().manual_seed(len(name))
    for high in (2, 3, 4):
        x = torch.randint(-1, high, (2, 2, 4, 4), generator=g)
        program = _recorded(CASES[name], x)
        labels, values = _labels(program), exact_values(program)
        assert not _wrong_merges(labels, values)
        output = next(n for n in labels if n.target is torch.ops.aten.pow.Tensor_Scalar)
        if name != "mean":
            assert len(labels[output].unique()) < labels[output].numel()


@pytest.mark.usefixtures("_many_bits")
def test_no_wrong_merge_in_random_networks():
    for seed in range(12):
        label, program = random_program(seed)
        program = program.decompose(device="cpu")
        assert not _wrong_merges(_labels(program, seed), exact_values(program)), label


def test_sums_of_equal_midpoints_and_different_values_have_different_labels():
    """1 + 2^-60 and 1 + 2^-61 are both 1 in float64, and 0 less 1."""
    x = torch.tensor([[1.0, 2.0**-60], [1.0, 2.0**-61], [2.0**-60, 1.0], [1.0, 0.0], [0.0, 1.0]])
    for f in (
        lambda x: (x * 3).sum(1),
        lambda x: (x * 3) @ torch.ones(2, 1).double(),
        lambda x: (x * 3).sum(1) - 3 * NEAR_ONE * NEAR_ONE,
    ):
        program = _recorded(f, x)
        labels = _labels(program)
        output = next(n for n in labels if n.target is torch.ops.aten.pow.Tensor_Scalar)
        found = labels[output.all_input_nodes[0]].reshape(-1).tolist()
        assert found[0] == found[2] != found[1] != found[3] == found[4]


def test_winners_in_doubt_have_no_label_in_common():
    """The first window holds a larger number, but float64 takes the entry before it."""
    x = torch.tensor([[1.0, 2.0**-61], [1.0, 2.0**-60], [1.0, 2.0**-61], [1.0, 2.0**-61]])
    program = _recorded(
        lambda x: F.max_pool2d((x * 3).sum(1).reshape(1, 1, 1, 4), (1, 2)).reshape(2), x
    )
    labels = _labels(program)
    output = next(n for n in labels if n.target is torch.ops.aten.pow.Tensor_Scalar)
    found = labels[output.all_input_nodes[0]].tolist()
    assert found[0] != found[1]


def test_zeros_have_one_label_and_nans_have_none_in_common():
    asked = Twins([])
    node = fx.Graph().get_attr("x")
    value = torch.tensor([0.0, -0.0, 1.0, torch.nan, torch.nan, 1.0], dtype=torch.float64)
    found = asked.label(node, (), {}, Enclosure(value)).tolist()
    assert found[:2] == [0, 0]
    assert found[2] == found[5] > 0
    assert len(set(found)) == 4


@pytest.mark.parametrize("broken", ["_drawn", "_numbered", "_moved"])
@pytest.mark.usefixtures("_many_bits")
def test_wrong_labels_are_caught(broken, monkeypatch):
    """The comparison with exact values sees a rule that merges too much."""
    right = getattr(Twins, broken)
    wrong: dict[str, Any] = {
        "_drawn": lambda self, labels: right(self, (labels != 0).long()),  # all factors alike
        "_numbered": lambda self, columns: right(self, columns[:1]),  # the last are left out
        "_moved": lambda self, name, op, args, kwargs, y: (  # nothing is moved
            args[0].labels if name == "permute" else right(self, name, op, args, kwargs, y)
        ),
    }
    monkeypatch.setattr(Twins, broken, wrong[broken])
    x = torch.tensor([[1, 2, 3, 3], [1, 2, 3, 4]] * 8).reshape(2, 2, 4, 4)
    merges = []
    for f in (lambda x: x @ _MATRIX, lambda x: x * x.permute(0, 1, 3, 2)):
        program = _recorded(f, x)
        merges += _wrong_merges(_labels(program), exact_values(program))
    assert merges


def _examples(names: frozenset[str]) -> Iterator[tuple[str, Any, tuple[Any, ...], dict]]:
    """The ops of some names, on the examples of their entries."""
    for name in sorted(names):
        op = OPS.named(name)
        if op is None:  # opened before it is evaluated
            continue
        packet = getattr(torch.ops.aten, name)
        for example in op.examples:
            args, kwargs = example.make(torch.Generator().manual_seed(3))
            yield name, packet, args, kwargs


def _known(x: Any, number: Callable[[Tensor], Tensor]) -> Any:
    """Arguments as enclosures: tensors with labels."""
    if isinstance(x, (list, tuple)):
        return [_known(item, number) for item in x]
    if isinstance(x, dict):
        return {key: _known(item, number) for key, item in x.items()}
    return Enclosure(x, labels=number(x)) if isinstance(x, Tensor) else x


def test_moved_labels_are_those_of_the_moved_entries():
    tried = set()
    moving = {op.name for op in OPS if op.traits.moves and twins._is_followed(op.traits.moves)}
    for name, packet, args, kwargs in _examples(frozenset(moving)):
        table: list[float] = [0.0]

        def number(x: Tensor, table: list[float] = table) -> Tensor:
            table.extend(x.double().reshape(-1).tolist())
            return torch.arange(len(table) - x.numel(), len(table)).reshape(x.shape)

        y = packet(*args, **kwargs)
        fill = args[2] if name == "constant_pad_nd" and len(args) > 2 else 0.0
        asked = Twins([])
        asked._next = 10**6
        known = _known(args, number)
        found = asked._moved(name, packet, tuple(known), _known(kwargs, number), y)
        if found is None:
            continue
        for part, labels in zip(*((v if isinstance(v, (list, tuple)) else [v]) for v in (y, found)),
                                strict=True):  # fmt: skip
            assert labels.shape == part.shape
            for value, label in zip(
                part.double().reshape(-1).tolist(), labels.reshape(-1).tolist(), strict=True
            ):
                assert value == (fill if label >= 10**6 else table[label]), name
        tried.add(name)
    # torch does not move integers like these, or not all results are moved entries.
    assert all("upsample" in name or "pad" in name or name == "im2col" for name in moving - tried)
    assert len(tried) > 45


def test_an_elementwise_entry_is_a_function_of_the_labels():
    tried = set()
    for name, packet, args, kwargs in _examples(
        frozenset(op.name for op in OPS if twins._is_entrywise(op.name))
    ):
        y = packet(*args, **kwargs)
        asked = Twins([])
        known, named = _known(args, asked._by_value), _known(kwargs, asked._by_value)
        labels = asked._elementwise((*known, *named.values()), y.shape)
        if labels is None:
            continue
        first: dict[int, float] = {}
        for label, value in zip(
            labels.reshape(-1).tolist(), y.double().reshape(-1).tolist(), strict=True
        ):
            found = first.setdefault(label, value)
            # Poles tell -0.0 from 0.0, but are not defined over the reals.
            assert found == value or math.isinf(value) or math.isnan(value), name
        tried.add(name)
    assert len(tried) > 60


def test_the_probability_is_bounded():
    asked = Twins([])
    for n in (10, 10**5, 10**8, 10**11):
        asked._afford(torch.Size([n]), 25, 2)
    assert 0 < asked.collision < COLLISION_PROBABILITY
    assert not asked._afford(torch.Size([10**11]), 25, 2)
    assert not asked._afford(torch.Size([2]), 2**18, 2)  # sums that might round


def test_labels_are_numbered_anew_in_each_call():
    """Seeds differ, labels of sums do not repeat between calls."""
    assert twins.HALF * 2 + 1 == twins.PRIME
    program = _recorded(lambda x: x @ _MATRIX + x @ _MATRIX, torch.ones(1, 1, 4, 4))
    products = [v for n, v in _labels(program).items() if n.target is torch.ops.aten.mm.default]
    assert len(products) >= 2
    assert not set(products[0].reshape(-1).tolist()) & set(products[1].reshape(-1).tolist())
