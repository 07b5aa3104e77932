from reproductions.maxpool.distance import Size
from reproductions.maxpool.figure import reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.outcome import Settings


def test_seven_networks_start_together_and_the_repeat_stays_equal() -> None:
    outcome = reproduce(FIGURES["maxpool-fig6"], Settings(), size=Size(2, 32, 16, 4, arm="blended"))
    rows = {row[0]: row for row in outcome.tables[0].rows}
    assert list(rows) == [
        "0 vs 0", "0 vs 1", "0 vs 10", "0 vs 100", "0 vs 1000", "0 vs 10000", "0 vs 0, again",
    ]  # fmt: skip
    assert rows["0 vs 0, again"][1:3] == (0, 0)
    distances = [float(row[2] or 0) for row in rows.values()]
    assert 0 < distances[1] < distances[4] < distances[5]
    assert {plot.name for plot in outcome.plots} == {
        "maxpool-fig6-distance",
        "maxpool-fig6-accuracy",
    }
