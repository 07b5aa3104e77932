"""Are predicted errors those that are observed?"""

import json
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import FormatError
from numgeom.certificate import Guarantee
from numgeom.errors import RecordingError
from numgeom.examples import load_example
from numgeom.precision import PrecisionError, estimate
from numgeom.precision.regions import formats_applied
from numgeom.recording import Program, record, record_step
from numgeom.results.accuracy import GradientAccuracy, measure, total
from tests.recording.workloads import build

FORMATS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORKLOADS = (
    "mlp-relu", "lenet", "batch-norm-cnn", "norms", "sdpa-flash", "double-backward",
    "hf-gpt2-sdpa", "hf-bert-eager", "hf-resnet", "hf-vit-sdpa",
)  # fmt: skip


def recorded(name: str, dtype: torch.dtype | None) -> Program:
    model, step = build(name)
    with record(model) as recording, torch.autocast("cpu", dtype) if dtype else nullcontext():
        step()
    return recording.program


def observed(program: Program) -> dict[str, GradientAccuracy]:
    """The errors of the recorded gradients, by parameter and in total."""
    reference = program.replay().gradients
    rows = [measure(n, g, reference[n]) for n, g in program.recorded.gradients.items()]
    return {"total": total(rows), **{row.name: row for row in rows}}


# A layer norm in 16 bits with weights in float32, as autocast makes it.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_predicted_errors_are_within_a_factor_of_two(name: str, format: str) -> None:
    program = recorded(name, FORMATS[format])
    found = estimate(program, samples=2).total
    # The model of errors is calibrated on vector kernels; without them sums run in longer chains.
    factor = 3.0 if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else 2.0
    assert 1 / factor < found.predicted_error / observed(program)["total"].observed_error < factor
    assert found.interval[0] <= found.predicted_error <= found.interval[1]


@pytest.mark.parametrize("name", ["digits-lenet", "digits-vit"])
def test_errors_under_autocast_are_predicted_from_the_model(name: str) -> None:
    model, loss_fn, batch = load_example(name, batch_size=8)
    found = estimate(model, loss_fn, batch, format="bfloat16", samples=2)

    def low(model: nn.Module, batch: object) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_fn(model, batch)

    errors = observed(record_step(model, low, batch))
    assert 0.5 < found.total.predicted_error / errors["total"].observed_error < 2.0
    large = [n for n, row in found.parameters.items() if row.entries > 1000]
    good = [
        1 / 3 < found.parameters[n].predicted_error / errors[n].observed_error < 3 for n in large
    ]
    assert sum(good) >= 0.95 * len(good) > 0


MIXED = (
    {"layers.0": "bfloat16", "layers.4": "float16"},
    {"layers": "tf32"},
    {"layers.0": "float8_e4m3fn", "layers.2": "tf32", "layers.4": "bfloat16"},
    {"": "float8_e5m2", "layers.2": "float32"},
)


@pytest.mark.parametrize("formats", MIXED, ids=lambda formats: "-".join(formats.values()))
def test_errors_of_any_assignment_are_predicted(formats: dict[str, str]) -> None:
    model, loss_fn, batch = load_example("digits-mlp-deep", batch_size=16)
    found = estimate(model, loss_fn, batch, format=formats).total.predicted_error
    exact = record_step(model, loss_fn, batch).replay().gradients
    with formats_applied(model, formats):
        run = record_step(model, loss_fn, batch).recorded.gradients
    rows = [measure(n, g, exact[n]) for n, g in run.items()]
    assert 0.5 < found / total(rows).observed_error < 2.0


def test_an_assignment_needs_a_model_that_has_its_modules() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=4)
    assert (
        "as assigned (1 x bfloat16)"
        in estimate(model, loss_fn, batch, format={"layers.0": "bfloat16"}).formats
    )
    with pytest.raises(PrecisionError, match="no module 'head'"):
        estimate(model, loss_fn, batch, format={"head": "bfloat16"})
    with pytest.raises(FormatError, match="Known formats"):
        estimate(model, loss_fn, batch, format={"layers.0": "bf16"})
    with pytest.raises(PrecisionError, match="need the model"):
        estimate(record_step(model, loss_fn, batch), format={"layers.0": "bfloat16"})


