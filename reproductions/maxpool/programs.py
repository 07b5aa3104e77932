"""Tables 1 and 3, figure 7: are the derivatives of zero programs zero?

Boustany (2024), table 1 and figure 7 (two ways to write a maximum), table 3 and figure 9 (a maximum
written through ReLU). The residue near the unit roundoff is that of one joint sum: two separate
backward passes give equal derivatives there, so it is no backprop variation (eq. 12).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from numgeom.arithmetic.printing import nearest_short
from numgeom.nonsmooth import First, Minimal, Selection, select
from reproductions.maxpool.figure import Findings
from reproductions.maxpool.problems import FORMATS
from reproductions.maxpool.small_programs import (
    POINTS,
    TIMES,
    bifurcation_example,
    derivative_table,
    max_by_loop,
    max_by_op,
    max_by_relu,
    pooled_convolution,
    zero,
    zero2,
    zero_of_norms,
    zero_of_relus,
)
from reproductions.outcome import Cell, Plot, Settings, Table
from reproductions.plots import Series, line_plot

Program = Callable[[Tensor, Tensor], Tensor]
_SIGN = (
    "The sign of the residue at (1.4, ...) depends on the format and on the constant; it need not "
    "be the paper's. Its magnitude is."
)


def zero_by_ops(settings: Settings, name: str, size: None) -> Findings:
    """Derivatives of max1(tx) - max2(tx): a loop with a strict comparison against torch.max."""
    del settings, size
    controls = {"ReLU - ReLU": zero_of_relus, "norm - norm": zero_of_norms}
    return _zero(
        name,
        program=zero,
        published=-1.5,
        tables=tuple(
            Table(f"control: {label}, float32", _columns(), _rows(program, "float32"))
            for label, program in controls.items()
        ),
        notes=("Controls have no residue near the unit roundoff, only an error at t = 0.", _SIGN),
    )


def zero_by_relu(settings: Settings, name: str, size: None) -> Findings:
    """Derivatives of the same with the maximum written through ReLU."""
    del settings, size
    return _zero(
        name,
        program=zero2,
        published=1.5,
        tables=(_example_a5(),),
        notes=(
            "ReLU'(0) = 0 and 1 in the first ReLU of each comparison; the same value in both "
            "ReLUs would give (1/2, 1/2) at every tie.",
            _SIGN,
        ),
    )


def written_as_ops(settings: Settings, name: str, size: None) -> Findings:
    """The programs of figure 7 and their derivatives; the figure itself is a listing."""
    del settings, size
    return _listing(
        name,
        first=max_by_loop,
        second=max_by_op,
        difference=zero,
        what="a loop with a strict comparison; torch.max",
    )


def written_through_relu(settings: Settings, name: str, size: None) -> Findings:
    """The programs of figure 9 and their derivatives; the figure itself is a listing."""
    del settings, size
    return _listing(
        name,
        first=max_by_relu,
        second=lambda x: max_by_relu(x, s=1.0),
        difference=zero2,
        what="the maximum through ReLU with ReLU'(0) = 0; with 1 in the first ReLU",
    )


def _listing(
    name: str,
    *,
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
    difference: Program,
    what: str,
) -> Findings:
    programs: dict[str, Program] = {
        "max1": lambda t, x: first(t * x),
        "max2": lambda t, x: second(t * x),
        "zero": difference,
    }
    rows: list[tuple[Cell, ...]] = []
    for label, program in programs.items():
        for x, found in derivative_table(program).items():
            rows.append((label, _point(x), *found))
    curves: dict[tuple[float, ...], Plot] = {}
    times = [k / 10 for k in range(-10, 11)]
    for x in POINTS:
        series = [
            Series(label, times, derivative_table(program, points=(x,), times=times)[x])
            for label, program in programs.items()
        ]
        curves[x] = line_plot(
            f"{name}-x{len(curves) + 1}",
            f"Computed derivatives at x = {_point(x)}, float32",
            series,
            x_label="t",
            y_label="derivative",
        )
    return Findings(
        tables=(Table("Computed derivative, float32", ("program", "x", *_times()), tuple(rows)),),
        plots=tuple(curves.values()),
        notes=(f"The published figure is a listing; here are its programs' derivatives: {what}.",),
    )


def _zero(
    name: str,
    *,
    program: Program,
    published: float,
    tables: tuple[Table, ...],
    notes: tuple[str, ...],
) -> Findings:
    main = tuple(
        Table(f"computed derivative, {dtype}", _columns(), _rows(program, dtype))
        for dtype in FORMATS
    )
    largest = {dtype: _residue(program, dtype) for dtype in FORMATS}
    return Findings(
        tables=(*main, *tables),
        plots=(_residues_plot(name, largest),),
        facts={
            "residue_at_1.4": largest,
            "error_at_0": _at_zero(program),
            "published": {"residue_at_1.4": 1e-7, "error_at_0": published},
        },
        notes=notes,
    )


def _rows(program: Program, dtype: str) -> tuple[tuple[Cell, ...], ...]:
    found = derivative_table(program, dtype=FORMATS[dtype])
    return tuple((_point(x), *derivatives) for x, derivatives in found.items())


def _residue(program: Program, dtype: str) -> float:
    found = derivative_table(program, dtype=FORMATS[dtype], points=(POINTS[1],))
    return max(abs(d) for d in found[POINTS[1]])


def _at_zero(program: Program) -> float:
    return derivative_table(program, points=(POINTS[0],), times=(0.0,))[POINTS[0]][0]


def _residues_plot(name: str, residues: dict[str, float]) -> Plot:
    order = sorted(residues, key=lambda dtype: torch.finfo(FORMATS[dtype]).eps)
    eps = [torch.finfo(FORMATS[dtype]).eps for dtype in order]
    return line_plot(
        name,
        "Residue of a zero derivative at x = (1.4, 1.4, 1.4, 1.4)",
        [Series("|derivative|", eps, [residues[dtype] for dtype in order])],
        x_label="spacing of the format at 1 (float64, float32, float16, bfloat16)",
        y_label="largest |derivative| over t",
        x_scale="log",
        y_scale="log",
    )


def _example_a5() -> Table:
    rows: list[tuple[Cell, ...]] = []
    image, kernel = bifurcation_example()
    for label, choice in (("native", First()), ("minimal", Minimal())):
        w = kernel.clone().requires_grad_()
        with select(Selection(maxpool=choice)):
            pooled_convolution(image, w).backward()
        assert w.grad is not None
        rows.append((label, *w.grad.flatten().tolist()))
    places = tuple(f"E{i}{j}" for i in (1, 2, 3) for j in (1, 2, 3))
    return Table(
        "A point of the bifurcation zone (appendix A.5)", ("max-pool", *places), tuple(rows)
    )


def _columns() -> tuple[str, ...]:
    return ("x", *_times())


def _times() -> tuple[str, ...]:
    return tuple(f"t = {nearest_short(t, 6)}" for t in TIMES)


def _point(x: tuple[float, ...]) -> str:
    return f"({', '.join(nearest_short(entry, 6) for entry in x)})"
