"""Small training steps that call ops which few models call.

`ZOO` gives, by name, the shapes of the parameters and a loss; `program(name)` records the step and
opens it. Between them the entries call every op of `coverage_list` that the workloads of the
recording tests leave out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from numgeom.recording import Program, record

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A loss of a few drawn parameters.

    Attributes:
        shapes: Shapes of the parameters.
        loss: The loss, given the parameters.
        make: Turns what was drawn from the normal distribution into the parameters.
    """

    shapes: tuple[Shape, ...]
    loss: Callable[..., Tensor]
    make: Callable[[Tensor], Tensor] = field(default=lambda x: x)


class Holder(nn.Module):
    """A model that is nothing but its parameters."""

    def __init__(self, step: Step, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        drawn = [step.make(torch.randn(shape, generator=g)) for shape in step.shapes]
        self.values = nn.ParameterList([nn.Parameter(x) for x in drawn])
        self.step = step

    def forward(self) -> Tensor:
        return self.step.loss(*self.values)


def record_zoo(name: str, seed: int = 0) -> Program:
    """The recorded step."""
    model = Holder(ZOO[name], seed)
    torch.manual_seed(seed)
    with record(model) as recording:
        model().backward()
    return recording.program


def whole(*values: Any) -> Tensor:
    return torch.tensor(values)


def _embedding_bag(mode: str, **options: Any) -> Callable[..., Tensor]:
    indices, offsets = whole(0, 2, 4, 4, 1, 3, 0), whole(0, 3, 3, 5)

    def loss(weight: Tensor, *scales: Tensor) -> Tensor:
        given = scales[0] if scales else None
        bags = F.embedding_bag(
            indices, weight, offsets, mode=mode, per_sample_weights=given, **options
        )
        return bags.square().sum()

    return loss


def _ctc(logits: Tensor) -> Tensor:
    lengths, targets = whole(6, 5), whole([1, 1, 2], [3, 2, 0])
    found = F.ctc_loss(logits.log_softmax(2), targets, lengths, whole(3, 2), reduction="sum")
    return found


def _grid(mode: str, padding: str, aligned: bool) -> Callable[..., Tensor]:
    def loss(image: Tensor, grid: Tensor) -> Tensor:
        found = F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=aligned)
        return found.square().sum()

    return loss


def _square(x: Tensor) -> Tensor:
    """Far from singular."""
    return x + 3 * torch.eye(x.shape[-2], x.shape[-1]) if x.dim() > 1 else x


def _positive(a: Tensor) -> Tensor:
    return a @ a.mT + torch.eye(a.shape[-1])


def _margins(**options: Any) -> Callable[..., Tensor]:
    return lambda h: F.multi_margin_loss(h, whole(0, 3, 2, 2, 1), **options)


