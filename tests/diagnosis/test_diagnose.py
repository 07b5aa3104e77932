"""Are healthy models left in peace, and are bad questions answered clearly?"""

import inspect
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.diagnosis import Diagnosis, DiagnosisError, Finding, Kind, Severity, diagnose
from numgeom.errors import RecordingError
from numgeom.examples import load_example
from numgeom.recording import record_step
from reproductions.gallery import Weights, mlp
from tests.recording import workloads


def square(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()


HEALTHY = (
    "mlp-relu", "mlp-gelu", "mlp-hardswish", "lenet", "batch-norm-cnn", "norms", "dropout",
    "in-place", "checkpoint", "lstm", "gru", "rnn", "attention", "encoder-layer",
    "sdpa-flash-causal", "autocast-bf16", "bfloat16", "float16", "float64", "grad-scaler",
    "accumulation", "double-backward", "tied", "frozen", "indexing", "no-dims",
    "optimizer-adamw",
)  # fmt: skip
TRANSFORMERS = (
    "hf-gpt2-sdpa", "hf-llama-eager", "hf-bert-eager", "hf-t5-sdpa", "hf-vit-eager", "hf-mamba",
    "hf-mixtral-eager", "hf-whisper-sdpa", "hf-resnet", "hf-convnext",
)  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_steps_have_no_finding(name: str) -> None:
    found = diagnose(workloads.build(name)[1])
    assert not found, str(found)


@pytest.mark.filterwarnings("ignore")  # transformers warns of its own tiny configurations
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_tiny_transformers_have_no_finding(name: str) -> None:
    pytest.importorskip("transformers")
    found = diagnose(workloads.build(name)[1])
    assert not found, str(found)


EXAMPLES = ("digits-mlp", "digits-mlp-deep", "digits-lenet", "digits-vit", "text-gpt")


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("epochs", [0, 2])
def test_the_examples_have_no_finding(name: str, epochs: int) -> None:
    pytest.importorskip("sklearn")
    found = diagnose(*load_example(name, epochs=epochs, batch_size=16))
    assert not found, str(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["digits-mlp", "digits-mlp-deep", "digits-lenet"])
def test_the_examples_in_half_precision_have_no_finding(name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("sklearn")
    found = diagnose(*load_example(name, batch_size=16, dtype=dtype))
    assert not found, str(found)


# -- where -----------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).softmax(-1).log()


def test_a_finding_names_module_line_and_phase() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Layer())
    found = diagnose(model, lambda m, x: -m(x)[:, 0].mean(), torch.randn(4, 3))
    (finding,) = found.of("unstable-formula")
    line = inspect.getsourcelines(Layer)[1] + 6
    assert finding.op == "aten.log.default"
    assert finding.module == "1"
    assert finding.source.endswith(f"test_diagnose.py:{line}")
    assert finding.phase == "forward"
    assert "log_softmax" in finding.remedy


def test_the_originator_is_named_not_those_who_pass_it_on() -> None:
    found = diagnose(Weights([-1.0, 2.0]), lambda m, b: m.w.log().exp().sum() + m.w.sum(), None)
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    assert [finding.op for finding in errors] == ["aten.log.default"]


def test_masks_of_minus_infinity_are_no_finding() -> None:
    mask = torch.ones(4, 4).triu(1).bool()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).masked_fill(mask, -math.inf).softmax(-1)[:, 0].sum()

    assert not diagnose(nn.Linear(4, 4), loss, torch.randn(4, 4))


def test_cancellation_without_effect_is_no_finding() -> None:
    def loss(model: Any, x: Tensor) -> Tensor:
        lost = (1 + 1e-6 * model(x)) - 1  # has lost its digits, and weighs next to nothing
        return model(x).square().mean() + 1e-3 * lost.mean()

    assert not diagnose(mlp(3, 4, 1), loss, torch.randn(8, 3))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # one input
        return grad * 1.0


