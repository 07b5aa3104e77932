"""numgeom reproduce attention: how does the error of attention depend on length and on bits?

One head of attention with random queries, keys and values. Its error against the sequence length T
with a fitted exponent, the parts of it, and the error with the scores, the softmax and the values
rounded to p bits.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from numgeom.arithmetic.printing import nearest_short
from reproductions.outcome import Cell, Outcome, Settings, Table, circumstances
from reproductions.plots import Series, line_plot

PUBLISHED_EXPONENT = 1.5
PUBLISHED_BITS = 10
TOLERANCES = (1e-1, 1e-2, 1e-3)
_WIDTH = 64
_SEEDS = 3


class _Scores(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2)


class _Scaling(nn.Module):
    def forward(self, s: Tensor) -> Tensor:
        return s / math.sqrt(_WIDTH)


class _Softmax(nn.Module):
    def forward(self, s: Tensor) -> Tensor:
        return torch.softmax(s, -1)


class _Values(nn.Module):
    def forward(self, p: Tensor, v: Tensor) -> Tensor:
        return p @ v


class _Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, each step a module of its own, on parameters Q, K, V."""

    def __init__(self, length: int) -> None:
        super().__init__()
        for name in ("q", "k", "v"):
            self.register_parameter(name, nn.Parameter(torch.randn(length, _WIDTH)))
        self.scores, self.scaling = _Scores(), _Scaling()
        self.softmax, self.values = _Softmax(), _Values()

    def forward(self) -> Tensor:
        q, k, v = self.get_parameter("q"), self.get_parameter("k"), self.get_parameter("v")
        return self.values(self.softmax(self.scaling(self.scores(q, k))), v)


_PARTS = ("scores", "scaling", "softmax", "values")


def attention(settings: Settings, *, lengths: tuple[int, ...] | None = None) -> Outcome:
    """Measure the study.

    Args:
        settings: The large scale goes to T = 2048, the small one to 512.
        lengths: Sequence lengths; None for those of the scale.
    """
    most = 512 if settings.is_small else 2048
    chosen = lengths or tuple(2**i for i in range(4, 12) if 2**i <= most)
    forward: list[float] = []
    total: list[float] = []
    absolute: list[float] = []
    rows: list[tuple[Cell, ...]] = []
    shares: dict[tuple[str, str], list[float]] = {
        (part, phase): [] for part in _PARTS for phase in ("forward", "backward")
    }
    for i, length in enumerate(chosen):
        settings.progress(f"T = {length}", i, len(chosen) + 1)
        out, relative, size, parts = _length(length, settings.seed)
        forward.append(out)
        total.append(relative)
        absolute.append(size)
        for key in shares:
            shares[key].append(parts.get(key, 0.0))
        rows.append((length, out, relative, size, *(shares[key][-1] for key in shares)))
    exponents = {
        "exponent, output error relative": _slope(chosen, forward),
        "exponent, gradient error relative": _slope(chosen, total),
        "exponent, gradient error absolute": _slope(chosen, absolute),
        "exponent published": PUBLISHED_EXPONENT,
    }
    settings.progress("bits", len(chosen), len(chosen) + 1)
    needs, bit_rows, curves = _bits(min(256, chosen[-1]), settings.seed)
    columns = (
        "T", "output error", "gradient error", "gradient error [absolute]",
        *(f"{part}, {phase}" for part, phase in shares),
    )  # fmt: skip
    most_bits = {t: max(needs[t, part] or 99 for part in _PARTS) for t in TOLERANCES}
    needed = ", ".join(f"{n} at {nearest_short(t, 6)}" for t, n in most_bits.items())
    holding = ", ".join(
        f"{nearest_short(t, 6)}" for t, n in most_bits.items() if n >= PUBLISHED_BITS
    )
    return Outcome(
        name="attention",
        title="Error of attention against sequence length and bits",
        tables=(
            Table("float32; errors relative unless said, shares of the squared error", columns,
                  tuple(rows)),
            Table("Significant bits that each part needs alone", ("tolerance", *_PARTS),
                  tuple(bit_rows)),
        ),
        plots=(
            line_plot(
                "attention-length", "Error of attention against its length",
                [Series("output, relative", chosen, forward),
                 Series("gradient, relative", chosen, total),
                 Series("gradient, absolute", chosen, absolute)],
                x_label="T", y_label="error", x_scale="log", y_scale="log",
            ),
            line_plot(
                "attention-parts", "Where the error of the gradient comes from",
                [Series(f"{part}, {phase}", chosen, values)
                 for (part, phase), values in shares.items()],
                x_label="T", y_label="share of the squared error", x_scale="log",
            ),
            line_plot(
                "attention-bits", "Error of the gradient with one part in p bits", curves,
                x_label="significant bits p", y_label="relative error", y_scale="log",
            ),
        ),
        facts=exponents,
        notes=(
            f"Published: the error grows as T^{PUBLISHED_EXPONENT}, and attention needs at least "
            f"{PUBLISHED_BITS} bits. Here the part that needs most bits needs, by tolerance, "
            f"{needed}; the claim holds at a tolerance of {holding or 'none of these'}. The growth "
            "that was measured here is in the exponents above.",
        ),
        circumstances=circumstances(settings),
    )  # fmt: skip


