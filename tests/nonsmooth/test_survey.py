"""Does the survey say what its parts found, to people and to programs?"""

import dataclasses
import json
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import Survey, audit, hull, survey, zones


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return F.max_pool1d(model(x), 2).sum()


def layer(weights: list[float]) -> nn.Conv1d:
    found = nn.Conv1d(1, 1, len(weights), bias=False)
    with torch.no_grad():
        found.weight.copy_(torch.tensor([[weights]]))
    return found


ACCIDENT = torch.tensor([[[1.0, 2.0, 1.0, 5.0, 1.0]]])


def test_it_is_made_of_its_parts() -> None:
    model = layer([1.0, 1.0])
    found = survey(model, loss, ACCIDENT)
    assert found.zones.zone == zones(model, loss, ACCIDENT).zone == "bifurcation"
    assert str(found.hull) == str(hull(model, loss, ACCIDENT))
    assert found.audit == audit(model, loss, ACCIDENT)
    assert found.curve[0][1] == 1.0
    assert found.curve[-1][1] == 0.0


def test_the_text_teaches() -> None:
    text = survey(layer([1.0, 1.0]), loss, ACCIDENT).text()
    assert text.startswith("Zone: bifurcation. The gradient depends on which derivative is taken")
    assert "[0, 0, 0, 0]: by accident" in text
    assert "a difference for every tau below" in text
    assert "weight: width up to" in text
    assert "Audit: torch documents the sub-gradient of least norm at kinks." in text


def test_rows_limit_every_part() -> None:
    model = layer([1.0, 1.0])
    short = survey(model, loss, torch.ones(1, 1, 41)).text(rows=3)
    assert short.count("identical pieces") == 3
    assert "and 17 more tied units" in short


def test_a_regular_step_says_so() -> None:
    text = survey(layer([1.0, 0.5]), loss, torch.tensor([[[1.0, 2.0, 4.0]]])).text()
    assert text.startswith("Zone: regular.")
    assert "below every threshold, D is 0" in text
    assert "one point (PROVED)" in text


def test_json_holds_the_whole() -> None:
    found = survey(layer([1.0, 1.0]), loss, ACCIDENT)
    document = json.loads(found.to_json(provenance={"target": "test"}))
    assert document["schema"] == "numgeom.zones"
    assert document["provenance"] == {"target": "test"}
    assert document["zone"] == "bifurcation"
    (tie,) = document["ties"]
    assert tie["n_accidental"] == len([u for u in tie["units"] if u["kind"] == "by accident"])
    (parameter,) = document["hull"]["parameters"]
    assert parameter["name"] == "weight"
    assert parameter["width_max"] > 0
    assert parameter["n_moving"] == int((found.hull.width["weight"] != 0).sum())
    (op,) = document["audit"]
    assert op["breaks_rule"] is True
    assert document["criterion"][0] == {"tau": found.curve[0][0], "above": True}


def test_json_writes_numbers_that_are_not_finite_as_text() -> None:
    found = survey(layer([1.0, 1.0]), loss, ACCIDENT)
    odd = dataclasses.replace(found.zones, variation=math.inf, replayed_variation=math.nan)
    document = json.loads(Survey(odd, found.hull, found.audit).to_json())
    assert document["variation"] == "inf"
    assert document["replayed_variation"] == "nan"
