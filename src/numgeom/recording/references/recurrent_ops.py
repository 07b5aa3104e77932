"""Which recurrent network does each fused op of oneDNN and cuDNN compute?

oneDNN's op is one layer of an LSTM in one direction; cuDNN's a whole stack of layers. Their
backward ops repeat the forward steps, since what the kernels saved cannot be read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.cells import CELLS, LSTM, State
from numgeom.recording.references.entry import Definition, widen
from numgeom.recording.references.recurrent import Layer, Step, Weights

# oneDNN. Its input is [time, batch, inputs], whatever `batch_first` says of the user's.


def _onednn_layer(
    x: Tensor, weights: Sequence[Tensor], *, reverse: bool, mode: int, has_biases: bool
) -> Layer:
    if mode != LSTM:
        raise UnsupportedOpError(
            f"mkldnn_rnn_layer has no reference for mode {mode}: torch runs only LSTMs (mode "
            f"{LSTM}) through this op. Disable it with torch.backends.mkldnn.flags(enabled=False)."
        )
    w_ih, w_hh, b_ih, b_hh = (widen(weight) for weight in weights)
    if not has_biases:  # then torch passes zeros of another shape
        b_ih = b_hh = w_ih.new_zeros(w_ih.size(0))
    sizes = [x.size(1)] * x.size(0)
    return Layer(CELLS[mode], Weights(w_ih, w_hh, b_ih, b_hh, None), reverse, sizes)


def _onednn(
    input: Tensor,
    weight0: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    weight3: Tensor,
    hx_: Tensor,
    cx_: Tensor,
    reverse: bool,
    batch_sizes: Sequence[int],
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del batch_sizes, hidden_size, num_layers, bidirectional, batch_first, train
    weights = (weight0, weight1, weight2, weight3)
    layer = _onednn_layer(input, weights, reverse=reverse, mode=mode, has_biases=has_biases)
    y, (h, c), _ = layer.forward(widen(input).flatten(0, 1), (widen(hx_), widen(cx_)))
    workspace = torch.empty(0, dtype=torch.uint8, device=input.device)
    y = y.unflatten(0, input.shape[:2])
    return y.to(input.dtype), h.to(hx_.dtype), _given(c).to(cx_.dtype), workspace


def _onednn_backward(
    input: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    weight3: Tensor,
    weight4: Tensor,
    hx_: Tensor,
    cx_tmp: Tensor,
    output: Tensor,
    hy_: Tensor,
    cy_: Tensor,
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    reverse: bool,
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    batch_first: bool,
    workspace: Tensor,
) -> tuple[Tensor | None, ...]:
    del hidden_size, num_layers, train, bidirectional, batch_sizes, batch_first, workspace
    if grad_output is None and grad_hy is None and grad_cy is None:
        return (None,) * 7
    weights = (weight1, weight2, weight3, weight4)
    layer = _onednn_layer(input, weights, reverse=reverse, mode=mode, has_biases=has_biases)
    x = widen(input).flatten(0, 1)
    steps = layer.forward(x, (widen(hx_), widen(cx_tmp)))[2]
    dy = _or_zeros(grad_output, output).flatten(0, 1)
    dstate = _or_zeros(grad_hy, hy_), _or_zeros(grad_cy, cy_)
    dx, (dh, dc), dweights = layer.backward(x, steps, dy, dstate)
    dx = dx.unflatten(0, input.shape[:2])
    gradients = (dx, *dweights.as_given(), dh, _given(dc))
    likes = (input, *weights, hx_, cx_tmp)
    return tuple(d.to(like.dtype) for d, like in zip(gradients, likes, strict=True))


# cuDNN.


def _cudnn(
    input: Tensor,
    weight: Sequence[Tensor],
    weight_stride0: int,
    weight_buf: Tensor | None,
    hx: Tensor,
    cx: Tensor | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del weight_buf, hidden_size, proj_size, dropout_state  # the buffer repeats the weights
    _refuse_dropout("_cudnn_rnn", dropout, num_layers=num_layers, train=train)
    x, sizes = _by_time(input, batch_sizes, batch_first=batch_first)
    layers = _layers(weight, weight_stride0, mode, sizes, directions=2 if bidirectional else 1)
    y, states, _ = _run(layers, x, _states(hx, cx))
    h = torch.stack([state[0] for state in states]).to(hx.dtype)
    nothing = torch.empty(0, dtype=torch.uint8, device=input.device)
    c = hx.new_empty(0) if cx is None else torch.stack([_given(c) for _, c in states]).to(cx.dtype)
    y = _as_input(y, input, batch_sizes, batch_first=batch_first).to(input.dtype)
    return y, h, c, nothing, nothing


def _cudnn_backward(
    input: Tensor,
    weight: Sequence[Tensor],
    weight_stride0: int,
    weight_buf: Tensor,
    hx: Tensor,
    cx: Tensor | None,
    output: Tensor,
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: Tensor | None,
    reserve: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    del weight_buf, hidden_size, proj_size, dropout_state, reserve
    _refuse_dropout("_cudnn_rnn_backward", dropout, num_layers=num_layers, train=train)
    if grad_output is None and grad_hy is None and grad_cy is None:
        return None, None, None, [None] * len(weight)
    directions = 2 if bidirectional else 1
    x, sizes = _by_time(input, batch_sizes, batch_first=batch_first)
    layers = _layers(weight, weight_stride0, mode, sizes, directions=directions)
    _, _, traces = _run(layers, x, _states(hx, cx))
    dy, _ = _by_time(_or_zeros(grad_output, output), batch_sizes, batch_first=batch_first)
    dcx = None if cx is None else _or_zeros(grad_cy, cx)
    dstates = _states(_or_zeros(grad_hy, hx), dcx)
    dweights: list[Tensor] = []
    for level in reversed(range(len(layers))):
        x, trace = traces[level]
        first = level * directions
        parts = [
            layer.backward(x, steps, part, dstates[first + direction])
            for direction, (layer, steps, part) in enumerate(
                zip(layers[level], trace, dy.chunk(directions, dim=-1), strict=True)
            )
        ]
        dy = parts[0][0] if directions == 1 else parts[0][0] + parts[1][0]
        dstates[first : first + directions] = [state for _, state, _ in parts]
        dweights = [w for _, _, given in parts for w in given.as_given()] + dweights
    dx = _as_input(dy, input, batch_sizes, batch_first=batch_first).to(input.dtype)
    dh = torch.stack([h for h, _ in dstates]).to(hx.dtype)
    dc = None if cx is None else torch.stack([_given(c) for _, c in dstates]).to(cx.dtype)
    cast = [d.to(w.dtype) for d, w in zip(dweights, weight, strict=True)]
    return (
        dx if output_mask[0] else None,
        dh if output_mask[1] else None,
        dc if output_mask[2] else None,
        [*cast] if output_mask[3] else [None] * len(weight),
    )


Trace = tuple[Tensor, list[list[Step]]]  # the input of a level; the steps of each direction


def _run(
    layers: list[list[Layer]], x: Tensor, states: list[State]
) -> tuple[Tensor, list[State], list[Trace]]:
    """Run levels of layers, each level's outputs side by side the next one's input."""
    traces: list[Trace] = []
    last: list[State] = []
    for level in layers:
        parts = [layer.forward(x, states[len(last) + i]) for i, layer in enumerate(level)]
        traces.append((x, [steps for _, _, steps in parts]))
        last += [state for _, state, _ in parts]
        x = parts[0][0] if len(parts) == 1 else torch.cat([y for y, _, _ in parts], dim=-1)
    return x, last, traces


def _layers(
    weight: Sequence[Tensor], stride: int, mode: int, sizes: Sequence[int], *, directions: int
) -> list[list[Layer]]:
    """Group the flat list of weights by level and direction."""
    layers = [
        Layer(CELLS[mode], _weights(weight[i : i + stride]), (i // stride) % directions == 1, sizes)
        for i in range(0, len(weight), stride)
    ]
    return [layers[i : i + directions] for i in range(0, len(layers), directions)]


def _weights(given: Sequence[Tensor]) -> Weights:
    """Name what cuDNN lists: W_ih, W_hh, then both biases or none, then W_hr or not."""
    w_ih, w_hh, *rest = (widen(weight) for weight in given)
    projection = rest.pop() if len(rest) % 2 else None
    b_ih, b_hh = rest if rest else (None, None)
    return Weights(w_ih, w_hh, b_ih, b_hh, projection)


def _states(hx: Tensor, cx: Tensor | None) -> list[State]:
    cells = [None] * hx.size(0) if cx is None else widen(cx).unbind(0)
    return list(zip(widen(hx).unbind(0), cells, strict=True))


def _by_time(
    x: Tensor, batch_sizes: Sequence[int], *, batch_first: bool
) -> tuple[Tensor, Sequence[int]]:
    """Lay all times one after the other; say how many sequences run at each."""
    x = widen(x)
    if batch_sizes:
        return x, batch_sizes
    x = x.transpose(0, 1) if batch_first else x
    return x.flatten(0, 1), [x.size(1)] * x.size(0)


def _as_input(y: Tensor, x: Tensor, batch_sizes: Sequence[int], *, batch_first: bool) -> Tensor:
    """Undo `_by_time` for a result that belongs to the input x."""
    if batch_sizes:
        return y
    if batch_first:
        return y.unflatten(0, (x.size(1), x.size(0))).transpose(0, 1)
    return y.unflatten(0, x.shape[:2])


def _or_zeros(dy: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(widen(like)) if dy is None else widen(dy)


def _given(c: Tensor | None) -> Tensor:
    if c is None:
        raise ValueError("an LSTM lost its cell state; please report this")
    return c


def _refuse_dropout(op: str, dropout: float, *, num_layers: int, train: bool) -> None:
    if dropout > 0 and train and num_layers > 1:
        raise UnsupportedOpError(
            f"{op} drops activations between its layers (dropout={dropout}) with a random mask "
            "that stays inside the kernel, so the step cannot be computed again. Set the "
            "network's dropout to 0, or run it under torch.backends.cudnn.flags(enabled=False)."
        )


_SOURCE = "torch.nn.LSTM, GRU and RNN documentation; Werbos 1990"
DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::mkldnn_rnn_layer", _onednn, _SOURCE),
    Definition("aten::mkldnn_rnn_layer_backward", _onednn_backward, _SOURCE),
    Definition("aten::_cudnn_rnn", _cudnn, _SOURCE),
    Definition("aten::_cudnn_rnn_backward", _cudnn_backward, _SOURCE),
)
