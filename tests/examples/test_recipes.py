import numpy as np
import pytest
import torch

from numgeom.examples import EXAMPLES, EpochReport, ExampleError, load_example

NAMES = ("digits-mlp", "digits-mlp-deep", "digits-lenet", "digits-vit", "text-gpt")


def test_the_promised_examples_exist() -> None:
    assert tuple(EXAMPLES) == NAMES
    for name, example in EXAMPLES.items():
        assert example.name == name
        assert example.summary


@pytest.mark.parametrize("name", NAMES)
def test_a_step_runs_and_reaches_every_parameter(name: str) -> None:
    model, loss_fn, batch = load_example(name, batch_size=8)
    loss = loss_fn(model, batch)
    assert loss.shape == ()
    loss.backward()
    assert model.training
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert torch.any(parameter.grad != 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_at_initialisation_is_near_that_of_a_guess(name: str) -> None:
    model, loss_fn, batch = load_example(name)
    guess = torch.tensor(float(EXAMPLES[name].load_data().classes)).log()
    assert 0.9 * guess < loss_fn(model, batch) < 1.7 * guess


@pytest.mark.parametrize("name", NAMES)
def test_training_reduces_the_loss_and_gives_the_same_parameters_again(name: str) -> None:
    reports: list[EpochReport] = []
    before = load_example(name, seed=3)
    after = load_example(name, seed=3, epochs=2, progress=reports.append)
    again = load_example(name, seed=3, epochs=2)
    assert torch.equal(before.batch[0], after.batch[0])
    assert after.loss_fn(after.model, after.batch) < before.loss_fn(before.model, before.batch)
    assert reports[1].mean_loss < reports[0].mean_loss
    assert [report.epoch for report in reports] == [1, 2]
    for one, other in zip(after.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None


def test_the_seed_decides_the_parameters_and_the_batch() -> None:
    first, same, other = (load_example("digits-mlp", seed=seed) for seed in (1, 1, 2))
    weights = [next(step.model.parameters()) for step in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(first.batch[0], same.batch[0])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(first.batch[0], other.batch[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_every_format_starts_from_the_same_float32_point(name: str, dtype: torch.dtype) -> None:
    reference = load_example(name, batch_size=4)
    model, loss_fn, (inputs, targets) = load_example(name, batch_size=4, dtype=dtype)
    assert torch.isfinite(loss_fn(model, (inputs, targets)))
    assert torch.equal(inputs, reference.batch[0].to(inputs.dtype))
    assert inputs.dtype == (dtype if name != "text-gpt" else torch.int64)
    for one, other in zip(model.parameters(), reference.model.parameters(), strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other.to(dtype))


def test_the_output_layer_of_the_gpt_stays_tied_in_another_format() -> None:
    model = load_example("text-gpt", dtype=torch.float64).model
    assert model.get_parameter("head.weight") is model.get_parameter("embed.weight")


def test_random_states_and_defaults_are_untouched() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_example("digits-vit", seed=9, epochs=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_surrounding_defaults_do_not_leak_in() -> None:
    plain = load_example("digits-mlp", epochs=1)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            odd = load_example("digits-mlp", epochs=1)
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plain.batch[0], odd.batch[0])
    for one, other in zip(plain.model.parameters(), odd.model.parameters(), strict=True):
        assert not other.is_inference()
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digits-mpl"}, "did you mean 'digits-mlp'"),
        ({"name": "qqq"}, "digits-lenet, digits-vit, text-gpt"),
        ({"name": "digits-mlp", "epochs": -1}, "0 or more"),
        ({"name": "digits-mlp", "seed": -1}, "from 0 to 4294967295"),
        ({"name": "digits-mlp", "seed": 2**32}, "from 0 to 4294967295"),
        ({"name": "digits-mlp", "dtype": torch.int64}, "not a floating-point format"),
        ({"name": "digits-mlp", "batch_size": 0}, "from 1 to 1437"),
        ({"name": "digits-mlp", "batch_size": 1438}, "from 1 to 1437"),
    ],
)
def test_what_cannot_be_made_is_said(arguments, message: str) -> None:
    with pytest.raises(ExampleError, match=message):
        load_example(**arguments)
