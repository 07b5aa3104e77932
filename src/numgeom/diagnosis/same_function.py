"""Is a formula that is proposed in the place of another one the same function?

Both are evaluated in float64, on the data of the step and on data near and far from them: each
parameter, input and buffer moved relatively, moved absolutely, with its entries in another order,
and scaled to size 1 and below. The forward pass up to the formula runs anew each time, so that the
formula sees only what it can get: probabilities stay probabilities.

Two floating-point results of one real function differ by rounding, and by more where digits cancel.
How much is measured on the spot: every call of the formula is repeated with its result moved by
about one rounding, and the new form with its arguments moved so. An entry counts where this noise
leaves at least three digits; one such entry in which the two differ by more than the noise, or one
in which the new form is not finite although the old one is, shows another function.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.diagnosis.match import Match
from numgeom.diagnosis.partial import Change, evaluate
from numgeom.diagnosis.trace import traits
from numgeom.errors import ReplayError
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter

_U = 2.0**-53  # unit roundoff of float64
_LEAST = 2.0**-1074  # smallest number of float64: what is lost by a rounding to a subnormal one
_SAMPLES = 6  # of the noise
_MARGIN = 64.0  # between a few samples of the noise and the largest rounding errors
_DIGITS = 1e-3  # noise above this part of an entry leaves nothing to compare
_ENOUGH = 0.25  # part of the entries that must be comparable at a point, for it to count
_POINTS = 3  # that must count, so that both are called one function
_MOVED = frozenset({"parameter", "input", "buffer"})


@dataclass(frozen=True)
class Agreement:
    """What the comparison of two formulas showed.

    Attributes:
        differs: Whether some entry shows that they are different functions.
        points: Number of data sets on which they were compared and agreed.
    """

    differs: bool
    points: int

    @property
    def is_same(self) -> bool:
        """Whether they agree wherever they could be compared, and that was often enough."""
        return not self.differs and self.points >= _POINTS


def agreement(program: Program, match: Match) -> Agreement:
    """Compare a formula of a program with the form that is proposed in its place.

    Args:
        program: The recorded step.
        match: The formula and its stable form.

    Returns:
        Whether they are different functions, and on how many data sets they agreed.
    """
    region = _region(match)
    wanted = _inputs(region, match)
    points = 0
    for seed, change in enumerate(_CHANGES):
        try:
            found = evaluate(program, wanted, dtype=torch.float64, change=change)
            if match.differs_at_zero:
                found |= {n: _off_zero(found[n]) for n in match.reads}
            same = _compare(program, match, region, found, seed)
        except (ReplayError, RuntimeError, TypeError, ValueError, IndexError):
            # A step that does not run on other data, or a form that does not run where the formula
            # does. On the data of the step itself both must.
            if change is None:
                return Agreement(differs=True, points=0)
            continue
        if same is False:
            return Agreement(differs=True, points=points)
        points += bool(same)
    return Agreement(differs=False, points=points)


# -- data ----------------------------------------------------------------------------------


def _on_data(move: Callable[[Tensor, torch.Generator], Tensor], seed: int) -> Change:
    """Change what the step was given; what it drew, and integers, stay."""

    def change(node: fx.Node, value: Tensor) -> Tensor:
        moves = node.meta["role"] in _MOVED and value.is_floating_point() and value.numel()
        if not moves or not bool(torch.isfinite(value).all()):
            return value
        # Each tensor has noise of its own, and the same in every run.
        generator = torch.Generator().manual_seed(seed + 7919 * value.numel())
        moved = move(value.detach().cpu(), generator)
        return moved.to(value)

    return change


def _noise(value: Tensor, generator: torch.Generator) -> Tensor:
    """Independent numbers between -1 and 1."""
    return 2.0 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1.0


def _relatively(value: Tensor, generator: torch.Generator) -> Tensor:
    return value * (1.0 + 0.25 * _noise(value, generator))


def _absolutely(value: Tensor, generator: torch.Generator) -> Tensor:
    """By a hundredth of the tensor's size, but no entry through zero."""
    size = float(value.abs().max()) or 1.0
    step = 0.01 * size * _noise(value, generator)
    crosses = (value != 0) & (step.abs() >= 0.5 * value.abs())
    return torch.where(crosses, value * 1.25, value + step)


