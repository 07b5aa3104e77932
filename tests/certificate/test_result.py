"""Does a certificate keep what it is given, rank modules, and survive a file?"""

import copy
import dataclasses
import json
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from numgeom.certificate.kinks import Kink, Unit
from numgeom.certificate.nonfinite import NonFinite
from numgeom.certificate.result import Certificate, CertificateError, Source
from numgeom.errors import FileFormatError, NumgeomError
from numgeom.results.accuracy import GradientAccuracy, measure, total
from numgeom.results.codec import encode
from numgeom.results.guarantee import Guarantee
from numgeom.results.store import sealed


def certificate(rows: list[GradientAccuracy], **fields: Any) -> Certificate:
    return Certificate(
        guarantee=fields.pop("guarantee", Guarantee.ESTIMATED),
        method="reference",
        total=total(rows),
        parameters={row.name: row for row in rows},
        **fields,
    )


def gradient(name: str, size: float, error: float) -> GradientAccuracy:
    """A gradient of norm `size` off by `error`, both absolute."""
    reference = torch.tensor([size, 0.0], dtype=torch.float64)
    return measure(name, (reference + torch.tensor([0.0, error])).float(), reference)


FULL = certificate(
    [
        dataclasses.replace(
            gradient("a.weight", 4.0, 0.5),
            error_bound=0.2, radius=0.1, guarantee=Guarantee.CERTIFIED,
        ),
        gradient("b", 1.0, math.nan),
    ],
    guarantee=Guarantee.NONE,
    computed_loss=1.5,
    reference_loss=math.inf,
    without_gradient=("c.weight",),
    replay_is_identical=False,
    first_nonfinite=NonFinite(
        "NaN", "operation", "aten.log.default", "a", "forward", "m.py:3", ("loss",), "both",
        made_from=NonFinite("Inf", "input"),
    ),
    unknown_ops=Counter({"aten.odd.default": 3}),
    unresolved_kinks=(
        Kink("aten.relu.default", "a", "m.py:4", 2, (Unit((0, 3), 1e-17, 2e-16),)),
        Kink("aten.max.dim", "", "m.py:5", 1, (Unit((2,), math.nan, math.nan),)),
    ),
    assumptions=("one", "two"),
    notes=("größer",),
    seconds=0.25,
    provenance={"seed": "0"},
    error_sources=(Source("aten.mm.default", "a", "forward", "m.py:2", 0.5, Guarantee.ESTIMATED),),
    entrywise_bounds={"a.weight": torch.tensor([0.5, 0.25], dtype=torch.float64)},
)  # fmt: skip


def no_constant(text: str) -> None:
    raise AssertionError(f"{text} is not strict JSON")


def test_json_is_strict_and_names_its_schema() -> None:
    document = json.loads(FULL.to_json(), parse_constant=no_constant)
    assert (document["schema"], document["version"]) == ("numgeom.certificate", 1)
    assert document["guarantee"] == "NONE"
    assert document["reference_loss"] == "Infinity"
    assert document["total"]["observed_error"] == "NaN"
    assert [row["name"] for row in document["parameters"]] == ["a.weight", "b"]
    assert document["parameters"][0]["observed_error"] == 0.125
    assert [row["error_bound"] for row in document["parameters"]] == [0.2, None]
    assert document["unknown_ops"] == {"aten.odd.default": 3}
    assert document["first_nonfinite"]["made_from"]["origin"] == "input"


@pytest.mark.parametrize("name", ["c.json", "c.pt"])
def test_a_certificate_survives_a_file(tmp_path: Path, name: str) -> None:
    FULL.save(tmp_path / name)
    loaded = Certificate.load(tmp_path / name)
    assert loaded.to_json() == FULL.to_json()
    assert loaded.parameters["a.weight"] == FULL.parameters["a.weight"]
    assert loaded.unknown_ops["never met"] == 0
    assert loaded.sources() == FULL.sources()
    assert loaded.first_nonfinite == FULL.first_nonfinite
    if name == "c.pt":
        assert loaded.entrywise_bound("a.weight").tolist() == [0.5, 0.25]
    else:
        with pytest.raises(CertificateError, match="JSON"):
            loaded.entrywise_bound("a.weight")


def test_every_field_that_is_damaged_is_noticed(tmp_path: Path) -> None:
    document = json.loads(FULL.to_json())
    path = tmp_path / "c.json"
    # What has a default may be missing: files of earlier versions lack what came later.
    defaults = {f.name for f in dataclasses.fields(Certificate) if f.name not in _NEEDED}
    for key in document.keys() - defaults - {"units", "constants", "sources"}:
        rest = {k: v for k, v in document.items() if k != key}
        path.write_text(json.dumps(rest if key == "checksum" else sealed(rest)))
        with pytest.raises(FileFormatError, match=str(path)):
            Certificate.load(path)
    for key, wrong in {
        "guarantee": "SURE", "total": None, "parameters": ["x"], "seconds": "fast",
        "unknown_ops": {"a": "x"}, "first_nonfinite": {}, "sources": [{}], "notes": 3,
    }.items():  # fmt: skip
        path.write_text(json.dumps(sealed({**document, key: wrong})))
        with pytest.raises(FileFormatError, match=str(path)) as caught:
            Certificate.load(path)
        assert key.removesuffix("s") in str(caught.value)


