"""Does every question answer for every op that torch knows, or say in our words why it cannot?

The laws: no exception but our own leaves a question, and an op on views, on empty tensors or on
single numbers is recorded as it ran.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import numgeom
from numgeom.errors import NumgeomError, RecordingError
from numgeom.failures import UnforeseenError, guarded
from numgeom.nonsmooth.zones import zones_of
from numgeom.recording import Program, record_callable
from tests.opinfo.database import VARIANTS, Case, cases, full_name, ops

QUESTIONS: dict[str, Callable[[Program], Any]] = {
    "certify": numgeom.certify,
    "functional": lambda program: numgeom.certify(program, method="functional"),
    "estimate": numgeom.estimate,
    "diagnose": numgeom.diagnose,
    "zones": zones_of,
}
EVERY = 45  # ops of which one is asked about in the part that always runs


@pytest.fixture(autouse=True)
def as_users_see_it(loud_failures: None, quiet_libraries: None) -> Iterator[None]:
    with guarded():
        yield


def recorded(case: Case) -> Program | None:
    """The program of a case; None where torch itself or our recorder refuses the step."""
    try:
        case.step()
    except Exception:
        return None
    try:
        return record_callable(case.step)
    except RecordingError:
        return None


def faults_of(case: Case, program: Program) -> list[str]:
    """What went wrong in a question about the program, besides errors on purpose."""
    found = []
    for name, ask in QUESTIONS.items():
        what = f"{case.name} {case.variant} {name}: "
        try:
            answer = ask(program)
        except UnforeseenError as error:
            found.append(f"{what}{error}")
        except NumgeomError:
            continue
        except Exception as error:
            found.append(f"{what}foreign {type(error).__name__}: {error}")
        else:
            notes = getattr(answer, "notes", ())
            found += [f"{what}{note}" for note in notes if "fault of numgeom" in note]
    return found


def check(op: Any, samples: int) -> list[str]:
    found = []
    for case in cases(op, samples=samples, variants=VARIANTS):
        program = recorded(case)
        if program is not None:
            found += faults_of(case, program)
    return found


@pytest.mark.parametrize("op", ops()[7::EVERY], ids=full_name)
def test_no_question_fails_on_an_op(op: Any):
    assert check(op, samples=1) == []


@pytest.mark.campaign
@pytest.mark.parametrize("op", ops(), ids=full_name)
def test_no_question_fails_on_any_op(op: Any):
    assert check(op, samples=3) == []


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch):
    def step() -> None:
        torch.ones(2, requires_grad=True).exp().sum().backward()

    case = Case("exp", "plain", step)
    program = recorded(case)
    assert program is not None
    assert faults_of(case, program) == []

    def fails(program: Program) -> Any:
        raise ZeroDivisionError

    monkeypatch.setitem(QUESTIONS, "zones", fails)
    assert len(faults_of(case, program)) == 1
