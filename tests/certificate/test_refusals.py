"""Where the theorem does not apply: what is to blame is said, and no bound is printed anywhere."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from numgeom.certificate import Certificate, CertificateError, Guarantee, certify, verify
from numgeom.certificate.verify import Verdict
from numgeom.recording import Program, record
from numgeom.report.table import headline, to_text


def _chaotic() -> Program:
    """40 steps of the logistic map amplify an error by more than float64 has digits for."""
    w = nn.Parameter(torch.tensor([0.3]))
    with record() as recording:
        x = w
        for _ in range(40):
            x = 3.9 * x * (1 - x)
        x.sum().backward()
    return recording.program


def _at_a_kink() -> Program:
    """relu(x) with x = 0.1 - 0.1 up to rounding: the gradient is 0 or 3, and nobody knows."""
    w = nn.Parameter(torch.tensor([0.1, 0.7]))
    constant = torch.tensor([0.1, 0.2]).double()
    with record() as recording:
        x = w.double().tanh().atanh() - constant.float().double()
        (torch.relu(x) * 3).sum().backward()
    return recording.program


REFUSED: dict[str, tuple[Callable[[], Program], str]] = {
    "chaotic": (_chaotic, "is to blame"),
    "at a kink": (_at_a_kink, "may cross a kink"),
}


@functools.cache
def _program(name: str) -> Program:
    return REFUSED[name][0]()


@functools.cache
def _refused(name: str, method: str) -> Certificate:
    certificate = certify(_program(name), method=method)
    assert any(REFUSED[name][1] in note for note in certificate.notes), certificate.notes
    return certificate


@pytest.mark.parametrize("method", ["auto", "kantorovich"])
@pytest.mark.parametrize("name", REFUSED)
def test_the_level_falls_and_nothing_is_bounded(name: str, method: str) -> None:
    certificate = _refused(name, method)
    assert certificate.guarantee is Guarantee.ESTIMATED
    assert certificate.method == "reference"
    for row in (certificate.total, *certificate.parameters.values()):
        assert row.guarantee is Guarantee.ESTIMATED
        assert (row.error_bound, row.radius, row.tightness) == (None, None, None)
        with pytest.raises(CertificateError):
            certificate.entrywise_bound(row.name)
    assert any("It is not bounded here" in text for text in certificate.assumptions)
    assert not any("probability" in text for text in certificate.assumptions)


def test_the_constants_say_which_of_them_is_to_blame() -> None:
    certificate = _refused("chaotic", "kantorovich")
    (note,) = (note for note in certificate.notes if "to blame" in note)
    constants = certificate.constants
    assert not constants["h"] < 1
    assert {"h", "eta", "beta", "curvature", "failure probability"} <= constants.keys()
    for name in ("curvature K", "sensitivity beta", "rounding eta"):
        assert name in note


def test_a_kink_in_doubt_is_named() -> None:
    certificate = _refused("at a kink", "kantorovich")
    assert certificate.unresolved_kinks
    kink = certificate.unresolved_kinks[0]
    assert kink.count >= 1
    assert "test_refusals.py" in kink.source
    assert certificate.constants["h"] < 1  # the condition holds, and yet there is no bound
    assert str(kink) in " ".join(to_text(certificate, width=400).split())


@pytest.mark.parametrize("name", REFUSED)
def test_no_bound_is_printed_written_or_read(name: str, tmp_path: Path) -> None:
    certificate = _refused(name, "kantorovich")
    for text in (to_text(certificate, width=300), str(headline(certificate)), str(certificate)):
        lowered = text.lower()
        assert "at most" not in lowered
        assert "certified bound" not in lowered
        assert "ESTIMATED" in text
        assert "CERTIFIED" not in text
        assert "PROVED" not in text
    document = json.loads(certificate.to_json())
    for row in (document["total"], *document["parameters"]):
        assert (row["error_bound"], row["radius"], row["tightness"]) == (None, None, None)
    for file in (tmp_path / "c.json", tmp_path / "c.pt"):
        certificate.save(file)
        loaded = Certificate.load(file)
        assert loaded.unresolved_kinks == certificate.unresolved_kinks
        assert loaded.constants == pytest.approx(certificate.constants, nan_ok=True)
        assert not loaded.entrywise_bounds


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_can_be_verified_and_a_bound_put_into_it_is_found(
    name: str, tmp_path: Path
) -> None:
    program, file = _program(name), tmp_path / "c.json"
    _refused(name, "kantorovich").save(file)
    assert verify(file, program)
    document = json.loads(file.read_text())
    document["total"] |= {"error_bound": 1e-6, "radius": 1e-9}
    document["guarantee"] = document["total"]["guarantee"] = "CERTIFIED"
    file.write_text(json.dumps(document))
    assert verify(file, program).verdict is Verdict.CHANGED
    word = Guarantee.CERTIFIED
    honest = _refused(name, "kantorovich")
    total = replace(honest.total, error_bound=1e-6, radius=1e-9, guarantee=word)
    replace(honest, guarantee=word, total=total).save(file)  # sealed by somebody who knows how
    found = verify(file, program)
    assert not found
    assert "guarantee: the file says" in str(found)
    assert "total.error_bound: the file says 1e-06, found null" in str(found)


def test_a_certificate_that_holds_says_what_it_rests_on_and_how_likely_it_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    subject = (model, lambda m, x: m(x).square().sum(), torch.randn(5, 3))
    certificate = certify(*subject, method="kantorovich", failure_probability=1e-6, probe_seed=7)
    assert certificate.guarantee is Guarantee.CERTIFIED
    constants = certificate.constants
    assert 0 < constants["h"] < 1
    assert constants["h"] == pytest.approx(
        2 * constants["beta"] ** 2 * constants["curvature"] * constants["eta"], rel=0.05
    )
    assert math.isfinite(constants["rho"])
    assert 0 < constants["failure probability"] <= 1e-6
    (chance,) = (text for text in certificate.assumptions if "probability" in text)
    assert "1e-06" in chance
    assert "seed 7" in chance
    assert not certificate.unresolved_kinks
    proved = certify(*subject, method="ball")
    assert proved.guarantee is Guarantee.PROVED
    assert proved.constants == {}
    assert not any("probability" in text for text in proved.assumptions)
