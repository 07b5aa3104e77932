"""Which training steps are built in, and how is one of them made from a seed?"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.errors import NumgeomError
from numgeom.examples.data import Dataset, load_digits, load_text
from numgeom.examples.models import GPT, MLP, LeNet5, VisionTransformer
from numgeom.examples.training import EpochReport, LossFunction, train

SEED_LIMIT = 2**32  # NumPy's limit, the smallest of the generators that a step may use
_TEXT_CONTEXT = 64


class ExampleError(NumgeomError):
    """A built-in example cannot be made as asked."""


class Step(NamedTuple):
    """One training step: the loss is `loss_fn(model, batch)`, a scalar tensor."""

    model: nn.Module
    loss_fn: LossFunction
    batch: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Example:
    """The recipe of a built-in training step.

    Attributes:
        name: What stands after `example:` on the command line.
        summary: One line that says what it is.
        load_data: Reads the data.
        build_model: Makes a new model for the data, drawing from torch's global generator.
        loss_fn: Mean loss of a batch.
        batch_size: Samples in a batch unless the caller says otherwise.
        learning_rate: Step size of the training.
    """

    name: str
    summary: str
    load_data: Callable[[], Dataset]
    build_model: Callable[[Dataset], nn.Module]
    loss_fn: LossFunction
    batch_size: int
    learning_rate: float


def load_example(
    name: str,
    *,
    seed: int = 0,
    epochs: int = 0,
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    progress: Callable[[EpochReport], None] | None = None,
) -> Step:
    """Make a built-in training step, at initialisation or after some training.

    Data, initialisation and training are in float32 on the CPU whatever `dtype` is; the result is
    converted at the end. So two formats start from the same point: the wider one holds the same
    numbers, the narrower one their roundings. Random states, default device, default dtype,
    autocast and gradient mode neither matter nor change.

    Args:
        name: A key of `EXAMPLES`.
        seed: Decides the initial values, the order of training, and the batch.
        epochs: Passes over the training part of the data before the step is taken.
        dtype: Floating format of the parameters and of the inputs.
        batch_size: Samples in the batch, drawn from the training part; also used in training.
        progress: Called after each pass of the training.

    Returns:
        The model in training mode with no gradients, the loss, and the batch.

    Raises:
        ExampleError: If an argument names nothing that can be made.
        DataError: If scikit-learn cannot be imported.

    Example:
        >>> model, loss_fn, batch = load_example("digits-mlp", seed=1)
        >>> loss_fn(model, batch).shape
        torch.Size([])
    """
    example = EXAMPLES.get(name)
    if example is None:
        near = difflib.get_close_matches(name, EXAMPLES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ExampleError(
            f"There is no example {name!r}{hint}; the examples are {', '.join(EXAMPLES)}."
        )
    if not 0 <= seed < SEED_LIMIT:
        raise ExampleError(f"The seed is {seed}; give a whole number from 0 to {SEED_LIMIT - 1}.")
    if epochs < 0:
        raise ExampleError(f"The number of epochs is {epochs}; give 0 or more.")
    if not dtype.is_floating_point:
        raise ExampleError(f"{dtype} is not a floating-point format; give one like torch.float64.")
    with _neutral_torch(seed):
        data = example.load_data()
        size = example.batch_size if batch_size is None else batch_size
        if not 1 <= size <= len(data.train[0]):
            raise ExampleError(
                f"The batch size is {size}, but example {name!r} has {len(data.train[0])} training "
                f"samples; give a number from 1 to {len(data.train[0])}."
            )
        model = example.build_model(data)
        train(
            model,
            example.loss_fn,
            data.train,
            epochs=epochs,
            batch_size=size,
            learning_rate=example.learning_rate,
            seed=seed,
            progress=progress,
        )
        inputs, targets = data.train
        chosen = torch.randperm(len(inputs), generator=torch.Generator("cpu").manual_seed(seed))
        inputs, targets = inputs[chosen[:size]], targets[chosen[:size]]
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return Step(model.to(dtype), example.loss_fn, (inputs, targets))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of logits [..., K] against targets [...]."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


@contextmanager
def _neutral_torch(seed: int) -> Iterator[None]:
    """Seed the CPU generator and set torch's defaults; put everything back afterwards."""
    default_dtype = torch.get_default_dtype()
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
    ):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default_dtype)


def _digits_mlp(data: Dataset) -> nn.Module:
    return MLP((64, 32, data.classes), "relu")


def _digits_mlp_deep(data: Dataset) -> nn.Module:
    return MLP((64, *[64] * 8, data.classes), "tanh")


def _digits_lenet(data: Dataset) -> nn.Module:
    return LeNet5(data.classes)


def _digits_vit(data: Dataset) -> nn.Module:
    return VisionTransformer(8, 2, data.classes, width=32, depth=2, heads=4)


def _text_gpt(data: Dataset) -> nn.Module:
    return GPT(data.classes, _TEXT_CONTEXT, width=64, depth=2, heads=4, tied=True)


_ALL_EXAMPLES = (
    Example(
        name="digits-mlp",
        summary="MLP 64-32-10 with ReLU on the 8x8 handwritten digits",
        load_data=load_digits,
        build_model=_digits_mlp,
        loss_fn=cross_entropy,
        batch_size=128,
        learning_rate=1e-2,
    ),
    Example(
        name="digits-mlp-deep",
        summary="MLP 64, eight times 64, 10 with tanh on the 8x8 handwritten digits",
        load_data=load_digits,
        build_model=_digits_mlp_deep,
        loss_fn=cross_entropy,
        batch_size=128,
        learning_rate=1e-3,
    ),
    Example(
        name="digits-lenet",
        summary="LeNet-5 with ReLU and max-pooling on the digits enlarged to 28x28",
        load_data=partial(load_digits, scale=3, padding=2),
        build_model=_digits_lenet,
        loss_fn=cross_entropy,
        batch_size=64,
        learning_rate=1e-3,
    ),
    Example(
        name="digits-vit",
        summary="vision transformer, 2 blocks of width 32, on 2x2 patches of the digits",
        load_data=load_digits,
        build_model=_digits_vit,
        loss_fn=cross_entropy,
        batch_size=64,
        learning_rate=3e-3,
    ),
    Example(
        name="text-gpt",
        summary="character-level GPT, 2 blocks of width 64, tied head, on English prose",
        load_data=partial(load_text, context=_TEXT_CONTEXT, stride=32),
        build_model=_text_gpt,
        loss_fn=cross_entropy,
        batch_size=16,
        learning_rate=3e-3,
    ),
)

EXAMPLES: Mapping[str, Example] = MappingProxyType({each.name: each for each in _ALL_EXAMPLES})
