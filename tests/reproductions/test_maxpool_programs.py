import pytest

from reproductions.maxpool.figure import Figure, reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.maxpool.programs import written_through_relu
from reproductions.outcome import Outcome, Settings

# Half a unit in the last place of 1.4·t's derivative: the spacing of the format below 1.
RESIDUE = {"float16": 2.0**-11, "bfloat16": 2.0**-9, "float32": 2.0**-24, "float64": 2.0**-53}


def made(name: str, settings: Settings | None = None) -> Outcome:
    return reproduce(FIGURES[name], settings or Settings())


@pytest.mark.parametrize(("table", "at_zero"), [("maxpool-table1", -1.5), ("maxpool-table3", 1.5)])
def test_magnitudes_are_the_published_ones(table: str, at_zero: float) -> None:
    outcome = made(table, Settings(device="cuda"))
    assert outcome.facts["residue_at_1.4"] == RESIDUE
    assert f"{RESIDUE['float32']:.3g} {RESIDUE['float64']:.3g}" == "5.96e-08 1.11e-16"
    assert outcome.facts["error_at_0"] == at_zero
    for dtype, found in zip(RESIDUE, outcome.tables[:4], strict=True):
        assert dtype in found.title
        first, second = found.rows
        assert first[1:] == (0, 0, 0, at_zero, 0, 0, 0)
        assert {abs(cell) for cell in second[1:]} == {RESIDUE[dtype]}
    assert outcome.circumstances["device"].startswith("cpu")


def test_controls_have_no_residue() -> None:
    relus, norms = made("maxpool-table1").tables[4:]
    for row, at_zero in zip((*relus.rows, *norms.rows), (-1, -1, -10, -5.6), strict=True):
        assert row[4] == pytest.approx(at_zero, rel=1e-6)
        assert {row[i] for i in (1, 2, 3, 5, 6, 7)} == {0}


def test_the_example_of_the_appendix_is_exact() -> None:
    example = made("maxpool-table3").tables[-1]
    assert example.rows == (
        ("native", 1, 0, 0, 0, 0, 0, 0, 0, 0),
        ("minimal", 0.5, 0, 0.5, 0, 0, 0, 0, 0, 0),
    )


@pytest.mark.parametrize(
    ("figure", "at_zero"),
    [
        (FIGURES["maxpool-fig7"], (1, 2.5)),
        (Figure("listing", "A listing", written_through_relu, None, None), (2.5, 1)),
    ],
    ids=["fig7", "fig9"],
)
def test_listings_show_where_two_programs_part(
    figure: Figure[None], at_zero: tuple[float, ...]
) -> None:
    outcome = reproduce(figure, Settings())
    rows = {(row[0], row[1]): row[2:] for row in outcome.tables[0].rows}
    point = "(1, 2, 3, 4)"
    assert (rows["max1", point][3], rows["max2", point][3]) == at_zero
    assert rows["zero", point][3] == at_zero[0] - at_zero[1]
    assert len(outcome.plots) == 2
