from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from numgeom.examples.data import DataError
from reproductions.maxpool.problems import cross_entropy, problem, standing
from reproductions.outcome import ReproductionError, Settings
from tests.reproductions.image_files import write_cifar10, write_mnist


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_point_depends_on_its_number_and_seed_alone() -> None:
    lenet = problem("LeNet-5", "MNIST", Settings())
    before = torch.get_rng_state()
    first = lenet.model(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert same(first, lenet.model(3))
    assert not same(first, lenet.model(4))
    assert not same(first, lenet.model(3, seed=1))
    rounded = lenet.model(3, dtype=torch.float16)
    assert same(first.half(), rounded)


@pytest.mark.parametrize(
    ("network", "width"),
    [("LeNet-5", None), ("VGG-11", 4), ("VGG-19", 4), ("ResNet-18", 4), ("DenseNet-121", 4)],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_network_takes_the_digits(network: str, width: int | None, batch_norm: bool) -> None:
    each = problem(network, "MNIST", Settings(), width=width)
    (batch,) = each.batches(1, 4, dtype=torch.float32)
    model = each.model(0, batch_norm=batch_norm and network != "LeNet-5", kaiming=True)
    assert cross_entropy(model, batch).isfinite()
    assert "digits" in each.label


def test_batches_cover_the_data_in_order() -> None:
    lenet = problem("LeNet-5", "MNIST", Settings())
    batches = lenet.batches(None, 128, dtype=torch.float32)
    assert torch.equal(torch.cat([y for _, y in batches]), lenet.dataset.train[1])
    assert [len(y) for _, y in lenet.batches(2, 5, dtype=torch.float64)] == [5, 5]


def test_published_data_replace_the_stand_in(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    lenet = problem("LeNet-5", "MNIST", Settings(data=tmp_path))
    assert not lenet.stand_in
    assert lenet.dataset.stamp.source.startswith("mnist")
    assert not any("Stand-in" in note for note in standing(Settings(data=tmp_path), lenet))
    stand_in = problem("LeNet-5", "MNIST", Settings())
    assert any("not the paper's" in note for note in standing(Settings(), stand_in))
    with pytest.raises(DataError, match="CIFAR-10 is not complete"):
        problem("VGG-11", "CIFAR10", Settings(data=tmp_path))


def test_the_published_width_is_for_the_large_scale(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    settings: dict[str, Any] = {"data": tmp_path}
    small = problem("VGG-11", "CIFAR10", Settings(**settings), width=4)
    large = problem("VGG-11", "CIFAR10", Settings(scale="paper", **settings), width=4)
    assert small.width == 4
    assert large.width is None
    assert sum(p.numel() for p in large.model(0).parameters()) == 9_225_610
    assert any("fewer channels" in note for note in standing(Settings(), small))
    assert standing(Settings(scale="paper"), large) == ()


def test_an_unknown_network_names_the_known() -> None:
    with pytest.raises(ReproductionError, match=r"LeNet-5, VGG-11.*DenseNet-121"):
        problem("AlexNet", "MNIST", Settings())
