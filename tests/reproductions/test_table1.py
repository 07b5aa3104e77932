from reproductions.outcome import Settings
from reproductions.table1 import COLUMNS, table1


def test_bounds_are_above_the_observed_error_and_the_goals_are_judged() -> None:
    outcome = table1(Settings(), names=("MLP-Small",))
    (row,) = outcome.tables[0].rows
    cells = dict(zip(COLUMNS, row, strict=True))
    assert cells["observed"] < cells["certified"] < cells["proved"]
    assert cells["observed"] < cells["sqrt(n)"] < cells["proved"]
    assert cells["guarantee"] in {"PROVED", "CERTIFIED"}
    assert cells["certified / observed"] <= 1.1
    assert cells["proved / observed"] <= 500
    assert cells["sqrt(n) / observed"] <= 100
    assert any("reached." in note and "NOT" not in note for note in outcome.notes)
    assert outcome.data[0].source.startswith("scikit-learn")
