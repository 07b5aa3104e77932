"""Does `select` work on code as it is, in every way in which torch runs a backward pass?"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from numgeom.nonsmooth import (
    AllOnes,
    Hybrid,
    Last,
    Minimal,
    Native,
    Random,
    Selection,
    SelectionError,
    Uniform,
    select,
)
from tests.nonsmooth.kinked import KINKED, Kinked

CHOSEN = Selection(
    relu=0.3,
    abs=0.7,
    clamp=0.2,
    maxpool=Hybrid(beta=3.0),
    max=Hybrid(beta=0.3),
    amax=Hybrid(beta=0.4),
    norm=0.5,
)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def gradients(model: nn.Module, run: Callable[[], Tensor], selection: Selection) -> list[Tensor]:
    model.zero_grad()
    with select(selection):
        run().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", KINKED)
def test_the_loss_keeps_its_bits(name: str) -> None:
    function, shape = KINKED[name]
    model = Kinked(function, shape)
    with select(CHOSEN) as applied:
        chosen = model()
    assert torch.equal(chosen, model())
    assert sum(applied.units.values()) > 0


@pytest.mark.parametrize("name", KINKED)
def test_off_its_kinks_every_op_keeps_the_bits_of_its_gradient(name: str) -> None:
    function, shape = KINKED[name]
    model = Kinked(function, shape)
    with torch.no_grad():
        for i, p in enumerate((model.a, model.b)):  # all entries and products differ
            p.copy_((torch.arange(1.0, p.numel() + 1) + 0.1 + 0.7 * i).reshape(shape) / 7.3)
            p[0] *= -1
    native = gradients(model, model, Selection())
    assert same(native, gradients(model, model, CHOSEN))


class TestWaysToRunABackwardPass:
    """Each gives what a plain backward pass gives under the selection."""

    selection = Selection(relu=0.5, maxpool=Hybrid(beta=5.0))

    @pytest.fixture
    def plain(self, lenet: Callable, digits: Callable) -> tuple:
        model, (x, y) = lenet(), digits(size=16)
        chosen = gradients(model, lambda: F.cross_entropy(model(x), y), self.selection)
        native = gradients(model, lambda: F.cross_entropy(model(x), y), Selection())
        assert not same(chosen, native)
        return model, x, y, chosen

    def test_it_follows_the_forward_pass_out_of_the_block(self, plain: tuple) -> None:
        model, x, y, chosen = plain
        with select(self.selection):
            loss = F.cross_entropy(model(x), y)
        assert same(list(torch.autograd.grad(loss, list(model.parameters()))), chosen)

    def test_a_forward_pass_outside_of_the_block_is_left_alone(self, plain: tuple) -> None:
        model, x, y, chosen = plain
        loss = F.cross_entropy(model(x), y)
        with select(self.selection):
            found = torch.autograd.grad(loss, list(model.parameters()))
        assert not same(list(found), chosen)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpoint(self, plain: tuple, reentrant: bool) -> None:
        model, x, y, chosen = plain
        x = x.clone().requires_grad_()

        def run() -> Tensor:
            features = checkpoint(model.features, x, use_reentrant=reentrant)
            return F.cross_entropy(model.classifier(features), y)

        assert same(gradients(model, run, self.selection), chosen)

    def test_saved_tensors_elsewhere(self, plain: tuple) -> None:
        model, x, y, chosen = plain

        def run() -> Tensor:
            with torch.autograd.graph.save_on_cpu():
                return F.cross_entropy(model(x), y)

        assert same(gradients(model, run, self.selection), chosen)

    def test_twice(self, plain: tuple) -> None:
        model, x, y, chosen = plain
        model.zero_grad()
        with select(self.selection):
            loss = F.cross_entropy(model(x), y)
            loss.backward(retain_graph=True)
            loss.backward()
        twice = [p.grad for p in model.parameters()]
        assert same(twice, [2 * g for g in chosen])

    def test_channels_last_and_in_place_relu(self, plain: tuple) -> None:
        model, x, y, chosen = plain
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True
        found = gradients(model, lambda: F.cross_entropy(model(x), y), self.selection)
        assert same(found, chosen)
        x = x.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
        found = gradients(model, lambda: F.cross_entropy(model(x), y), self.selection)
        for a, b in zip(found, chosen, strict=True):
            torch.testing.assert_close(a, b)

    def test_autocast(self, plain: tuple) -> None:
        model, x, y, _ = plain

        def run() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return F.cross_entropy(model(x), y)

        native = gradients(model, run, Selection())
        assert not same(native, gradients(model, run, self.selection))

    def test_a_whole_training_loop(self, plain: tuple) -> None:
        model, x, y, _ = plain
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        with select(self.selection):
            for _ in range(10):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_compiled(self, plain: tuple) -> None:
        model, x, y, chosen = plain
        compiled = torch.compile(model, backend="aot_eager")
        found = gradients(model, lambda: F.cross_entropy(compiled(x), y), self.selection)
        assert same(found, chosen)


def test_a_vector_jacobian_product_of_the_kinked_op_itself() -> None:
    x = torch.zeros(3, requires_grad=True)
    with select(relu=0.5):
        y = torch.relu(x)
        y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0.5, 1.0, 1.5]


def test_double_backward() -> None:
    """y = max(x0, x1)^3 at a tie: the derivative of v.(w 3 y^2) is 6 y (v.w) w."""
    for beta, w in ((1.0, [0.5, 0.5]), (3.0, [-0.5, 1.5])):
        x = torch.tensor([[[2.0, 2.0]]], requires_grad=True)
        with select(maxpool=Hybrid(beta=beta)):
            y = F.max_pool1d(x, 2) ** 3
            (first,) = torch.autograd.grad(y, x, create_graph=True)
            assert first.flatten().tolist() == [12 * entry for entry in w]
            (second,) = torch.autograd.grad((first * torch.tensor([1.0, 10.0])).sum(), x)
        product = w[0] + 10 * w[1]
        assert second.flatten().tolist() == [12 * product * entry for entry in w]


def test_three_entry_windows_with_one_that_is_not_active_double_backward() -> None:
    x = torch.tensor([[[2.0, 1.0, 2.0]]], requires_grad=True)
    with select(maxpool=Minimal()):
        (first,) = torch.autograd.grad(F.max_pool1d(x, 3) ** 2, x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    assert first.flatten().tolist() == [2.0, 0.0, 2.0]
    assert second.flatten().tolist() == [1.0, 0.0, 1.0]


def test_random_choices_repeat_with_their_seed() -> None:
    def run(seed: int) -> Tensor:
        x = torch.zeros(1, 1, 64, requires_grad=True)
        with select(maxpool=Random(), seed=seed):
            F.max_pool1d(x, 4).sum().backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_nested_blocks_take_the_inner_selection() -> None:
    x = torch.zeros(1, requires_grad=True)
    with select(relu=0.25):
        before = torch.relu(x)
        with select(relu=0.5):
            inner = torch.relu(x)
        with select():
            other = torch.relu(x)
        after = torch.relu(x)
    found = [torch.autograd.grad(y, x)[0].item() for y in (before, inner, other, after)]
    assert found == [0.25, 0.5, 0.0, 0.25]


def test_remark_3_of_the_paper() -> None:
    """2 ReLU(x) - ReLU(-x)/3 at 0: Clarke's set is [1/3, 2]; backprop may leave it."""
    x = torch.zeros((), requires_grad=True)
    for s, expected in ((0.0, 0.0), (1.0, 2 + 1 / 3), (0.5, 1 + 1 / 6)):
        with select(relu=s):
            (found,) = torch.autograd.grad(2 * torch.relu(x) - torch.relu(-x) / 3, x)
        assert found.item() == pytest.approx(expected)