def test_a_straight_through_estimator_is_told_apart_from_errors() -> None:
    x = torch.randn(8, 3)
    found = diagnose(mlp(3, 4, 1), lambda m, x: (Rounded.apply(m(x) * 9) - 5).square().mean(), x)
    assert not found
    (finding,) = found.of(Kind.SURROGATE)
    assert finding.severity is Severity.INFO
    assert finding.source.endswith(f":{inspect.getsourcelines(Rounded.backward)[1] + 2}")


def test_a_true_gradient_is_no_surrogate() -> None:
    assert not diagnose(mlp(3, 4, 1), square, torch.randn(8, 3)).of(Kind.SURROGATE)


def test_a_sensitive_problem_is_told_apart_from_an_unstable_program() -> None:
    def chaos(model: Any, batch: None) -> Tensor:
        x = model.w.sigmoid()
        for _ in range(60):
            x = 3.9 * x * (1 - x)
        return x.sum()

    def unstable(model: Any, batch: None) -> Tensor:
        return ((1 + model.w) - 1).square().sum()

    kinds = {finding.kind for finding in diagnose(Weights([0.3]), chaos, None)}
    assert Kind.ILL_CONDITIONED in kinds
    assert Kind.CANCELLATION not in kinds
    kinds = {finding.kind for finding in diagnose(Weights([1e-5, 2e-5]), unstable, None)}
    assert Kind.CANCELLATION in kinds
    assert Kind.ILL_CONDITIONED not in kinds


# -- the ways to ask -----------------------------------------------------------------------


def test_model_program_and_step_get_the_same_findings() -> None:
    def loss(model: Any, batch: None) -> Tensor:
        return model.w.softmax(0).log().square().sum()

    model = Weights([1.0, 50.0])
    asked = diagnose(model, loss, None)
    of_program = diagnose(record_step(model, loss, None))
    of_step = diagnose(lambda: loss(model, None).backward())
    assert asked.findings == of_program.findings
    assert [f.kind for f in of_step] == [f.kind for f in asked]
    assert model.w.grad is None


def test_an_empty_batch_is_a_finding() -> None:
    found = diagnose(mlp(3, 4, 1), square, torch.randn(0, 3))
    (finding,) = found.of(Kind.DOMAIN)
    assert "empty" in finding.remedy


def test_a_loss_that_is_no_scalar_is_a_clear_error() -> None:
    with pytest.raises(RecordingError, match="one number"):
        diagnose(mlp(3, 4, 2), lambda m, x: m(x), torch.randn(5, 3))


@pytest.mark.parametrize("given", [(nn.Linear(2, 1),), (nn.Linear(2, 1), square), (3,),
                                   (lambda: None, square)])  # fmt: skip
def test_wrong_arguments_are_a_clear_error(given: tuple[Any, ...]) -> None:
    with pytest.raises(DiagnosisError, match="diagnose"):
        diagnose(*given)


# -- the result ------------------------------------------------------------------------------


def _finding(severity: Severity) -> Finding:
    return Finding(
        Kind.OVERFLOW, severity, "aten.exp.default", "a.b", "m.py:3", "forward",
        {"largest": math.inf, "names": ["x"]}, "Too large.", "Make it smaller.",
    )  # fmt: skip


def test_a_diagnosis_is_falsy_without_warnings() -> None:
    assert not Diagnosis(())
    assert not Diagnosis((_finding(Severity.INFO),))
    assert Diagnosis((_finding(Severity.INFO), _finding(Severity.WARNING)))


def test_the_worst_comes_first() -> None:
    found = diagnose(Weights([1.0, 200.0]), lambda m, b: -m.w.softmax(0).log()[0], None)
    ranks = [finding.severity.rank for finding in found]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) > 1


def test_json_and_text_tell_everything() -> None:
    diagnosis = Diagnosis((_finding(Severity.ERROR),), loss_error=math.nan, gradient_error=1e-3)
    document = json.loads(diagnosis.to_json())
    assert document["schema"] == "numgeom.diagnosis"
    assert document["findings"][0]["evidence"] == {"largest": "Infinity", "names": ["x"]}
    assert document["loss_error"] == "NaN"
    for word in ("error", "overflow", "aten.exp.default", "a.b", "m.py:3", "Too large.", "inf"):
        assert word in str(diagnosis)
