import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.figures import write_figures


def test_figures_are_written_with_their_circumstances(tmp_path: Path) -> None:
    path = write_figures("example", {"plain_seconds": 0.5}, threads=[1, 2], folder=tmp_path / "new")
    document = json.loads(path.read_text())
    assert path.name == "example.json"
    assert document["figures"] == {"plain_seconds": 0.5}
    assert document["threads"] == [1, 2]
    assert document["versions"]["torch"] == torch.__version__
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["memory_gib"] > 0
    assert set(document["commit"]) == {"hash", "dirty"}


def test_a_figure_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_figures("example", {"plain_seconds": math.nan}, threads=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())
