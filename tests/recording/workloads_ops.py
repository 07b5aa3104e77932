"""Training steps that call many ops once: indexing, losses, odd shapes."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.recording.workloads_sequences import Step


def indexing_step() -> tuple[nn.Module, Step]:
    model = nn.Linear(6, 6)
    x, index = torch.randn(7, 6), torch.randint(0, 7, (9,))

    def step() -> None:
        h = model(x)
        parts = [h[index].mean(), h.gather(1, h.argmax(1, keepdim=True)).sum()]
        parts.append(torch.zeros(7, 6).index_add(0, index, h[index]).square().sum())
        parts.append(h.topk(2, dim=1).values.sum() + h.sort(dim=0).values[0].sum())
        parts.append(h.unfold(1, 2, 2).max(-1).values.sum() + h.cumsum(0).std())
        parts.append(torch.cat([h, h.flip(0)]).roll(1, 0).unbind(0)[2].sum())
        parts.append(h.masked_select(h > 0).sum() + torch.einsum("ij,kj->ik", h, h).tril().sum())
        parts.append(h.as_strided((3, 4), (2, 1)).sum() + h.diagonal().logsumexp(0))
        parts.append(F.pad(h, (1, 2)).abs().nan_to_num().log1p().sum())
        parts.append(F.interpolate(h[None, None], scale_factor=2.0, mode="bilinear").mean())
        torch.stack(parts).sum().backward()

    return model, step


def losses_step() -> tuple[nn.Module, Step]:
    model = nn.Linear(6, 6)
    x, y = torch.randn(7, 6), torch.rand(7, 6)

    def step() -> None:
        h = model(x)
        found = [
            F.mse_loss(h, y), F.l1_loss(h, y), F.smooth_l1_loss(h, y), F.huber_loss(h, y),
            F.binary_cross_entropy_with_logits(h, y), F.kl_div(h.log_softmax(1), y.softmax(1)),
            F.binary_cross_entropy(h.sigmoid(), y), F.hinge_embedding_loss(h, y.sign()),
            F.cosine_embedding_loss(h, y, torch.ones(7)), F.triplet_margin_loss(h, y, -y),
            F.poisson_nll_loss(h, y), F.gaussian_nll_loss(h, y, y.exp()),
            torch.cdist(h, y).mean(), F.normalize(h).sum(),
        ]  # fmt: skip
        torch.stack(found).sum().backward()

    return model, step


def no_dims_step() -> tuple[nn.Module, Step]:
    """Tensors without entries, of one entry, without dimensions, expanded and overlapping."""
    model = nn.Linear(4, 1)
    x = torch.randn(1, 4).expand(5, 4)
    windows = torch.randn(8).unfold(0, 4, 1)
    none = torch.randn(0, 4)

    def step() -> None:
        total = model(x).sum() + model(windows).sum() + model(none).sum()
        total = total + model.bias.squeeze() * 3 + model.weight.t().squeeze()[0]
        (total * torch.tensor(2, dtype=torch.int32)).backward()

    return model, step
