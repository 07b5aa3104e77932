import sys

import pytest
import torch

from numgeom.examples.data import DataError, load_digits, load_text


def test_digits_are_exact_in_bfloat16_and_in_range() -> None:
    images, labels = load_digits().train
    assert torch.equal(images.to(torch.bfloat16).to(torch.float32), images)
    assert images.min() == 0
    assert images.max() == 1
    assert set(labels.tolist()) == set(range(10))


def test_digits_agree_with_scikit_learn_sample_by_sample() -> None:
    from sklearn import datasets

    bunch = datasets.load_digits()
    expected = sorted(
        (tuple(pixels), int(label))
        for pixels, label in zip(bunch.data.tolist(), bunch.target, strict=True)
    )
    data = load_digits()
    images = torch.cat([data.train[0], data.test[0]]).flatten(1) * 16
    labels = torch.cat([data.train[1], data.test[1]])
    found = sorted(
        (tuple(pixels), label)
        for pixels, label in zip(images.tolist(), labels.tolist(), strict=True)
    )
    assert found == expected  # nothing lost, doubled, or given another's label by the split


def test_digits_are_enlarged_by_whole_pixels_and_padded_with_zeros() -> None:
    small = load_digits().train[0]
    large = load_digits(scale=3, padding=2).train[0]
    assert large.shape == (len(small), 1, 28, 28)
    inside = large[:, :, 2:-2, 2:-2]
    for row in range(3):
        for column in range(3):
            assert torch.equal(inside[:, :, row::3, column::3], small)
    assert large.sum() == inside.sum()


def test_a_text_target_is_the_next_character() -> None:
    data = load_text(context=16, stride=5)
    for inputs, targets in (data.train, data.test):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == 16
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(inputs[1:, 0], inputs[:-1, 5])  # windows start 5 characters apart
        assert inputs.max() < data.classes


def test_the_two_parts_of_the_text_hold_each_character_once() -> None:
    data = load_text(context=16, stride=1)
    windows = len(data.train[0]) + len(data.test[0])
    assert windows == data.stamp.n - 2 * 16  # each part loses its last 16 starts, no more or fewer


def test_a_stamp_tells_data_apart_and_stays_for_the_same_data() -> None:
    digits, text = load_digits().stamp, load_text(context=8, stride=8).stamp
    assert digits == load_digits(scale=3, padding=2).stamp
    assert digits.n == 1797
    assert "scikit-learn" in digits.source
    assert digits.sha256 != text.sha256
    assert len(text.sha256) == 64


def test_missing_scikit_learn_is_said_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load_digits()
