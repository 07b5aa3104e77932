"""Are shares of parameter space estimated as defined, and does divided work give the same?"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from numgeom.errors import FileFormatError
from numgeom.nonsmooth import (
    Sampling,
    Volume,
    VolumeError,
    clopper_pearson,
    estimate_volume,
    hoeffding_sample_size,
    mcdiarmid_margin,
    zones,
)
from numgeom.nonsmooth.sharing import Share
from tests.nonsmooth import points
from tests.nonsmooth.points import PAIR, sampling
from tests.nonsmooth.steps import cross_entropy

ROOT = Path(__file__).resolve().parent.parent.parent
VARIATIONS = torch.tensor([[0.0, 1e-8], [1e-3, 1e-8], [0.0, 0.0], [float("nan"), 0.0]]).double()


def test_equations_18_and_19_by_hand() -> None:
    found = Volume(VARIATIONS)
    assert found.share_of_points(1e-6) == 2 / 4  # a NaN is a difference
    assert found.share_of_pairs(1e-6) == 2 / 8
    assert found.share_of_points(1e-9) == 3 / 4
    assert found.share_of_pairs(1e-9) == 4 / 8
    assert found.curve([1e-9, 1e-6]) == ((1e-9, 3 / 4, 1 / 2), (1e-6, 1 / 2, 1 / 4))


def test_the_curve_never_rises() -> None:
    rows = Volume(VARIATIONS).curve()
    for earlier, later in zip(rows, rows[1:], strict=False):
        assert earlier[0] < later[0]
        assert earlier[1] >= later[1]
        assert earlier[2] >= later[2]


def test_the_margins_are_those_of_independent_points_and_of_pairs() -> None:
    found = Volume(torch.zeros(1000, 391, dtype=torch.float64))
    assert found.interval(0.0) == clopper_pearson(0, 1000)
    assert found.margin() == mcdiarmid_margin(1000, 391)
    assert round(found.margin() or 0, 6) == 0.081004
    assert Volume(torch.zeros(1, 391)).margin() is None  # it would say nothing
    assert "too few for a margin" in str(Volume(VARIATIONS))


def test_shares_by_zone_take_the_worst_mini_batch() -> None:
    rows = (("regular", "bifurcation"), ("regular", "regular"), ("compensation", "regular"))
    found = Volume(torch.zeros(3, 2), rows)  # type: ignore[arg-type]  # strings are zones
    assert found.zone_shares() == {
        "regular": 1 / 3,
        "compensation": 1 / 3,
        "bifurcation": 1 / 3,
    }
    assert found.zone_interval("regular") == clopper_pearson(1, 3)
    assert Volume(torch.zeros(3, 2)).zone_shares() is None


def test_every_pair_is_what_zones_says() -> None:
    work = sampling()
    found = estimate_volume(work, points=12)
    assert found.replayed is not None
    assert found.variations.shape == found.replayed.shape == (12, 3)
    seen = set()
    for m, row in enumerate(found.zones or ()):
        for r, zone in enumerate(row):
            z = zones(points.make_model(m), points.total, work.batches[r], selections=PAIR)
            assert (z.zone, z.variation) == (zone, float(found.variations[m, r]))
            assert z.replayed_variation == float(found.replayed[m, r])
            seen.add(zone)
    assert seen == {"regular", "compensation", "bifurcation"}
    plain = estimate_volume(sampling(zones=False), points=12)
    assert torch.equal(plain.variations, found.variations)
    assert plain.zones is None
    assert plain.replayed is None


def test_the_sample_size_follows_from_the_margin() -> None:
    found = estimate_volume(sampling(zones=False), margin=0.3)
    assert found.n_points == hoeffding_sample_size(0.3)


def test_nonsense_is_refused() -> None:
    for wrong in ({}, {"points": 3, "margin": 0.1}, {"points": 0}):
        with pytest.raises(VolumeError):
            estimate_volume(sampling(), **wrong)
    with pytest.raises(VolumeError, match="mini-batch"):
        Sampling(make_model=points.make_model, loss_fn=points.total, batches=())


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "work.jsonl"
    whole = estimate_volume(sampling(), points=6)

    class Stop(Exception):
        pass

    def stop(what: str, done: int, count: int) -> None:
        del what
        assert count == 6
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        estimate_volume(sampling(), points=6, state=state, progress=stop)
    state.write_bytes(state.read_bytes()[:-7])  # killed while it wrote the fourth point
    measured = []
    found = estimate_volume(
        sampling(), points=6, state=state, progress=lambda what, done, count: measured.append(done)
    )
    assert measured == [4, 5, 6]
    assert estimate_volume(sampling(), points=2, state=state).n_points == 2  # has more than enough
    assert torch.equal(found.variations, whole.variations)
    assert found.zones == whole.zones


def test_the_state_of_other_work_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "work.jsonl"
    estimate_volume(sampling(), points=1, state=state)
    with pytest.raises(FileFormatError, match="another task .different: zones"):
        estimate_volume(sampling(zones=False), points=1, state=state)


def test_several_processes_give_the_same() -> None:
    whole = estimate_volume(sampling(), points=5)
    found = estimate_volume(sampling(), points=5, workers=2)
    assert torch.equal(found.variations, whole.variations)
    assert found.zones == whole.zones


def test_torchrun_shares_the_points(tmp_path: Path) -> None:
    """Two processes of a real torchrun; one point was measured before, by one process."""
    state = tmp_path / "work.jsonl"
    estimate_volume(sampling(), points=1, state=state)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.nonsmooth.points", str(state), "6"]
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    whole = estimate_volume(sampling(), points=6)
    assert len(found) == 2
    for process in found:
        assert process["variations"] == whole.variations.tolist()
        assert process["zones"] == [list(row) for row in whole.zones or ()]
    assert sorted(process["mine"] for process in found) == [2, 3]
    assert state.with_name("work-1.jsonl").exists()


def test_alone_there_is_nothing_to_share() -> None:
    share = Share.of_torchrun()
    assert (share.rank, share.world) == (0, 1)
    assert share.part([3, 1, 2]) == [3, 1, 2]
    assert Share(1, 3).part(range(7)) == [1, 4]


def test_lenet_on_digits_bifurcates_in_16_bits_and_not_in_64(
    lenet: Callable, digits: Callable
) -> None:
    """The ends of table 2, without a threshold."""

    def found(dtype: torch.dtype) -> Volume:
        work = Sampling(
            make_model=lambda number: lenet(number, dtype),
            loss_fn=cross_entropy,
            batches=[digits(q, 32, dtype) for q in range(2)],
            selections=PAIR,
            zones=True,
        )
        return estimate_volume(work, points=2)

    narrow, wide = found(torch.bfloat16), found(torch.float64)
    assert (narrow.zone_shares() or {})["bifurcation"] == 1.0
    assert wide.zone_shares() == {"regular": 0.0, "compensation": 1.0, "bifurcation": 0.0}
    assert narrow.replayed is not None
    assert not torch.equal(narrow.replayed, narrow.variations)
    assert 0.5 < float((narrow.replayed / narrow.variations).median()) < 2


def test_the_text_has_both_shares_and_their_margins() -> None:
    text = str(estimate_volume(sampling(), points=4))
    assert "4 points, 3 mini-batches" in text
    assert "of points [" in text
    assert "bifurcation:" in text


def test_a_batch_may_be_a_mapping() -> None:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return points.total(model, batch["x"])

    batches = [{"x": b} for b in sampling().batches]
    work = Sampling(make_model=points.make_model, loss_fn=loss, batches=batches, selections=PAIR)
    assert work.task()["batches"] != sampling().task()["batches"]
    other = [{"x": b + 1} for b in sampling().batches]
    changed = Sampling(make_model=points.make_model, loss_fn=loss, batches=other, selections=PAIR)
    assert work.task()["batches"] != changed.task()["batches"]
