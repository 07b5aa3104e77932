"""Writers of small files in the formats of MNIST, CIFAR and SVHN."""

import gzip
from pathlib import Path

import numpy as np
from scipy.io import savemat


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()


def draws(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, high, shape, dtype=np.uint8)


def write_mnist(folder: Path, *, packed: bool = False, dot: str = "-") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"train-images{dot}idx3-ubyte": draws(7, 28, 28),
        f"train-labels{dot}idx1-ubyte": draws(7, high=10),
        f"t10k-images{dot}idx3-ubyte": draws(3, 28, 28),
        f"t10k-labels{dot}idx1-ubyte": draws(3, high=10),
    }
    for name, values in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (folder / name).write_bytes(idx(values))
    return arrays


def records(n: int, *, labels: int, classes: int = 10) -> tuple[bytes, np.ndarray, np.ndarray]:
    pixels = draws(n, 3072)
    numbers = draws(n, labels, high=classes)
    return np.concatenate([numbers, pixels], axis=1).tobytes(), pixels, numbers[:, -1]


def write_cifar10(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(records(i, labels=1)[0])
    data, pixels, numbers = records(4, labels=1)
    (folder / "test_batch.bin").write_bytes(data)
    return pixels, numbers


def write_svhn(folder: Path, **changes: np.ndarray) -> np.ndarray:
    pixels = draws(32, 32, 3, 5)
    labels = np.array([[10], [1], [2], [9], [10]], dtype=np.uint8)
    for part in ("train", "test"):
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": labels} | changes)
    return pixels
