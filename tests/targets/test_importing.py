"""Two folders, old and new, hold files of the same names: the usual shape of a comparison."""

import importlib
import sys
from pathlib import Path

import pytest

from numgeom.errors import TargetError
from numgeom.targets import load_target

STEP = """
import dataclasses, torch
from torch import nn
from neighbour import VALUE

@dataclasses.dataclass
class Batch:
    value: "int"

def loss_fn(model, batch):
    from neighbour import VALUE as value_at_import_in_function
    from package.late import VALUE as value_of_late_import
    return torch.tensor([batch.value, value_at_import_in_function, value_of_late_import])

def step():
    return nn.Linear(1, 1), loss_fn, Batch(VALUE)
"""
NAMES = ("neighbour", "package", "step", "numgeom_target_step")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("old", 1), ("new", 2)):
        (tmp_path / name / "package").mkdir(parents=True)
        (tmp_path / name / "step.py").write_text(STEP)
        (tmp_path / name / "neighbour.py").write_text(f"VALUE = {value}\n")
        (tmp_path / name / "package" / "late.py").write_text(f"VALUE = {value}\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]


def values(target: str) -> list[int]:
    step = load_target(target)
    return step.loss_fn(step.model, step.batch).tolist()


def test_each_file_gets_its_own_neighbours(folder: Path) -> None:
    old, new = load_target("old/step.py:step"), load_target("new/step.py:step")
    for _ in range(2):
        assert old.loss_fn(old.model, old.batch).tolist() == [1, 1, 1]
        assert new.loss_fn(new.model, new.batch).tolist() == [2, 2, 2]


@pytest.mark.parametrize("importable", [False, True])
def test_an_import_in_the_loss_function_finds_the_module_that_was_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, importable: bool
) -> None:
    if importable:  # and taken by a namesake, so that the loaded module must be hidden
        monkeypatch.syspath_prepend(folder / "new")
        monkeypatch.syspath_prepend(folder / "old")
        load_target("new/step.py:step")
        assert sys.modules["neighbour"].VALUE == 2
    (folder / "old" / "neighbour.py").write_text("VALUE = []\n")
    (folder / "old" / "step.py").write_text(
        "from torch import nn\nimport neighbour\n"
        "def loss_fn(model, batch):\n    from neighbour import VALUE\n    return VALUE\n"
        "def step():\n    neighbour.VALUE.append(1)\n    return nn.Linear(1, 1), loss_fn, None\n"
    )
    step = load_target("old/step.py:step")
    assert step.loss_fn(step.model, step.batch) == [1]


def test_nothing_is_left_in_path_or_modules_or_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path, modules = list(sys.path), set(sys.modules)
    files = set((folder / "old").glob("*"))
    assert values("old/step.py:step") == [1, 1, 1]
    assert sys.path == path
    assert set(sys.modules) == modules
    assert {item.name for item in set((folder / "old").glob("*")) - files} <= {"__pycache__"}
    assert not list(folder.glob("old/__pycache__/step*"))


def test_nothing_is_left_after_a_failure(folder: Path) -> None:
    (folder / "old" / "step.py").write_text("import neighbour\nraise ValueError\n")
    path, modules = list(sys.path), set(sys.modules)
    with pytest.raises(TargetError, match=r"step.py, line 2 \(ValueError\)"):
        load_target("old/step.py:step")
    assert sys.path == path
    assert set(sys.modules) == modules


def test_a_neighbour_imported_before_from_elsewhere_is_set_aside_and_comes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder / "old")
    import neighbour

    assert neighbour.VALUE == 1
    assert values("new/step.py:step") == [2, 2, 2]
    assert sys.modules["neighbour"] is neighbour
    assert values("old/step.py:step") == [1, 1, 1]
    assert sys.modules["neighbour"] is neighbour  # an importable folder keeps ordinary modules


