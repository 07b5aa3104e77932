"""Which tables and figures has the study of max-pooling? One row each.

Figure 14 alone is missing: it trains on ImageNet. The last rows train networks that the paper's
appendix C.1 mentions and no figure shows.

Small sizes were chosen to end within minutes on two cores. Of the narrow networks at that scale,
step sizes were chosen at beta = 0 on the digits: without batch norm, VGG-11 and ResNet-18 learn
within a few epochs from Kaiming's initial values (at 0.02 ResNet-18 does not), and neither does
from torch's own. Deeper ones and DenseNet-121 do not learn within minutes without batch norm, so
that the small scale has it, in float32 alone.
"""

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from reproductions.maxpool import distance, programs, thresholds, ties, training, variation, volume
from reproductions.maxpool.figure import Figure
from reproductions.maxpool.pool_arms import ARMS
from reproductions.maxpool.sampling import Sample
from reproductions.maxpool.training import Grid
from reproductions.maxpool.variation import Size

_ALL = Size(1000, None)  # every mini-batch of the training data
_BOTH_NORMS = (False, True)
_FEW_BETAS = (0.0, 1e3, 1e4)

_VGG11 = Grid("VGG-11", "CIFAR10", epochs=200)
_LENET = Grid("LeNet-5", "MNIST", epochs=100)
_RESNET = Grid("ResNet-18", "CIFAR10", epochs=200, batch_norms=_BOTH_NORMS)
# At the small scale.
_brief = partial(replace, epochs=6, batch_size=32, seeds=1)
_narrow = partial(_brief, width=4, kaiming=True, learning_rate=0.01)
_deep = partial(
    _narrow, epochs=4, betas=_FEW_BETAS, dtypes=("float32",), batch_norms=(True,),
    learning_rate=0.05,
)  # fmt: skip


def _training(name: str, title: str, source: str, paper: Grid, small: Grid) -> Figure[Grid]:
    return Figure(name, title, training.accuracy_by_beta, small, paper, source)


def _further(name: str, network: str, data: str, epochs: int) -> Figure[Grid]:
    """A network that no figure shows; epochs of Boustany (2024), table 5."""
    paper = Grid(network, data, epochs, batch_norms=_BOTH_NORMS)
    title = f"Training {network} on {data} with SGD"
    return _training(f"maxpool-training-{name}", title, "", paper, _deep(paper))


def _thresholds_of(network: str, data: str) -> tuple[Sample, Sample]:
    """Small and published sample of a network for table 4."""
    paper = Sample(network, data, None, points=1000, batches=None, batch_size=128)
    if network == "LeNet-5":
        return replace(paper, points=4, batches=6), paper
    return replace(paper, width=4, points=2, batches=3, batch_size=32), paper


_TABLE4 = [_thresholds_of(*key) for key in thresholds.PUBLISHED]
_TABLE2 = Sample("VGG-11", "CIFAR10", None, points=1000, batches=None, batch_size=128)

