"""How a program ends: losses of [batch, width]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.maker import Maker

Loss = Callable[[Maker], Callable[[Tensor], Tensor]]


def _plain(f: Callable[[Tensor], Tensor]) -> Loss:
    return lambda make: f


def _to_target(f: Callable[..., Tensor], low: float = -1.0, high: float = 1.0) -> Loss:
    """With a target of the same shape, and one of the reductions."""

    def loss(make: Maker) -> Callable[[Tensor], Tensor]:
        target = make.numbers(make.batch, make.width, low=low, high=high)
        reduction = make.choice("mean", "sum", "none")
        return lambda h: f(h, target.to(h.dtype), reduction=reduction).sum()

    return loss


def _classified(f: Callable[..., Tensor]) -> Loss:
    def loss(make: Maker) -> Callable[[Tensor], Tensor]:
        target = make.integers(make.width, make.batch)
        return lambda h: f(h, target)

    return loss


def _weighted(make: Maker) -> Callable[[Tensor], Tensor]:
    weight = make.numbers(make.width, low=0.1, high=2.0)
    target = make.integers(make.width, make.batch)
    smoothing = make.choice(0.0, 0.1)
    return lambda h: F.cross_entropy(h, target, weight.to(h.dtype), label_smoothing=smoothing)


def _signs(f: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    def loss(make: Maker) -> Callable[[Tensor], Tensor]:
        target = make.mask(make.batch, make.width) * 2 - 1
        return lambda h: f(h, target.to(h.dtype))

    return loss


def _soft(make: Maker) -> Callable[[Tensor], Tensor]:
    target = torch.softmax(make.numbers(make.batch, make.width).double(), 1)
    return lambda h: F.cross_entropy(h, target.to(h.dtype))


def _divergence(make: Maker) -> Callable[[Tensor], Tensor]:
    target = torch.softmax(make.numbers(make.batch, make.width).double(), 1)
    log_target = make.choice(True, False)
    given = target.log() if log_target else target
    return lambda h: F.kl_div(
        h.log_softmax(1), given.to(h.dtype), reduction="batchmean", log_target=log_target
    )


def _focal(make: Maker) -> Callable[[Tensor], Tensor]:
    target = make.integers(make.width, make.batch)

    def loss(h: Tensor) -> Tensor:
        logp = h.log_softmax(1).gather(1, target[:, None])
        return (-((1 - logp.exp()) ** 2) * logp).mean()

    return loss


def _labels(make: Maker) -> Callable[[Tensor], Tensor]:
    target = torch.full((make.batch, make.width), -1)
    target[:, 0] = make.integers(make.width, make.batch)
    return lambda h: F.multilabel_margin_loss(h, target)


def _contrastive(make: Maker) -> Callable[[Tensor], Tensor]:
    return lambda h: F.cross_entropy(F.normalize(h) @ F.normalize(h).t() / 0.5,
                                     torch.arange(len(h)))  # fmt: skip


LOSSES: dict[str, Loss] = {
    "sum": _plain(torch.sum), "mean": _plain(torch.mean),
    "mean of squares": _plain(lambda h: h.square().mean()), "norm": _plain(torch.norm),
    "logsumexp": _plain(lambda h: h.logsumexp(1).mean()), "product": _plain(
        lambda h: torch.tanh(h).prod()),
    "mse": _to_target(F.mse_loss), "l1": _to_target(F.l1_loss),
    "smooth_l1": _to_target(F.smooth_l1_loss), "huber": _to_target(F.huber_loss),
    "smooth_l1 sharp": _to_target(lambda h, t, reduction: F.smooth_l1_loss(
        h, t, reduction=reduction, beta=0.3)),
    "huber sharp": _to_target(lambda h, t, reduction: F.huber_loss(
        h, t, reduction=reduction, delta=0.3)),
    "bce with logits": _to_target(F.binary_cross_entropy_with_logits, 0.0),
    "bce": _to_target(lambda h, t, reduction: F.binary_cross_entropy(
        h.sigmoid(), t, reduction=reduction), 0.0),
    "poisson": _to_target(lambda h, t, reduction: F.poisson_nll_loss(
        torch.tanh(h), t, reduction=reduction), 0.0),
    "poisson of rates": _to_target(lambda h, t, reduction: F.poisson_nll_loss(
        h.abs() + 0.1, t, log_input=False, reduction=reduction), 0.0),
    "gaussian": _to_target(lambda h, t, reduction: F.gaussian_nll_loss(
        h, t, h.square() + 0.1, reduction=reduction)),
    "soft margin": _signs(F.soft_margin_loss), "hinge embedding": _signs(F.hinge_embedding_loss),
    "multilabel soft margin": _to_target(lambda h, t, reduction: F.multilabel_soft_margin_loss(
        h, (t > 0).to(h.dtype), reduction=reduction)),
    "margin ranking": _signs(lambda h, s: F.margin_ranking_loss(h, h.flip(1) * 0.5, s, 0.2)),
    "triplet": _to_target(lambda h, t, reduction: F.triplet_margin_loss(
        h, t, t.flip(1), reduction=reduction)),
    "cosine embedding": _to_target(lambda h, t, reduction: F.cosine_embedding_loss(
        h, t, torch.ones(len(h), dtype=h.dtype), reduction=reduction)),
    "multi margin": _classified(F.multi_margin_loss), "multilabel margin": _labels,
    "cross entropy": _classified(F.cross_entropy),
    "cross entropy of a sum": _classified(lambda h, t: F.cross_entropy(h, t, reduction="sum")),
    "cross entropy ignoring": _classified(lambda h, t: F.cross_entropy(h, t, ignore_index=0)
                                          if bool((t != 0).any()) else h.sum()),
    "cross entropy weighted": _weighted, "cross entropy of soft targets": _soft,
    "nll": _classified(lambda h, t: F.nll_loss(F.log_softmax(h, 1), t)),
    "kl_div": _divergence, "focal": _focal, "contrastive": _contrastive,
    "perplexity": _classified(lambda h, t: F.cross_entropy(torch.tanh(h), t).exp()),
    "with weight decay": _plain(lambda h: h.mean() + 0.01 * h.square().sum()),
}  # fmt: skip
