"""Which image data sets can be read from files that a person already has?

MNIST (LeCun et al. 1998), CIFAR-10 and CIFAR-100 (Krizhevsky 2009) and SVHN (Netzer et al. 2011),
in the formats of their publishers. Nothing is ever downloaded and no pickle is ever opened: loading
one can run any program. Pixels 0, ..., 255 become 0, ..., 1; nothing else is done to them.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import Tensor

from numgeom.examples.data import DataError, Dataset, DataStamp

_Part = tuple[Tensor, Tensor]  # uint8 images [n, C, side, side] and int64 labels [n]
_CIFAR_PIXELS = 3 * 32 * 32
_MOST_IMAGES = 10_000_000  # far above the sets read here: a larger count is a damaged header
_MOST_PIXELS = 1 << 20


def load_from_disk(name: str, folder: str | Path, *, limit: int | None = None) -> Dataset:
    """Read a data set from the files in a folder.

    Args:
        name: "mnist", "cifar10", "cifar100" or "svhn".
        folder: Where the files are, or the folder around the one with the publisher's name.
        limit: Keep only so many images of each part, the first ones; the stamp is of the whole.

    Returns:
        Images of shape [n, channels, side, side] in float32, and labels.

    Raises:
        DataError: If files are missing, damaged, or of another format.
    """
    if name not in DISK_DATASETS:
        raise DataError(
            f"There is no data set {name!r} to read from files; known are "
            f"{', '.join(DISK_DATASETS)}."
        )
    read, classes = DISK_DATASETS[name]
    train, test = read(Path(folder))
    digest = hashlib.sha256()
    for images, labels in (train, test):
        if len(images) == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise DataError(
                f"The {name} files in {folder} are damaged: a part is empty, or a label is not in "
                f"0, ..., {classes - 1}."
            )
        digest.update(images.numpy().tobytes())
        digest.update(labels.to(torch.uint8).numpy().tobytes())
    return Dataset(
        train=_scaled(train, limit),
        test=_scaled(test, limit),
        classes=classes,
        stamp=DataStamp(
            source=f"{name}, files of its publisher",
            sha256=digest.hexdigest(),
            n=len(train[1]) + len(test[1]),
        ),
    )


def _scaled(part: _Part, limit: int | None) -> _Part:
    images, labels = part[0][:limit], part[1][:limit]
    return images.to(torch.float32) / 255.0, labels.clone()


# -- MNIST -----------------------------------------------------------------------------------


def _read_mnist(folder: Path) -> tuple[_Part, _Part]:
    parts: list[_Part] = []
    for part in ("train", "t10k"):
        images = _read_idx(_find_idx(folder, f"{part}-images", 3), dimensions=3)
        labels = _read_idx(_find_idx(folder, f"{part}-labels", 1), dimensions=1)
        if len(images) != len(labels):
            raise DataError(
                f"The MNIST files {part}-* in {folder} do not belong together: {len(images)} "
                f"images and {len(labels)} labels."
            )
        parts.append((images.unsqueeze(1), labels.to(torch.int64)))
    if any(images.shape[1:] != (1, 28, 28) for images, _ in parts):
        raise DataError(f"The files in {folder} hold images of another size than MNIST's 28x28.")
    return parts[0], parts[1]


def _find_idx(folder: Path, stem: str, dimensions: int) -> Path:
    names = [
        f"{stem}{dot}idx{dimensions}-ubyte{packed}" for dot in ("-", ".") for packed in ("", ".gz")
    ]
    return _find(folder, names, places=("", "MNIST/raw", "mnist", "MNIST"), what="MNIST")


def _read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes in LeCun's IDX format, packed by gzip or not.

    Two zero bytes, the type (8), the number of dimensions, the sizes in big endian, the data.
    """
    try:
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            return _idx_of(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _idx_of(file: IO[bytes], path: Path, dimensions: int) -> Tensor:
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path} is no IDX file of unsigned bytes with {dimensions} dimensions: it begins "
            f"with {header[:4].hex() or 'nothing'}."
        )
    shape = [int.from_bytes(header[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    size = 1
    for length in shape[1:]:
        size *= length
    if not 0 < shape[0] <= _MOST_IMAGES or not 0 < size <= _MOST_PIXELS:
        raise DataError(f"{path} is damaged: its header promises {shape} bytes.")
    data = file.read(shape[0] * size + 1)
    if len(data) != shape[0] * size:
        more = "more" if len(data) > shape[0] * size else "fewer"
        raise DataError(f"{path} is damaged: it holds {more} bytes than the {shape} it promises.")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)


# -- CIFAR -----------------------------------------------------------------------------------


def _read_cifar10(folder: Path) -> tuple[_Part, _Part]:
    places = ("", "cifar-10-batches-bin", "cifar10", "CIFAR10")
    pickles = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    parts = [
        _read_records(_find(folder, [n], places=places, what="CIFAR-10", pickles=pickles), 1)
        for n in (*names, "test_batch.bin")
    ]
    images, labels = zip(*parts[:-1], strict=True)
    return (torch.cat(images), torch.cat(labels)), parts[-1]


def _read_cifar100(folder: Path) -> tuple[_Part, _Part]:
    places = ("", "cifar-100-binary", "cifar100", "CIFAR100")
    pickles = ("cifar-100-python", "cifar-100-python.tar.gz")
    train, test = (
        _read_records(_find(folder, [n], places=places, what="CIFAR-100", pickles=pickles), 2)
        for n in ("train.bin", "test.bin")
    )
    return train, test


def _read_records(path: Path, labels: int) -> _Part:
    """Read records of label bytes, of which the last is the class, and 32x32 RGB pixels."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    length = labels + _CIFAR_PIXELS
    if not data or len(data) % length:
        raise DataError(
            f"{path} is damaged or no CIFAR file: {len(data)} bytes are no whole number of "
            f"records of {length}."
        )
    records = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, length)
    images = records[:, labels:].reshape(-1, 3, 32, 32).contiguous()
    return images, records[:, labels - 1].to(torch.int64)


# -- SVHN ------------------------------------------------------------------------------------


def _read_svhn(folder: Path) -> tuple[_Part, _Part]:
    train, test = (
        _read_mat(_find(folder, [n], places=("", "svhn", "SVHN"), what="SVHN"))
        for n in ("train_32x32.mat", "test_32x32.mat")
    )
    return train, test


def _read_mat(path: Path) -> _Part:
    """Read pixels X [32, 32, 3, n] and labels y [n, 1], in which 10 stands for the digit 0."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f"SVHN files are read by SciPy, which cannot be imported ({error}); install it with: "
            "pip install scipy"
        ) from error
    try:
        found: Any = loadmat(path, variable_names=("X", "y"))
    except Exception as error:  # scipy lets many kinds through from a damaged file
        raise DataError(
            f"{path} is damaged or no MATLAB file: {error or type(error).__name__}."
        ) from error
    pixels, labels = found.get("X"), found.get("y")
    if (
        pixels is None
        or labels is None
        or pixels.dtype.name != "uint8"
        or pixels.ndim != 4
        or pixels.shape[:3] != (32, 32, 3)
        or labels.dtype.kind not in "iu"
        or labels.size != pixels.shape[3]
    ):
        raise DataError(
            f"{path} does not hold SVHN's cropped digits: bytes X [32, 32, 3, n] and labels "
            "y [n, 1] are needed."
        )
    images = torch.from_numpy(pixels).permute(3, 2, 0, 1).contiguous()
    numbers = torch.from_numpy(labels.reshape(-1).astype("int64"))
    return images, torch.where(numbers == 10, 0, numbers)


# -- finding ---------------------------------------------------------------------------------


def _find(
    folder: Path,
    names: list[str],
    *,
    places: tuple[str, ...],
    what: str,
    pickles: tuple[str, ...] = (),
) -> Path:
    """The first file that exists, of some names in some places below a folder."""
    for place in places:
        for name in names:
            path = folder / place / name
            if path.is_file():
                return path
    for name in (*pickles, names[0].removesuffix(".bin")):
        if pickles and any((folder / place / name).exists() for place in places):
            raise DataError(
                f"{folder} holds {what} as Python pickles ({name}), which are never opened, since "
                f"loading one can run any program. Put {what}'s binary version there, which its "
                "publisher offers beside the pickles."
            )
    looked = ", ".join(place or "the folder itself" for place in places)
    raise DataError(
        f"{what} is not complete in {folder}: no {' or '.join(names)} (looked in {looked}). Data "
        "are never downloaded; get the files from the publisher and name their folder by --data."
    )


_Reader = Callable[[Path], tuple[_Part, _Part]]

DISK_DATASETS: Mapping[str, tuple[_Reader, int]] = MappingProxyType(
    {
        "mnist": (_read_mnist, 10),
        "cifar10": (_read_cifar10, 10),
        "cifar100": (_read_cifar100, 100),
        "svhn": (_read_svhn, 10),
    }
)
"""The data sets that can be read, by name: reader and number of classes."""