def _cells(loss: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: loss(x).square().sum()


def _normed(v: Tensor, g: Tensor) -> Tensor:
    w = torch.ops.aten._weight_norm(v, g, 0)
    return (w * w + w).sum()


def _added(*parts: Tensor) -> Tensor:
    return torch.stack([(p * p + p).sum() for p in parts]).sum()


def _complex(z: Tensor, w: Tensor) -> Tensor:
    found = (z @ w).conj() * w + z.T / (w.abs() + 1) - 2 * (z - 0.5) / (w + 5)
    return (found.abs() + found.real * found.imag).sum()


def _clamped(*parts: Tensor) -> Tensor:
    values = [p.clone() for p in parts]
    torch.ops.aten._foreach_clamp_max_(values, 0.8)
    torch.ops.aten._foreach_clamp_min_(values, -0.8)
    return _added(*values)


ZOO: dict[str, Step] = {
    "weight-norm": Step(((3, 4), (3, 1)), _normed),
    "embedding-bag-sum": Step(((5, 3),), _embedding_bag("sum")),
    "embedding-bag-mean": Step(((5, 3),), _embedding_bag("mean", padding_idx=4)),
    "embedding-bag-max": Step(((5, 3),), _embedding_bag("max")),
    "embedding-bag-weights": Step(((5, 3), (7,)), _embedding_bag("sum")),
    "embedding-bag-renormed": Step(((5, 3),), lambda w: F.embedding_bag(
        whole([0, 2], [2, 2]), w.clone(), max_norm=0.5, mode="sum").square().sum()),
    "ctc": Step(((6, 2, 4),), _ctc),
    "multi-margin": Step(((5, 4),), _margins()),
    "multi-margin-2": Step(((5, 4),), _margins(p=2, margin=0.7)),
    "multilabel-margin": Step(((2, 4),), lambda h: F.multilabel_margin_loss(
        h, whole([3, 0, -1, 1], [0, -1, 2, 3]))),
    "pdist": Step(((5, 3),), lambda x: F.pdist(x).square().sum() + F.pdist(x).sum()),
    "pdist-1": Step(((5, 3),), lambda x: F.pdist(x, 1.0).square().sum()),
    "bicubic": Step(((1, 2, 4, 5),), lambda x: F.interpolate(
        x, size=(7, 3), mode="bicubic").square().sum()),
    "bicubic-aligned": Step(((1, 2, 4, 5),), lambda x: F.interpolate(
        x, scale_factor=1.7, mode="bicubic", align_corners=True).square().sum()),
    "grid-zeros": Step(((1, 2, 4, 5), (1, 3, 3, 2)), _grid("bilinear", "zeros", False)),
    "grid-border": Step(((1, 2, 4, 5), (1, 3, 3, 2)), _grid("bilinear", "border", True)),
    "grid-nearest": Step(((1, 2, 4, 5), (1, 3, 3, 2)), _grid("nearest", "zeros", True)),
    "logcumsumexp": Step(((3, 5),), _cells(lambda x: x.logcumsumexp(1))),
    "solve": Step(((4, 4), (4, 2)), lambda a, b: torch.linalg.solve(a, b).square().sum(), _square),
    "inverse": Step(((4, 4),), _cells(torch.linalg.inv), _square),
    "determinant": Step(((4, 4),), _cells(torch.linalg.det), _square),
    "slogdet": Step(((4, 4),), lambda a: torch.linalg.slogdet(a).logabsdet, _square),
    "cholesky": Step(((4, 4),), _cells(lambda a: torch.linalg.cholesky(_positive(a)))),
    "cholesky-solve": Step(((4, 4), (4, 2)), lambda a, b: torch.cholesky_solve(
        b, torch.linalg.cholesky(_positive(a))).square().sum()),
    "triangular": Step(((4, 4), (4, 2)), lambda a, b: torch.linalg.solve_triangular(
        a.tril(), b, upper=False).square().sum(), _square),
    "triangular-right": Step(((4, 4), (2, 4)), lambda a, b: torch.linalg.solve_triangular(
        a, b, upper=True, left=False, unitriangular=True).square().sum(), _square),
    "qr": Step(((5, 3),), lambda a: torch.cat(torch.linalg.qr(a)).pow(3).sum(), _square),
    "activations": Step(((3, 6),), lambda x: _added(
        F.celu(x, 0.7), F.glu(x), F.hardshrink(x, 0.3), F.hardsigmoid(x), F.softshrink(x, 0.2),
        F.threshold(x, 0.1, 0.5), F.logsigmoid(x), F.rrelu(x, training=False), F.selu(x),
        F.rrelu(x, training=True), x.frac())),
    "padding": Step(((1, 4, 6),), lambda x: _added(
        F.pad(x, (1, 2), mode="reflect"), F.pad(x, (1, 2), mode="replicate"),
        F.pixel_shuffle(x.unsqueeze(0).transpose(1, 2)[:, :4], 2),
        F.pixel_unshuffle(x.unsqueeze(0), 2), F.interpolate(x.unsqueeze(0), scale_factor=2.0),
        F.fold(F.unfold(x.unsqueeze(0), 2), (4, 6), 2))),
    "products": Step(((3, 3), (3, 3)), lambda a, b: _added(
        a.mv(b[0]), a[0].dot(b[0]), torch.vdot(a[1], b[1]), a.trace(), a.nansum(),
        torch.linalg.cross(a, b), torch.baddbmm(a[None], a[None], b[None]),
        torch.logaddexp(a, b), *a.aminmax(), torch.ops.aten._euclidean_dist(a, b),
        F.soft_margin_loss(a, b.detach().sign()), a.index_fill(0, whole(1), b[0, 0]),
        (a.detach() > -9).all() * a, torch.hann_window(3) * a)),
    "counting": Step(((4, 6),), lambda x: (x * torch.histc(x.detach(), 6, -1, 1)).sum()),
    "gradient-lists": Step(((4,), (2, 2)), _clamped),
    "fourier": Step(((3, 6),), lambda x: (torch.fft.rfft(x).abs() ** 2).sum()),
    "fourier-odd": Step(((2, 5),), lambda x: torch.fft.fft(x, norm="ortho").abs().sum()),
    "fourier-filter": Step(((3, 6), (4,)), lambda x, w: torch.fft.irfft(
        torch.fft.rfft(x) * torch.complex(w, w * w), n=6).pow(3).sum()),
    "fourier-2d": Step(((2, 4, 6),), lambda x: torch.view_as_real(
        torch.fft.ifft2(torch.fft.rfft2(x))).pow(3).sum()),
    "spectrogram": Step(((16,),), lambda x: torch.stft(
        x, 8, window=torch.hann_window(8), return_complex=True).abs().sum()),
    "complex": Step(((3, 3, 2), (3, 3, 2)), lambda a, b: _complex(
        torch.view_as_complex(a), torch.view_as_complex(b))),
    "batched-solve": Step(((2, 3, 3), (2, 3, 1)), lambda a, b: torch.linalg.solve(
        a, b).sum(), _square),
}  # fmt: skip
