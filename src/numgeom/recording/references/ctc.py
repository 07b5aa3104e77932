"""What is the loss of connectionist temporal classification, and what is its gradient?

With the label sequence l of length S, l' = (blank, l_1, blank, l_2, ..., blank) of length 2 S + 1,
and x_tc the log probabilities, the forward and backward variables are

    a_t(s) = x_t,l'(s) + log(e^a_{t-1}(s) + e^a_{t-1}(s-1) + e^a_{t-1}(s-2)),
    b_t(s) = x_t,l'(s) + log(e^b_{t+1}(s) + e^b_{t+1}(s+1) + e^b_{t+1}(s+2)),

the third term only where l'(s) is no blank and differs from the label two places away; the loss is
y = -log(e^a_T(2S) + e^a_T(2S+1)), and its gradient, for log probabilities that stand for a softmax,

    dx_tc = e^x_tc - e^(log(sum over s with l'(s) = c of e^(a_t(s) + b_t(s))) + y - x_tc).

(Graves and others 2006, eq. 6 to 16.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.recording.references.entry import Definition
from numgeom.recording.references.freedom import declared, free

_SOURCE = "Graves and others 2006, eq. 6 to 16"
_NEVER = -torch.inf


@dataclass(frozen=True)
class _Labels:
    """The label sequences of a batch, with blanks between, padded to one length.

    Attributes:
        extended: l', [batch, 2 S + 1].
        length: 2 S + 1 of each sequence, [batch, 1].
        skips: Whether s may come from s - 2.
        steps: How many steps of the input count, [batch, 1].
    """

    extended: Tensor
    length: Tensor
    skips: Tensor
    steps: Tensor


def _as_tensor(lengths: Tensor | Sequence[int], like: Tensor) -> Tensor:
    if isinstance(lengths, Tensor):
        return lengths.to(device=like.device, dtype=torch.int64)
    return torch.tensor(lengths, device=like.device, dtype=torch.int64)


def _labels(
    x: Tensor,
    targets: Tensor,
    steps: Tensor | Sequence[int],
    lengths: Tensor | Sequence[int],
    blank: int,
    width: int,
) -> _Labels:
    """Read the labels; `width` is the length of the longest sequence."""
    count = _as_tensor(lengths, x)
    places = torch.arange(width, device=x.device).unsqueeze(0)
    if targets.dim() == 1:  # all sequences, laid end to end
        starts = (torch.cumsum(count, 0) - count).unsqueeze(1)
        last = max(targets.numel() - 1, 0)
        padded = targets[(starts + places).clamp(0, last)] if targets.numel() else places + starts
    else:
        padded = targets[:, :width]
    padded = torch.where(places < count.unsqueeze(1), padded.to(torch.int64), blank)
    blanks = torch.full_like(padded, blank)
    extended = torch.stack([blanks, padded], 2).flatten(1)
    extended = torch.cat([extended, torch.full_like(extended[:, :1], blank)], 1)
    earlier = torch.cat([extended[:, :2] * 0 + blank, extended[:, :-2]], 1)[:, : 2 * width + 1]
    skips = (extended != blank) & (extended != earlier)
    return _Labels(extended, 2 * count.unsqueeze(1) + 1, skips, _as_tensor(steps, x).unsqueeze(1))


def _log_sum(*terms: Tensor) -> Tensor:
    """log(sum exp), -inf where all terms are; the largest term, taken out, is a constant."""
    with free():  # over the reals what is taken out of a logarithm is put back
        largest = terms[0]
        for term in terms[1:]:
            largest = torch.maximum(largest, term)
        largest = torch.where(torch.isinf(largest), 0.0, largest)
    declared(largest)
    total = torch.exp(terms[0] - largest)
    for term in terms[1:]:
        total = total + torch.exp(term - largest)
    return _log_of(total) + largest


def _log_of(total: Tensor) -> Tensor:
    """The logarithm, with -inf at 0 as a constant."""
    some = total != 0
    return torch.where(some, torch.log(torch.where(some, total, 1.0)), _NEVER)


def _shifted(a: Tensor, by: int) -> Tensor:
    """Entries moved to the right (or to the left, by < 0), -inf where none come from."""
    pad = (by, 0) if by > 0 else (0, -by)
    moved = torch.nn.functional.pad(a, pad, value=_NEVER)
    return moved[:, : a.size(1)] if by > 0 else moved[:, -by:]


def _loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[Tensor, Tensor]:
    del zero_infinity  # told to the backward pass; the loss is set to 0 by another op
    width = int(_as_tensor(target_lengths, log_probs).max())
    labels = _labels(log_probs, targets, input_lengths, target_lengths, blank, width)
    places = torch.arange(2 * width + 1, device=log_probs.device).unsqueeze(0)
    exists = places < labels.length
    a = torch.where((places < 2) & exists, _scores(log_probs, 0, labels), _NEVER)
    rows = [a]
    for t in range(1, log_probs.size(0)):
        third = torch.where(labels.skips, _shifted(a, 2), _NEVER)
        total = _log_sum(a, _shifted(a, 1), third) + _scores(log_probs, t, labels)
        a = torch.where(exists & (labels.steps > t), total, _NEVER)
        rows.append(a)
    every = torch.stack(rows, 1)
    at_end = (labels.steps - 1).clamp_min(0).unsqueeze(2).expand(-1, 1, every.size(2))
    final = every.gather(1, at_end).squeeze(1)
    last = final.gather(1, labels.length - 1).squeeze(1)
    before = final.gather(1, (labels.length - 2).clamp_min(0)).squeeze(1)
    before = torch.where(labels.length.squeeze(1) > 1, before, _NEVER)
    return -_log_sum(last, before), every


def _scores(x: Tensor, t: int, labels: _Labels) -> Tensor:
    """x_t,l'(s) for all s."""
    return x[t].gather(1, labels.extended)


