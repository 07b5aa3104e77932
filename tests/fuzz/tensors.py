"""Blocks that reduce, move, write and index: rows become other rows of the same shape."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.maker import Block, Layer, Maker


def _plain(f: Callable[[Tensor], Tensor]) -> Block:
    return lambda make: f


def _added(f: Callable[[Tensor], Tensor]) -> Block:
    """A reduction, added to what it was made from."""
    return lambda make: lambda h: h + f(h)


def _rows(f: Callable[..., Tensor]) -> Block:
    """A reduction over rows or columns."""

    def block(make: Maker) -> Layer:
        dim = make.choice(0, 1, -1)
        return lambda h: h * 0.5 + f(h, dim=dim, keepdim=True)

    return block


def _along(f: Callable[..., Tensor]) -> Block:
    def block(make: Maker) -> Layer:
        dim = make.choice(0, 1)
        return lambda h: f(h, dim=dim)

    return block


def _several(h: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """Of at least two rows."""
    return f(torch.cat([h, h * 0.5 + 0.25]))[: len(h)]


REDUCTIONS: dict[str, Block] = {
    "sum": _rows(torch.sum), "mean": _rows(torch.mean), "amax": _rows(torch.amax),
    "amin": _rows(torch.amin), "logsumexp": _rows(torch.logsumexp),
    "max": _rows(lambda h, dim, keepdim: h.max(dim, keepdim=keepdim).values),
    "min": _rows(lambda h, dim, keepdim: h.min(dim, keepdim=keepdim).values),
    "median": _rows(lambda h, dim, keepdim: h.median(dim, keepdim=keepdim).values),
    "prod": _rows(torch.prod), "max of all": _added(torch.max), "min of all": _added(torch.min),
    "sum of all": _added(torch.sum), "mean of all": _added(torch.mean),
    "prod of all": _added(lambda h: torch.tanh(h).prod()),
    "var": _added(lambda h: h.var(1, keepdim=True)), "std": _added(lambda h: h.std()),
    "var biased": _added(lambda h: h.var(1, correction=0, keepdim=True)),
    "var_mean": _added(lambda h: sum(torch.var_mean(h, 1, keepdim=True))),
    "norm": _added(lambda h: h.norm()), "norm 1": _added(lambda h: h.norm(p=1, dim=1,
                                                                        keepdim=True)),
    "norm 3": _added(lambda h: torch.linalg.vector_norm(h, 3)),
    "norm inf": _added(lambda h: torch.linalg.vector_norm(h, float("inf"), dim=1, keepdim=True)),
    "softmax": _along(torch.softmax), "log_softmax": _along(torch.log_softmax),
    "softmin": _along(F.softmin), "cumsum": _along(torch.cumsum),
    "cumprod": _along(lambda h, dim: torch.cumprod(torch.tanh(h) + 1.5, dim)),
    "logcumsumexp": _along(torch.logcumsumexp),
    "cummax": _along(lambda h, dim: h.cummax(dim).values),
    "cummin": _along(lambda h, dim: h.cummin(dim).values),
    "sort": _along(lambda h, dim: h.sort(dim).values),
    "sort descending": _along(lambda h, dim: h.sort(dim, descending=True).values * h),
    "topk": lambda make: lambda h: h + h.topk(2, dim=1).values.sum(1, keepdim=True),
    "kthvalue": _added(lambda h: h.kthvalue(2, dim=1, keepdim=True).values),
    "aminmax": _added(lambda h: torch.aminmax(h).max - torch.aminmax(h).min),
    "argmax": _plain(lambda h: h * 2 + F.one_hot(h.argmax(1), h.shape[1]) * h),
    "softmax with a mask": _plain(
        lambda h: h.masked_fill(torch.eye(*h.shape, dtype=torch.bool), -torch.inf).softmax(1)),
    "normalized": _plain(lambda h: F.normalize(h)), "glu": _plain(
        lambda h: torch.cat([F.glu(h), F.glu(h * 0.5)], 1)),
    "diff": _plain(lambda h: F.pad(h.diff(dim=1), (0, 1))),
    "count": _plain(lambda h: h * (h > 0).sum()),
    "mean of squares": _added(lambda h: h.pow(2).mean(1, keepdim=True)),
    "rms by hand": _plain(lambda h: h * (h.pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()),
    "variance in one pass": _added(lambda h: h.pow(2).mean(1, keepdim=True)
                                   - h.mean(1, keepdim=True).pow(2)),
    "bucketize": _plain(lambda h: h * torch.bucketize(
        h.detach(), torch.tensor([-0.5, 0.0, 0.5], dtype=h.dtype))),
}  # fmt: skip


def _gathered(make: Maker) -> Layer:
    index = make.integers(make.width, make.batch, make.width)
    return lambda h: h.gather(1, index)


def _indexed(f: Callable[[Tensor, Tensor], Tensor]) -> Block:
    def block(make: Maker) -> Layer:
        index = make.integers(make.width, make.width)
        return lambda h: f(h, index)

    return block


def _permuted(f: Callable[[Tensor, Tensor], Tensor]) -> Block:
    """Every place is written once."""

    def block(make: Maker) -> Layer:
        index = torch.tensor(make.rng.sample(range(make.width), make.width))
        return lambda h: f(h, index)

    return block


def _masked(f: Callable[[Tensor, Tensor], Tensor]) -> Block:
    def block(make: Maker) -> Layer:
        mask = make.mask(make.batch, make.width)
        return lambda h: f(h, mask)

    return block


def _spread_back(h: Tensor, mask: Tensor) -> Tensor:
    return h * 0.5 + torch.masked_select(h, mask).sum()


def _reduced_into(how: str) -> Block:
    def into(h: Tensor, index: Tensor) -> Tensor:
        places = index.expand(h.shape)
        return h.scatter_reduce(1, places, torch.tanh(h) + 2, how)

    return _indexed(into)


MOVEMENT: dict[str, Block] = {
    "transposed view": _plain(lambda h: h.t().reshape(h.shape)),
    "permuted view": _plain(lambda h: h.view(-1, 2, h.shape[1] // 2).permute(0, 2, 1).flatten(1)),
    "flip": _plain(lambda h: h.flip(1)), "roll": _plain(lambda h: h.roll(1, 1)),
    "tril": _plain(torch.tril), "triu": _plain(lambda h: h.triu(1) + h),
    "diagonal": _plain(lambda h: h + h.diagonal().sum()),
    "diag_embed": _plain(lambda h: h.diag_embed().sum(1)),
    "gather": _gathered, "index_select": _indexed(lambda h, i: h.index_select(1, i)),
    "fancy index": _indexed(lambda h, i: h[:, i]),
    "index of a pair": _indexed(lambda h, i: h + h[i % len(h), i].sum()),
    "take": _indexed(lambda h, i: h + h.take(i)),
    "unfold": _plain(lambda h: h + h.unfold(1, 2, 1).sum((1, 2), keepdim=False)[:, None]),
    "pad": _plain(lambda h: F.pad(h, (1, 1), value=0.3)[:, 1:-1] * 2),
    "pad reflect": _plain(lambda h: F.pad(h, (1, 1), mode="reflect")[:, 2:]),
    "pad replicate": _plain(lambda h: F.pad(h, (1, 1), mode="replicate")[:, 2:]),
    "pad circular": _plain(lambda h: F.pad(h[:, None], (1, 1), mode="circular")[:, 0, 2:]),
    "cat": _plain(lambda h: torch.cat([h[:, 1:], h[:, :1] * 2], 1)),
    "stack": _plain(lambda h: torch.stack([h, h * 2, h.tanh()]).mean(0)),
    "chunk": _plain(lambda h: torch.cat([c.tanh() for c in h.chunk(2, 1)], 1)),
    "split": _plain(lambda h: torch.cat([c * 3 for c in h.split(1, 1)], 1)),
    "unbind": _plain(lambda h: torch.stack([r * (i + 1) for i, r in enumerate(h.unbind(1))], 1)),
    "expand": _plain(lambda h: h[:, :1].expand_as(h) + h),
    "repeat": _plain(lambda h: h.repeat(1, 2)[:, ::2]),
    "repeat_interleave": _plain(lambda h: h.repeat_interleave(2, 1)[:, : h.shape[1]]),
    "tile": _plain(lambda h: h.tile(2)[:, 1 : h.shape[1] + 1]),
    "as_strided": _plain(lambda h: h.contiguous().as_strided(h.shape, (h.shape[1], 1)) * 2),
    "overlapping view": _plain(lambda h: h + h.contiguous().as_strided((2, 2), (1, 1)).sum()),
    "masked_fill": _masked(lambda h, m: h.masked_fill(m, 0.7)),
    "masked_select": _masked(_spread_back),
    "boolean index": _plain(lambda h: h * 0.5 + h[h > 0.1].sum()),
    "nonzero": _plain(lambda h: h + h[torch.nonzero(h > 0)[:, 0]].sum()),
    "where of a mask": _masked(lambda h, m: torch.where(m, h, -h)),
    "rot90": _plain(lambda h: h.rot90(2)), "meshed": _plain(
        lambda h: h + torch.meshgrid(h[0], h[0], indexing="ij")[0].sum(0)),
    "pixel_shuffle": _plain(lambda h: F.pixel_shuffle(
        h.repeat(1, 4).view(len(h), 4, 1, -1), 2).flatten(1)[:, : h.shape[1]]),
    "narrow": _plain(lambda h: torch.cat([h.narrow(1, 1, h.shape[1] - 1), h.narrow(1, 0, 1)], 1)),
    "movedim": _plain(lambda h: h.unsqueeze(0).movedim(0, 2).squeeze(2)),
    "contiguous": _plain(lambda h: h.t().contiguous().t()),
    "view as real pairs": _plain(lambda h: h.view(len(h), -1, 2).sum(2).repeat(1, 2)),
}  # fmt: skip


def _sliced(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, ::2] *= 2
    y[0] -= 0.5
    return y


def _filled(h: Tensor) -> Tensor:
    y = h * 1.0
    y[:, 0] = 0.25
    y[-1, 1:] = h[0, 1:].tanh()
    return y


def _through_a_view(h: Tensor) -> Tensor:
    y = h * 2
    view = y.view(-1)
    view[1:3].mul_(3)
    y.t()[0].add_(1)
    return y


def _copied(h: Tensor) -> Tensor:
    y = torch.zeros_like(h)
    y.copy_(h.sin())
    y[:, 1].copy_(h[:, 0])
    return y


def _masked_write(h: Tensor) -> Tensor:
    y = h.clone()
    y[y > 0.5] = 0.3
    return y


def _buffer(h: Tensor) -> Tensor:
    y = torch.empty_like(h)
    y[:, : h.shape[1] // 2] = h[:, : h.shape[1] // 2].square()
    y[:, h.shape[1] // 2 :] = h[:, h.shape[1] // 2 :]
    return y


def _chain(h: Tensor) -> Tensor:
    return h.clone().mul_(0.5).add_(1).div_(3).sub_(0.25).neg_()


WRITES: dict[str, Block] = {
    "write slices": _plain(_sliced), "write over": _plain(_filled),
    "write through a view": _plain(_through_a_view), "copy_": _plain(_copied),
    "write where": _plain(_masked_write), "write into empty": _plain(_buffer),
    "a chain in place": _plain(_chain), "relu_": _plain(lambda h: F.relu(h.clone(), inplace=True)),
    "tanh_": _plain(lambda h: (h * 1.5).tanh_()), "exp_": _plain(lambda h: h.tanh().exp_()),
    "clamp_": _plain(lambda h: (h * 2).clamp_(-0.5, 0.5)),
    "masked_fill_": _masked(lambda h, m: (h * 2).masked_fill_(m, 0.1)),
    "scatter": _permuted(lambda h, i: h.scatter(1, i.expand(h.shape), h * 2)),
    "scatter of a number": _indexed(lambda h, i: h.scatter(1, i.expand(h.shape), 0.5) + h),
    "scatter_add": _indexed(lambda h, i: h.scatter_add(1, i.expand(h.shape), h)),
    "index_add": _indexed(lambda h, i: h.index_add(1, i, h, alpha=0.3)),
    "index_put": _permuted(lambda h, i: h.index_put((torch.zeros_like(i), i), h[0] * 3)),
    "index_put accumulate": _indexed(
        lambda h, i: h.index_put((i % len(h), i), h[0] * 3, accumulate=True)),
    "index_copy": _permuted(lambda h, i: h.index_copy(1, i, h.tanh())),
    "index_fill": _indexed(lambda h, i: h.index_fill(1, i[:1], 0.4)),
    "scatter sum": _reduced_into("sum"), "scatter mean": _reduced_into("mean"),
    "scatter amax": _reduced_into("amax"), "scatter amin": _reduced_into("amin"),
    "scatter prod": _reduced_into("prod"),
    "slice_scatter": _plain(lambda h: h.slice_scatter(h[:, :1] * 2, 1, 1, 2)),
    "select_scatter": _plain(lambda h: h.select_scatter(h[:, 0].tanh(), 1, 1)),
    "masked_scatter": _masked(lambda h, m: h.masked_scatter(m, h.flip(1))),
    "add_ of a row": _plain(lambda h: (h * 2).add_(h[0], alpha=0.7)),
}  # fmt: skip
