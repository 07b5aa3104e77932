from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from numgeom.targets import convert_floating

Pair = namedtuple("Pair", ["first", "second"])


@dataclass(frozen=True)
class Sample:
    inputs: Tensor
    note: str


def test_floating_tensors_are_converted_at_any_depth_and_the_rest_is_kept() -> None:
    numbers, indices = torch.tensor([0.1, 0.2]), torch.tensor([1, 2])
    mask, text = torch.tensor([True]), "text"
    batch: Any = {
        "list": [numbers, indices, (mask, text, None)],
        "pair": Pair(numbers, {"deep": numbers}),
        "sample": Sample(numbers, text),
        "ordered": OrderedDict(a=numbers),
        "user": UserDict(a=numbers),
    }
    converted = convert_floating(batch, torch.float64)
    expected = numbers.double()
    for found in (
        converted["list"][0],
        converted["pair"].first,
        converted["pair"].second["deep"],
        converted["sample"].inputs,
        converted["ordered"]["a"],
        converted["user"]["a"],
    ):
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)
    assert converted["list"][1] is indices
    assert converted["list"][2] == (mask, text, None)
    assert converted["sample"].note is text
    for key, value in batch.items():
        assert type(converted[key]) is type(value)
        assert converted[key] is not value


def test_the_given_batch_is_unchanged() -> None:
    batch = {"a": [torch.ones(1)], "b": Sample(torch.ones(1), "")}
    inner = batch["a"]
    convert_floating(batch, torch.float16)
    assert batch["a"] is inner
    assert batch["a"][0].dtype == torch.float32
    assert batch["b"].inputs.dtype == torch.float32


def test_a_converted_input_is_a_leaf_that_still_wants_its_gradient() -> None:
    converted = convert_floating(torch.ones(1, requires_grad=True), torch.float64)
    assert converted.is_leaf
    assert converted.requires_grad


def test_a_packed_sequence_stays_one() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    converted = convert_floating(packed, torch.float64)
    assert type(converted) is type(packed)
    assert converted.data.dtype == torch.float64
    assert torch.equal(converted.batch_sizes, packed.batch_sizes)