def test_two_importable_folders_are_told_apart_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder / "old")
    monkeypatch.syspath_prepend(folder / "new")
    assert values("old/step.py:step") == [1, 1, 1]
    assert values("new/step.py:step") == [2, 2, 2]
    assert values("old/step.py:step") == [1, 1, 1]
    assert "numgeom_target_step" not in sys.modules


def test_a_module_follows_the_current_folder(folder: Path, monkeypatch) -> None:
    for name, value in (("old", 1), ("new", 2)):
        monkeypatch.chdir(folder / name)
        assert values("step:step") == [value] * 3
        assert str(folder / name) not in sys.path
    assert "step" in sys.modules  # imported by its name, as anyone would


def test_loaded_libraries_are_never_set_aside(folder: Path) -> None:
    names = ("json", "numgeom", "pytest", "torch")
    for name in names:
        (folder / "old" / f"{name}.py").write_text("")
    (folder / "old" / "neighbour.py").write_text(
        f"import {', '.join(names)}\nVALUE = sum(len(vars(x)) for x in ({', '.join(names)}))\n"
    )
    before = {name: importlib.import_module(name) for name in names}
    size = sum(len(vars(module)) for module in before.values())
    assert values("old/step.py:step") == [size, size, 1]
    assert {name: sys.modules[name] for name in names} == before


def test_a_changed_file_is_read_afresh(folder: Path) -> None:
    assert values("old/step.py:step") == [1, 1, 1]
    text = STEP.replace("Batch(VALUE)", "Batch(70000)")
    (folder / "old" / "step.py").write_text(text)
    assert values("old/step.py:step")[0] == 70000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = = 2\n", r"step.py, line 2 \(SyntaxError: "),
        ("def f():\n  x = 1\n    y = 2\n", r"step.py, line 3 \(IndentationError: "),
        ("x = 1\n\nx / 0\n", r"step.py, line 3 \(ZeroDivisionError: division by zero\); mend"),
        ("import os\nimport absent\n", r"line 2 \(ModuleNotFoundError.*; install absent"),
        ("import broken\n", r"broken.py, line 2 \(NameError"),
        ("import misspelt\n", r"misspelt.py, line 1 \(SyntaxError"),
        ("from neighbour import other\n", r"line 1 \(ImportError: cannot import name 'other'"),
        ("from .neighbour import VALUE\n", r"write package.module:function for a file"),
        ("import sys\nsys.exit('usage')\n", r"line 2 \(SystemExit: usage\); put what only"),
        ("import torch\ntorch.ones(2) @ torch.ones(3)\n", r"step.py, line 2 \(RuntimeError"),
        ("import json\njson.loads('{')\n", r"step.py, line 2 \(JSONDecodeError"),
        ("x = '\0'\n", r"importing .*step.*null bytes"),
    ],
)
@pytest.mark.parametrize("form", ["old/step.py:step", "step:step"])
def test_the_line_that_fails_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, form: str, text: str, said: str
) -> None:
    if form == "step:step" and "from ." in text:
        said = "relative import"
    (folder / "old" / "broken.py").write_text("\nnot_defined\n")
    (folder / "old" / "misspelt.py").write_text("1 = x\n")
    (folder / "old" / "step.py").write_text(text)
    if form == "step:step":
        monkeypatch.chdir(folder / "old")
    with pytest.raises(TargetError, match=said) as caught:
        load_target(form)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_said(folder: Path) -> None:
    (folder / "old" / "step.py").write_bytes(b"x = '\xff\xfe'\n")
    with pytest.raises(TargetError, match=r"step.py"):
        load_target("old/step.py:step")


def test_a_module_missing_inside_the_persons_code_is_not_taken_for_the_target(
    folder: Path,
) -> None:
    (folder / "caller.py").write_text("\nimport caller_needs_this\n")
    with pytest.raises(TargetError, match=r"importing caller failed at .*caller.py, line 2"):
        load_target("caller:step")
