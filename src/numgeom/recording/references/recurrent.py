"""What does one recurrent layer compute, and what is its gradient?

A layer steps a cell (see `cells`) through time, forwards or in reverse. In a packed batch the
sequences are sorted by length, longest first: at time t only the first `batch_sizes[t]` of them
are still running, and the others keep their state. The gradient goes through the same steps
backwards and collects, with A and B the gates of all steps,

    dx = dA W_ih,   dW_ih = dA^T x,   dW_hh = dB^T h,   db_ih = sum dA,   db_hh = sum dB.

(Werbos 1990, Backpropagation through time.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.recording.references.cells import Cell, Saved, State


@dataclass(frozen=True)
class Weights:
    """Weights of one layer in one direction.

    Attributes:
        input: W_ih, shape [gates, inputs].
        hidden: W_hh, shape [gates, size of the hidden state].
        input_bias: b_ih, shape [gates].
        hidden_bias: b_hh, shape [gates].
        projection: W_hr, shape [size of the hidden state, size of the cell state].
    """

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    projection: Tensor | None

    def as_given(self) -> list[Tensor]:
        """List those that exist, in the order in which torch lists them."""
        every = (self.input, self.hidden, self.input_bias, self.hidden_bias, self.projection)
        return [weight for weight in every if weight is not None]


@dataclass(frozen=True)
class Step:
    """What the gradient of one time step needs: its time, its running sequences, its values."""

    time: int
    running: int
    hidden: Tensor
    saved: Saved
    unprojected: Tensor


@dataclass(frozen=True)
class Layer:
    """One layer in one direction.

    Attributes:
        cell: Its time step.
        weights: Its weights.
        reverse: Whether time runs backwards.
        batch_sizes: How many sequences run at each time.
    """

    cell: Cell
    weights: Weights
    reverse: bool
    batch_sizes: Sequence[int]

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State, list[Step]]:
        """Step through time.

        Args:
            x: Inputs of all times one after the other, shape [sum of batch sizes, inputs].
            state: Hidden and cell state before the first step, shape [batch, size] each.

        Returns:
            Hidden states after each step, laid out like x; the last state; the steps taken.
        """
        weights = self.weights
        gates = torch.nn.functional.linear(x, weights.input, weights.input_bias)
        gates_by_time = gates.split(list(self.batch_sizes))
        outputs: dict[int, Tensor] = {}
        steps: list[Step] = []
        for time in self._times():
            running = self.batch_sizes[time]
            before = _head(state, running)
            b = torch.nn.functional.linear(before[0], weights.hidden, weights.hidden_bias)
            (h, c), saved = self.cell.forward(gates_by_time[time], b, before)
            steps.append(Step(time, running, before[0], saved, h))
            outputs[time] = h if weights.projection is None else h @ weights.projection.mT
            state = _replace_head(state, (outputs[time], c))
        return torch.cat([outputs[time] for time in sorted(outputs)]), state, steps

    def backward(
        self, x: Tensor, steps: list[Step], dy: Tensor, dstate: State
    ) -> tuple[Tensor, State, Weights]:
        """Step back through time.

        Args:
            x: As in `forward`.
            steps: What `forward` returned.
            dy: Gradient of its first result.
            dstate: Gradient of its second result.

        Returns:
            Gradients of x, of the state before the first step, and of the weights.
        """
        weights = self.weights
        dy_by_time = dy.split(list(self.batch_sizes))
        da, db, dh_by_time = {}, {}, {}
        for step in reversed(steps):
            dh, dc = _head(dstate, step.running)
            dh = dh_by_time[step.time] = dh + dy_by_time[step.time]
            dh = dh if weights.projection is None else dh @ weights.projection
            da[step.time], db[step.time], (passed_dh, passed_dc) = self.cell.backward(
                (dh, dc), step.saved
            )
            dh = db[step.time] @ weights.hidden
            dh = dh if passed_dh is None else dh + passed_dh
            dstate = _replace_head(dstate, (dh, passed_dc))
        times = range(len(self.batch_sizes))
        by_time = {step.time: step for step in steps}
        da, db = (torch.cat([gates[time] for time in times]) for gates in (da, db))
        projection = weights.projection
        if projection is not None:
            dh = torch.cat([dh_by_time[time] for time in times])
            projection = dh.mT @ torch.cat([by_time[time].unprojected for time in times])
        dweights = Weights(
            input=da.mT @ x,
            hidden=db.mT @ torch.cat([by_time[time].hidden for time in times]),
            input_bias=None if weights.input_bias is None else da.sum(0),
            hidden_bias=None if weights.hidden_bias is None else db.sum(0),
            projection=projection,
        )
        return da @ weights.input, dstate, dweights

    def _times(self) -> range:
        times = range(len(self.batch_sizes))
        return times[::-1] if self.reverse else times


def _head(state: State, running: int) -> State:
    h, c = state
    return h[:running], None if c is None else c[:running]


def _replace_head(state: State, head: State) -> State:
    (h, c), (new_h, new_c) = state, head
    h = new_h if len(new_h) == len(h) else torch.cat([new_h, h[len(new_h) :]])
    if c is None or new_c is None:
        return h, None
    return h, new_c if len(new_c) == len(c) else torch.cat([new_c, c[len(new_c) :]])
