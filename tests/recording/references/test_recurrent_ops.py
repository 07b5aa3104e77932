"""Do the references of oneDNN's and cuDNN's recurrent ops compute `torch.nn`'s networks?"""

from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from numgeom.errors import UnsupportedOpError
from tests.recording.references.agreement import (
    Calls,
    assert_close,
    check,
    compute,
    dtypes,
    gradients,
    in_dtype,
)

aten = torch.ops.aten
ONEDNN = "aten::mkldnn_rnn_layer"
CUDNN = "aten::_cudnn_rnn"

# Modes of cudnnRNNMode_t.
MODES = {"RNN_RELU": 0, "RNN_TANH": 1, "LSTM": 2, "GRU": 3}


@pytest.mark.parametrize(
    ("time", "batch", "inputs", "size"), [(4, 3, 5, 6), (1, 5, 1, 8), (9, 2, 3, 4)]
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_onednn_kernel(
    time: int, batch: int, inputs: int, size: int, reverse: bool, biases: bool
) -> None:
    x, h, c = torch.randn(time, batch, inputs), torch.randn(batch, size), torch.randn(batch, size)
    w_ih, w_hh = torch.randn(4 * size, inputs), torch.randn(4 * size, size)
    # Without biases torch passes zeros in the shapes of the weights.
    bias = torch.randn(2, 4 * size) if biases else (torch.zeros_like(w_ih), torch.zeros_like(w_hh))
    weights = (w_ih, w_hh, *bias)
    after = (2, size, 1, biases)
    terms = 10 + time * (inputs + size)  # a gate takes about ten roundings besides
    y = check(
        ONEDNN, x, *weights, h, c, reverse, [], *after, False, False, True, terms=terms, skip=(3,)
    )
    for given in product((True, False), repeat=3):
        if not any(given):
            continue
        likes = (y[0], h, c)
        dys = [torch.randn_like(t) if g else None for t, g in zip(likes, given, strict=True)]
        args = (x, *weights, h, c, *y[:3], *dys, reverse, *after, True, False, [], False, y[3])
        check(f"{ONEDNN}_backward", *args, terms=terms * time)


def test_onednn_kernel_without_gradients() -> None:
    x, h = torch.randn(4, 3, 5), torch.randn(2, 3, 6)
    weights = (torch.randn(24, 5), torch.randn(24, 6), torch.randn(24), torch.randn(24))
    args = (x, *weights, h[0], h[1], False, [], 2, 6, 1, True, False, False, False)
    with torch.no_grad():
        assert_close(compute(ONEDNN, *args), aten.mkldnn_rnn_layer(*args), bound=1e-5, skip=(3,))
    none = (x, *weights, h[0], h[1], x, h[0], h[1], None, None, None, False, 2, 6, 1, True)
    found = compute(f"{ONEDNN}_backward", *none, True, False, [], False, x)
    assert found == (None,) * 7


def test_onednn_takes_its_input_time_first_whatever_the_module_says() -> None:
    network = nn.LSTM(5, 6, batch_first=True, bidirectional=True, num_layers=2)
    with Calls(ONEDNN, f"{ONEDNN}_backward") as calls:
        network(torch.randn(3, 4, 5))[0].sum().backward()
    assert len(calls.seen) == 8
    for name, args, _, outputs in calls.seen:
        exact = compute(name, *in_dtype(args, torch.float64))
        assert_close(exact, outputs, bound=1e-5, skip=(3,) if name == ONEDNN else ())


def test_onednn_runs_lstms_only() -> None:
    x, h = torch.randn(4, 3, 5), torch.randn(3, 6)
    with pytest.raises(UnsupportedOpError, match="mode 3"):
        compute(ONEDNN, x, x, x, x, x, h, h, False, [], 3, 6, 1, True, False, False, True)


@dataclass(frozen=True)
class Case:
    """One network and one way to feed it."""

    mode: str
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    packed: bool = False
    proj_size: int = 0

    def __str__(self) -> str:
        return "-".join(str(getattr(self, field.name)) for field in fields(self))

    def network(self) -> nn.RNNBase:
        options = {
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dtype": torch.float64,
        }
        if self.mode == "LSTM":
            return nn.LSTM(5, 4, proj_size=self.proj_size, **options)
        if self.mode == "GRU":
            return nn.GRU(5, 4, **options)
        return nn.RNN(5, 4, nonlinearity=self.mode.removeprefix("RNN_").lower(), **options)

    def arguments(self, sizes: list[int]) -> list[Any]:
        """What follows hx and cx in the forward op, and grad_cy in the backward op."""
        return [
            *(MODES[self.mode], 4, self.proj_size, self.num_layers, self.batch_first),
            *(0.0, True, self.bidirectional, sizes, None),
        ]


CASES = [
    Case(mode, layers, both, bias, first, packed)
    for mode in MODES
    for layers, both, bias, first, packed in [
        (1, False, True, False, False),
        (1, True, False, True, False),
        (2, True, True, False, True),
        (3, False, True, False, False),
        (1, False, False, False, True),
    ]
] + [
    Case("LSTM", 2, True, True, False, False, proj_size=3),
    Case("LSTM", 1, False, False, True, False, proj_size=2),
    Case("LSTM", 2, True, True, False, True, proj_size=3),
]


def run_module(network: nn.RNNBase, x: Any, hx: Tensor, cx: Tensor) -> tuple[Tensor, ...]:
    """Run torch's own composition on the CPU: in float64 it takes no fused op."""
    y, last = network(x, (hx, cx) if network.mode == "LSTM" else hx)
    y = y.data if isinstance(y, PackedSequence) else y
    return (y, *last) if isinstance(last, tuple) else (y, last)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cudnn_reference_is_the_module(case: Case) -> None:
    network = case.network()
    directions = 2 if case.bidirectional else 1
    count, out = directions * case.num_layers, case.proj_size or 4
    hx, cx = (torch.randn(count, 3, n, dtype=torch.float64) for n in (out, 4))
    x = torch.randn(*((3, 6) if case.batch_first else (6, 3)), 5, dtype=torch.float64)
    fed: Any = x
    sizes: list[int] = []
    if case.packed:
        fed = pack_padded_sequence(x, [6, 4, 1])
        x, sizes = fed.data, fed.batch_sizes.tolist()
    lstm = case.mode == "LSTM"
    weights = [w.detach() for w in network._flat_weights]
    stride = len(weights) // count
    rest = case.arguments(sizes)
    y = compute(CUDNN, x, weights, stride, None, hx, cx if lstm else None, *rest)

    leaves = [t.requires_grad_() for t in (x, hx, *([cx] if lstm else []))]
    fed = PackedSequence(x, fed.batch_sizes) if case.packed else x
    wanted = run_module(network, fed, hx, cx)
    assert_close(y[: len(wanted)], wanted, bound=1e-13)
    assert [t.numel() for t in y[len(wanted) :]] == [0] * (5 - len(wanted))

    for given in ((True, True, True), (True, False, False), (False, True, False)):
        dys = [torch.randn_like(t) if g else None for t, g in zip(wanted, given, strict=False)]
        want = gradients(wanted, [*leaves, *network._flat_weights], dys)
        detached = [t.detach() for t in (x, hx, cx)]
        found = compute(
            f"{CUDNN}_backward",
            *(detached[0], weights, stride, y[4], detached[1], detached[2] if lstm else None),
            *(y[0], dys[0], dys[1], dys[2] if lstm else None),
            *rest,
            y[3],
            [True] * 4,
        )
        assert (found[2] is None) == (not lstm)
        flat = [*(d for d in found[:3] if d is not None), *found[3]]
        want = [torch.zeros_like(f) if w is None else w for f, w in zip(flat, want, strict=True)]
        assert_close(flat, want, bound=1e-10)


def test_cudnn_gives_only_the_gradients_that_are_asked_for() -> None:
    case = Case("GRU")
    network = case.network()
    weights = [w.detach() for w in network._flat_weights]
    x, hx = (torch.randn(s, dtype=torch.float64) for s in ((6, 3, 5), (1, 3, 4)))
    rest = case.arguments([])
    y = compute(CUDNN, x, weights, 4, None, hx, None, *rest)
    head = (x, weights, 4, y[4], hx, None, y[0])
    found = compute(
        f"{CUDNN}_backward", *head, y[0], None, None, *rest, y[3], [False, True, False, False]
    )
    assert (found[0], found[2], found[3]) == (None, None, [None] * 4)
    assert found[1].shape == hx.shape
    none = compute(f"{CUDNN}_backward", *head, None, None, None, *rest, y[3], [True] * 4)
    assert none == (None, None, None, [None] * 4)


def test_outputs_have_the_formats_of_the_inputs() -> None:
    case = Case("LSTM", bidirectional=True)
    network = case.network()
    weights = [w.detach().half() for w in network._flat_weights]
    x, hx, cx = (torch.randn(s).half() for s in ((6, 3, 5), (2, 3, 4), (2, 3, 4)))
    rest = case.arguments([])
    y = compute(CUDNN, x, weights, 4, None, hx, cx, *rest)
    assert dtypes(y)[:3] == [torch.float16] * 3
    found = compute(
        f"{CUDNN}_backward", x, weights, 4, y[4], hx, cx, *y[:1], *y[:3], *rest, y[3], [True] * 4
    )
    assert dtypes(found) == [torch.float16] * (3 + len(weights))


def test_dropout_between_layers_is_refused() -> None:
    x, hx = torch.randn(6, 3, 5), torch.randn(2, 3, 4)
    rest = (3, 4, 0, 2, False, 0.5, True, False, [], None)
    with pytest.raises(UnsupportedOpError, match="dropout=0.5"):
        compute(CUDNN, x, [], 4, None, hx, None, *rest)
    with pytest.raises(UnsupportedOpError, match="dropout=0.5"):
        compute(f"{CUDNN}_backward", x, [], 4, x, hx, None, x, x, x, None, *rest, x, [True] * 4)


@pytest.mark.cuda
def test_cuda_kernels() -> None:
    for case in CASES:
        compare_with_cudnn(case)


def compare_with_cudnn(case: Case) -> None:
    network = case.network().cuda()
    x: Any = torch.randn(*((3, 6) if case.batch_first else (6, 3)), 5).cuda().double()
    x = pack_padded_sequence(x.requires_grad_(), [6, 4, 1]) if case.packed else x.requires_grad_()
    with Calls(CUDNN, f"{CUDNN}_backward") as calls:
        y = network(x)[0]
        (y.data if case.packed else y).square().sum().backward()
    assert len(calls.seen) == 2
    for name, args, _, outputs in calls.seen:
        skip = (3, 4) if name == CUDNN else ()
        assert_close(compute(name, *args), outputs, bound=1e-10, skip=skip)