def _program(length: int, seed: int) -> tuple[Any, _Attention, Tensor]:
    from numgeom.recording import record

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Attention(length)
        cotangent = torch.randn(length, _WIDTH)
    with record(model) as recording:
        (model() * cotangent).sum().backward()
    return recording.program, model, cotangent


def _length(length: int, seed: int) -> tuple[float, float, float, dict[tuple[str, str], float]]:
    """Relative error of output and gradient, absolute of the gradient, and the parts' shares."""
    from numgeom.precision.sources import attribute

    outputs, relatives, sizes = [], [], []
    parts: dict[tuple[str, str], float] = {}
    for trial in range(_SEEDS):
        program, model, _ = _program(length, seed + trial)
        reference = program.replay(torch.float64).gradients
        recorded = program.recorded.gradients
        error = math.hypot(
            *(float((recorded[n].double() - g).norm()) for n, g in reference.items())
        )
        size = math.hypot(*(float(g.norm()) for g in reference.values()))
        with torch.no_grad():
            computed, exact = model(), model.double()()
        outputs.append(float((computed.double() - exact).norm() / exact.norm()))
        relatives.append(error / size)
        sizes.append(error)
        for (module, phase), share in attribute(program, seed=seed).by("module", "phase").items():
            key = (module, "forward" if phase == "forward" else "backward")
            parts[key] = parts.get(key, 0.0) + share / _SEEDS
    return _middle(outputs), _middle(relatives), _middle(sizes), parts


def _bits(
    length: int, seed: int
) -> tuple[dict[tuple[float, str], int | None], list[tuple[Cell, ...]], list[Series]]:
    from numgeom.precision.bits import bits_needed, error_with

    program, _, _ = _program(length, seed)
    needs: dict[tuple[float, str], int | None] = {}
    rows: list[tuple[Cell, ...]] = []
    for tolerance in TOLERANCES:
        found = bits_needed(program, tolerance)
        for part in _PARTS:
            needs[tolerance, part] = found[part].bits
        rows.append((tolerance, *(found[part].bits for part in _PARTS)))
    reference = program.replay(torch.float64).gradients
    curves = []
    for part in _PARTS:
        nodes = program.at(part)
        precisions = list(range(3, 25, 3))
        errors = [error_with(program, reference, nodes, p) for p in precisions]
        curves.append(Series(part, precisions, errors))
    return needs, rows, curves


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _slope(x: tuple[int, ...], y: list[float]) -> float:
    """Least-squares slope in logarithms."""
    a = torch.tensor(x, dtype=torch.float64).log()
    b = torch.tensor(y, dtype=torch.float64).log()
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a * a).sum())
