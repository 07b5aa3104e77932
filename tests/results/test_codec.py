"""Do results become documents and come back, by their annotations alone, and is reading strict?"""

import dataclasses
import enum
import json
import math
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from numgeom.certificate import Certificate, GradientAccuracy, Kink, NonFinite, Source
from numgeom.diagnosis.result import Diagnosis, Finding
from numgeom.diagnosis.watched import Look, WatchedStep
from numgeom.functionals.result import TrackingResult
from numgeom.precision.estimate import Estimate
from numgeom.precision.loss_scale import LossScale
from numgeom.precision.plan import PrecisionPlan
from numgeom.recording import Program
from numgeom.results.codec import BESIDE, decode, encode


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Word(enum.StrEnum):
    ONE = "the first"


@dataclass(frozen=True)
class Inner:
    name: str
    size: float


@dataclass(frozen=True)
class Outer:
    DERIVED: ClassVar = ("twice",)

    number: float
    count: int
    flag: bool
    text: str
    colour: Colour
    word: Word
    phase: Literal["forward", "backward"]
    maybe: float | None
    many: tuple[int, ...]
    pair: tuple[float, str]
    rows: Mapping[str, Inner]
    table: Mapping[str, Mapping[str, float]]
    scales: Mapping[float, float]
    counts: Counter[str]
    anything: Mapping[str, Any]
    inner: "Inner | None" = None
    later: int = 7
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, metadata=BESIDE)

    @property
    def twice(self) -> float:
        return 2 * self.number

    def check(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


MADE = Outer(
    number=-math.inf, count=3, flag=True, text="größer", colour=Colour.BLUE, word=Word.ONE,
    phase="backward", maybe=None, many=(1, 2), pair=(0.5, "x"), rows={"a": Inner("a", 1.0)},
    table={"m": {"f": math.inf}}, scales={1.0: 0.25, 0.5: 0.0}, counts=Counter({"op": 2}),
    anything={"x": [1, "two", 0.5, True], "y": math.inf}, inner=Inner("b", 5e-324),
)  # fmt: skip
DOCUMENT = json.loads(json.dumps(encode(MADE), allow_nan=False))


def test_a_result_comes_back() -> None:
    assert decode(Outer, DOCUMENT) == MADE
    assert DOCUMENT["number"] == "-Infinity"
    assert (DOCUMENT["colour"], DOCUMENT["word"]) == ("BLUE", "the first")
    assert DOCUMENT["rows"] == [{"name": "a", "size": 1.0}]
    assert DOCUMENT["scales"] == [[1.0, 0.25], [0.5, 0.0]]
    assert DOCUMENT["twice"] == "-Infinity"
    assert "tensors" not in DOCUMENT
    assert isinstance(decode(Outer, DOCUMENT).counts, Counter)


def test_what_has_a_default_may_be_missing_and_what_is_derived_is_not_believed() -> None:
    shorter = {k: v for k, v in DOCUMENT.items() if k not in ("later", "inner", "twice")}
    found = decode(Outer, {**shorter, "twice": "nonsense"})
    assert (found.later, found.inner, found.twice) == (7, None, -math.inf)
    for needed in ("number", "rows", "maybe"):
        with pytest.raises(ValueError, match=f"no field '{needed}'"):
            decode(Outer, {k: v for k, v in DOCUMENT.items() if k != needed})


WRONG: list[tuple[str, Any]] = [
    ("number", "1.0"), ("number", True), ("number", None), ("number", 10**400), ("number", [1]),
    ("count", 1.0), ("count", True), ("count", "3"), ("count", 2**70), ("count", -1),
    ("flag", 1), ("flag", "true"), ("flag", None),
    ("text", 3), ("text", None), ("text", ["x"]),
    ("colour", "GREEN"), ("colour", 1), ("colour", "blue"), ("colour", ["RED"]),
    ("word", "ONE"), ("phase", "sideways"), ("phase", 1), ("maybe", "x"),
    ("many", 3), ("many", {"0": 1}), ("many", [1, "x"]), ("pair", [0.5]), ("pair", [0.5, "x", 1]),
    ("rows", {"a": {"name": "a", "size": 1.0}}), ("rows", [{"name": "a"}]), ("rows", "a"),
    ("rows", [{"name": "a", "size": 1.0}] * 2), ("rows", [{"name": "a", "size": 1, "x": 1}]),
    ("table", [["m", {}]]), ("table", {"m": {"f": None}}), ("scales", {"1.0": 1.0}),
    ("scales", [[1.0]]), ("scales", [[1.0, 0.5], [1.0, 0.5]]), ("counts", {"op": 0.5}),
    ("counts", ["op"]), ("anything", [1]), ("inner", {}), ("inner", "b"), ("unknown", 1),
    ("tensors", {}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_another_type_is_refused_with_its_place(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        decode(Outer, {**DOCUMENT, key: value})


@pytest.mark.parametrize("document", [None, [], "x", 1, {}])
def test_what_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="Outer"):
        decode(Outer, document)


def test_what_is_no_data_is_not_written() -> None:
    for odd in (object(), len, nn.Linear(1, 1), torch.ones(1)):
        with pytest.raises(TypeError, match="no data"):
            encode({"x": odd})


RESULTS = (
    Certificate, GradientAccuracy, Kink, NonFinite, Source, Diagnosis, Finding, Look, WatchedStep,
    TrackingResult, PrecisionPlan, LossScale, Estimate,
)  # fmt: skip


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
def test_results_are_data(kind: Any) -> None:
    """No field of a result, however deep, is a function, a model, a program or private."""
    seen: set[Any] = set()

    def look(hint: Any) -> None:
        if hint in seen:
            return
        seen.add(hint)
        for part in typing.get_args(hint):
            look(part)
        if typing.get_args(hint):
            assert "Callable" not in str(typing.get_origin(hint)), hint
        elif dataclasses.is_dataclass(hint):
            hints = typing.get_type_hints(hint)
            for each in dataclasses.fields(hint):
                assert not each.name.startswith("_"), (hint, each.name)
                look(hints[each.name])
        elif isinstance(hint, type):
            assert not issubclass(hint, nn.Module | Program), hint

    look(kind)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
