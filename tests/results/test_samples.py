"""Are files that version 0.1.0 wrote still read?

`samples/` holds one small file of every kind, as that version wrote it. They are never written
again: where a format changes, its new form gets a sample of its own.
"""

import json
from pathlib import Path

import pytest
import torch

from numgeom.certificate import Certificate, Guarantee
from numgeom.diagnosis import Diagnosis, Kind, Severity
from numgeom.diagnosis.kept import load_kept
from numgeom.functionals import TrackingResult
from numgeom.nonsmooth.ledger import Ledger
from numgeom.precision import PrecisionPlan
from numgeom.recording import Program

SAMPLES = Path(__file__).with_name("samples")


@pytest.mark.parametrize("name", ["certificate.json", "certificate.pt"])
def test_a_certificate(name: str) -> None:
    found = Certificate.load(SAMPLES / name)
    assert (found.guarantee, found.method) == (Guarantee.CERTIFIED, "kantorovich")
    assert list(found.parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found.total.error_bound == 1.1575807907825385e-07
    assert found.parameters["0.weight"].shape == (4, 3)
    assert found.parameters["2.bias"].guarantee is Guarantee.CERTIFIED
    assert found.computed_loss == 0.696666419506073
    assert found.replay_is_identical is True
    assert 0.0 < found.constants["h"] < 1.0
    assert found.constants.keys() == {
        "h", "eta", "beta", "curvature", "rho", "failure probability"
    }  # fmt: skip
    assert found.provenance["target"] == "example:digits-mlp"
    assert found.sources()[0].op == "_log_softmax"
    assert found.sources()[0].error_share == 0.6572277203397161
    assert len(found.assumptions) > 3
    if name.endswith(".pt"):
        bound = found.entrywise_bound("0.weight")
        assert bound.shape == (4, 3)
        assert bound.dtype is torch.float64
        assert float(bound.norm()) >= found.parameters["0.weight"].error_norm


def test_certificates_without_a_bound() -> None:
    nonfinite = Certificate.load(SAMPLES / "certificate_nonfinite.json")
    first = nonfinite.first_nonfinite
    assert first is not None
    assert (first.value, first.name, first.seen_in) == ("NaN", "aten.log.default", "both")
    assert first.reached == ("loss", "w")
    assert nonfinite.guarantee is Guarantee.NONE
    kinked = Certificate.load(SAMPLES / "certificate_kink.json")
    (kink,) = kinked.unresolved_kinks
    assert (kink.op, kink.count) == ("aten.relu.default", 3)
    assert kink.units[1].value == -2.220446049250313e-16
    assert kinked.guarantee is Guarantee.ESTIMATED
    unknown = Certificate.load(SAMPLES / "certificate_unknown.json")
    assert unknown.unknown_ops == {"aten.special_bessel_j0.default": 1}
    assert unknown.guarantee is Guarantee.NONE


@pytest.mark.parametrize("name", ["diagnosis.json", "diagnosis.pt"])
def test_a_diagnosis(name: str) -> None:
    found = Diagnosis.load(SAMPLES / name)
    (finding,) = found.findings
    assert (finding.kind, finding.severity) == (Kind.DOMAIN, Severity.ERROR)
    assert finding.op == "aten.log.default"
    assert list(finding.evidence["reached"]) == ["loss", "w"]
    assert found.loss_error == float("inf")


def test_a_plan() -> None:
    found = PrecisionPlan.load(SAMPLES / "plan.json")
    assert found.formats.keys() == {"0", "2"}
    assert found.tolerance == 0.1
    assert found.scaling is not None
    assert found.scaling.underflow[1.0] >= 0.0
    strict = PrecisionPlan.load(SAMPLES / "plan_strict.json")
    assert strict.scaling is None
    assert set(strict.formats.values()) == {"float32"}


@pytest.mark.parametrize("name", ["tracking.json", "tracking.pt"])
def test_a_tracking_result(name: str) -> None:
    found = TrackingResult.load(SAMPLES / name)
    assert str(found.guarantee) == "PROVED"
    assert list(found.gradients) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found.total.error_bound > 0.0
    assert found.modules[""].total is not None


@pytest.mark.parametrize("name", ["program", "program_adam", "program_lstm", "kept_step"])
def test_a_program(name: str) -> None:
    program = Program.load(SAMPLES / f"{name}.pt")
    assert len(program) > 3
    assert program.versions["numgeom"] == "0.1.0"
    reference = program.replay().gradients
    for key, gradient in program.recorded.gradients.items():
        torch.testing.assert_close(
            reference[key], gradient.double(), rtol=0.05, atol=0.05, equal_nan=True
        )


def test_a_kept_step() -> None:
    kept = load_kept(SAMPLES / "kept_step.pt")
    assert kept.step == 0
    assert kept.random_state["cpu"].dtype is torch.uint8
    assert [t.tolist() for t in kept.batch.values()] == [[1.0, 0.0, 1.0]]


def test_a_ledger_and_a_history(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes((SAMPLES / "ledger.jsonl").read_bytes())
    ledger = Ledger(path, {"what": "x", "n": 3})
    assert {i: piece["v"] for i, piece in ledger.pieces.items()} == {0: 1.5, 1: 2}
    ledger.add(2, {"v": 4})
    assert len(Ledger(path, {"what": "x", "n": 3}).pieces) == 3
    (line,) = (SAMPLES / "history.jsonl").read_text().splitlines()
    assert Diagnosis.from_document(json.loads(line)["diagnosis"]).findings