def test_nothing_of_torch_stays_changed() -> None:
    x = torch.zeros(2, requires_grad=True)
    with pytest.raises(ZeroDivisionError), select(relu=1.0):
        _ = 1 / 0
    (found,) = torch.autograd.grad(torch.relu(x).sum(), x)
    assert found.tolist() == [0.0, 0.0]


def test_the_graph_frees_what_the_selection_kept() -> None:
    import gc
    import weakref

    kept: list[weakref.ref] = []

    def weights(active: Tensor) -> Tensor:
        kept.append(weakref.ref(active))
        return active / active.sum(1, keepdim=True)

    from numgeom.nonsmooth import Custom

    x = torch.zeros(1, 1, 8, requires_grad=True)
    with select(maxpool=Custom(weights)):
        y = F.max_pool1d(x, 2)
        gc.collect()
        assert kept[0]() is not None
        del y
        gc.collect()
        assert kept[0]() is None


def test_counts() -> None:
    x = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
    with select(relu=0.5, abs=0.5) as applied:
        torch.relu(x)
        torch.relu(x + 1)
        with torch.no_grad():
            torch.relu(x)
    assert applied.calls == {"relu": 1}
    assert applied.units == {"relu": 2}


def test_what_is_a_clarke_derivative() -> None:
    assert Selection().is_native
    assert Selection(maxpool=Native()).is_native
    assert Selection(relu=1.0, abs=-1.0, clamp=0.0, maxpool=Uniform(), norm=1.0).is_clarke
    for selection in (
        Selection(relu=1.5),
        Selection(abs=-2.0),
        Selection(clamp=-0.1),
        Selection(maxpool=Hybrid(beta=2.0)),
        Selection(amax=AllOnes()),
        Selection(norm=AllOnes()),
        Selection(norm=1.01),
    ):
        assert not selection.is_clarke
    assert str(Selection(relu=0.5, maxpool=Last())) == "relu=0.5, maxpool=Last()"
    assert str(Selection()) == "native"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"relu": Minimal()}, "takes a number"),
        ({"maxpool": 0.5}, "takes a choice"),
        ({"clamp": math.inf}, "finite"),
        ({"abs": True}, "finite"),
        ({"norm": Minimal()}, "takes a number"),
    ],
)
def test_nonsense_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Selection(**wrong)


def test_a_selection_and_keywords_together_are_refused() -> None:
    with pytest.raises(SelectionError, match="not both"), select(Selection(), relu=1.0):
        pass
