import pytest
import torch
from torch import nn

from numgeom.examples.models import GPT, MLP, LeNet5, VisionTransformer


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_of_the_published_shapes() -> None:
    assert parameter_count(LeNet5()) == 44_426


@pytest.mark.parametrize("batch_norm", [False, True])
def test_lenet_places_batch_norm_after_pools_and_hidden_relus(batch_norm: bool) -> None:
    model = LeNet5(batch_norm=batch_norm)
    kinds = [type(layer) for layer in [*model.features, *model.classifier]]
    norms = {nn.BatchNorm2d, nn.BatchNorm1d}
    before = [kinds[i - 1] for i, kind in enumerate(kinds) if kind in norms]
    expected = [nn.MaxPool2d, nn.MaxPool2d, nn.ReLU, nn.ReLU] if batch_norm else []
    assert before == expected
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_depth_neither_shrinks_nor_blows_up_the_signal_of_an_mlp(activation) -> None:
    torch.manual_seed(0)
    model = MLP([64] * 20, activation)
    inputs = torch.randn(256, 64)
    assert 0.1 < model(inputs).std() / inputs.std() < 10


def test_a_gpt_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    model = GPT(11, 12, width=16, depth=2, heads=2)
    first = torch.randint(0, 11, (1, 12))
    second = first.clone()
    second[0, 7] = (second[0, 7] + 1) % 11
    difference = (model(first) - model(second)).abs().amax(dim=2)[0]
    assert torch.all(difference[:7] == 0)
    assert torch.all(difference[7:] > 0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embedding(tied: bool) -> None:
    model = GPT(11, 12, width=16, tied=tied)
    assert (model.head.weight is model.embed.weight) == tied
    assert 0.015 < model.embed.weight.std() < 0.025


def test_a_vision_transformer_sees_every_patch() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(8, 2, classes=3, width=16, heads=2)
    images = torch.randn(1, 1, 8, 8, requires_grad=True)
    logits = model(images)
    assert logits.shape == (1, 3)
    logits[0, 0].backward()
    assert images.grad is not None
    assert torch.all(images.grad != 0)
