from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import numgeom
from numgeom.errors import NumgeomError
from numgeom.nonsmooth import audit, hull, survey, zones
from numgeom.recording import record, record_step

QUESTIONS: dict[str, Callable[..., Any]] = {
    "certify": numgeom.certify,
    "diagnose": numgeom.diagnose,
    "estimate": numgeom.estimate,
    "zones": zones,
    "hull": hull,
    "audit": audit,
    "survey": survey,
}
everywhere = pytest.mark.parametrize("question", QUESTIONS)


def make() -> tuple[nn.Module, Callable[..., Any], torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), lambda model, x: model(x).relu().sum(), torch.ones(4, 3)


@everywhere
def test_every_question_takes_every_subject(question: str) -> None:
    ask = QUESTIONS[question]
    model, loss_fn, batch = make()
    with record(model) as recording:
        loss_fn(model, batch).backward()
    program = record_step(model, loss_fn, batch)
    answers = [
        ask(model, loss_fn, batch),
        ask(lambda: loss_fn(model, batch).backward()),
        ask(recording),
        ask(program),
    ]
    assert len({type(answer) for answer in answers}) == 1


@everywhere
def test_none_is_a_batch(question: str) -> None:
    model, loss_fn, batch = make()
    QUESTIONS[question](model, lambda model, none: loss_fn(model, batch), None)


@everywhere
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda model, loss_fn, batch: (model,), "no loss function"),
        (lambda model, loss_fn, batch: (model, loss_fn), "no batch"),
        (lambda model, loss_fn, batch: (model, "loss", batch), "cannot be called"),
        (lambda model, loss_fn, batch: (lambda: None, loss_fn, batch), "only with a model"),
        (lambda model, loss_fn, batch: (record_step(model, loss_fn, batch), None, 1), "only with"),
        (lambda model, loss_fn, batch: (7,), "of type int"),
        (lambda model, loss_fn, batch: (record(model),), "has not been entered"),
    ],
)
def test_what_does_not_fit_is_named_with_the_question(
    question: str, arguments: Callable[..., tuple[Any, ...]], said: str
) -> None:
    with pytest.raises(NumgeomError, match=said) as caught:
        QUESTIONS[question](*arguments(*make()))
    assert question in str(caught.value) or "recording" in str(caught.value)


@everywhere
def test_an_exception_of_the_loss_function_is_passed_on_with_a_note(question: str) -> None:
    model, _, batch = make()

    def broken(model: nn.Module, batch: Any) -> torch.Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        QUESTIONS[question](model, broken, batch)
    assert any(f"numgeom.{question}" in note for note in caught.value.__notes__)
