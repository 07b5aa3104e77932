"""What do the functionals of single calls give for a module, a parameter, or the whole step?

eps_i = sum_p L_ip eps_p + Delta_i along the graph: paths that part and join again add up.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from numgeom.arithmetic.formats import float64
from numgeom.arithmetic.rounding import add_up, div_up, mul_up, sum_up
from numgeom.functionals.functional import EXACT, IDENTITY, ErrorFunctional, FunctionalError
from numgeom.functionals.walk import Walk
from numgeom.recording import CallInfo

PARAMETER = -1
INPUT = -2
CONSTANT = -3


@dataclass(frozen=True, slots=True)
class Link:
    """The error functional of one call: error <= sum_p stretch_p * error_p + added.

    Attributes:
        module: Path of the module that it belongs to.
        phase: "forward", "backward" or "update".
        parents: (position of the call that an argument comes from, stretch); PARAMETER and INPUT
            for values from outside, CONSTANT for exact ones.
        added: What the call adds: its rounding, and jumps at kinks within reach.
        own: Its rounding alone.
        unit: Unit roundoff of its result.
    """

    module: str
    phase: str
    parents: tuple[tuple[int, float], ...]
    added: float
    own: float
    unit: float

    @property
    def rounding(self) -> float:
        """What the call adds by rounding; inf where nothing is known of its error."""
        return self.own if math.isfinite(self.added) else math.inf


@dataclass(frozen=True)
class Composition:
    """The calls of a step, in order, and which of them are the gradients.

    Attributes:
        calls: Their functionals.
        gradients: Position of the call that gave each gradient, by parameter.
    """

    calls: tuple[Link, ...]
    gradients: Mapping[str, int]

    def compose(
        self, chosen: Iterable[int], source: Callable[[int], ErrorFunctional]
    ) -> dict[int, ErrorFunctional]:
        """Compose some calls, in program order; `source` is the functional of what enters."""
        found: dict[int, ErrorFunctional] = {}
        for i in chosen:
            call = self.calls[i]
            total = ErrorFunctional(0.0, call.added)
            for parent, stretch in call.parents:
                inner = found[parent] if parent in found else source(parent)
                total = total + ErrorFunctional(stretch, 0.0) @ inner
            found[i] = total
        return found

    def end_to_end(self) -> dict[str, ErrorFunctional]:
        """The functional of each gradient, in terms of the error of every parameter and input."""
        found = self.compose(range(len(self.calls)), lambda i: EXACT if i == CONSTANT else IDENTITY)
        return {name: found[i] for name, i in self.gradients.items() if i in found}

    def within(self, module: str, phase: str | None = None) -> ErrorFunctional | None:
        """The functional of a module, from what enters it to what leaves it.

        The input error bounds that of every value that enters. Parameters are exact. Of several
        values that leave, the errors are added.

        Returns:
            The functional; None if the module has no call in that phase.
        """
        inside = [
            i
            for i, call in enumerate(self.calls)
            if below(call.module, module) and (phase is None or call.phase == phase)
        ]
        if not inside:
            return None
        found = self.compose(inside, lambda i: EXACT if i in (PARAMETER, CONSTANT) else IDENTITY)
        members = set(inside)
        leaving = {i for i in self.gradients.values() if i in members}
        for i, call in enumerate(self.calls):
            if i not in members:
                leaving.update(parent for parent, _ in call.parents if parent in members)
        total = EXACT
        for i in sorted(leaving):
            total = total + found[i]
        return total

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all modules that have a call, with those around them; "" is the whole step."""
        paths: dict[str, None] = {"": None}
        for call in self.calls:
            path = call.module
            while path:
                paths.setdefault(path)
                path = path.rpartition(".")[0]
        return tuple(paths)

    def own(self, module: str) -> float:
        """What the calls of a module add, at their place."""
        return sum_up([call.own for call in self.calls if below(call.module, module)])

    def weights(self, gradients: Iterable[str]) -> list[float]:
        """By how much an error made at each call is stretched on its way to some gradients."""
        found = [0.0] * len(self.calls)
        for name in gradients:
            found[self.gradients[name]] = 1.0
        for i in range(len(self.calls) - 1, -1, -1):
            if found[i]:
                for parent, stretch in self.calls[i].parents:
                    if parent >= 0 and stretch:
                        found[parent] = add_up(found[parent], mul_up(found[i], stretch))
        return found

    def expected(self, name: str) -> float:
        """The error of a gradient, if the calls' own errors were independent. ESTIMATED.

        Independent errors of n calls add up in squares, so they grow with sqrt(n) where the bound
        grows with n (Higham and Mary 2019). Jumps at kinks are left out.
        """
        if name not in self.gradients:
            return 0.0
        weights = self.weights([name])
        calls = zip(weights, self.calls, strict=True)
        terms = [w * call.rounding for w, call in calls if w and call.rounding]
        return math.hypot(*terms)

    def shares(self) -> dict[str, float]:
        """What each module's own rounding adds to the gradients, for a unit roundoff of 1.

        sum_i w_i own_i / u_i over the calls of the module itself, with w_i the stretch from there
        to all gradients. Modules inside a module count for themselves.
        """
        found: dict[str, float] = {}
        for weight, call in zip(self.weights(self.gradients), self.calls, strict=True):
            if weight and call.rounding:
                share = mul_up(weight, div_up(call.rounding, call.unit))
                found[call.module] = add_up(found.get(call.module, 0.0), share)
        return found