def _reordered(value: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(value.numel(), generator=generator)
    return value.reshape(-1)[order].reshape(value.shape)


def _of_size(size: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    def scaled(value: Tensor, generator: torch.Generator) -> Tensor:
        largest = float(value.abs().max())
        spread = 1.0 - 0.25 * _noise(value, generator).abs()
        return value * (size / largest) * spread if largest > 0.0 else value

    return scaled


_CHANGES: tuple[Change | None, ...] = (
    None,
    _on_data(_relatively, 1),
    _on_data(_absolutely, 2),
    _on_data(_reordered, 3),
    _on_data(_of_size(1.0), 4),
    _on_data(_of_size(0.3), 5),
    _on_data(_of_size(0.1), 6),
)


def _off_zero(value: Any) -> Any:
    return torch.where(value == 0, 0.5, value) if isinstance(value, Tensor) else value


# -- one comparison ------------------------------------------------------------------------


def _region(match: Match) -> list[fx.Node]:
    """The calls between what the stable form reads and the formula's result, in order."""
    inside, pending = {match.node}, [match.node]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in match.reads and source.op == "call_function" and source not in inside:
                inside.add(source)
                pending.append(source)
    ends = set(match.reads)
    reached = {n for n in inside if _depends(n, ends, inside)}
    return [n for n in match.node.graph.nodes if n in reached]


def _depends(node: fx.Node, ends: set[fx.Node], inside: set[fx.Node]) -> bool:
    """Whether a call is made from what the stable form reads."""
    pending, seen = [node], {node}
    while pending:
        for source in pending.pop().all_input_nodes:
            if source in ends:
                return True
            if source in inside and source not in seen:
                seen.add(source)
                pending.append(source)
    return False


def _inputs(region: list[fx.Node], match: Match) -> set[fx.Node]:
    """What enters the formula from outside."""
    inside = set(region)
    entering = {s for n in region for s in n.all_input_nodes if s not in inside}
    return entering | set(match.reads)


def _compare(
    program: Program, match: Match, region: list[fx.Node], given: Mapping[fx.Node, Any], seed: int
) -> bool | None:
    """Whether both agree on these data; None if the noise leaves too little to compare."""
    run = _Formula(program, region)
    values = run.values(given, None)
    formula = match.unguarded or (lambda values: values[match.node])
    old, new = _tensor(formula(values)), _tensor(match.stable(values))
    if new.shape != old.shape:
        return False
    generator = torch.Generator().manual_seed(1000 + seed)
    old_noise, new_noise = torch.zeros_like(old), torch.zeros_like(old)
    for _ in range(_SAMPLES):
        moved = {**values, **{n: _rounded(values[n], generator) for n in match.reads}}
        new_noise = _larger(new_noise, (_tensor(match.stable(moved)) - new).abs())
        try:
            again = run.values(given, generator)
        except ReplayError:  # moved by a rounding, a number leaves what an op accepts
            return None
        old_noise = _larger(old_noise, (_tensor(formula(again)) - old).abs())
    if bool((torch.isfinite(old) & torch.isfinite(old_noise) & ~torch.isfinite(new)).any()):
        return False
    tolerance = _MARGIN * (old_noise + new_noise + _U * old.abs() + _LEAST)
    size = torch.maximum(old.abs(), new.abs())
    sharp = torch.isfinite(old) & torch.isfinite(new) & (tolerance <= _DIGITS * size)
    if bool(((old - new).abs() > tolerance)[sharp].any()):
        return False
    count = int(sharp.sum())
    return True if count > 0 and count >= _ENOUGH * old.numel() else None


def _tensor(value: Any) -> Tensor:
    return value.detach().to(torch.float64)


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two, infinite where one is no number."""
    return torch.maximum(a, torch.nan_to_num(b, nan=math.inf, posinf=math.inf))


def _rounded(value: Any, generator: torch.Generator) -> Any:
    """A value moved by about one rounding."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    # Never far below one rounding, so that no sample is lost in the spacing of the numbers.
    noise = _noise(value, generator)
    noise = (torch.where(noise < 0.0, -1.0, 1.0) + noise).to(value.device)
    return value + (2.0 * _U * value.abs() + _LEAST) * noise


class _Formula(ProgramInterpreter):
    """Runs the calls of a formula alone."""

    def __init__(self, program: Program, region: Iterable[fx.Node]) -> None:
        super().__init__(program, dtype=torch.float64)
        self._region = list(region)

    def values(
        self, given: Mapping[fx.Node, Any], generator: torch.Generator | None
    ) -> dict[fx.Node, Any]:
        """The values of all calls of the formula; with a generator each is moved a little."""
        values = dict(given)
        for node in self._region:
            value = self.run_node(node, values)
            if generator is not None and not traits(node).never_rounds:
                value = _rounded(value, generator)
            values[node] = value
        return values
