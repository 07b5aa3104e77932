import pytest

from numgeom.nonsmooth import clopper_pearson
from reproductions.maxpool.figure import reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.maxpool.sampling import Sample
from reproductions.maxpool.volume import Panels
from reproductions.outcome import Cell, Settings, Table


def of(table: Table, row: tuple[Cell, ...]) -> dict[str, Cell]:
    return dict(zip(table.columns, row, strict=True))


@pytest.mark.parametrize(
    "case",
    [
        Sample("LeNet-5", "MNIST", None, points=2, batches=2, batch_size=32, batches16=1),
        Sample("VGG-11", "CIFAR10", 4, points=2, batches=2, batch_size=16, batches16=1),
    ],
)
def test_16_bits_bifurcate_and_64_bits_do_not(case: Sample) -> None:
    outcome = reproduce(FIGURES["maxpool-table2"], Settings(), size=(case,))
    zones, taus = ({row[1]: of(table, row) for row in table.rows} for table in outcome.tables)
    for dtype, row in zones.items():
        points = row["bifurcating initial values"]
        assert (row["initial values"], row["mini-batches"]) == (2, 1 if dtype == "float16" else 2)
        assert isinstance(points, float)
        assert (row["95 % from"], row["to"]) == clopper_pearson(round(2 * points), 2)
        assert row["margin"] is None  # 4 pairs say nothing
    shares = {
        (row["bifurcating initial values"], row["bifurcating pairs"]) for row in zones.values()
    }
    assert zones["float16"]["bifurcating pairs"] == 1
    assert zones["float64"]["bifurcating pairs"] == 0
    assert shares >= {(1, 1), (0, 0)}
    assert taus["float32"]["source"] == taus["float64"]["source"] == "tau1, permuted sums"
    assert taus["float16"]["source"] == "tau2, two selections"
    for row in taus.values():
        share = row["initial values, D > tau"]
        assert (share is None) == (row["tau"] is None)
        if share is not None:
            assert (row["95 % from"], row["to"]) == clopper_pearson(round(2 * float(share)), 2)
    assert outcome.data[0].n == 1797


def test_bars_stand_for_each_depth_batch_and_norm() -> None:
    size = Panels(4, 1, 16, (8, 16), depths=(11, 13))
    outcome = reproduce(FIGURES["maxpool-fig4"], Settings(), size=size)
    rows = {(row[0], row[1], row[2]): row for row in outcome.tables[0].rows}
    assert len(rows) == 3 * (2 + 2 + 2)
    assert rows["batch size", "8", "float32"][3:5] == (1, 2)
    assert rows["batch size", "16", "float32"][3:5] == (1, 1)
    for (_, _, dtype), row in rows.items():
        if dtype != "float32":
            assert row[6] == {"float16": 1.0, "float64": 0.0}[dtype]
    taus = {row[5] for row in rows.values()}
    assert taus == {rows["depth", "VGG-11", "float32"][8]}  # the median of its variations
    assert any("one half by construction" in note for note in outcome.notes)
    assert len(outcome.plots) == 3
