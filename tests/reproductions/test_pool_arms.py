import pytest
import torch
from torch import Tensor, nn

from reproductions.maxpool.pool_arms import ARMS, Arm, pooling


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Sequential(nn.MaxPool2d(2)))
    for p in model.parameters():
        nn.init.uniform_(p, 0.1, 0.9)  # positive, so that no ReLU is off
    return model.to(dtype)


def gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(images).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def flat(dtype: torch.dtype) -> Tensor:
    """Images with areas of one value, so that windows are tied."""
    torch.manual_seed(1)
    images = torch.rand(3, 1, 5, 5).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return images.to(dtype)


@pytest.mark.parametrize("arm", ARMS)
def test_beta_zero_and_after_the_block_are_native(arm: Arm) -> None:
    model, images = network(torch.float32), flat(torch.float32)
    native = gradients(model, images)
    with pooling(model, arm, 0.0):
        assert all(map(torch.equal, gradients(model, images), native))
    with pooling(model, arm, 100.0):
        model(images)
    assert isinstance(model.get_submodule("2.0"), nn.MaxPool2d)
    assert all(map(torch.equal, gradients(model, images), native))


def test_only_the_exact_arm_keeps_the_forward_pass() -> None:
    model, images = network(torch.float16), flat(torch.float16)
    native = model(images).detach()
    found = {}
    for arm in ARMS:
        with pooling(model, arm, 1e3):
            found[arm] = model(images).detach()
    assert torch.equal(found["exact"], native)
    assert torch.equal(found["blended"], found["forward-only"])
    assert native.all()
    error = ((found["blended"] - native).abs() / native).max()
    assert 0.05 < float(error) < 1.5  # beta times the unit roundoff, about one half


def test_arms_differ_in_the_derivative_as_they_say() -> None:
    """In float64 rounding is small, so the blend's derivative is that of the exact hybrid."""
    model, images = network(torch.float64), flat(torch.float64)
    native = gradients(model, images)
    found = {}
    for arm in ARMS:
        with pooling(model, arm, 3.0):
            found[arm] = gradients(model, images)
    for exact, blended in zip(found["exact"], found["blended"], strict=True):
        torch.testing.assert_close(exact, blended, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, found["forward-only"], native))
    # Minimal and native weights agree on equal patches, so ties of different patches are needed.
    w = torch.tensor([[[[1.0, 1.0, 1.0]] * 3]], dtype=torch.float64)[0]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.zeros_like(p))
        next(model.parameters()).copy_(w.expand(2, 1, 3, 3))
    image = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    image[0, 0, 0, 0] = image[0, 0, 0, 3] = 1
    first = gradients(model, image)[0][0, 0]
    with pooling(model, "exact", 1.0):
        second = gradients(model, image)[0][0, 0]
    assert first[0].tolist() == [1, 0, 0]
    assert second[0].tolist() == [0.5, 0, 0.5]
