"""Does an exception end up where it belongs: with the user, or as an error that says what to do?"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import numgeom
from numgeom import failures
from numgeom.certificate import bounds
from numgeom.errors import NumgeomError, RecordingError
from numgeom.failures import UnforeseenError, answers, guarded, is_our_fault, reason
from numgeom.nonsmooth import hull, zones
from numgeom.recording.replay import ProgramInterpreter
from numgeom.results.guarantee import Guarantee


@pytest.fixture(autouse=True)
def as_users_see_it(loud_failures: None) -> Iterator[None]:
    with guarded():
        yield


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count this file as one of the package, so that faults can be planted here."""
    known = failures._is_package
    monkeypatch.setattr(failures, "_is_package", lambda file: file == __file__ or known(file))


def model_and_batch() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), torch.randn(4, 3)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


QUESTIONS: dict[str, Callable[..., Any]] = {
    "certify": numgeom.certify,
    "diagnose": numgeom.diagnose,
    "zones": zones,
    "hull": hull,
}


class Broken(Exception):
    """The user's own exception."""


class BrokenBackward(torch.autograd.Function):
    """Raises in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise Broken("in backward")


def raises(model: nn.Module, x: Tensor) -> Tensor:
    raise Broken("mine")


def wrong_shape(model: nn.Module, x: Tensor) -> Tensor:
    return model(x @ torch.ones(2, 3)).sum()


def wrong_backward(model: nn.Module, x: Tensor) -> Tensor:
    return BrokenBackward.apply(model(x)).sum()


def hooked(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    y.register_hook(lambda g: g @ torch.ones(7, 7))
    return y.sum()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("loss_fn", "kind"),
    [
        (raises, Broken),
        (wrong_shape, RuntimeError),
        (wrong_backward, Broken),
        (hooked, RuntimeError),
        (F.mse_loss, AttributeError),
        (torch.matmul, TypeError),
        (lambda m, x: {}["missing"], KeyError),
    ],
)
def test_what_the_users_code_raises_is_not_touched(
    question: str, loss_fn: Callable[..., Any], kind: type[Exception]
):
    model, x = model_and_batch()
    with pytest.raises(kind) as caught:
        QUESTIONS[question](model, loss_fn, x)
    assert not isinstance(caught.value, NumgeomError)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_fault_of_ours_becomes_our_error(
    question: str, planted: None, monkeypatch: pytest.MonkeyPatch
):
    def fails(self: Any, node: Any, args: Any, kwargs: Any) -> Any:
        return {}["no such value"]

    model, x = model_and_batch()
    monkeypatch.setattr(ProgramInterpreter, "call", fails)
    with pytest.raises(UnforeseenError, match="KeyError: 'no such value', at aten") as caught:
        QUESTIONS[question](model, loss, x)
    assert "please report it" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("method", ["auto", "ball", "kantorovich", "functional"])
def test_a_fault_below_the_bound_leaves_an_answer_without_one(
    method: str, planted: None, monkeypatch: pytest.MonkeyPatch
):
    def fails(*args: Any, **kwargs: Any) -> Any:
        return 1 / len(())

    model, x = model_and_batch()
    for name in ("enclose", "kantorovich", "walk"):
        monkeypatch.setattr(bounds, name, fails)
    certificate = numgeom.certify(model, loss, x, method=method)
    assert certificate.guarantee is Guarantee.NONE
    assert certificate.total.error_bound is None
    assert certificate.total.observed_error < 1e-5
    (note,) = [note for note in certificate.notes if note.startswith("No bound: ZeroDivisionError")]
    assert "fault of numgeom" in note
    with failures.loud(), pytest.raises(ZeroDivisionError):
        numgeom.certify(model, loss, x, method=method)


def test_our_own_errors_and_lack_of_memory_pass():
    @answers("try")
    def ask(error: BaseException) -> None:
        raise error

    passing = (RecordingError("x"), MemoryError(), torch.OutOfMemoryError("x"), KeyboardInterrupt())
    for error in passing:
        with pytest.raises(type(error)) as caught:
            ask(error)
        assert caught.value is error


def test_the_reason_names_the_innermost_call_and_our_line():
    broken: Any = None
    with pytest.raises(AttributeError) as caught:
        ProgramInterpreter(broken, dtype=torch.float64).evaluate()
    error = caught.value
    failures.note_place(error, "aten.mul.Tensor in fc")
    failures.note_place(error, "something further out")
    text = reason(error)
    assert is_our_fault(error)
    assert text.startswith("AttributeError: 'NoneType'")
    assert "at aten.mul.Tensor in fc (numgeom/recording/replay.py, line " in text
    assert "further out" not in text