def test_a_kink_crossing_is_seen_where_first_order_is_blind() -> None:
    """One unit next to its kink: in bfloat16 it switches off, and its gradient vanishes."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -1.0]])
    x = torch.tensor([[1.0 + 2**-10, 1.0]])
    found = estimate(model, lambda m, x: m(x).relu().sum(), x, format="bfloat16")
    assert found.total.predicted_error == pytest.approx(1.0)
    assert estimate(model, lambda m, x: m(x).relu().sum(), x).total.predicted_error < 1e-6


def test_a_narrower_format_has_a_larger_error() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=8)
    found = [
        estimate(model, loss_fn, batch, format=f, samples=2).total.predicted_error
        for f in (None, "tf32", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    ]
    assert found == sorted(found)
    assert found[0] < 1e-6 < 1e-5 < found[1]


def test_an_overflow_is_reported_and_not_hidden() -> None:
    model = nn.Linear(4, 1, bias=False).half()
    x = torch.full((1, 4), 600.0, dtype=torch.float16)
    found = estimate(record_step(model, lambda m, x: (m(x) * 200 * 600).sum(), x))
    assert found.total.guarantee is Guarantee.NONE
    assert not found.total.predicted_error < 1e300


def test_an_estimate_is_the_same_every_time_and_leaves_the_model_alone() -> None:
    model, loss_fn, batch = load_example("digits-lenet", batch_size=4)
    before = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    first, second = (estimate(model, loss_fn, batch, format="bfloat16") for _ in range(2))
    assert first.total == second.total
    assert first.parameters == second.parameters
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.named_parameters())


def test_an_estimate_is_written_as_json() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=4)
    found = estimate(model, loss_fn, batch)
    document = json.loads(json.dumps(found.to_document(), allow_nan=False))
    assert document["gradients"][0]["name"] == "total"
    assert len(document["gradients"]) == 1 + len(found.parameters)
    assert "95 %" in str(found)


def test_wrong_arguments_are_explained() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=4)
    with pytest.raises(FormatError, match="bfloat16"):
        estimate(model, loss_fn, batch, format="bfloat17")
    with pytest.raises(PrecisionError, match="at least 2"):
        estimate(model, loss_fn, batch, samples=1)
    with pytest.raises(PrecisionError, match="no batch"):
        estimate(model, loss_fn)
    with pytest.raises(PrecisionError, match="without them"):
        estimate(lambda: None, loss_fn, batch)
    with pytest.raises(PrecisionError, match="of type int"):
        estimate(3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(PrecisionError, match="chooses its own formats"):
        estimate(lambda: None, format="bfloat16")
    wrong = torch.zeros(4, 24), batch[1]
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        estimate(model, loss_fn, wrong)  # torch's own words, with a note
    assert any("numgeom.estimate" in note for note in caught.value.__notes__)
    with pytest.raises(PrecisionError, match="Check that loss_fn"):
        estimate(model, loss_fn, wrong, format="bfloat16")
    with pytest.raises(RecordingError, match="no parameter"):
        estimate(nn.ReLU(), loss_fn, batch)
    with pytest.raises(PrecisionError, match="float64"):
        estimate(model.double(), loss_fn, (batch[0].double(), batch[1]))


def test_the_statistical_bound_is_a_multiple_of_the_prediction() -> None:
    step = load_example("digits-mlp")
    found = estimate(step.model, step.loss_fn, step.batch)
    likely, rare = (found.statistical_bound(failure_probability=p) for p in (1e-2, 1e-12))
    assert found.total.predicted_error < likely < rare < 10 * found.total.predicted_error
    for bad in (0.0, 1.0, float("nan")):
        with pytest.raises(PrecisionError, match="between 0 and 1"):
            found.statistical_bound(failure_probability=bad)
