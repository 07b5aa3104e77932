"""Does the table show every number with unit and guarantee, whatever the numbers are?"""

import dataclasses
import math
import re
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch

from numgeom.arithmetic.printing import upper
from numgeom.certificate.kinks import Kink
from numgeom.certificate.nonfinite import NonFinite
from numgeom.certificate.result import Certificate, Source
from numgeom.report.table import headline, to_text
from numgeom.results.accuracy import GradientAccuracy, total
from numgeom.results.guarantee import Guarantee


def accuracy(name: str, **fields: Any) -> GradientAccuracy:
    defaults: dict[str, Any] = {
        "shape": (2, 3), "dtype": "float32", "entries": 6, "computed_norm": 2.0,
        "reference_norm": 2.0, "error_norm": 2.5e-7, "observed_error": 1.25e-7,
        "largest_entry_error": 2e-7, "largest_entry": 1.0, "nonfinite_entries": 0,
        "reference_nonfinite_entries": 0, "guarantee": Guarantee.ESTIMATED,
    }  # fmt: skip
    return GradientAccuracy(name=name, **{**defaults, **fields})


def certificate(*rows: GradientAccuracy, **fields: Any) -> Certificate:
    whole = total(rows)
    return Certificate(
        **{
            "guarantee": whole.guarantee,
            "method": "reference",
            "total": whole,
            "parameters": {row.name: row for row in rows},
            "seconds": 0.5,
            **fields,
        }
    )


PLAIN = certificate(
    accuracy("layers.0.weight"),
    accuracy("layers.0.bias", shape=(3,), entries=3, observed_error=0.0, error_norm=0.0,
             largest_entry_error=0.0),
    accuracy("scale", shape=(), entries=1, computed_norm=1e-30, reference_norm=2e-30,
             error_norm=1e-30, observed_error=0.5, largest_entry_error=1e-30),
    computed_loss=0.75,
    reference_loss=0.7500001,
    assumptions=("The float64 reference is right to 1e-15 or so.",),
    notes=("No gradient, the loss does not use them: layers.9.weight.",),
    provenance={"target": "example:x", "torch": "2.13.0", "seed": "0"},
)  # fmt: skip

PLAIN_TEXT = """\
Gradient error of example:x: 8.84e-08 (relative, 2-norm), worst scale: 5.00e-01, guarantee ESTIMATED
A measurement or a prediction, not a bound.
Loss 0.75 computed, 0.7500001 reference. 10 entries of gradient, computed in float32.


Gradients
                                         observed       largest     correct
                                norm        error   entry error      digits
 parameter          shape   [2-norm]   [relative]    [absolute]   [decimal]   guarantee
────────────────────────────────────────────────────────────────────────────────────────
 layers.0.weight      2x3   2.00e+00     1.25e-07      2.00e-07         6.9   ESTIMATED
 layers.0.bias          3   2.00e+00            0             0       >15.9   ESTIMATED
 scale             scalar   1.00e-30     5.00e-01      1.01e-30         0.3   ESTIMATED

 total                      2.83e+00     8.84e-08      2.00e-07         7.0   ESTIMATED

Worst modules
              observed    share of the
                 error   squared error
 module     [relative]       [percent]   guarantee
───────────────────────────────────────────────────
 (model)      5.00e-01             0.0   ESTIMATED
 layers.0     8.84e-08           100.0   ESTIMATED

Notes
1. No gradient, the loss does not use them: layers.9.weight.

Assumptions
1. The float64 reference is right to 1e-15 or so.

method reference, 0.50 s, torch 2.13.0, seed 0.
"""


def test_the_table_of_a_small_result() -> None:
    assert to_text(PLAIN) == PLAIN_TEXT


def test_an_estimate_is_never_called_certified_or_exact() -> None:
    text = to_text(PLAIN).lower()
    assert "certified" not in text
    assert "exact" not in text
    assert "at most" not in text


