"""Programs in files: they come back as they were, and a hostile file does nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from numgeom.errors import FileFormatError, ReplayError
from numgeom.recording import Program, record, record_step
from numgeom.recording.purity import impurity, objection
from numgeom.recording.reals import REAL_NUMBER
from tests.recording.program_files import assert_same, rows_of, with_call, write_new, write_old
from tests.recording.workloads import build

WRITERS: list[Callable[..., None]] = [write_old, write_new]


def _program(name: str = "lenet") -> Program:
    model, step = build(name)
    with record(model) as recording:
        step()
    return recording.program


@pytest.fixture(scope="module")
def small() -> Program:
    torch.manual_seed(0)
    return record_step(nn.Linear(2, 1), lambda m, b: m(b).sum(), torch.ones(3, 2))


@pytest.mark.parametrize("name", ["lenet", "autocast-bf16", "in-place", "lstm", "optimizer-adam"])
def test_a_program_survives_a_file(tmp_path: Path, name: str) -> None:
    """`test_fidelity` asks the same of every workload."""
    program = _program(name)
    for each in (program, program.decompose()):
        each.save(tmp_path / "step.pt")
        loaded = Program.load(tmp_path / "step.pt")
        assert_same(loaded, each)
        assert loaded.switches == each.switches
    program.save(tmp_path / "step.pt")
    replay = Program.load(tmp_path / "step.pt").replay(None)
    for key, gradient in program.recorded.gradients.items():
        assert torch.equal(replay.gradients[key], gradient)


def test_what_runs_in_inference_mode_survives_a_file(tmp_path: Path) -> None:
    """Composite ops reach the recorder there; it keeps the ops that they are made of."""
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    with record(layer) as recording:
        with torch.inference_mode():
            scale = nn.functional.linear(x, layer.weight).reshape(-1) @ torch.ones(6)
        (layer(x).sum() * scale.clone()).backward()
    program = recording.program
    assert all(objection(call.target) is None for call in program)
    program.save(tmp_path / "step.pt")
    assert_same(Program.load(tmp_path / "step.pt"), program)
    assert torch.equal(program.replay(None).gradients["weight"], layer.weight.grad)


def test_a_file_of_version_1_comes_back(tmp_path: Path) -> None:
    program = _program("optimizer-adam")
    write_old(tmp_path / "old.pt", program)
    assert_same(Program.load(tmp_path / "old.pt"), program)


def test_values_beside_a_program_come_back(tmp_path: Path, small: Program) -> None:
    from numgeom.recording.files import load_saved

    state = {"cpu": torch.get_rng_state(), "cuda:0": torch.ones(2)}
    small.save(tmp_path / "a", step=3, state=state, note="ü", scale=0.5, none=None, many=[1, [2]])
    more = load_saved(tmp_path / "a").more
    for name, tensor in state.items():
        assert torch.equal(more["state"][name], tensor)
    assert {key: value for key, value in more.items() if key != "state"} == {
        "step": 3, "note": "ü", "scale": 0.5, "none": None, "many": [1, [2]],
    }  # fmt: skip
    for odd in (object(), float("nan"), {1, 2}):
        with pytest.raises(FileFormatError, match="beside the program"):
            small.save(tmp_path / "b", odd=odd)
    assert not (tmp_path / "b").exists()


# -- files that are damaged or foreign ------------------------------------------------------


def test_damaged_and_foreign_files_are_named(tmp_path: Path, small: Program) -> None:
    path = tmp_path / "step.pt"
    with pytest.raises(FileFormatError, match="no such file"):
        Program.load(path)
    path.write_bytes(b"not a file of ours")
    with pytest.raises(FileFormatError, match="no file of ours"):
        Program.load(path)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(FileFormatError, match="not a file written by"):
        Program.load(path)
    torch.save(nn.Linear(2, 2), path)  # pickled code: must not run
    with pytest.raises(FileFormatError, match="describe data"):
        Program.load(path)
    for write in WRITERS:
        write(path, small)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FileFormatError):
            Program.load(path)
        for change, match in (
            ({"version": 99}, "version 99"),
            ({"version": True}, "damaged|version"),
            ({"structure": "[]"}, "damaged"),
            ({"structure": "no JSON"}, "damaged"),
            ({"structure": 3}, "damaged"),
            (
                {"structure": '[{"op": "get_attr", "target": "x_1", "role": "", "name": ""}]'},
                "miss",
            ),
            ({"environment": "{}"}, "damaged"),
            ({"format": "numgeom.plan"}, "not a file written by"),
        ):
            write(path, small, **change)
            with pytest.raises(FileFormatError, match=match) as caught:
                Program.load(path)
            assert str(path) in str(caught.value)
    write_old(path, small, constants={})
    with pytest.raises(FileFormatError, match="missing"):
        Program.load(path)
    write_old(path, small, constants={"input_0": torch.ones(1).expand(10**12)})
    with pytest.raises(FileFormatError, match="of which 4 are stored"):
        Program.load(path)


SETTINGS = {
    "many threads": {"num_threads": 10**9},
    "no threads": {"num_threads": 0},
    "negative": {"num_threads": -1},
    "text": {"mkldnn": "yes"},
    "nested": {"mkldnn": [[True]]},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_a_replay_would_make_are_checked(
    tmp_path: Path, small: Program, case: str
) -> None:
    environment = {"switches": SETTINGS[case], "default_dtype": "float32", "versions": {}}
    write_new(tmp_path / "a", small, environment=environment)
    with pytest.raises(FileFormatError, match="damaged"):
        Program.load(tmp_path / "a")


def _changed(row: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {**row, key: value}


ROWS: dict[str, tuple[int, str, Any]] = {  # which row (0: a constant, -1: the end), key, value
    "unknown kind": (0, "op", "placeholder"),
    "constant twice": (1, "target", "input_0"),
    "a name with a dot": (0, "target", "a.b"),
    "a name of Python": (0, "target", "__class___0"),
    "unknown role": (0, "role", "root"),
    "name of another type": (0, "name", 7),
    "a very long name": (0, "name", "x" * 100_000),
    "later value": (3, "args", {"tuple": [{"node": 99}]}),
    "itself": (3, "args", {"tuple": [{"node": 3}]}),
    "negative value": (3, "args", {"tuple": [{"node": -1}]}),
    "true as value": (3, "args", {"tuple": [{"node": True}]}),
    "too many arguments": (3, "args", {"tuple": [{"node": 0}] * 40}),
    "arguments as a list": (3, "args", [{"node": 0}]),
    "unknown keyword": (3, "kwargs", {"dict": [["self2", 1]]}),
    "keyword of another type": (3, "kwargs", {"dict": [[1, 1]]}),
    "keyword twice": (3, "kwargs", {"dict": [["self", 1], ["self", 1]]}),
    "keywords as a list": (3, "kwargs", []),
    "unknown tag": (3, "args", {"tuple": [{"eval": "1"}]}),
    "two tags": (3, "args", {"tuple": [{"node": 0, "float": "0x0p0"}]}),
    "no dtype": (3, "args", {"tuple": [{"dtype": "nn"}]}),
    "no device": (3, "args", {"tuple": [{"device": "meta"}]}),
    "sparse layout": (3, "args", {"tuple": [{"layout": "sparse_coo"}]}),
    "no memory format": (3, "args", {"tuple": [{"memory_format": "os"}]}),
    "no number": (3, "args", {"tuple": [{"float": "one"}]}),
    "no origin": (3, "call", ["forward", ""]),
    "unknown phase": (3, "call", ["sideways", "", ""]),
    "module of another type": (3, "call", ["forward", 3, ""]),
    "negative size": (3, "tensors", [[[], [-1], [1], "float32", "cpu"]]),
    "huge size": (3, "tensors", [[[], [2**70], [1], "float32", "cpu"]]),
    "many entries": (3, "tensors", [[[], [2**40, 2**40], [1, 1], "float32", "cpu"]]),
    "result on no device": (3, "tensors", [[[], [1], [1], "float32", "here"]]),
    "no outputs": (-1, "args", {"tuple": [{"node": 0}]}),
    "an output that is no value": (
        -1, "args",
        {"tuple": [{"dict": [
            ["gradients", {"dict": [["weight", 1]]}], ["loss", None], ["updates", {"dict": []}],
        ]}]},
    ),
    "other gradients": (
        -1, "args",
        {"tuple": [{"dict": [
            ["gradients", {"dict": []}], ["loss", {"node": 0}], ["updates", {"dict": []}],
        ]}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_make_no_sense_are_refused(tmp_path: Path, small: Program, case: str) -> None:
    index, key, value = ROWS[case]
    rows = rows_of(small)
    call = next(i for i, row in enumerate(rows) if "call" in row)
    index = call if index == 3 else index
    if case == "constant twice":
        index = [i for i, row in enumerate(rows) if row["op"] == "get_attr"][1]
        value = next(row["target"] for row in rows if row["op"] == "get_attr")
    rows[index] = _changed(rows[index], key, value)
    for write in WRITERS:
        write(tmp_path / "a", small, structure=json.dumps(rows))
        with pytest.raises(FileFormatError, match="damaged"):
            Program.load(tmp_path / "a")


# -- ops --------------------------------------------------------------------------------------

X = {"node": 0}
ONE = {"float": (1.0).hex()}
# Ops that touch files, settings, random states, other processes, the screen, or memory that is not
# their own; each with arguments that it takes.
HARMFUL: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "aten.from_file.default": (["victim", True, 100], {"dtype": {"dtype": "float64"}}),
    "aten.from_file.out": (["victim", True, 100], {"out": X}),
    "aten.save.default": (["x", "victim"], {}),
    "aten.warn.default": (["x", 2], {}),
    "aten.manual_seed.default": ([1], {}),
    "aten.fill_.Scalar": ([X, ONE], {}),
    "aten.zero_.default": ([X], {}),
    "aten.add.out": ([X, X], {"out": X}),
    "aten.resize_.default": ([X, [10]], {}),
    "aten.set_.source_Tensor": ([X, X], {}),
    "aten._foreach_add_.Scalar": ([[X], 1], {}),
    "aten._fused_adam_.default": ([[X]], {}),
    "aten.rand.default": ([[3]], {}),
    "aten.bernoulli.default": ([X], {}),
    "aten.native_dropout.default": ([X, ONE, True], {}),
    "aten.empty.memory_format": ([[3]], {}),
    "aten._cufft_set_plan_cache_max_size.default": ([0, 1], {}),
    "aten._cufft_clear_plan_cache.default": ([0], {}),
    "aten._local_scalar_dense.default": ([X], {}),
    "aten._test_warn_in_autograd.default": ([X], {}),
    "aten.to_sparse.default": ([X], {}),
    "aten.native_batch_norm.default": ([X, None, None, X, X, True, ONE, ONE], {}),
    "aten.batch_norm.default": ([X, None, None, X, X, True, ONE, ONE, False], {}),
    "aten.instance_norm.default": ([X, None, None, X, X, True, ONE, ONE, False], {}),
    "prims.copy_to.default": ([X, X], {}),
    "prims.normal.default": ([[1]], {}),
    "numgeom.real_number.default": ([ONE, ONE, {"float": (-1.0).hex()}], {}),
    "profiler._record_function_enter.default": (["x"], {}),
    "prim.Print.default": ([], {}),
    "c10d.barrier.default": ([], {}),
    "_c10d_functional.all_reduce.default": ([X, "sum", "0"], {}),
    "inductor._alloc_from_pool.default": ([X, 0, {"dtype": "float32"}, [1], [1]], {}),
    "os.system.default": (["touch victim"], {}),
    "torch.load.default": (["victim"], {}),
    "aten.__class__.default": ([X], {}),
    "aten.add.__class__": ([X], {}),
    "aten": ([X], {}),
    "aten.add": ([X], {}),
    "aten.add.Tensor.x": ([X], {}),
    "aten.no_such_op.default": ([X], {}),
    "aten.add.NoSuch": ([X, X], {}),
}


@pytest.mark.parametrize("op", HARMFUL)
def test_a_file_calls_no_harmful_op(
    tmp_path: Path, small: Program, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("precious data " * 600)
    before, state = (tmp_path / "victim").read_bytes(), torch.get_rng_state()
    for write in WRITERS:
        write(tmp_path / "a", small, structure=with_call(small, op, *HARMFUL[op]))
        with pytest.raises(FileFormatError) as caught:
            Program.load(tmp_path / "a")
        assert op in str(caught.value)
        assert str(tmp_path / "a") in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["a", "victim"]
    assert (tmp_path / "victim").read_bytes() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_all_refused_ops_are_named_at_once(tmp_path: Path, small: Program) -> None:
    rows = json.loads(with_call(small, "aten.from_file.default", ["x", True, 1]))
    rows.insert(-1, {**rows[-2], "target": "aten.special_i0.no", "args": {"tuple": []}})
    rows[-2]["target"] = "aten.rand.default"
    rows[-2]["args"] = {"tuple": [[1]]}
    write_new(tmp_path / "a", small, structure=json.dumps(rows))
    with pytest.raises(FileFormatError, match=r"aten\.from_file\.default.*aten\.rand\.default"):
        Program.load(tmp_path / "a")


def test_what_a_file_may_call_is_a_function_of_tensors() -> None:
    """Over all that torch has: what is let in writes to nothing and returns tensors alone."""
    allowed = refused = 0
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        try:
            packet = getattr(getattr(torch.ops, namespace), name)
            op = getattr(packet, schema.overload_name or "default")
        except (AttributeError, RuntimeError):
            continue
        if not isinstance(op, torch._ops.OpOverload):
            continue
        if impurity(op) or objection(op):
            refused += 1
            continue
        allowed += 1
        assert namespace in ("aten", "prims") or op is REAL_NUMBER, op
        assert not any(a.alias_info.is_write for a in schema.arguments if a.alias_info), op
        assert all("Tensor" in str(r.type) for r in schema.returns), op
        assert schema.returns, op
        takes = any("Tensor" in str(a.type) for a in schema.arguments)
        if not takes:  # a factory: texts are names of files
            assert not any(str(a.type) == "str" for a in schema.arguments), op
    assert allowed > 500
    assert refused > 2000


def test_a_tensor_that_is_not_dense_ends_a_replay(tmp_path: Path, small: Program) -> None:
    """Nested and sparse tensors point into memory by numbers that nobody has checked."""
    op = "aten._nested_tensor_from_tensor_list.default"
    write_new(tmp_path / "a", small, structure=with_call(small, op, [[X]]))
    loaded = Program.load(tmp_path / "a")
    with pytest.raises(ReplayError, match="no dense tensor"):
        loaded.replay()
    with pytest.raises(ReplayError, match="no dense tensor"):
        loaded.replay(None)


def test_an_op_of_another_library_is_let_in_by_name(tmp_path: Path) -> None:
    with torch.library._scoped_library("numgeom_files_test", "DEF") as library:
        library.define("scale(Tensor x) -> Tensor")
        library.define("scale_(Tensor(a!) x) -> Tensor(a!)")
        library.impl("scale", lambda x: x * 2, "CompositeExplicitAutograd")
        x = torch.ones(3)
        w = nn.Parameter(torch.ones(3))

        def step() -> None:
            (w * torch.ops.numgeom_files_test.scale(x)).sum().backward()

        with record() as recording:
            step()
        program = recording.program
        program.save(tmp_path / "a")
        name = "numgeom_files_test.scale.default"
        with pytest.raises(FileFormatError, match="allow=") as caught:
            Program.load(tmp_path / "a")
        assert name in str(caught.value)
        for allow in ([name], name):
            assert_same(Program.load(tmp_path / "a", allow=allow), program)
        in_place = "numgeom_files_test.scale_.default"
        write_new(tmp_path / "a", program, structure=with_call(program, in_place, [X]))
        with pytest.raises(FileFormatError, match="writes to its arguments"):
            Program.load(tmp_path / "a", allow=[name, in_place])
