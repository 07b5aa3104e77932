"""numgeom reproduce instabilities: which injected instabilities are found, and by what?

A network on the digits gets one defect at one place; its twin has the stable form at the same
place. Three observers look at every step: the diagnosis of this package, a threshold on the norms
of the gradients per layer (NaN, infinite, above 1e3 or below 1e-7), and torch's anomaly mode, which
raises at a NaN in the backward pass.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.examples.data import load_digits
from reproductions.confusion import confusion
from reproductions.gallery import CASES, Case
from reproductions.outcome import Cell, Outcome, Settings, Table, circumstances
from reproductions.plots import draw

LARGEST_NORM = 1e3
SMALLEST_NORM = 1e-7
_WIDTH = 32

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Injection:
    """A defect between two layers, or in the loss, and its stable form.

    Attributes:
        name: What it is.
        kinds: Findings of which at least one must be there.
        defective: The function with the defect.
        healthy: The same with the cure.
        in_loss: Whether both take the logits and return the log-probabilities, instead of taking
            and returning activations.
        dtype: Format that the step runs in.
    """

    name: str
    kinds: frozenset[str]
    defective: Function
    healthy: Function
    in_loss: bool = False
    dtype: torch.dtype = torch.float32


class _Net(nn.Module):
    """Layers with tanh between them; a function after one of them."""

    def __init__(self, depth: int, place: int, function: Function) -> None:
        super().__init__()
        sizes = [64, *[_WIDTH] * depth, 10]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.place, self.function = place, function

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1:
                x = torch.tanh(x)
                x = self.function(x) if i == self.place else x
        return x


def _kinds(*names: str) -> frozenset[str]:
    return frozenset(names)


def _unstable_variance(x: Tensor) -> Tensor:
    far = x + 4096.0
    variance = (far * far).mean(1, keepdim=True) - far.mean(1, keepdim=True) ** 2
    return x / (variance.abs() + 1e-3).sqrt()


def _stable_variance(x: Tensor) -> Tensor:
    return x / (x.var(1, keepdim=True, correction=0) + 1e-3).sqrt()


INJECTIONS = (
    Injection(
        "saturating softmax",
        _kinds("saturation", "vanishing"),
        lambda x: torch.softmax(x * 1e4, 1) * _WIDTH,
        lambda x: torch.softmax(x, 1) * _WIDTH,
    ),
    Injection(
        "vanishing gradient",
        _kinds("vanishing", "saturation"),
        lambda x: torch.sigmoid(torch.sigmoid(torch.sigmoid(x * 40.0) * 40.0) * 40.0),
        lambda x: torch.sigmoid(x),
    ),
    Injection(
        "exploding gradient",
        _kinds("exploding", "overflow", "nonfinite-input", "overflow-risk"),
        lambda x: x * 1e38 * 1e4,
        lambda x: x,
    ),
    Injection(
        "log of a softmax",
        _kinds("unstable-formula", "domain", "overflow"),
        lambda z: torch.log(torch.softmax(z * 200.0, 1)),
        lambda z: F.log_softmax(z * 200.0, 1),
        in_loss=True,
    ),
    Injection(
        "exp, sum, log",
        _kinds("unstable-formula", "overflow"),
        lambda z: 90.0 * z - torch.exp(90.0 * z + 80.0).sum(1, keepdim=True).log() + 80.0,
        lambda z: 90.0 * z - torch.logsumexp(90.0 * z, 1, keepdim=True),
        in_loss=True,
    ),
    Injection(
        "norm of a zero vector",
        _kinds("domain", "overflow", "unstable-formula"),
        lambda x: x * torch.sqrt((x * 0.0).square().sum(1, keepdim=True)),
        lambda x: x * torch.sqrt((x * 0.0).square().sum(1, keepdim=True) + 1e-6),
    ),
    Injection(
        "variance as E[x^2] - E[x]^2",
        _kinds("cancellation", "unstable-formula", "precision-loss"),
        _unstable_variance,
        _stable_variance,
    ),
    Injection(
        "log(1 + exp)",
        _kinds("unstable-formula", "overflow"),
        lambda x: torch.log(1.0 + torch.exp(x * 200.0)) / 200.0,
        lambda x: F.softplus(x * 200.0) / 200.0,
    ),
    Injection(
        "absorption",
        _kinds("absorption", "cancellation", "precision-loss"),
        lambda x: (x + 3e7) - 3e7,
        lambda x: (x + 3.0) - 3.0,
    ),
    Injection(
        "float16 without a loss scale",
        _kinds("underflow", "loss-scaling"),
        lambda z: F.log_softmax(z, 1) * 1e-6,
        lambda z: F.log_softmax(z, 1),
        in_loss=True,
        dtype=torch.float16,
    ),
)


def instabilities(
    settings: Settings,
    *,
    names: tuple[str, ...] | None = None,
    cases: Sequence[Case] = CASES,
) -> Outcome:
    """Inject every defect at several places of several networks, and count what is found.

    Args:
        settings: The large scale tries ten networks per defect instead of three.
        names: Defects to inject; None for all.
        cases: The gallery of whole programs beside them.
    """
    chosen = [each for each in INJECTIONS if names is None or each.name in names]
    trials = 3 if settings.is_small else 10
    rows: list[tuple[Cell, ...]] = []
    total = [0] * 7
    for i, injection in enumerate(chosen):
        settings.progress(injection.name, i, len(chosen))
        counts = [0] * 6
        for trial in range(trials):
            depth = 2 + trial % 3
            place = trial % depth
            for offset, function in ((0, injection.defective), (3, injection.healthy)):
                step = _step(injection, function, depth, place, settings.seed + trial)
                for observer, sees in enumerate(_observed(step, injection, defect=offset == 0)):
                    counts[offset + observer] += sees
        rows.append((injection.name, trials, *counts))
        total = [a + b for a, b in zip(total, (trials, *counts), strict=True)]
    rows.append(("all", *total))
    columns = (
        "defect", "trials", "found: diagnosis", "norm threshold", "anomaly mode",
        "false alarms: diagnosis", "norm threshold", "anomaly mode",
    )  # fmt: skip
    share = total[1] / total[0] if total[0] else math.nan
    matrix = confusion(cases, seed=settings.seed, progress=settings.progress)
    whole = dict(zip(matrix.columns, matrix.rows[-1], strict=True))
    return Outcome(
        name="instabilities",
        title="Injected instabilities that are found",
        tables=(
            Table("Steps with a defect, and their healthy twins", columns, tuple(rows)),
            matrix,
        ),
        plots=(_plot(rows),),
        facts={
            "detected_share": share,
            "false_alarm_share": total[4] / max(total[0], 1),
            "gallery_programs": whole["programs"],
            "gallery_found": whole["right kind and op"],
            "gallery_twins_with_findings": whole["twins with findings"],
        },
        notes=(
            "A defect counts as found by the diagnosis only if one of the kinds that it can show "
            "itself as is reported above info, in the gallery also only at the right operation.",
        ),
        data=(load_digits().stamp,),
        circumstances=circumstances(settings),
    )


Step = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], tuple[Tensor, Tensor]]


def _step(injection: Injection, function: Function, depth: int, place: int, seed: int) -> Step:
    images, labels = load_digits().train
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:32]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner = (lambda x: x) if injection.in_loss else function
        model = _Net(depth, place, inner).to(injection.dtype)

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        logits = model(x)
        logs = function(logits) if injection.in_loss else F.log_softmax(logits, 1)
        return F.nll_loss(logs, y)

    return model, loss_fn, (images[chosen].flatten(1).to(injection.dtype), labels[chosen])


def _observed(step: Step, injection: Injection, *, defect: bool) -> tuple[bool, bool, bool]:
    """Whether diagnosis, norm threshold and anomaly mode raise an alarm."""
    from numgeom.diagnosis import Severity, diagnose

    model, loss_fn, batch = step
    found = {f.kind.value for f in diagnose(*step) if f.severity is not Severity.INFO}
    # Of a defect the right kind must be found; of a healthy step anything is a false alarm.
    diagnosed = bool(found & injection.kinds) if defect else bool(found)
    raised = False
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore")
        try:
            loss_fn(model, batch).backward()
        except RuntimeError:
            raised = True
    model.zero_grad()
    loss_fn(model, batch).backward()
    norms = [float(p.grad.double().norm()) for p in model.parameters() if p.grad is not None]
    alarming = any(not SMALLEST_NORM <= n <= LARGEST_NORM for n in norms)
    return diagnosed, alarming, raised


def _plot(rows: list[tuple[Cell, ...]]) -> Any:
    names = [str(row[0]) for row in rows]

    def paint(axes: Any) -> None:
        for offset, label in ((0, "diagnosis"), (1, "norm threshold"), (2, "anomaly mode")):
            shares = [float(row[2 + offset] or 0) / float(row[1] or 1) for row in rows]
            axes.barh(
                [i + 0.27 * (1 - offset) for i in range(len(rows))], shares, 0.25, label=label
            )
        axes.set(yticks=range(len(rows)), yticklabels=names, xlabel="share found", xlim=(0, 1.02))
        axes.invert_yaxis()
        axes.set_title("Injected instabilities that are found")
        axes.legend(fontsize="small")

    return draw("instabilities", paint, size=(7, 0.5 * len(rows) + 1.5))