def composition_of(walk: Walk) -> Composition:
    """The composition of all calls of a walk."""
    nodes = [node for node in walk.program.graph.nodes if node in walk.locals]
    places = {node: i for i, node in enumerate(nodes)}
    widest = min(walk.units.values(), default=float64.unit_roundoff)
    links: list[Link] = []
    for node in nodes:
        local, call = walk.locals[node], _call_of(node)
        parents = tuple((_place(p, places), stretch) for p, stretch in local.stretch.items())
        unit = walk.units.get(node, widest)
        links.append(Link(call.module, call.phase, parents, local.added, local.own, unit))
    gradients = {name: places[node] for name, node in walk.gradients.items() if node in places}
    return Composition(tuple(links), gradients)


def _call_of(node: fx.Node) -> CallInfo:
    """The origin of a call, or of the call that a part of several outputs belongs to."""
    whole = node if "call" in node.meta else node.args[0]
    assert isinstance(whole, fx.Node)
    return whole.meta["call"]


def _place(node: fx.Node, places: Mapping[fx.Node, int]) -> int:
    if node in places:
        return places[node]
    role = node.meta.get("role")
    if role in ("parameter", "buffer"):
        return PARAMETER
    return CONSTANT if role in ("drawn", "decision") else INPUT


def below(path: str, module: str) -> bool:
    """Whether a module is another one or inside it."""
    return not module or path == module or path.startswith(module + ".")


def bits_for(shares: Mapping[str, float], tolerance: float) -> dict[str, int]:
    """The significant bits that keep every module's share of a tolerance.

    The tolerance, absolute, is shared out evenly, and errors are taken as proportional to the unit
    roundoff 2^-p.

    Raises:
        FunctionalError: if nothing bounds a share.
    """
    if not tolerance > 0.0:
        raise FunctionalError(f"A tolerance is positive, not {tolerance!r}.")
    lost = [path or "the model" for path, share in shares.items() if not math.isfinite(share)]
    if lost:
        raise FunctionalError(
            f"No number of bits keeps the tolerance: nothing bounds what is added in "
            f"{', '.join(lost[:3])}."
        )
    each = tolerance / max(1, len(shares))
    # `bits` wants the error that belongs to a unit roundoff below 1: half of it at 1/2.
    return {
        path: ErrorFunctional(0.0, share / 2.0).bits(each, unit_roundoff=0.5)
        for path, share in shares.items()
    }
