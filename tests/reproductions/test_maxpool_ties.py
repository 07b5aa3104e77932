import torch

from reproductions.maxpool.figure import reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.maxpool.ties import tied_cells
from reproductions.outcome import Settings


def test_marked_cells_share_the_maximum_of_their_window() -> None:
    image = torch.tensor(
        [[1.0, 1.0, 5.0, 2.0], [0.0, 1.0, 2.0, 2.0], [-0.0, 0.0, 3.0, 3.0], [-1.0, -1.0, 3.0, 3.0]]
    )[None]
    expected = torch.tensor(
        [[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.bool
    )
    assert torch.equal(tied_cells(image)[0], expected)


def test_the_counts_agree_with_a_loop_over_windows() -> None:
    outcome = reproduce(FIGURES["maxpool-fig8"], Settings(), size=2)
    images = torch.randint(0, 3, (2, 6, 8)).float()
    tied = tied_cells(images)
    for c in range(2):
        for i in range(0, 6, 2):
            for j in range(0, 8, 2):
                window = images[c, i : i + 2, j : j + 2]
                active = window == window.max()
                expected = active if active.sum() > 1 else torch.zeros_like(active)
                assert torch.equal(tied[c, i : i + 2, j : j + 2], expected)
    for _, windows, above, at_zero in outcome.tables[0].rows:
        assert windows == 144
        assert 0 <= int(above or 0) + int(at_zero or 0) <= 144
    assert sum(int(row[2] or 0) for row in outcome.tables[0].rows) > 0  # flat data have ties
    assert "<svg" in outcome.plots[0].svg
