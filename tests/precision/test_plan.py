"""Does a plan keep its tolerance when it is run?"""

import itertools
import math
import re

import pytest
import torch
from torch import nn

from numgeom.arithmetic.formats import FormatError
from numgeom.errors import FileFormatError, RecordingError
from numgeom.examples import load_example
from numgeom.precision import PrecisionError, PrecisionPlan, plan_precision
from numgeom.precision.plan import MARGIN
from numgeom.precision.regions import formats_applied
from numgeom.recording import record_step


@pytest.mark.parametrize("tolerance", [3e-2, 1e-3])
@pytest.mark.parametrize("name", ["digits-mlp", "digits-lenet"])
def test_a_plan_holds_on_a_batch_that_it_has_not_seen(name: str, tolerance: float) -> None:
    model, loss_fn, batch = load_example(name, batch_size=16)
    other = load_example(name, batch_size=16, seed=7).batch
    plan = plan_precision(
        model, loss_fn, batch, tolerance=tolerance, formats=("bfloat16", "float16", "float32")
    )
    assert plan.predicted_error <= tolerance
    assert plan.low_precision_share > 0.0
    assert plan.verify(other).holds
    assert plan.verify(batch).measured_error <= tolerance


def test_a_tighter_tolerance_leaves_less_in_low_precision() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=16)
    shares = [
        plan_precision(model, loss_fn, batch, tolerance=t).low_precision_share
        for t in (1e-1, 2e-3, 1e-5)
    ]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1.0, 0.0)


def test_a_plan_is_nearly_the_best_of_all_assignments() -> None:
    model = nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 8)
    )
    x = torch.randn(32, 12)

    def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    tolerance = 2.5e-3
    plan = plan_precision(model, loss_fn, x, tolerance=tolerance)
    reference = record_step(model, loss_fn, x).replay().gradients
    norm = math.sqrt(sum(float(g.square().sum()) for g in reference.values()))
    best = 0.0
    for chosen in itertools.product(("bfloat16", "float32"), repeat=3):
        formats = dict(zip(("0", "2", "4"), chosen, strict=True))
        with formats_applied(model, formats):
            found = record_step(model, loss_fn, x).recorded.gradients
        error = math.sqrt(sum(float((found[n] - g).square().sum()) for n, g in reference.items()))
        low = sum(plan.flops[m] for m, f in formats.items() if f == "bfloat16")
        if error / norm <= tolerance / MARGIN:
            best = max(best, low / sum(plan.flops.values()))
    assert 0.0 < best < 1.0
    assert plan.low_precision_share >= 0.95 * best


def test_applying_a_plan_changes_formats_and_no_parameter() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=16)
    plan = plan_precision(model, loss_fn, batch, tolerance=0.1)
    before = {n: p.clone() for n, p in model.named_parameters()}
    plain = loss_fn(model, batch)
    with plan.apply(model):
        assert loss_fn(model, batch) != plain
    assert loss_fn(model, batch) == plain
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_plan_survives_a_file(tmp_path) -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=16)
    plan = plan_precision(model, loss_fn, batch, tolerance=0.1)
    plan.save(tmp_path / "plan.json")
    loaded = PrecisionPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    with pytest.raises(PrecisionError, match="neither model nor loss"):
        loaded.verify(batch)
    assert loaded.verify(batch, model=model, loss_fn=loss_fn) == plan.verify(batch)


def test_a_plan_in_float16_advises_a_loss_scale_for_all_batches(tmp_path) -> None:
    model, loss_fn, (x, y) = load_example("digits-mlp", batch_size=8)
    small, large = ((x, y, 1e-6), (x, y, 1e3))

    def scaled(model: nn.Module, batch: tuple) -> torch.Tensor:
        return loss_fn(model, batch[:2]) * batch[2]

    def scale(*batches: tuple) -> float:
        plan = plan_precision(
            model, scaled, batches[0], tolerance=0.1, formats=("float16", "float32"),
            more_batches=batches[1:],
        )  # fmt: skip
        assert plan.scaling is not None
        assert plan.loss_scale == plan.scaling.scale
        assert 0.0 <= plan.underflow["layers.0"]["float16"] < 0.1
        plan.save(tmp_path / "plan.json")
        assert PrecisionPlan.load(tmp_path / "plan.json") == plan
        return plan.loss_scale

    assert scale(small) > 2.0**10
    assert scale(large) <= scale(small, large) == scale(large, small) < scale(small) / 1024


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "else", "version": 1}', "{}"])
def test_a_file_that_is_no_plan_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"plan\.json"):
        PrecisionPlan.load(path)
    with pytest.raises(FileFormatError):
        PrecisionPlan.load(tmp_path / "missing.json")


def test_wrong_arguments_are_explained() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=4)
    with pytest.raises(PrecisionError, match="positive"):
        plan_precision(model, loss_fn, batch, tolerance=0.0)
    with pytest.raises(FormatError, match="Known formats"):
        plan_precision(model, loss_fn, batch, tolerance=0.1, formats=("bf16",))
    with pytest.raises(PrecisionError, match="cannot run float64"):
        plan_precision(model, loss_fn, batch, tolerance=0.1, formats=("float64",))
    with pytest.raises(PrecisionError, match="the best has a predicted error"):
        plan_precision(model, loss_fn, batch, tolerance=1e-4, formats=("bfloat16",))
    with pytest.raises(PrecisionError, match="no work to plan"):
        plan_precision(nn.PReLU(), lambda m, x: m(x).sum(), torch.randn(4), tolerance=0.1)
    with pytest.raises(PrecisionError, match="a sequence of names"):
        plan_precision(model, loss_fn, batch, tolerance=0.1, formats="bfloat16")
    with pytest.raises(PrecisionError, match="Check that loss_fn"):
        plan_precision(model, loss_fn, (batch[0][..., :3], batch[1]), tolerance=0.1)
    with pytest.raises(RecordingError, match="no parameter"):
        plan_precision(nn.ReLU(), loss_fn, batch, tolerance=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_format_is_not_said_to_lose_nothing(dtype: torch.dtype) -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=4, dtype=dtype)
    with pytest.raises(PrecisionError, match=r"in float32.*layers\.0\.weight.*model\.float\(\)"):
        plan_precision(model, loss_fn, batch, tolerance=0.1)


@pytest.mark.parametrize("formats", [("bfloat16", "float32"), ("float8_e4m3fn", "bfloat16")])
def test_the_best_that_can_be_had_can_be_had(formats: tuple[str, ...]) -> None:
    """The tolerance that the message names is met when it is asked for."""
    model, loss_fn, batch = load_example("digits-mlp-deep", batch_size=8)
    with pytest.raises(PrecisionError, match="in reach") as said:
        plan_precision(model, loss_fn, batch, tolerance=1e-8, formats=formats)
    numbers = re.findall(r"from (\S+) on are in reach", str(said.value).replace("Tol", "tol"))
    plan = plan_precision(model, loss_fn, batch, tolerance=float(numbers[0]), formats=formats)
    assert plan.predicted_error <= plan.tolerance