_NEEDED = ("guarantee", "method", "total", "parameters")
NOT_SAID = {  # of a row with a bound, and of the certificate around it
    "a negative bound": ("total", "error_bound", -1e-7),
    "a bound that is NaN": ("total", "error_bound", "NaN"),
    "a bound without its radius": ("total", "radius", None),
    "a negative norm": ("total", "error_norm", -0.5),
    "a negative count": ("total", "entries", -1),
    "half an entry": ("total", "entries", 1.5),
    "true entries": ("total", "entries", True),
    "entries as text": ("total", "entries", "4"),
    "a guarantee of another time": ("total", "guarantee", "SURE"),
    "a field of its own": ("total", "certified_by", "me"),
}


@pytest.mark.parametrize("case", NOT_SAID)
def test_what_no_certificate_can_say_is_refused(tmp_path: Path, case: str) -> None:
    """Also under a checksum that fits."""
    row = dataclasses.replace(
        gradient("w", 4.0, 0.5), error_bound=0.2, radius=0.1, guarantee=Guarantee.CERTIFIED
    )
    honest = dataclasses.replace(
        certificate([row]),
        guarantee=Guarantee.CERTIFIED,
        total=dataclasses.replace(row, name="total"),
    )
    path = tmp_path / "c.json"
    honest.save(path)
    assert Certificate.load(path) == honest
    document = json.loads(path.read_text())
    part, key, value = NOT_SAID[case]
    document[part][key] = value
    path.write_text(json.dumps(sealed(document)))
    with pytest.raises(FileFormatError, match="damaged"):
        Certificate.load(path)


def test_a_guarantee_needs_what_it_rests_on(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    plain = json.loads(certificate([gradient("w", 4.0, 0.5)]).to_json())
    for change in (
        {"guarantee": "PROVED"},
        {"unknown_ops": {"aten.odd.default": 1}},
        {"parameters": [*plain["parameters"], *plain["parameters"]]},
        {"parameters": [{**plain["parameters"][0], "guarantee": "CERTIFIED"}]},
        {"parameters": [{**plain["parameters"][0], "shape": [3]}]},
        {"seconds": -1.0},
        {"provenance": {"h": "-1.0"}},
        {"provenance": {"h": "one"}},
        {"provenance": {"seed": 3}},
    ):
        path.write_text(json.dumps(sealed({**plain, **change})))
        with pytest.raises(FileFormatError, match="damaged"):
            Certificate.load(path)


def test_a_certificate_is_data() -> None:
    """It can be copied and pickled; the program that it is about is no part of it."""
    for again in (copy.deepcopy(FULL), pickle.loads(pickle.dumps(FULL))):
        assert encode(again) == encode(FULL)
        assert again.found_sources == FULL.found_sources


def test_an_entrywise_bound_that_is_missing_says_so() -> None:
    plain = certificate([gradient("w", 1.0, 0.0)])
    with pytest.raises(CertificateError, match="does not bound the reference's own error"):
        plain.entrywise_bound("w")
    with pytest.raises(NumgeomError, match="no parameter 'v'.*has: w"):
        plain.entrywise_bound("v")


def test_modules_are_ranked_by_their_own_relative_error() -> None:
    rows = [
        gradient("large.weight", 100.0, 0.25),
        gradient("small.weight", 3.0, 0.0),
        gradient("small.bias", 4.0, 0.5),
        gradient("exact.weight", 1.0, 0.0),
    ]
    modules = certificate(rows).worst_modules()
    assert [module.module for module in modules] == ["small", "large", "exact"]
    assert modules[0].observed_error == pytest.approx(0.1)
    assert [module.error_share for module in modules] == pytest.approx([0.8, 0.2, 0.0])
    assert len(certificate(rows).worst_modules(1)) == 1


def test_modules_whose_error_is_unknown_come_first() -> None:
    rows = [gradient("a.w", 1.0, 0.5), gradient("w", 1.0, math.nan), gradient("c.w", 1.0, 0.1)]
    modules = certificate(rows).worst_modules()
    assert [module.module for module in modules] == ["", "a", "c"]
    assert math.isnan(modules[0].observed_error)
    assert modules[0].guarantee is Guarantee.NONE
    assert all(math.isnan(module.error_share) for module in modules)


def test_a_gradient_without_any_error_shares_nothing() -> None:
    modules = certificate([gradient("a.w", 1.0, 0.0), gradient("b.w", 0.0, 0.0)]).worst_modules()
    assert [module.error_share for module in modules] == [0.0, 0.0]


def test_sources_are_empty_until_a_method_attributes_errors() -> None:
    assert certificate([gradient("w", 1.0, 0.0)]).sources() == ()


def test_a_stamp_adds_provenance() -> None:
    stamped = FULL.stamped(target="x.py:f")
    assert stamped.provenance == {"seed": "0", "target": "x.py:f"}
    assert FULL.provenance == {"seed": "0"}


def test_text_is_one_line() -> None:
    assert str(FULL).count("\n") == 0
    assert "NONE" in str(FULL)
