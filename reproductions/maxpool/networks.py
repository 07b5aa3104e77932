"""numgeom reproduce maxpool-training-vgg13, ...: does beta harm networks that no figure shows?

The other networks and data sets of the max-pooling study (Boustany 2024, appendix C.1): VGG-13,
VGG-16 and VGG-19 on CIFAR10, VGG-11 on SVHN, DenseNet-121 on CIFAR100. At the small scale with
batch norm and in float32 alone: so deep and so narrow, they do not learn within minutes without it.
"""

from reproductions.maxpool.training import Study, training_figure, usual_study
from reproductions.outcome import Outcome, Settings

_SMALL_RATE = 0.05  # the best at beta = 0 of 0.01 and 0.05, with batch norm


def vgg13(settings: Settings, *, study: Study | None = None) -> Outcome:
    """VGG-13 on CIFAR10."""
    return _training(settings, "vgg13", "VGG-13", "CIFAR10", study)


def vgg16(settings: Settings, *, study: Study | None = None) -> Outcome:
    """VGG-16 on CIFAR10."""
    return _training(settings, "vgg16", "VGG-16", "CIFAR10", study)


def vgg19(settings: Settings, *, study: Study | None = None) -> Outcome:
    """VGG-19 on CIFAR10."""
    return _training(settings, "vgg19", "VGG-19", "CIFAR10", study)


def svhn(settings: Settings, *, study: Study | None = None) -> Outcome:
    """VGG-11 on SVHN."""
    return _training(settings, "svhn", "VGG-11", "SVHN", study)


def densenet121(settings: Settings, *, study: Study | None = None) -> Outcome:
    """DenseNet-121 on CIFAR100."""
    return _training(settings, "densenet121", "DenseNet-121", "CIFAR100", study)


def _training(
    settings: Settings, short: str, network: str, data: str, study: Study | None
) -> Outcome:
    small = settings.is_small
    return training_figure(
        settings,
        f"maxpool-training-{short}",
        f"Training {network} on {data} with SGD",
        (network, data),
        study
        or usual_study(
            settings,
            epochs=100 if data == "SVHN" else 200,  # Boustany 2024, table 5
            width=4,
            dtypes=("float32",) if small else ("float16", "float32"),
            batch_norms=(True,) if small else (False, True),
            small_betas=(0.0, 1e3, 1e4),
            small_epochs=4,
            small_rate=_SMALL_RATE,
        ),
    )
