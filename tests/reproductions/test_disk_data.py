import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from numgeom.examples.data import DataError
from reproductions.disk_data import load_from_disk
from tests.reproductions.image_files import (
    draws,
    idx,
    records,
    write_cifar10,
    write_mnist,
    write_svhn,
)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["", "MNIST/raw"])
def test_mnist_is_read_as_written(tmp_path: Path, packed: bool, place: str) -> None:
    arrays = list(write_mnist(tmp_path / place, packed=packed).values())
    data = load_from_disk("mnist", tmp_path)
    images, labels = data.train
    assert images.shape == (7, 1, 28, 28)
    assert torch.equal((images[:, 0] * 255).round().byte(), torch.from_numpy(arrays[0]))
    assert labels.tolist() == arrays[1].tolist()
    assert data.test[1].tolist() == arrays[3].tolist()
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert data.stamp.n == 10
    assert "mnist" in data.stamp.source


def test_the_stamp_is_of_the_content_and_not_of_the_files(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a")
    write_mnist(tmp_path / "b", packed=True, dot=".")
    first = load_from_disk("mnist", tmp_path / "a").stamp
    assert load_from_disk("mnist", tmp_path / "b").stamp == first
    assert load_from_disk("mnist", tmp_path / "a", limit=2).stamp == first
    other = draws(7, high=10)
    other[0] = (other[0] + 1) % 10
    (tmp_path / "a" / "train-labels-idx1-ubyte").write_bytes(idx(other))
    assert load_from_disk("mnist", tmp_path / "a").stamp != first


def test_a_limit_keeps_the_first_images(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    whole, part = load_from_disk("mnist", tmp_path), load_from_disk("mnist", tmp_path, limit=2)
    assert torch.equal(part.train[0], whole.train[0][:2])
    assert len(part.test[1]) == 2


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "short header": content[:6],
        "other magic": b"\x00\x00\x0d\x03" + content[4:],
        "fewer bytes": content[:-1],
        "more bytes": content + b"\x00",
        "huge promise": content[:4] + b"\xff\xff\xff\xff" + content[8:],
        "huge image": content[:8] + b"\xff\xff\xff\xff" + content[12:],
        "no image": content[:4] + b"\x00\x00\x00\x00" + content[8:],
        "other size": content[:8]
        + (14).to_bytes(4, "big")
        + (56).to_bytes(4, "big")
        + content[16:],
    }


@pytest.mark.parametrize("kind", list(damaged(b"")))
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_mnist_is_refused_by_name(tmp_path: Path, kind: str, packed: bool) -> None:
    write_mnist(tmp_path, packed=packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    content = damaged(idx(draws(7, 28, 28)))[kind]
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=r"damaged|no IDX|another size"):
        load_from_disk("mnist", tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"x" * 999, mtime=0)[:20]],
    ids=["empty", "foreign", "cut"],
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_mnist(tmp_path, packed=True)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match="t10k-images"):
        load_from_disk("mnist", tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(draws(6, high=10)))
    with pytest.raises(DataError, match="7 images and 6 labels"):
        load_from_disk("mnist", tmp_path)


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_cifar10_is_read_as_written(tmp_path: Path, place: str) -> None:
    pixels, numbers = write_cifar10(tmp_path / place)
    data = load_from_disk("cifar10", tmp_path)
    assert data.train[0].shape == (15, 3, 32, 32)
    images, labels = data.test
    assert torch.equal((images * 255).round().byte().flatten(1), torch.from_numpy(pixels))
    assert labels.tolist() == numbers.tolist()


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    data, _, fine = records(6, labels=2, classes=100)
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(data)
    found = load_from_disk("cifar100", tmp_path)
    assert found.classes == 100
    assert found.train[1].tolist() == fine.tolist()


def test_cifar_of_another_length_or_label_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x00" * 3074)
    with pytest.raises(DataError, match="3073"):
        load_from_disk("cifar10", tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x0a" + b"\x00" * 3072)
    with pytest.raises(DataError, match="label"):
        load_from_disk("cifar10", tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("opened"),))


@pytest.mark.parametrize("place", ["", "cifar-10-batches-py"])
def test_pickles_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"pickles.*never opened.*binary version"):
        load_from_disk("cifar10", tmp_path)
    assert not (tmp_path / "opened").exists()


def test_svhn_is_read_as_written(tmp_path: Path) -> None:
    pixels = write_svhn(tmp_path)
    images, labels = load_from_disk("svhn", tmp_path).train
    assert labels.tolist() == [0, 1, 2, 9, 0]
    assert images.shape == (5, 3, 32, 32)
    assert round(float(images[3, 2, 4, 5]) * 255) == pixels[4, 5, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"X": np.zeros((32, 32, 3, 4), np.uint8)},
        {"X": np.zeros((32, 32, 3, 5))},
        {"y": np.zeros((5, 1))},
        {"X": np.zeros((5, 5), np.uint8)},
        {"y": np.full((5, 1), 11, np.uint8)},
    ],
)
def test_another_matlab_file_is_refused(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    write_svhn(tmp_path, **changes)
    with pytest.raises(DataError, match=r"cropped digits|label"):
        load_from_disk("svhn", tmp_path)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 but no more", b"\x00" * 300], ids=len)
def test_a_damaged_matlab_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_svhn(tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"train_32x32"):
        load_from_disk("svhn", tmp_path)


def test_a_truncated_matlab_file_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged"):
        load_from_disk("svhn", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_missing_files_say_that_nothing_is_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"never downloaded.*--data"):
        load_from_disk(name, tmp_path)


def test_an_unknown_data_set_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mnist, cifar10, cifar100, svhn"):
        load_from_disk("imagenet", tmp_path)
