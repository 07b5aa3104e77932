"""What does one time step of a recurrent network compute, and what is its gradient?

With a = x W_ih^T + b_ih the gates of the input, b = h W_hh^T + b_hh those of the hidden state h,
sigma the logistic function and * the product by entries:

    LSTM    i, f, o = sigma(a + b),  g = tanh(a + b),  c' = f * c + i * g,  h' = o * tanh(c')
    GRU     r, z = sigma(a + b),  n = tanh(a_n + r * b_n),  h' = n + z * (h - n)
    RNN     h' = tanh(a + b)  or  relu(a + b)

in the order i, f, g, o and r, z, n of the gates. (Hochreiter and Schmidhuber 1997, with the forget
gates of Gers et al. 2000; Cho et al. 2014, with the reset gate after the product; the documentation
of torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN.)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.recording.references.entry import Definition, widen, widen_optional

Saved = tuple[Tensor, ...]
State = tuple[Tensor, Tensor | None]  # hidden state; cell state, LSTM only


@dataclass(frozen=True)
class Cell:
    """One time step and its vector-Jacobian product.

    Attributes:
        forward: (a, b, state) -> (next state, what `backward` needs).
        backward: (gradients of the next state, saved) -> (da, db, gradients of the state; the one
            of h leaves out what passes through b, None if that is all).
    """

    forward: Callable[[Tensor, Tensor, State], tuple[State, Saved]]
    backward: Callable[[State, Saved], tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]]


def _lstm(a: Tensor, b: Tensor, state: State) -> tuple[State, Saved]:
    c = _given(state[1])
    i, f, g, o = (a + b).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    next_c = f * c + i * g
    return (o * next_c.tanh(), next_c), (i, f, g, o, c, next_c)


def _lstm_backward(
    dstate: State, saved: Saved
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    i, f, g, o, c, next_c = saved
    dh, dc = dstate[0], _given(dstate[1])
    squashed = next_c.tanh()
    dc = dc + dh * o * (1 - squashed * squashed)
    di = dc * g * i * (1 - i)
    df = dc * c * f * (1 - f)
    dg = dc * i * (1 - g * g)
    do = dh * squashed * o * (1 - o)
    dgates = torch.cat([di, df, dg, do], dim=-1)
    return dgates, dgates, (None, dc * f)


def _gru(a: Tensor, b: Tensor, state: State) -> tuple[State, Saved]:
    h = state[0]
    a_r, a_z, a_n = a.chunk(3, dim=-1)
    b_r, b_z, b_n = b.chunk(3, dim=-1)
    r, z = (a_r + b_r).sigmoid(), (a_z + b_z).sigmoid()
    n = (a_n + r * b_n).tanh()
    return (n + z * (h - n), None), (r, z, n, h, b_n)


def _gru_backward(
    dstate: State, saved: Saved
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    r, z, n, h, b_n = saved
    dh = dstate[0]
    dn = dh * (1 - z) * (1 - n * n)
    dr = dn * b_n * r * (1 - r)
    dz = dh * (h - n) * z * (1 - z)
    da, db = torch.cat([dr, dz, dn], dim=-1), torch.cat([dr, dz, dn * r], dim=-1)
    return da, db, (dh * z, None)


def _tanh(a: Tensor, b: Tensor, state: State) -> tuple[State, Saved]:
    del state
    h = (a + b).tanh()
    return (h, None), (h,)


def _tanh_backward(
    dstate: State, saved: Saved
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    dgates = dstate[0] * (1 - saved[0] * saved[0])
    return dgates, dgates, (None, None)


def _relu(a: Tensor, b: Tensor, state: State) -> tuple[State, Saved]:
    del state
    h = (a + b).relu()
    return (h, None), (h,)


def _relu_backward(
    dstate: State, saved: Saved
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    dgates = torch.ops.aten.threshold_backward.default(dstate[0], saved[0], 0)
    return dgates, dgates, (None, None)


def _given(c: Tensor | None) -> Tensor:
    if c is None:
        raise ValueError("an LSTM needs a cell state; please report this")
    return c


# Keys: the modes of cuDNN, cudnnRNNMode_t; oneDNN's op uses the same numbers.
RELU, TANH, LSTM, GRU = range(4)
CELLS: Mapping[int, Cell] = {
    RELU: Cell(_relu, _relu_backward),
    TANH: Cell(_tanh, _tanh_backward),
    LSTM: Cell(_lstm, _lstm_backward),
    GRU: Cell(_gru, _gru_backward),
}


# The fused cells of CUDA. Their workspaces hold i, f, g, o and r, z, n, h, b_n, side by side.


def _fused_lstm_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    cx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    a, b = _biased(input_gates, input_bias), _biased(hidden_gates, hidden_bias)
    (h, c), (i, f, g, o, *_) = _lstm(a, b, (cx, widen(cx)))
    workspace = torch.cat([i, f, g, o], dim=-1)
    return h.to(cx.dtype), _given(c).to(cx.dtype), workspace.to(input_gates.dtype)


def _fused_lstm_cell_backward_impl(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    cy: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if grad_hy is None and grad_cy is None:
        return None, None, None
    dh, dc = (torch.zeros_like(cx) if dy is None else dy for dy in (grad_hy, grad_cy))
    i, f, g, o = widen(workspace).chunk(4, dim=-1)
    saved = (i, f, g, o, widen(cx), widen(cy))
    dgates, _, (_, dcx) = _lstm_backward((widen(dh), widen(dc)), saved)
    dgates = dgates.to(workspace.dtype)
    return dgates, _given(dcx).to(cx.dtype), dgates.sum(0) if has_bias else None


def _fused_lstm_cell_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    cy: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor | None, ...]:
    dgates, dcx, dbias = _fused_lstm_cell_backward_impl(
        grad_hy, grad_cy, cx, cy, workspace, has_bias
    )
    return dgates, dgates, dcx, dbias, dbias


def _fused_gru_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    hx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    a, b = _biased(input_gates, input_bias), _biased(hidden_gates, hidden_bias)
    (h, _), saved = _gru(a, b, (widen(hx), None))
    return h.to(hx.dtype), torch.cat(saved, dim=-1).to(hx.dtype)


def _fused_gru_cell_backward(
    grad_hy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor | None, ...]:
    saved = widen(workspace).chunk(5, dim=-1)
    da, db, (dhx, _) = _gru_backward((widen(grad_hy), None), saved)
    da, db, dhx = (dx.to(workspace.dtype) for dx in (da, db, _given(dhx)))
    return da, db, dhx, da.sum(0) if has_bias else None, db.sum(0) if has_bias else None


def _biased(gates: Tensor, bias: Tensor | None) -> Tensor:
    bias = widen_optional(bias)
    return widen(gates) if bias is None else widen(gates) + bias


_SOURCE = "torch.nn.LSTMCell and torch.nn.GRUCell documentation; Gers et al. 2000; Cho et al. 2014"
DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::_thnn_fused_lstm_cell", _fused_lstm_cell, _SOURCE),
    Definition(
        "aten::_thnn_fused_lstm_cell_backward_impl", _fused_lstm_cell_backward_impl, _SOURCE
    ),
    Definition("aten::_thnn_fused_lstm_cell_backward", _fused_lstm_cell_backward, _SOURCE),
    Definition("aten::_thnn_fused_gru_cell", _fused_gru_cell, _SOURCE),
    Definition("aten::_thnn_fused_gru_cell_backward", _fused_gru_cell_backward, _SOURCE),
)
