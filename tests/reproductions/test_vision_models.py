import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from reproductions.vision_models import VGG, DenseNet121, ResNet18, VGGDepth, kaiming_uniform_


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        # He et al. 2016 and Huang et al. 2017 as published for ImageNet, then for 32x32 images.
        (lambda: ResNet18(1000, stem="large"), 11_689_512),
        (lambda: ResNet18(10), 11_173_962),
        (lambda: DenseNet121(1000, stem="large"), 7_978_856),
        (lambda: DenseNet121(10), 6_956_426),
    ],
)
def test_parameters_are_the_published_ones(model: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        assert count(model()) == parameters


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_has_the_layers_of_its_name(depth: VGGDepth, batch_norm: bool) -> None:
    with torch.device("meta"):
        model = VGG(depth, batch_norm=batch_norm)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(weighted) == depth - 2  # one linear layer in place of three
    assert len(norms) == (depth - 3 if batch_norm else 0)
    sizes = [m.weight.numel() + m.weight.shape[0] for m in weighted]
    assert count(model) == sum(sizes) + 2 * sum(m.num_features for m in norms)


def test_layers_of_the_name() -> None:
    for model, layers, shortcuts in ((ResNet18(width=4), 18, 3), (DenseNet121(growth=4), 121, 0)):
        weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(weighted) == layers + shortcuts
        assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 1


@pytest.mark.parametrize("kind", [ResNet18, DenseNet121])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("large", 64)])
def test_narrow_networks_run(kind: type, batch_norm: bool, stem: str, side: int) -> None:
    narrow = {"width": 4} if kind is ResNet18 else {"growth": 4}
    model = kind(7, batch_norm=batch_norm, in_channels=1, stem=stem, **narrow)
    logits = model(torch.randn(2, 1, side, side))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert batch_norm == any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_kaiming_has_the_range_of_its_fan_in() -> None:
    model = kaiming_uniform_(VGG(11, width=16))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            bound = math.sqrt(6 / module.weight[0].numel())
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
            assert module.bias is not None
            assert not module.bias.any()
        if isinstance(module, nn.Linear):
            assert 0.008 < float(module.weight.detach().std()) < 0.012


@pytest.mark.parametrize(("depth", "convolutions"), [(11, 8), (13, 10), (16, 13), (19, 16)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_narrow_vgg_has_the_layers_of_its_name(
    depth, convolutions: int, batch_norm: bool
) -> None:
    model = VGG(depth, 7, batch_norm=batch_norm, in_channels=1, width=4)
    layers = list(model.modules())
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == convolutions
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 5
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    assert norms == (convolutions if batch_norm else 0)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_vgg_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in VGG(11).parameters()) == 9_225_610
