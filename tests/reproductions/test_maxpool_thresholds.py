from pathlib import Path

import pytest

from numgeom.examples.data import DataError
from reproductions.maxpool.figure import reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.maxpool.sampling import Sample
from reproductions.maxpool.thresholds import PUBLISHED
from reproductions.outcome import Outcome, Settings
from tests.reproductions.image_files import write_mnist


def table4(
    settings: Settings, networks: tuple[tuple[str, str], ...], points: int, batch_size: int
) -> Outcome:
    size = tuple(
        Sample(*key, None if key[0] == "LeNet-5" else 2, points, batches=1, batch_size=batch_size)
        for key in networks
    )
    return reproduce(FIGURES["maxpool-table4"], settings, size=size)


def test_tau1_follows_the_format_and_tau2_is_undefined_where_nothing_differs() -> None:
    networks = (("LeNet-5", "MNIST"), ("ResNet-18", "CIFAR10"))
    outcome = table4(Settings(), networks, 2, 16)
    columns = outcome.tables[0].columns
    found = [dict(zip(columns, row, strict=True)) for row in outcome.tables[0].rows]
    assert [row["format"] for row in found] == ["float16", "float32", "float64"] * 2
    for narrow, single, double in (found[:3], found[3:]):
        assert float(narrow["tau1"] or 0) > float(single["tau1"] or 0) > float(double["tau1"] or 0)
        assert double["tau2"] is None
        assert double["pairs that ReLU'(0) changes"] == 0
        assert double["pairs"] == 2
    assert found[1]["published tau1"] == 1e-6
    assert outcome.facts["tau1_emulated"] is True
    assert any(note.startswith("EMULATION") for note in outcome.notes)


def test_equal_stand_ins_are_measured_once() -> None:
    networks = (("VGG-11", "CIFAR10"), ("VGG-11", "SVHN"))
    outcome = table4(Settings(), networks, 1, 4)
    assert len(outcome.tables[0].rows) == 3
    assert any("VGG-11 on SVHN is left out: the stand-in" in note for note in outcome.notes)
    assert [plot.name for plot in outcome.plots] == ["maxpool-table4-tau1", "maxpool-table4-tau2"]


def test_all_networks_of_the_paper_are_listed() -> None:
    assert len(PUBLISHED) == 8
    for size in (FIGURES["maxpool-table4"].small, FIGURES["maxpool-table4"].paper):
        assert {(of.network, of.data) for of in size} == set(PUBLISHED)
    assert all(len(numbers) == 6 for numbers in PUBLISHED.values())


def test_networks_without_their_data_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    settings = Settings(data=tmp_path)
    networks = (("LeNet-5", "MNIST"), ("VGG-11", "SVHN"))
    outcome = table4(settings, networks, 1, 4)
    assert {row[0] for row in outcome.tables[0].rows} == {"LeNet-5, MNIST"}
    assert any(note.startswith("VGG-11 on SVHN is left out") for note in outcome.notes)
    with pytest.raises(DataError, match="VGG-11 on SVHN is left out"):
        table4(settings, networks[1:], 2, 16)
