"""Is a certificate found true exactly when nothing in it was changed?"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.arithmetic.printing import upper
from numgeom.certificate import Certificate, CertificateError, certify, verify
from numgeom.certificate.store import SCHEMA, VERSION
from numgeom.certificate.verify import Verdict
from numgeom.errors import FileFormatError, NumgeomError
from numgeom.files.archive import write_archive
from numgeom.recording import record_step
from numgeom.results import store
from numgeom.results.store import checksum

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
    if isinstance(value, str) and value in ("PROVED", "CERTIFIED", "ESTIMATED", "NONE"):
        return "PROVED" if value != "PROVED" else "CERTIFIED"
    if isinstance(value, str):
        for number in (lambda: int(value) + 1, lambda: float(value) / 2):
            try:
                return str(number())
            except ValueError:
                continue
        return value + "x"
    return {"x": 1} if value in ({}, None) else ["x"]


# Said beside the verdict, or measured anew: only the checksum guards them.
FREE = {"torch", "numgeom", "certificates", "system", "processor", "cpu", "device", "threads"}
UNCOMPARED = {"seconds", "sources", "checksum"}


def kept(path: Path, document: Any, tensors: dict[str, Tensor], *, sealed: bool) -> Path:
    """Write a changed certificate; `sealed` by somebody who knows how to compute the checksum."""
    if sealed:
        document = {**document, "checksum": checksum(document, tensors)}
    if path.suffix == ".json":
        path.write_text(json.dumps(document))
    else:
        write_archive(path, json.dumps(document), tensors)
    return path


def replaced(document: Any, path: tuple[Any, ...]) -> Any:
    """A copy of the document with one leaf changed."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = changed(inner[path[-1]])
    return copy


def test_every_changed_field_shows_in_the_checksum(tmp_path: Path) -> None:
    certificate = certify(*step(), method="kantorovich")
    for name in ("c.json", "c.pt"):
        certificate.save(tmp_path / name)
        document, tensors = store.read(tmp_path / name, schema=SCHEMA, version=VERSION)
        assert document["checksum"] == checksum(document, tensors)
        for path in leaves(document):
            other = replaced(document, path)
            shows = other["checksum"] != checksum(other, tensors)
            assert shows is (path != ("seconds",)), path  # how long it took is not said
        for key in tensors:
            for wrong in (tensors[key] * 0.5, tensors[key].float(), tensors[key].reshape(-1, 1)):
                assert document["checksum"] != checksum(document, {**tensors, key: wrong})
    found = verify(kept(tmp_path / "c.json", other, {}, sealed=False), *step())
    assert found.verdict is Verdict.CHANGED
    assert "the file was changed after it was written" in str(found)


def test_every_changed_field_is_found_even_under_a_new_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Certificate] = {}

    def once(*subject: Any, **how: Any) -> Certificate:
        """The same question has the same answer; do not compute it for every field."""
        key = repr(sorted(how.items()))
        if key not in made:
            made[key] = certify(*subject, **how)
        return made[key]

    monkeypatch.setattr(sys.modules[verify.__module__], "certify", once)
    certificate = certify(*step(), method="kantorovich")
    certificate.sources()
    stamped = {"target": "steps.py:make", "seed": "0", "epochs": "0", "data": "none", "dtype": ""}
    certificate = certificate.stamped(**stamped)
    honest = json.loads(certificate.to_json())
    file = tmp_path / "tampered.json"
    again, refused, told = {}, [], set()
    for path in leaves(honest):
        kept(file, replaced(honest, path), {}, sealed=True)
        try:
            found = verify(file, *step())
        except NumgeomError:  # a value that no certificate can have
            refused.append(path[-1])
            continue
        if path[0] in UNCOMPARED or (path[0] == "provenance" and path[-1] in FREE | stamped.keys()):
            # Nothing is vouched for, and the answer says so.
            said = str(found).partition(
                " Not compared: " if path[-1] not in FREE else "elsewhere ("
            )
            name = path[-1] if path[0] == "provenance" else path[0]
            assert name in said[2] or path[-1] == "threads", (path, str(found))
            told.add(name)
            continue
        assert found.verdict is Verdict.OTHER, path
        again[path] = found
    assert told == UNCOMPARED | FREE | stamped.keys()
    assert len(again) > 60
    assert len(made) > 3
    assert set(refused) <= {
        0, 1, "entries", "guarantee",
        "schema", "version", "shape", "first_nonfinite", "unresolved_kinks", "judged gradients",
        "asked method", "replay device",
    }, refused  # fmt: skip
    keys = ("h", "eta", "beta", "curvature", "rho", "failure probability", "probe seed", "program")
    assert all(("provenance", key) in again for key in keys)
    assert any("error_bound" in each for each in again[("total", "error_bound")].differences)
    assert any("provenance.h: " in each for each in again[("provenance", "h")].differences)


