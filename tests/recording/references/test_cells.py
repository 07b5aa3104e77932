"""Do the references of the fused recurrent cells step as `torch.lstm_cell` and `gru_cell` do?"""

import pytest
import torch
from torch import Tensor

from tests.recording.references.agreement import assert_close, compute, dtypes, gradients

aten = torch.ops.aten
LSTM = "aten::_thnn_fused_lstm_cell"
GRU = "aten::_thnn_fused_gru_cell"
SIZES = [(3, 4), (1, 1), (7, 5)]  # batch, size of the state


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("batch", "size"), SIZES)
def test_lstm_cell(batch: int, size: int, biases: bool) -> None:
    # As many inputs as gates, so that the gradient of the inputs tells that of the gates.
    x, h, c, w_ih, w_hh = draw(
        (batch, 4 * size), (batch, size), (batch, size), (4 * size, 4 * size), (4 * size, size)
    )
    bias = draw((4 * size,), (4 * size,)) if biases else [None, None]
    wanted = torch.lstm_cell(x, (h, c), w_ih, w_hh, *bias)
    gates = (x @ w_ih.mT).detach(), (h @ w_hh.mT).detach()
    plain_bias = [None if b is None else b.detach() for b in bias]
    hy, cy, workspace = compute(LSTM, *gates, c.detach(), *plain_bias)
    assert_close((hy, cy), wanted, bound=1e-13)
    for given in ((True, True), (True, False), (False, True)):
        dstate = [torch.randn_like(hy) if wants else None for wants in given]
        saved = (*dstate, c.detach(), cy, workspace, biases)
        dgates, dcx, dbias = compute(f"{LSTM}_backward_impl", *saved)
        want = gradients(wanted, [x, h, c, *(b for b in bias if b is not None)], dstate)
        found = [dgates @ w_ih, dgates @ w_hh, dcx, *([dbias, dbias] if biases else [])]
        assert_close(found, want, bound=1e-10)
        assert (dbias is None) == (not biases)
        whole = compute(f"{LSTM}_backward", *saved)
        assert_close(whole, (dgates, dgates, dcx, dbias, dbias), bound=0)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("batch", "size"), SIZES)
def test_gru_cell(batch: int, size: int, biases: bool) -> None:
    x, h, w_ih, w_hh = draw(
        (batch, 3 * size), (batch, size), (3 * size, 3 * size), (3 * size, size)
    )
    bias = draw((3 * size,), (3 * size,)) if biases else [None, None]
    wanted = torch.gru_cell(x, h, w_ih, w_hh, *bias)
    gates = (x @ w_ih.mT).detach(), (h @ w_hh.mT).detach()
    plain_bias = [None if b is None else b.detach() for b in bias]
    hy, workspace = compute(GRU, *gates, h.detach(), *plain_bias)
    assert_close(hy, wanted, bound=1e-13)
    dhy = torch.randn_like(hy)
    da, db, dhx, *dbias = compute(f"{GRU}_backward", dhy, workspace, biases)
    want = gradients([wanted], [x, h, *(b for b in bias if b is not None)], [dhy])
    found = [da @ w_ih, db @ w_hh + dhx, *(b for b in dbias if b is not None)]
    assert_close(found, want, bound=1e-10)


def test_without_an_incoming_gradient_there_is_none() -> None:
    state, gates = torch.ones(2, 3), torch.ones(2, 12)
    found = compute(f"{LSTM}_backward_impl", None, None, state, state, gates, True)
    assert found == (None, None, None)
    assert compute(f"{LSTM}_backward", None, None, state, state, gates, True) == (None,) * 5


def test_outputs_are_laid_out_as_those_of_the_kernel() -> None:
    a, b, c, bias = (torch.randn(s).bfloat16() for s in ((3, 24), (3, 24), (3, 6), (24,)))
    ours = compute(LSTM, a, b, c, bias, bias)
    kernel = aten._thnn_fused_lstm_cell(*(x.to("meta") for x in (a, b, c, bias, bias)))
    assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in kernel]
    saved = (c, c, c, ours[1], ours[2])
    back = compute(f"{LSTM}_backward_impl", *saved, True)
    kernel = aten._thnn_fused_lstm_cell_backward_impl(*(x.to("meta") for x in saved), True)
    assert [(x.shape, x.dtype) for x in back] == [(x.shape, x.dtype) for x in kernel]
    gru = compute(GRU, a[:, :18], b[:, :18], c, bias[:18], bias[:18])
    assert dtypes(gru) == [torch.bfloat16, torch.bfloat16]
    assert dtypes(compute(f"{GRU}_backward", c, gru[1], True)) == [torch.bfloat16] * 5


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_cuda_kernels(dtype: torch.dtype) -> None:
    def on_cuda(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    bound = 64 * torch.finfo(dtype).eps
    a, b, c = on_cuda(3, 24), on_cuda(3, 24), on_cuda(3, 6)
    bias = on_cuda(24), on_cuda(24)
    kernel = aten._thnn_fused_lstm_cell(a, b, c, *bias)
    wide = [x.double() for x in (a, b, c, *bias)]
    assert_close(compute(LSTM, *wide), kernel, bound=bound)
    saved = (on_cuda(3, 6), on_cuda(3, 6), c, kernel[1], kernel[2])
    found = compute(f"{LSTM}_backward_impl", *(x.double() for x in saved), True)
    assert_close(found, aten._thnn_fused_lstm_cell_backward_impl(*saved, True), bound=bound)
    a, b = on_cuda(3, 18), on_cuda(3, 18)
    kernel = aten._thnn_fused_gru_cell(a, b, c)
    assert_close(compute(GRU, a.double(), b.double(), c.double()), kernel, bound=bound)
    dy = on_cuda(3, 6)
    found = compute(f"{GRU}_backward", dy.double(), kernel[1].double(), True)
    assert_close(found, aten._thnn_fused_gru_cell_backward(dy, kernel[1], True), bound=bound)
