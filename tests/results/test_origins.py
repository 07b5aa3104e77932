"""Is what a result was made from known while the result lives, and part of nothing else?"""

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import numgeom
from numgeom.certificate import Certificate, sources
from numgeom.precision.errors import PrecisionError
from numgeom.results import origins
from numgeom.results.codec import encode


def step() -> tuple[nn.Module, object, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return model, lambda m, b: m(b).square().sum(), torch.randn(5, 4)


def test_sources_of_a_certificate(tmp_path: Path) -> None:
    program = numgeom.record_step(*step())
    made = numgeom.certify(program, method="reference")
    assert made.found_sources == ()
    unasked = copy.deepcopy(made)
    stamped = made.stamped(target="mine")
    found = made.sources()
    assert found == sources(program)
    assert stamped.sources() == made.found_sources == found
    made.save(tmp_path / "c.json")
    assert Certificate.load(tmp_path / "c.json").sources() == found
    # A copy holds data alone, as a file does.
    assert unasked.sources() == ()
    assert pickle.loads(pickle.dumps(unasked)) == unasked


def test_a_program_is_forgotten_with_its_certificate() -> None:
    made = numgeom.certify(*step(), method="reference")
    program = weakref.ref(origins.origin_of(made).program)
    assert program() is not None
    del made
    gc.collect()
    assert program() is None


def test_another_result_at_the_same_address_has_no_origin() -> None:
    for _ in range(100):
        made = numgeom.precision.Estimate.__new__(numgeom.precision.Estimate)
        assert origins.origin_of(made) is None
        origins.remember(made, "origin")
        assert origins.origin_of(made) == "origin"
        del made


def test_a_plan_holds_no_model() -> None:
    model, loss_fn, batch = step()
    plan = numgeom.plan_precision(model, loss_fn, batch, tolerance=0.1)
    told = plan.verify(batch)
    assert plan.verify(model, loss_fn, batch) == told
    assert plan.verify(batch, model=model, loss_fn=loss_fn) == told
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert again.verify(model, loss_fn, batch) == told
    with pytest.raises(PrecisionError, match=r"plan\.verify\(model, loss_fn, batch\)"):
        again.verify(batch)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(PrecisionError, match="the model is gone"):
        plan.verify(batch)
    with pytest.raises(PrecisionError, match="model, loss_fn, batch"):
        plan.verify(batch, loss_fn)


def test_results_of_all_kinds_are_copied_and_pickled() -> None:
    program = numgeom.record_step(*step())
    model, loss_fn, batch = step()
    with numgeom.track(model) as tracking:
        loss_fn(model, batch).backward()
    made = (
        numgeom.certify(program),
        numgeom.diagnose(program),
        numgeom.estimate(program),
        tracking.result,
    )
    for result in made:
        for again in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
            assert encode(again) == encode(result)
