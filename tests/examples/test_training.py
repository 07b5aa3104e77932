import torch
from torch import Tensor, nn

from numgeom.examples.training import EpochReport, train


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def line() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    inputs = torch.randn(50, 3)
    return nn.Linear(3, 1), (inputs, inputs.sum(dim=1, keepdim=True))


def run(**changes) -> tuple[nn.Module, tuple[EpochReport, ...]]:
    model, samples = line()
    arguments = {"epochs": 5, "batch_size": 16, "learning_rate": 0.05, "seed": 0, **changes}
    return model, train(model, squared_error, samples, **arguments)


def test_a_linear_model_learns_a_line() -> None:
    _, samples = line()
    model, reports = run(epochs=60)
    assert squared_error(model, samples) < 1e-3 * reports[0].mean_loss


def test_the_mean_loss_counts_every_sample_once() -> None:
    # With no step taken, the mean over the uneven batches 16, 16, 16, 2 is that over all samples.
    model, samples = line()
    expected = squared_error(model, samples).item()
    _, (report,) = run(epochs=1, learning_rate=0.0)
    assert abs(report.mean_loss - expected) <= 1e-5 * expected


def test_the_seed_decides_the_order() -> None:
    weights = [run(seed=seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_progress_is_told_pass_by_pass_and_nothing_is_left_behind() -> None:
    told: list[EpochReport] = []
    state = torch.get_rng_state()
    model, samples = line()
    after_line = torch.get_rng_state()
    reports = train(
        model,
        squared_error,
        samples,
        epochs=2,
        batch_size=16,
        learning_rate=0.05,
        seed=3,
        progress=told.append,
    )
    assert tuple(told) == reports
    assert [(report.epoch, report.epochs) for report in reports] == [(1, 2), (2, 2)]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), after_line)
    torch.set_rng_state(state)
