"""Do the sources of an error add up to it, and do they name the right place?"""

import json
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import tf32
from numgeom.precision import Cause, PrecisionError, estimate
from numgeom.precision.estimate import Estimate, GradientEstimate, contractions_in
from numgeom.precision.regions import formats_applied
from numgeom.precision.sources import Sources, attribute
from numgeom.recording import Program, record, record_step
from tests.recording.workloads import build


def recorded(name: str, dtype: torch.dtype | None = None) -> Program:
    model, step = build(name)
    with record(model) as recording, torch.autocast("cpu", dtype) if dtype else nullcontext():
        step()
    return recording.program


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    ["mlp-silu", "lenet", "batch-norm-cnn", "norms", "in-place", "sdpa-math", "accumulation",
     "grad-scaler", "hf-gpt2-sdpa"],
)  # fmt: skip
def test_shares_add_up_to_the_whole(name: str, dtype: torch.dtype | None) -> None:
    found = attribute(recorded(name, dtype))
    assert sum(part.error_share for part in found) == pytest.approx(1.0, abs=1e-9)
    assert sum(found.by("module").values()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", ["mlp-mish", "norms", "in-place", "encoder-layer", "hf-convnext"])
def test_at_float32_everything_is_first_order(name: str) -> None:
    """Errors of 1e-7 leave nothing to curvature: a wrong derivative would show here."""
    found = attribute(recorded(name))
    # Saved statistics (of a batch norm, of attention) are operands without a derivative.
    assert abs(found.share(Cause.CURVATURE)) < 1e-2
    assert abs(found.share(Cause.UNKNOWN)) < 3e-2
    assert found.share(Cause.ROUNDING) == pytest.approx(1.0, abs=3e-2)


def test_crossings_of_kinks_carry_the_error_of_a_relu_network_in_16_bits() -> None:
    assert attribute(recorded("lenet", torch.bfloat16)).share(Cause.KINK) > 0.5
    assert attribute(recorded("mlp-tanh", torch.bfloat16)).share(Cause.KINK) == 0.0


def test_the_module_that_runs_in_16_bits_is_named() -> None:
    model = nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    )
    x = torch.randn(32, 8)
    for guilty in ("0", "2", "4"):
        with formats_applied(model, {guilty: "bfloat16"}):
            program = record_step(model, lambda m, x: m(x).square().mean(), x)
        # Casts around a module belong to it or to its caller.
        shares = attribute(program).by("module")
        assert shares[guilty] + shares.get("", 0.0) > 0.99
        assert shares[guilty] > 0.5


def test_rounded_operands_are_a_source() -> None:
    found = attribute(recorded("mlp-tanh"), operands=contractions_in(tf32))
    assert sum(part.error_share for part in found) == pytest.approx(1.0, abs=1e-9)
    shares = found.by("op")
    assert shares["mm"] + shares["addmm"] > 0.99


def test_a_single_rounding_has_the_whole_share() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.w * (x / 3.0)

    found = attribute(record_step(Once(), lambda m, x: m(x).sum(), torch.tensor([1.0, 2.0, 5.0])))
    (part,) = found
    assert (part.op, part.phase, part.cause) == ("div", "forward", Cause.ROUNDING)
    assert part.error_share == pytest.approx(1.0)
    assert part.source.startswith("tests/precision/test_sources.py:")


def test_phases_are_told_apart() -> None:
    found = attribute(recorded("mlp-tanh", torch.bfloat16)).by("phase")
    assert set(found) == {"forward", "backward", "weight gradient"}
    assert all(share > 0.01 for share in found.values())


def test_sources_are_data() -> None:
    found = attribute(recorded("lenet", torch.bfloat16))
    document = json.loads(json.dumps(found.to_document(), allow_nan=False))
    assert len(document["sources"]) == len(found)
    assert document["causes"]["kink"] == pytest.approx(found.share(Cause.KINK))
    assert sum(document["causes"].values()) == pytest.approx(1.0)
    assert f"{found.share(Cause.KINK):.0%} kink" in str(found)
    shares = [part.error_share for part in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(s.error_share for s in found.for_certificate()) == pytest.approx(1.0)


def test_a_gradient_without_error_has_no_sources() -> None:
    program = record_step(nn.Linear(1, 1), lambda m, x: m(x).sum(), torch.ones(1, 1))
    assert len(attribute(program)) == 0


def test_an_estimate_finds_its_sources_once() -> None:
    found = estimate(recorded("mlp-relu"))
    assert found.sources() is found.sources()
    row = GradientEstimate("total", 0.0, (0.0, 0.0), 1.0, 1, found.total.guarantee)
    with pytest.raises(PrecisionError, match="holds no program"):
        Estimate(row, {}, "float32", 2, 0, 0.0).sources()
    assert Sources((), 0.0).share(Cause.KINK) == 0