def _gradient(
    grad: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    neg_log_likelihood: Tensor,
    log_alpha: Tensor,
    blank: int,
    zero_infinity: bool = False,
) -> Tensor:
    width = (log_alpha.size(2) - 1) // 2
    labels = _labels(log_probs, targets, input_lengths, target_lengths, blank, width)
    places = torch.arange(2 * width + 1, device=log_probs.device).unsqueeze(0)
    exists = places < labels.length
    ends = exists & (places >= labels.length - 2)
    later = torch.nn.functional.pad(labels.skips, (0, 2))[:, 2:]
    b = torch.full_like(log_alpha[:, 0], _NEVER)
    rows = []
    y = neg_log_likelihood.unsqueeze(1)
    for t in reversed(range(log_probs.size(0))):
        scores = _scores(log_probs, t, labels)
        third = torch.where(later, _shifted(b, -2), _NEVER)
        going = _log_sum(b, _shifted(b, -1), third) + scores
        b = torch.where(labels.steps - 1 == t, torch.where(ends, scores, _NEVER), going)
        b = torch.where(exists & (labels.steps > t), b, _NEVER)
        # Where no path ends well, a kernel's forward variables may be memory as it was.
        paths = torch.where(b == _NEVER, _NEVER, log_alpha[:, t] + b)
        rows.append(_row(log_probs[t], paths, labels, y) * grad.unsqueeze(1))
        rows[-1] = torch.where(labels.steps > t, rows[-1], 0.0)
    dx = torch.stack(rows[::-1], 0)
    if zero_infinity:
        dx = torch.where(torch.isinf(y), 0.0, dx)
    return dx


def _row(x: Tensor, paths: Tensor, labels: _Labels, y: Tensor) -> Tensor:
    """e^x - e^(log(sum of paths through each label) + y - x), for one step."""
    with free():  # over the reals what is taken out of a logarithm is put back
        largest = paths.amax(1, keepdim=True)
        largest = torch.where(torch.isinf(largest), 0.0, largest)
    declared(largest)
    sums = torch.zeros_like(x).scatter_add(1, labels.extended, torch.exp(paths - largest))
    return torch.exp(x) - sums * torch.exp(largest + y - x)


DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::_ctc_loss", _loss, _SOURCE, True),
    Definition("aten::_ctc_loss.Tensor", _loss, _SOURCE, True),
    Definition("aten::_ctc_loss_backward", _gradient, _SOURCE, True),
    Definition("aten::_ctc_loss_backward.Tensor", _gradient, _SOURCE, True),
)