@pytest.mark.parametrize("width", [50, 60, 70, 80, 90, 100, 140])
def test_a_narrow_table_leaves_out_columns_but_never_a_part_of_a_number(width: int) -> None:
    text = to_text(PLAIN, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in ("layers.0.weight", "scale", "total"):
        line = re.findall(rf"^ {row[:9]}.*$", text, re.MULTILINE)[0]
        shown = PLAIN.total if row == "total" else PLAIN.parameters[row]
        assert upper(shown.observed_error) in line.split()
        assert line.endswith("ESTIMATED")


def test_a_bound_is_shown_with_its_ratio() -> None:
    bounded = accuracy("w", guarantee=Guarantee.PROVED, error_bound=2.5e-7, radius=1e-9)
    whole = dataclasses.replace(bounded, name="total", shape=())
    made = certificate(bounded, total=whole, guarantee=Guarantee.PROVED)
    text = to_text(made, width=120)
    lines = [line.split() for line in text.splitlines()]
    row = ["w", "2x3", "2.00e+00", "1.25e-07", "2.00e-07", "6.6", "2.50e-07", "2", "PROVED"]
    assert row in lines
    assert "at most 2.50e-07 (relative, 2-norm), guarantee PROVED" in text


def test_the_headline_names_a_gradient_that_is_much_worse_than_the_total() -> None:
    fine = accuracy("fine", guarantee=Guarantee.PROVED, error_bound=1e-7, radius=1e-9)
    bad = accuracy("bad", guarantee=Guarantee.PROVED, error_bound=0.5001, radius=1e-9)
    whole = dataclasses.replace(fine, name="total", shape=())
    lines = [
        headline(certificate(*rows, total=whole, guarantee=Guarantee.PROVED)).plain
        for rows in (
            (fine,),
            (fine, bad),
            (fine, dataclasses.replace(bad, error_bound=math.inf)),
            (fine, dataclasses.replace(bad, error_bound=5e-7)),
        )
    ]
    assert "worst" not in lines[0]
    assert "at most 1.00e-07 (relative, 2-norm), worst bad: 5.01e-01, guarantee" in lines[1]
    assert "worst bad: no relative bound, guarantee" in lines[2]
    assert "worst" not in lines[3]


def test_a_ratio_near_one_shows_what_it_is_above_one() -> None:
    for error, text in ((1.25001e-7, "1.0001"), (1.25e-7 * 1.5, "1.5"), (1.5e-6, "12.1")):
        row = accuracy("w", guarantee=Guarantee.PROVED, error_bound=error, radius=1e-9)
        whole = dataclasses.replace(row, name="total", shape=())
        table = to_text(certificate(row, total=whole, guarantee=Guarantee.PROVED), width=120)
        (line,) = re.findall(r"^ w .*$", table, re.MULTILINE)
        shown = line.split()[-2]
        assert Fraction(shown) >= Fraction(row.tightness or 0)
        assert abs(float(shown) - float(text)) < 0.11


def test_a_bound_that_rests_on_other_kernels_is_an_estimate() -> None:
    bounded = accuracy("w", guarantee=Guarantee.ESTIMATED, error_bound=2.5e-7, radius=1e-9)
    whole = dataclasses.replace(bounded, name="total", shape=())
    made = certificate(bounded, total=whole, guarantee=Guarantee.ESTIMATED)
    assert "estimated at most 2.50e-07 (relative, 2-norm), guarantee ESTIMATED" in to_text(made)


def test_values_that_are_not_finite_never_crash_the_table() -> None:
    made = certificate(
        accuracy("a", computed_norm=math.nan, error_norm=math.nan, observed_error=math.nan,
                 largest_entry_error=math.nan, nonfinite_entries=4, guarantee=Guarantee.NONE),
        accuracy("b", reference_norm=math.inf, error_norm=math.inf, observed_error=math.nan,
                 reference_nonfinite_entries=1, guarantee=Guarantee.NONE),
        accuracy("c", reference_norm=0.0, observed_error=math.inf),
        computed_loss=math.nan,
        reference_loss=-math.inf,
        first_nonfinite=NonFinite("NaN", "operation", "aten.log.default", "m", "forward", "f.py:1"),
    )  # fmt: skip
    text = to_text(made)
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "2x3", "?", "4", "bad", "?", "0.0", "NONE"] in lines
    assert ["b", "2x3", "2.00e+00", "ref.", "bad", "?", "?", "NONE"] in lines
    assert ["c", "2x3", "2.00e+00", "inf", "2.00e-07", "0.0", "ESTIMATED"] in lines
    assert "Not finite: NaN first arises in aten.log.default" in text
    assert "unknown, not all values are finite" in text
    assert "Loss ? computed, -inf reference." in text


def test_names_are_printed_as_they_are() -> None:
    name = "[bold]x[/] :smile: [link=file:///]"
    made = certificate(
        accuracy(f"{name}.w"),
        notes=(f"note {name}",),
        assumptions=(f"assumption {name}",),
        unresolved_kinks=(Kink("aten.relu.default", f"kink {name}", "", 1),),
        unknown_ops=Counter({f"op {name}": 2}),
        provenance={"target": name},
        first_nonfinite=NonFinite("NaN", "parameter", name),
        error_sources=(Source(f"src {name}", name, "forward", name, 0.5, Guarantee.ESTIMATED),),
    )
    text = to_text(made, width=400)
    assert text.count(name) == 11
    assert f"No rule for: op {name} (2 calls)" in text


def test_of_many_parameters_the_worst_are_shown() -> None:
    rows = [accuracy(f"p{i:03}", observed_error=i * 1e-9) for i in range(99)]
    rows[7] = accuracy("p007", observed_error=math.nan, guarantee=Guarantee.NONE)
    text = to_text(certificate(*rows), rows=5)
    names = re.findall(r"^ (p\d+)", text, re.MULTILINE)
    assert names == ["p007", "p095", "p096", "p097", "p098"]
    assert "94 parameters with a smaller error are counted, but not shown." in text


def test_a_headline_is_one_line() -> None:
    assert headline(PLAIN).plain == to_text(PLAIN).splitlines()[0]


def test_a_certificate_of_a_real_step_is_rendered() -> None:
    from numgeom.certificate import certify

    made = certify(torch.nn.Linear(2, 1), lambda model, x: model(x).sum(), torch.ones(3, 2))
    assert "weight" in to_text(made)
