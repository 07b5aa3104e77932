"""The names are those that torch gives."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from numgeom.recording.modules import named


class _Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.missing = None
        self.register_module("nobody", None)
        self.register_buffer("none", None)
        self.register_buffer("count", torch.zeros(1))
        self.register_parameter("no_bias", None)
        self.own = nn.Parameter(torch.ones(2))
        self.deep = nn.Sequential(nn.BatchNorm1d(3), nn.ModuleList([self.tied, nn.Conv1d(1, 1, 1)]))


@pytest.mark.parametrize(
    "model",
    [
        _Sharing(),
        nn.Linear(2, 2),
        nn.ReLU(),
        weight_norm(nn.Linear(2, 2)),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        nn.ParameterDict({"a": nn.Parameter(torch.ones(1))}),
    ],
    ids=lambda m: type(m).__name__,
)
def test_names_and_order_are_those_of_torch(model: nn.Module) -> None:
    found = named(model)
    for mine, its in (
        (found.modules, model.named_modules()),
        (found.parameters, model.named_parameters()),
        (found.buffers, model.named_buffers()),
    ):
        assert [(n, id(x)) for n, x in mine.items()] == [(n, id(x)) for n, x in its]


def test_a_module_that_holds_itself_ends() -> None:
    model = nn.Linear(2, 2)
    model.__dict__["_modules"]["me"] = model
    assert list(named(model).modules) == [""]
