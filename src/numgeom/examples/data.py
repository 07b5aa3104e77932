"""Which real data can an experiment use without a download, and how is a result stamped with it?

Everything here is read from the wheel of scikit-learn, which is imported on use only.
"""

import hashlib
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from numgeom.errors import NumgeomError

# load_digits and the loaders whose DESCR is prose; in this order they make the text corpus.
_TEXT_LOADERS = ("digits", "breast_cancer", "diabetes", "wine", "iris", "linnerud")
_SPLIT_SEED = 20_240_601  # any fixed number: the split must not move with the seed of a run


class DataError(NumgeomError):
    """Data that an experiment needs cannot be had."""


@dataclass(frozen=True)
class DataStamp:
    """What a result was computed on.

    Attributes:
        source: Where the data came from, with its version.
        sha256: Digest of the raw data, before scaling and splitting.
        n: How many raw items there are: images, or characters.
    """

    source: str
    sha256: str
    n: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples in two disjoint parts, with their stamp.

    Attributes:
        train: Inputs and targets to train on; samples along the first dimension.
        test: Inputs and targets held out.
        classes: Every target is one of 0, ..., classes - 1.
        stamp: What the data are.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    stamp: DataStamp


def load_digits(*, scale: int = 1, padding: int = 0) -> Dataset:
    """Load the 1797 handwritten digits that scikit-learn ships (Alpaydin and Kaynak 1998).

    Pixels 0, ..., 16 are divided by 16, so that they are exact in every format down to bfloat16.
    Four fifths are for training; the split is the same for every seed.

    Args:
        scale: Side of the square that each pixel becomes (nearest neighbour).
        padding: Zero pixels added on every side after scaling.

    Returns:
        Images of shape [n, 1, side, side], side = 8 * scale + 2 * padding, and labels.

    Raises:
        DataError: If scikit-learn cannot be imported.
    """
    sklearn = _import_sklearn()
    bunch = sklearn.datasets.load_digits()
    pixels = torch.as_tensor(bunch.images, dtype=torch.uint8, device="cpu")
    labels = torch.as_tensor(bunch.target, dtype=torch.int64, device="cpu")
    digest = hashlib.sha256(pixels.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes())
    images = (pixels.to(torch.float32) / 16.0).unsqueeze(1)
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    images = F.pad(images, [padding] * 4)
    order = torch.randperm(
        len(labels), generator=torch.Generator("cpu").manual_seed(_SPLIT_SEED), device="cpu"
    )
    train, test = order.split([len(order) * 4 // 5, len(order) - len(order) * 4 // 5])
    return Dataset(
        train=(images[train], labels[train]),
        test=(images[test], labels[test]),
        classes=10,
        stamp=DataStamp(
            source=f"scikit-learn {sklearn.__version__}, load_digits",
            sha256=digest.hexdigest(),
            n=len(labels),
        ),
    )


def load_text(*, context: int, stride: int) -> Dataset:
    """Cut the data descriptions that scikit-learn ships into windows of characters.

    A sample is (c_1, ..., c_k) with the target (c_2, ..., c_{k+1}), k = context. The first nine
    tenths of the text are for training, the rest is held out, and no window crosses the border.

    Args:
        context: Characters in a window.
        stride: Characters between the starts of neighbouring windows.

    Returns:
        Inputs and targets of shape [n, context], as indices into the sorted alphabet.

    Raises:
        DataError: If scikit-learn cannot be imported.
    """
    sklearn = _import_sklearn()
    loaders = vars(sklearn.datasets)
    text = "\n".join(loaders[f"load_{name}"]().DESCR for name in _TEXT_LOADERS)
    alphabet = {symbol: index for index, symbol in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[symbol] for symbol in text], device="cpu")
    border = len(codes) * 9 // 10
    return Dataset(
        train=_windows(codes[:border], context, stride),
        test=_windows(codes[border:], context, stride),
        classes=len(alphabet),
        stamp=DataStamp(
            source=f"scikit-learn {sklearn.__version__}, DESCR of {', '.join(_TEXT_LOADERS)}",
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            n=len(text),
        ),
    )


def _windows(codes: Tensor, context: int, stride: int) -> tuple[Tensor, Tensor]:
    windows = codes.unfold(0, context + 1, stride)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _import_sklearn() -> ModuleType:
    try:
        import_module("sklearn.datasets")
        return import_module("sklearn")
    except ImportError as error:
        raise DataError(
            "The built-in examples take their data from scikit-learn, which cannot be imported "
            f"({error}); install it with: pip install scikit-learn"
        ) from error
