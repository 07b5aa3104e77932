"""What is there to say about the kinks of one training step, all in one?

The zone of the parameters for this mini-batch, the tied units, the hull of the gradients that
Clarke selections can give, what torch does at its kinks, and what the paper's criterion would say.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from numgeom.arithmetic.printing import upper_short
from numgeom.nonsmooth.audit import AuditedOp, audit_of
from numgeom.nonsmooth.backward import FrozenStep
from numgeom.nonsmooth.hull import MAX_PULLBACKS, Hull, hull_of
from numgeom.nonsmooth.selection import Selection
from numgeom.nonsmooth.thresholds import tau_curve
from numgeom.nonsmooth.zones import CONTRAST, NATIVE, Tie, Zones, zones_of
from numgeom.recording import MISSING, Program, Recording, program_of
from numgeom.visible import visible

SCHEMA = "numgeom.zones"
SCHEMA_VERSION = 1
_UNITS_IN_JSON = 1000


@dataclass(frozen=True, eq=False)
class Survey:
    """The nonsmooth side of one step.

    Attributes:
        zones: Its zone, with the tied units.
        hull: The bounds of its backprop set.
        audit: What torch does at the kinks of its ops.
    """

    zones: Zones
    hull: Hull
    audit: tuple[AuditedOp, ...]

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """Criterion 1 of the paper for this mini-batch: (tau, 1 if the variation is above it)."""
        return tau_curve([self.zones.variation])

    def text(self, *, rows: int = 10) -> str:
        """The survey for a person.

        Args:
            rows: Most tied units, parameters and ops in each part.
        """
        return "\n".join(
            [
                f"Zone: {_ZONES[self.zones.zone]}" + (_UNCOVERED if self.zones.unmatched else ""),
                *_indented(str(self.zones).splitlines()[1:]),
                *_units(self.zones.ties, rows),
                _criterion(self.zones),
                "",
                "Backprop set: " + str(self.hull).splitlines()[0].removeprefix("the backprop set "),
                *_widths(self.hull, rows),
                "",
                "Audit: torch documents the sub-gradient of least norm at kinks.",
                *(_indented([str(op) for op in self.audit[:rows]]) or ["  no op with kinks"]),
                *([f"  and {len(self.audit) - rows} more"] if len(self.audit) > rows else []),
            ]
        )

    def to_json(self, **extra: Any) -> str:
        """The survey as JSON, with further entries at its top level."""
        zones, hull = self.zones, self.hull
        width, lower, upper = hull.width, hull.lower, hull.upper
        document = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            **extra,
            "zone": zones.zone,
            "selections": [str(s) for s in zones.selections],
            "variation": _number(zones.variation),
            "replayed_variation": _number(zones.replayed_variation),
            "rounding": _number(zones.rounding),
            "criterion": [{"tau": tau, "above": share == 1} for tau, share in self.curve],
            "ties": [_tie(tie) for tie in zones.ties],
            "n_dead": zones.n_dead,
            "unmatched": list(zones.unmatched),
            "hull": {
                "is_point": hull.is_point,
                "guarantee": hull.guarantee.name,
                "method": hull.method,
                "n_units": hull.n_units,
                "n_inert": hull.n_inert,
                "parameters": [
                    {
                        "name": name,
                        "width_max": _number(_largest(width[name])),
                        "n_moving": int((width[name] != 0).sum()),
                        "lower_min": _number(-_largest(-lower[name])),
                        "upper_max": _number(_largest(upper[name])),
                        "rounding_max": _number(_largest(hull.rounding[name])),
                    }
                    for name in hull.center
                ],
            },
            "audit": [
                {
                    "op": op.op,
                    "family": op.family,
                    "places": list(op.places),
                    "breaks_rule": op.breaks_rule,
                    "norm": op.norm,
                    "least_norm": op.least_norm,
                    "n_tied": op.n_tied,
                    "difference": _number(op.difference),
                    "matters": op.matters,
                }
                for op in self.audit
            ],
        }
        return json.dumps(document, indent=2, allow_nan=False)


def survey(
    subject: nn.Module | Program | Recording | Callable[[], Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    selections: tuple[Selection, Selection] = (NATIVE, CONTRAST),
    max_pullbacks: int = MAX_PULLBACKS,
    seed: int = 0,
) -> Survey:
    """Look at the kinks of a step: zone, hull and audit.

    Args:
        subject: A model, with `loss_fn` and `batch`; a function that runs one step; a recording;
            or a program. Left as it was.
        loss_fn: `loss_fn(model, batch)` returns the loss; with a model only.
        batch: Anything that `loss_fn` understands; with a model only.
        selections: The two derived programs that decide the zone.
        max_pullbacks: As for `hull`.
        seed: Of all that is drawn.

    Raises:
        SubjectError: if the arguments do not fit together.
        RecordingError: if the step cannot be recorded.
    """
    program = program_of(subject, loss_fn, batch, question="survey")
    return survey_of(program, selections=selections, max_pullbacks=max_pullbacks, seed=seed)


def survey_of(
    program: Program,
    *,
    selections: tuple[Selection, Selection] = (NATIVE, CONTRAST),
    max_pullbacks: int = MAX_PULLBACKS,
    seed: int = 0,
) -> Survey:
    """Look at the kinks of a recorded step; see `survey`."""
    step = FrozenStep(program)
    return Survey(
        zones_of(step, selections=selections, seed=seed),
        hull_of(step, max_pullbacks=max_pullbacks, seed=seed),
        audit_of(step, seed=seed),
    )


_ZONES = {
    "regular": "regular. No unit that moves is tied: there is one gradient.",
    "compensation": "compensation. Units are tied, but every choice gives the same gradient over "
    "the reals.",
    "bifurcation": "bifurcation. The gradient depends on which derivative is taken at ties.",
}

_UNCOVERED = " Calls that are not covered, named below, are left out of this."


def _criterion(zones: Zones) -> str:
    if zones.variation == 0:
        return "  by the paper's criterion D > tau: below every threshold, D is 0"
    return (
        f"  by the paper's criterion D > tau: a difference for every tau below "
        f"{upper_short(zones.variation)}, and none above"
    )


def _units(ties: tuple[Tie, ...], rows: int) -> list[str]:
    lines = []
    for tie in ties:
        for index, kind in _listed(tie)[: max(0, rows - len(lines))]:
            lines.append(visible(f"    {tie.module or tie.source} {index}: {kind}"))
    left = sum(map(len, ties)) - len(lines)
    return [*lines, *([f"    and {left} more tied units"] if left and ties else [])]


def _listed(tie: Tie) -> list[tuple[list[int], str]]:
    """Tied units, those by accident first."""
    indices = tie.indices.tolist()
    if tie.identical is None:
        return [(index, "not known whether by accident") for index in indices]
    kinds = ["identical pieces" if same else "by accident" for same in tie.identical.tolist()]
    return sorted(zip(indices, kinds, strict=True), key=lambda item: item[1])


def _tie(tie: Tie) -> dict[str, Any]:
    listed = _listed(tie)
    return {
        "module": tie.module,
        "source": tie.source,
        "op": tie.op,
        "family": tie.family,
        "n_units": len(tie),
        "n_accidental": tie.n_accidental,
        "units": [{"index": index, "kind": kind} for index, kind in listed[:_UNITS_IN_JSON]],
    }


def _widths(hull: Hull, rows: int) -> list[str]:
    lines = str(hull).splitlines()[1:]
    return [*lines[:rows], *([f"  and {len(lines) - rows} more"] if len(lines) > rows else [])]


def _largest(t: Tensor) -> float:
    return float(t.max()) if t.numel() else 0.0


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def _indented(lines: list[str]) -> list[str]:
    return [line if line.startswith(" ") else f"  {line}" for line in lines]
