import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from numgeom.errors import TargetError
from numgeom.examples import load_example
from numgeom.targets import load_target

STEP = """
import torch
from torch import nn

def loss_fn(model, batch):
    return model(batch["inputs"]).square().mean()

def step():
    return nn.Linear(3, 1), loss_fn, {"inputs": torch.randn(4, 3)}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file below an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str = STEP) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write_file


def failure(text: str, **options) -> str:
    """The message of the TargetError: always one line and one sentence."""
    with pytest.raises(TargetError) as caught:
        load_target(text, **options)
    message = str(caught.value)
    assert message.startswith((text, "TARGET", "The seed", "torch."))
    assert "\n" not in message
    assert message.endswith((".", "?", "pip install scikit-learn", ":"))
    return message


# What works.


@pytest.mark.parametrize("relative", [True, False])
def test_a_file(write: Write, relative: bool) -> None:
    path = write("steps/train.py")
    step = load_target(f"{'steps/train.py' if relative else path}:step")
    assert isinstance(step.model, nn.Linear)
    assert step.batch["inputs"].shape == (4, 3)
    assert step.loss_fn(step.model, step.batch).shape == ()
    assert step.name.endswith("train.py:step")


def test_a_file_in_the_home_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(write("home/train.py").parent))
    assert isinstance(load_target("~/train.py:step").model, nn.Linear)


def test_a_module_of_a_package_in_the_current_folder(write: Write) -> None:
    write("a_package/__init__.py", "")
    write("a_package/inner/steps.py")
    try:
        step = load_target("a_package.inner.steps:step")
        assert step.loss_fn(step.model, step.batch).requires_grad
    finally:
        for name in [name for name in sys.modules if name.startswith("a_package")]:
            del sys.modules[name]


def test_an_example() -> None:
    step = load_target("example:digits-mlp", seed=4, dtype=torch.float64)
    expected = load_example("digits-mlp", seed=4, dtype=torch.float64)
    assert step.name == "example:digits-mlp"
    for one, other in zip(step.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(step.batch[0], expected.batch[0])


def test_an_example_can_be_trained_under_a_callback() -> None:
    reports = []
    load_target("example:digits-mlp", epochs=2, progress=reports.append)
    assert [report.epoch for report in reports] == [1, 2]


def test_arguments_with_defaults_are_no_obstacle(write: Write) -> None:
    write("train.py", STEP.replace("def step():", "def step(width=3, *rest, depth=1, **more):"))
    assert load_target("train.py:step").name == "train.py:step"


def test_dtype_converts_the_model_and_the_batch(write: Write) -> None:
    write("train.py")
    step = load_target("train.py:step", dtype=torch.float64)
    assert step.model.weight.dtype == torch.float64
    assert step.batch["inputs"].dtype == torch.float64
    assert load_target("train.py:step").model.weight.dtype == torch.float32


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_random_states_are_untouched_whatever_the_code_does(write: Write, seed) -> None:
    write(
        "train.py",
        "import random, numpy\nimport torch\ntorch.manual_seed(99)\n"
        + STEP.replace("def step():", "def step():\n    random.seed(6); numpy.random.rand()"),
    )
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_target("train.py:step", seed=seed)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    # A run-time type checker draws from Python's generator now and then, so its state may have
    # moved on; but along the same stream.
    found = [random.getrandbits(32) for _ in range(4)]
    same = random.Random(5)
    stream = [same.getrandbits(32) for _ in range(1000)]
    assert any(stream[start : start + 4] == found for start in range(len(stream)))


def test_the_seed_decides_all_three_generators(write: Write) -> None:
    write(
        "train.py",
        """
        import random, numpy, torch
        from torch import nn
        numbers = [random.random(), numpy.random.rand(), torch.rand(()).item()]
        def step():
            return nn.Linear(1, 1), print, torch.tensor(numbers + [torch.rand(()).item()])
        """,
    )
    first, same, other = (load_target("train.py:step", seed=seed).batch for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert torch.all(first != other)


# What does not, and what is said about it.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.py", "lacks a colon"),
        ("", "lacks a colon"),
        ("digits-mlp", "write example:digits-mlp"),
        ("train.py:", "lacks a name before or after"),
        (":step", "lacks a name before or after"),
        ("trian.py:step", "no file trian.py; did you mean train.py?"),
        ("steps/other.py:step", "no file steps/other.py"),
        ("no-such-user/~x.py:step", "no file"),
        ("~nosuchuser/x.py:step", "no file"),
        (f"{'x' * 5000}.py:step", "cannot be looked up"),
        ("steps:step", "has no function 'step'"),
        ("./steps:step", "is a folder"),
        ("notes.txt:step", "notes.txt is not a .py file"),
        ("steps/train:step", "no file steps/train; did you mean steps/train.py?"),
        ("missing.module:step", "no module missing in"),
        ("json.missing:step", "no module json.missing in"),
        ("json.decoder.deeper:step", "no module json.decoder.deeper"),
        ("train.py:stepp", "did you mean step?"),
        ("train.py:banana", "name one that it defines (loss_fn, step)"),
        ("train.py:torch", "torch is of type module, not a function"),
        ("empty.py:step", "define one that returns (model, loss_fn, batch)"),
        ("example:digits-mpl", "did you mean 'digits-mlp'?"),
        ("example:x", "the examples are digits-mlp, "),
    ],
)
def test_a_target_that_names_nothing(write: Write, text: str, said: str) -> None:
    write("train.py")
    write("steps/train.py")
    write("notes.txt", "")
    write("empty.py", "")
    assert said in failure(text)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "returned an object of type NoneType"),
        ("yield 1", "returned an object of type generator"),
        ("return [1, 2, 3]", "returned an object of type list"),
        ("return model, loss", "returned 2 values (Linear, function); return three"),
        ("return model, loss, 1, 2", "returned 4 values"),
        ("return loss, model, 1", "first value returned is of type function"),
        ("return nn.Linear, loss, 1", "first value returned is of type type"),
        ("return model, 1, loss", "second value returned is of type int"),
        ("raise ValueError('too\\nsmall')", "train.py, line 7 (ValueError: too); mend"),
        ("raise KeyError", "train.py, line 7 (KeyError); mend"),
        ("raise SystemExit(3)", "train.py, line 7 (SystemExit: 3); mend"),
        ("model(torch.ones(5))", "train.py, line 7 (RuntimeError: "),
        ("import json; json.loads('{')", "train.py, line 7 (JSONDecodeError: "),
    ],
)
def test_a_function_that_gives_no_step(write: Write, body: str, said: str) -> None:
    write(
        "train.py",
        "import torch\nfrom torch import nn\nmodel = nn.Linear(1, 1)\n"
        f"def loss(model, batch):\n    return model(batch).sum()\ndef step():\n    {body}\n",
    )
    assert said in failure("train.py:step")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("value", "value is of type int, not a function"),
        ("model", "model is of type Linear, not a function"),
        ("needy", "needs arguments (width, rate)"),
        ("Net", "needs arguments (width)"),
    ],
)
def test_what_cannot_be_called_without_arguments(write: Write, text: str, said: str) -> None:
    write(
        "train.py",
        """
        from torch import nn
        value = 1
        model = nn.Linear(1, 1)
        def needy(width, depth=2, *, rate): ...
        class Net:
            def __init__(self, width): ...
        """,
    )
    assert said in failure(f"train.py:{text}")


def test_the_cause_is_kept_for_a_debugger(write: Write) -> None:
    write("train.py", "def step():\n    raise ValueError('mine')\n")
    with pytest.raises(TargetError) as caught:
        load_target("train.py:step")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(write: Write, seed: int) -> None:
    write("train.py")
    assert "from 0 to 4294967295" in failure("train.py:step", seed=seed)


def test_only_examples_are_trained(write: Write) -> None:
    write("train.py")
    assert "inside the function" in failure("train.py:step", epochs=1)


def test_a_format_without_fractions_is_refused(write: Write) -> None:
    write("train.py")
    assert "not a floating-point format" in failure("train.py:step", dtype=torch.int32)


def test_a_batch_that_cannot_be_rebuilt_is_said(write: Write) -> None:
    write(
        "train.py",
        """
        import torch
        from torch import nn
        class Odd(list):
            def __init__(self, one, two): ...
        def step():
            return nn.Linear(1, 1), print, Odd(1, 2)
        """,
    )
    assert load_target("train.py:step").batch == []
    assert "cannot be converted to torch.float64" in failure("train.py:step", dtype=torch.float64)


def test_missing_scikit_learn_is_a_target_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in failure("example:digits-mlp")


def test_an_interrupt_passes_through(write: Write) -> None:
    write("train.py", "def step():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_target("train.py:step")
