"""What is a case of the gallery: a defective program with its healthy twin?

A case builds `(model, loss_fn, batch)` twice: with the defect, and with what cures it. `kinds`
names the findings of which at least one must be there (above "info"), `ops` words of which one must
be in its operation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Step = tuple[nn.Module, Callable[[Any, Any], Tensor], Any]
HALF, BRAIN = torch.float16, torch.bfloat16
FORMATS = (torch.float32, HALF, BRAIN)


@dataclass(frozen=True)
class Case:
    """A defect and its cure."""

    name: str
    kinds: tuple[str, ...]
    ops: tuple[str, ...]
    defective: Callable[[], Step]
    healthy: Callable[[], Step]


class Weights(nn.Module):
    """One parameter."""

    def __init__(self, values: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(values, dtype=dtype).clone())


class Gallery(list[Case]):
    """Cases, and ways to add one."""

    def on_weights(
        self,
        name: str,
        kinds: str,
        ops: str,
        values: Any,
        bad: Callable[[Tensor], Tensor],
        good: Callable[[Tensor], Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Add a case whose loss is a function of one parameter."""

        def step(loss: Callable[[Tensor], Tensor]) -> Callable[[], Step]:
            return lambda: (Weights(values, dtype), lambda model, batch: loss(model.w), None)

        self.append(Case(name, tuple(kinds.split()), tuple(ops.split()), step(bad), step(good)))

    def case(self, name: str, kinds: str, ops: str) -> Callable[[Callable[[bool], Step]], None]:
        """Add a case made by a function that is told whether to put the defect in."""

        def add(make: Callable[[bool], Step]) -> None:
            wanted = tuple(kinds.split()), tuple(ops.split())
            self.append(Case(name, *wanted, lambda: make(True), lambda: make(False)))

        return add


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers of these widths with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def grid(low: float, high: float, n: int = 16) -> Tensor:
    """Points at equal distances, both ends included."""
    return torch.linspace(low, high, n)