_ROWS: tuple[Figure[Any], ...] = (
    Figure(
        "maxpool-table1", "Derivatives of a program that is zero", programs.zero_by_ops,
        None, None, "table 1", on_device=False,
    ),
    Figure(
        "maxpool-table2", "Volume of the bifurcation zone by format", volume.zone_volume,
        small=(
            Sample("LeNet-5", "MNIST", None, 16, batches=11, batch_size=128, batches16=3),
            Sample("VGG-11", "CIFAR10", 4, 16, batches=11, batch_size=32, batches16=3),
        ),
        paper=(_TABLE2,), source="table 2",
    ),
    Figure(
        "maxpool-table3", "Derivatives of a program that is zero, through ReLU",
        programs.zero_by_relu, None, None, "table 3", on_device=False,
    ),
    Figure(
        "maxpool-table4", "Thresholds tau1 and tau2 on the backprop variation",
        thresholds.thresholds,
        tuple(small for small, _ in _TABLE4), tuple(paper for _, paper in _TABLE4), "table 4",
    ),
    Figure(
        "maxpool-fig1", "Native against minimal max-pool, LeNet-5 in float32",
        variation.native_against_minimal, Size(20, 7), _ALL, "figure 1",
    ),
    Figure(
        "maxpool-fig2", "Backprop variation between two runs of one program, LeNet-5",
        variation.run_twice, Size(5, 5), _ALL, "figure 2",
    ),
    Figure(
        "maxpool-fig3", "Backprop variation of ReLU'(0) = 0 against 1, LeNet-5",
        variation.relu_at_zero, Size(4, 4), _ALL, "figure 3",
    ),
    Figure(
        "maxpool-fig4", "Affected mini-batches by network and mini-batch, VGG",
        volume.shares_by_panel, volume.Panels(4, 6, 128, (16, 8, 32)),
        volume.Panels(None, 1000, None, (128, 64, 256, 512)), "figure 4",
    ),
    _training(
        "maxpool-fig5", "Training VGG-11 with SGD, by beta", "figure 5",
        replace(_VGG11, batch_norms=_BOTH_NORMS),
        _narrow(_VGG11, batch_norms=_BOTH_NORMS, betas=_FEW_BETAS),
    ),
    Figure(
        "maxpool-fig6", "Drift of networks that differ in beta, VGG-11", distance.drift,
        # A step ten times as large as published: a narrow network learns within a few epochs.
        distance.Size(8, None, 32, 4, step_size=0.1), distance.Size(200, None, 128, None),
        "figure 6",
    ),
    Figure(
        "maxpool-fig7", "The programs max1, max2 and zero", programs.written_as_ops,
        None, None, "figure 7", on_device=False,
    ),
    Figure(
        "maxpool-fig8", "Tied cells of a max-pool on an image", ties.tied_windows, 1, 1,
        "figure 8",
    ),
    Figure(
        "maxpool-fig9", "Max through ReLU: programs, and LeNet-5 with ReLU'(0) = 0 against 1",
        variation.max_through_relu, Size(3, 3), _ALL, "figure 9",
    ),
    Figure(
        "maxpool-fig10", "Backprop variation of two norm pools, LeNet-5", variation.norm_pools,
        Size(5, 5), _ALL, "figure 10",
    ),
    _training(
        "maxpool-fig11", "Training VGG-11 with Adam, by beta", "figure 11",
        replace(_VGG11, optimizers=("adam",), dtypes=("float32",)),
        _narrow(
            _VGG11, optimizers=("adam",), dtypes=("float32",), seeds=2, learning_rate=1e-3,
            betas=(0.0, 1e2, 1e3, 1e4),
        ),
    ),
    _training(
        "maxpool-fig12", "Training LeNet-5 with SGD, by beta", "figure 12",
        replace(_LENET, arms=ARMS),
        _brief(_LENET, arms=ARMS, seeds=2, betas=_FEW_BETAS),
    ),
    _training(
        "maxpool-fig13", "Training ResNet-18 with SGD, by beta", "figure 13", _RESNET,
        _narrow(_RESNET, epochs=4, betas=_FEW_BETAS),
    ),
    _training(
        "maxpool-training",
        "Training LeNet-5: beta, optimizer, format, batch norm and arm", "",
        whole := replace(
            _LENET, optimizers=("sgd", "adam"), batch_norms=_BOTH_NORMS, arms=ARMS,
            dtypes=("float16", "bfloat16", "float32", "float64"),
        ),
        _brief(whole, epochs=4, betas=(0.0, 1e4)),
    ),
    _further("vgg13", "VGG-13", "CIFAR10", 200),
    _further("vgg16", "VGG-16", "CIFAR10", 200),
    _further("vgg19", "VGG-19", "CIFAR10", 200),
    _further("svhn", "VGG-11", "SVHN", 100),
    _further("densenet121", "DenseNet-121", "CIFAR100", 200),
)  # fmt: skip

FIGURES: MappingProxyType[str, Figure[Any]] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name."""
