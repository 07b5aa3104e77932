"""Is a certificate found true exactly when nothing in it was changed?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.certificate import Certificate, CertificateError, certify, verify
from numgeom.errors import NumgeomError

METHODS = ("auto", "ball", "kantorovich", "functional", "reference")


def step(seed: int = 0) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    return model, lambda m, b: m(b).square().sum(), torch.randn(4, 6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["c.json", "c.pt"])
def test_an_honest_file_is_verified(tmp_path: Path, method: str, name: str) -> None:
    certify(*step(), method=method, probe_seed=3).save(tmp_path / name)
    found = verify(tmp_path / name, *step())
    assert found
    assert found.differences == ()
    assert "Verified" in str(found)


def leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(document, dict):
        return [p for k, v in document.items() for p in leaves(v, (*path, k))]
    if isinstance(document, list) and document:
        return [p for i, v in enumerate(document) for p in leaves(v, (*path, i))]
    return [path]


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * (1 + 2**-50) if value else 1e-300
    if value in ("PROVED", "CERTIFIED", "ESTIMATED", "NONE"):
        return "PROVED" if value != "PROVED" else "CERTIFIED"
    if isinstance(value, str):
        return value + "x"
    return {"x": 1} if value in ({}, None) else ["x"]


IGNORED = {"seconds", "sources", "schema", "version"}
FREE = {"torch", "numgeom", "cpu", "device", "threads"}  # said beside the verdict


def test_every_changed_field_is_found(tmp_path: Path) -> None:
    certificate = certify(*step(), method="kantorovich")
    honest = json.loads(certificate.to_json())
    again = {}
    tried = 0
    for path in leaves(honest):
        if path[0] in IGNORED or (path[0] == "provenance" and path[-1] in FREE):
            continue
        document = json.loads(certificate.to_json())
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = changed(inner[path[-1]])
        file = tmp_path / "tampered.json"
        file.write_text(json.dumps(document))
        try:
            found = verify(file, *step())
        except NumgeomError:  # a value that no certificate can have
            continue
        assert not found, path
        again[path] = found
        tried += 1
    assert tried > 40
    assert any("error_bound" in each for each in again[("total", "error_bound")].differences)


def test_tampered_entry_wise_bounds_are_found(tmp_path: Path) -> None:
    certificate = certify(*step())
    certificate.entrywise_bounds["0.weight"][0, 0] *= 0.5
    certificate.save(tmp_path / "c.pt")
    found = verify(tmp_path / "c.pt", *step())
    assert not found
    assert "entry-wise bounds of 0.weight" in str(found)


def test_another_step_is_not_verified() -> None:
    found = verify(certify(*step()), *step(seed=1))
    assert not found
    assert found.differences[0].startswith("program: ")
    assert "NOT VERIFIED" in str(found)


def test_another_version_is_named_as_a_possible_reason() -> None:
    certificate = certify(*step()).stamped(torch="1.0")
    assert verify(certificate, *step())  # the same bits: nothing to complain of
    other = verify(certificate, *step(seed=1))
    assert "torch 1.0 then" in str(other)


def test_gradients_from_elsewhere_must_be_given_again() -> None:
    given = {n: torch.ones_like(p) for n, p in step()[0].named_parameters()}
    certificate = certify(*step(), computed=given)
    assert verify(certificate, *step(), computed=given)
    with pytest.raises(CertificateError, match="computed="):
        verify(certificate, *step())
    moved = {n: g + 1e-6 for n, g in given.items()}
    assert not verify(certificate, *step(), computed=moved)
    with pytest.raises(CertificateError, match="leave computed="):
        verify(certify(*step()), *step(), computed=given)


def test_a_certificate_that_says_not_how_it_was_made_is_refused(tmp_path: Path) -> None:
    document = json.loads(certify(*step()).to_json())
    del document["provenance"]["probe seed"]
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(CertificateError, match="probe seed"):
        verify(Certificate.load(tmp_path / "c.json"), *step())


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    certificate = certify(*step()).stamped(threads=str(before + 1))
    verify(certificate, *step())
    assert torch.get_num_threads() == before