def test_a_document_with_fields_of_its_own_is_not_verified(tmp_path: Path) -> None:
    honest = json.loads(certify(*step()).to_json())
    file = kept(tmp_path / "c.json", {**honest, "certified_by": "me"}, {}, sealed=True)
    with pytest.raises(FileFormatError, match="certified_by"):
        verify(file, *step())
    kink = {"op": "aten.relu.default", "module": "", "source": "", "count": 1, "units": []}
    file = kept(tmp_path / "c.json", {**honest, "unresolved_kinks": [kink]}, {}, sealed=True)
    assert "unresolved_kinks: the file says" in str(verify(file, *step()))
    del honest["checksum"]
    file = kept(tmp_path / "c.json", honest, {}, sealed=False)
    assert verify(file, *step()).verdict is Verdict.CHANGED


def test_tampered_entry_wise_bounds_are_found(tmp_path: Path) -> None:
    certify(*step()).save(tmp_path / "c.pt")
    document, tensors = store.read(tmp_path / "c.pt", schema=SCHEMA, version=VERSION)
    tensors["0.weight"][0, 0] *= 0.5
    for sealed, verdict in ((False, Verdict.CHANGED), (True, Verdict.OTHER)):
        found = verify(kept(tmp_path / "c.pt", document, tensors, sealed=sealed), *step())
        assert found.verdict is verdict
        assert ("entry-wise bounds of 0.weight" in str(found)) is sealed
    tensors.pop("0.bias")
    found = verify(kept(tmp_path / "c.pt", document, tensors, sealed=True), *step())
    assert "entry-wise bounds of 0.bias: not in the file" in found.differences
    found = verify(kept(tmp_path / "c.pt", document, {}, sealed=False), *step())
    assert found.verdict is Verdict.CHANGED


def test_another_step_is_not_verified() -> None:
    found = verify(certify(*step()), *step(seed=1))
    assert found.verdict is Verdict.OTHER
    assert found.same_step is False
    assert found.differences[0] == "program: the certificate is about another step"
    assert "Not verified: program" in str(found)


def test_other_bits_on_another_machine_are_not_called_tampering(tmp_path: Path) -> None:
    """The same step on a machine that adds in another order: neither confirmed nor refuted."""
    program = record_step(*step())
    other = {n: torch.nextafter(g, g + 1) for n, g in program.recorded.gradients.items()}
    moved = replace(program, recorded=replace(program.recorded, gradients=other))
    certificate = certify(moved, check_replay=False).stamped(processor="another")
    certificate.save(tmp_path / "c.pt")
    found = verify(tmp_path / "c.pt", program)
    assert not found
    assert found.verdict is Verdict.ELSEWHERE
    assert found.same_step is True
    text = str(found)
    assert "Not verified here" in text
    assert "processor another then" in text
    assert "about this step" in text
    assert "changed" not in text
    assert upper(certificate.total.error_bound) in text
    # Where the machine is the same, it is no excuse.
    plain = verify(certify(moved, check_replay=False), program)
    assert plain.verdict is Verdict.OTHER
    assert "the step is the same, but it gave gradients of other bits" in str(plain)


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


def test_nothing_is_run_for_a_file_that_was_changed(tmp_path: Path) -> None:
    document = json.loads(certify(*step()).to_json())
    document["total"]["error_bound"] /= 2
    file = kept(tmp_path / "c.json", document, {}, sealed=False)

    def run(model: nn.Module, batch: Tensor) -> Tensor:
        raise AssertionError("the step ran")

    found = verify(file, step()[0], run, step()[2])
    assert found.verdict is Verdict.CHANGED
    assert found.again is None
    with pytest.raises(FileFormatError, match="checksum"):
        Certificate.load(file)


def test_a_certificate_that_says_not_how_it_was_made_is_refused(tmp_path: Path) -> None:
    document = json.loads(certify(*step()).to_json())
    del document["provenance"]["probe seed"]
    kept(tmp_path / "c.json", document, {}, sealed=True)
    with pytest.raises(CertificateError, match="probe seed"):
        verify(Certificate.load(tmp_path / "c.json"), *step())


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    certificate = certify(*step()).stamped(threads=str(before + 1))
    verify(certificate, *step())
    assert torch.get_num_threads() == before
