"""Can the names of a model, or of the file that it comes from, act on a terminal?

A step whose parameters, modules and source file have names full of control characters, markup and
characters that are not seen goes through every question; every text about it must be harmless, and
no name may begin a line of its own.
"""

import ast
import io
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

import numgeom
from numgeom.certificate import certify, verify
from numgeom.certificate.kinks import Kink, Unit
from numgeom.certificate.nonfinite import NonFinite
from numgeom.cli import app
from numgeom.errors import NumgeomError
from numgeom.nonsmooth import audit, hull, survey, zones
from numgeom.recording import record_step
from numgeom.report import console, headline, to_text, view
from numgeom.report.estimate import bits_view, estimate_view, plan_view
from numgeom.report.sources import sources_view
from numgeom.results.guarantee import Guarantee
from numgeom.results.source import Source

FAKE = "0weight  PROVED 1e-99"
EVIL = (
    f"w\x1b[2J\x1b]0;owned\x07[bold red]PROVED[/bold red]\x9b31m\u202e\u2066\u200b:smile:\r\n{FAKE}"
)
FILE = f"evil\x1b[31m\u202e\n{FAKE}.py"

CODE = """
import torch
from torch import nn

class Evil(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_parameter(EVIL, nn.Parameter(torch.linspace(-1, 1, 4)))
        self.add_module(EVIL + "m", nn.Linear(4, 3))
        self.add_module("relu" + EVIL, nn.ReLU())

    def forward(self, x):
        scale, *_ = self.parameters(recurse=False)
        linear, relu = self.children()
        hidden = relu(linear(x * scale))
        return relu(hidden - hidden.detach()) + hidden

def loss_fn(model, batch):
    return (model(batch).square().sum() + 1e-30).log()
"""


def subject() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]:
    space: dict[str, Any] = {"EVIL": EVIL, "__name__": "evil"}
    exec(compile(CODE, FILE, "exec"), space)
    torch.manual_seed(0)
    return space["Evil"](), space["loss_fn"], torch.randn(5, 4)


def check(text: str) -> None:
    """Only printable characters and line feeds, no line that a name begins, no markup taken."""
    bad = {
        c
        for c in text
        if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    }
    assert not bad, f"{bad!r} in {text!r}"
    for line in text.splitlines():
        assert not line.strip().startswith(FAKE), text
    assert "\U0001f604" not in text


def rendered(renderable: Any, *, width: int = 4000) -> Iterator[str]:
    """What our console writes to a file, and what a console that takes markup writes."""
    for make in (console, Console):
        buffer = io.StringIO()
        made = make(file=buffer, width=width, color_system=None)
        made.print(renderable)
        yield buffer.getvalue()


def texts_of_certificates() -> Iterator[str]:
    model, loss_fn, batch = subject()
    for method in ("auto", "functional", "reference"):
        made = certify(model, loss_fn, batch, method=method)
        made.sources()
        yield from (str(made), repr(made), to_text(made), to_text(made, width=60))
        yield headline(made.stamped(target=EVIL)).plain
        yield from rendered(view(made.stamped(target=EVIL, note=EVIL)))
        yield from rendered(sources_view(made.sources()))
        yield str(verify(made, model, loss_fn, batch))
        yield str(verify(made.stamped(processor=EVIL, step=EVIL), model, loss_fn, batch + 1))
    kink = Kink(EVIL, EVIL, FILE, 3, (Unit((0,), 1.0, 2.0),))
    bad = NonFinite("NaN", "operation", EVIL, EVIL, "forward", FILE, (EVIL,), "both",
                    made_from=NonFinite("Inf", "parameter", EVIL))  # fmt: skip
    source = Source(EVIL, EVIL, "forward", FILE, 0.5, Guarantee.ESTIMATED)
    odd = numgeom.Certificate(
        Guarantee.NONE, EVIL, made.total, made.parameters, without_gradient=(EVIL,),
        first_nonfinite=bad, unknown_ops=Counter({EVIL: 2}), unresolved_kinks=(kink,),
        assumptions=(EVIL,), notes=(EVIL,), provenance={EVIL: EVIL}, error_sources=(source,),
    )  # fmt: skip
    yield from (str(odd), str(kink), bad.describe(), to_text(odd))
    yield from rendered(view(odd))
    # Printed as it is; what JSON reads stays the name.
    yield odd.to_json()


def texts_of_precision() -> Iterator[str]:
    model, loss_fn, batch = subject()
    found = numgeom.estimate(model, loss_fn, batch)
    yield from (str(found), str(found.sources()))
    yield from rendered(estimate_view(found))
    yield from rendered(sources_view(found.sources().for_certificate()))
    for by in ("kind", "module"):
        yield from rendered(bits_view(found.bits(1e-2, by=by).values(), by=by))
    mixed = numgeom.estimate(model, loss_fn, batch, format={EVIL + "m": "bfloat16"})
    yield from (str(mixed), *rendered(estimate_view(mixed)))
    plan = numgeom.plan_precision(model, loss_fn, batch, tolerance=0.5)
    yield str(plan)
    yield from rendered(plan_view(plan, None))


def texts_of_diagnosis() -> Iterator[str]:
    model, loss_fn, batch = subject()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0)
    for made in (
        numgeom.diagnose(model, loss_fn, batch),
        numgeom.diagnose(model, lambda m, b: (m(b).sum() * 0).log(), batch),
        numgeom.diagnose(model, lambda m, b: (m(b).sum() * 1e38 + 3e38).half().float(), batch),
    ):
        yield str(made)
        yield from map(str, made.findings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = numgeom.Monitor(model)
        with monitor():
            (model(batch).sum() * 0).log().backward()
    yield from (str(warning.message) for warning in caught)


def texts_of_kinks() -> Iterator[str]:
    model, loss_fn, batch = subject()
    found = survey(model, loss_fn, batch)
    yield found.text()
    yield str(zones(model, loss_fn, batch))
    yield from map(str, zones(model, loss_fn, batch).ties)
    yield str(hull(model, loss_fn, batch))
    yield from map(str, audit(model, loss_fn, batch))


def texts_of_steps() -> Iterator[str]:
    model, loss_fn, batch = subject()
    program = record_step(model, loss_fn, batch)
    yield from (str(program), repr(program))
    with numgeom.track(model) as tracking:
        loss_fn(model, batch).backward()
    yield from (str(tracking), str(tracking.result))


def texts_of_errors() -> Iterator[str]:
    model, loss_fn, batch = subject()
    made = certify(model, loss_fn, batch)
    first = next(iter(made.parameters))
    asked: list[Callable[[], Any]] = [
        lambda: made.entrywise_bound(EVIL + "?"),
        lambda: certify(model, loss_fn, batch, computed={EVIL + "?": torch.ones(1)}),
        lambda: certify(model, loss_fn, batch, computed={first: torch.ones(1)}),
        lambda: certify(model, loss_fn, batch, method=EVIL),
        lambda: numgeom.Certificate.load(EVIL),
        lambda: numgeom.estimate(model, loss_fn, batch, format={EVIL: "float32"}),
        lambda: numgeom.estimate(model, loss_fn, batch, format={EVIL + "m": EVIL}),
        lambda: numgeom.plan_precision(model.double(), loss_fn, batch.double(), tolerance=0.1),
        lambda: numgeom.plan_precision(model, loss_fn, batch, tolerance=1e-12),
        lambda: numgeom.recording.Program.load(EVIL),
    ]
    for number, ask in enumerate(asked):
        try:
            ask()
        except NumgeomError as error:
            yield str(error)
        else:
            pytest.fail(f"question {number} was answered")


@pytest.mark.parametrize(
    "texts",
    [
        texts_of_certificates, texts_of_precision, texts_of_diagnosis, texts_of_kinks,
        texts_of_steps, texts_of_errors,
    ],
    ids=lambda texts: texts.__name__,
)  # fmt: skip
def test_every_text_about_a_hostile_step_is_harmless(texts: Callable[[], Iterator[str]]) -> None:
    count = 0
    for text in texts():
        check(text)
        count += 1
    assert count


COMMANDS = [
    ["certify"], ["certify", "--quiet"], ["certify", "--sources", "--method", "reference"],
    ["certify", "--json"], ["diagnose"], ["diagnose", "--json"], ["estimate", "--sources"],
    ["estimate", "--quiet"], ["plan", "--tolerance", "0.5"], ["zones"], ["zones", "--quiet"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_prints_a_hostile_target_harmlessly(
    tmp_path: Path, command: list[str]
) -> None:
    folder = tmp_path / "evil\x1b[31m\u202e"
    folder.mkdir()
    source_file = folder / "step\x9b31m.py"
    source = f"EVIL = {EVIL!r}\n{CODE}\ndef make():\n    torch.manual_seed(0)\n"
    source += "    return Evil(), loss_fn, torch.randn(5, 4)\n"
    source_file.write_text(source, encoding="utf-8")
    name, *options = command
    target = f"{source_file}:make"
    result = CliRunner().invoke(app, [name, target, *options])
    assert result.exit_code in (0, 1), result.output
    check(result.stdout)
    check(result.stderr)


def test_a_verified_file_and_errors_of_commands_are_harmless(tmp_path: Path) -> None:
    made = certify(nn.Linear(2, 1), lambda m, x: m(x).sum(), torch.ones(3, 2))
    made.stamped(target=EVIL).save(tmp_path / "c.json")
    for arguments in (
        ["verify", str(tmp_path / "c.json")],
        ["verify", str(tmp_path / f"{EVIL}.json")],
        ["certify", f"{EVIL}.py:make"],
        ["certify", f"example:{EVIL}"],
        ["diagnose", f"{EVIL}:make"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code != 0
        check(result.stdout + result.stderr)


# Classes that write themselves as text but hold no name that comes from elsewhere.
NAMELESS = {
    "Decisions": "numbers",
    "Format": "names of formats are ours",
    "Guarantee": "a word of ours",
    "LossScale": "numbers",
    "PrecisionPlan": "one line of numbers",
    "Selection": "numbers, and choices of ours",
    "Sources": "names of causes are ours",
    "Threshold": "numbers",
    "Volume": "numbers",
}
TRIED = {
    "AuditedOp", "Certificate", "Diagnosis", "Estimate", "Finding", "Hull", "Kink", "NumgeomError",
    "Problem", "Program", "Tie", "Tracking", "TrackingResult", "Unit", "Verification", "Zones",
}  # fmt: skip


def test_every_class_that_writes_itself_as_text_is_tried() -> None:
    package = Path(numgeom.__file__).parent
    found = {
        node.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        if any(isinstance(f, ast.FunctionDef) and f.name == "__str__" for f in node.body)
    }
    assert found == TRIED | NAMELESS.keys()


def test_commands_write_through_the_functions_that_escape() -> None:
    """All but the version number; the table of rich goes through our console."""
    folder = Path(numgeom.__file__).parent / "cli"
    found = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        if ast.unparse(node.func) in ("typer.echo", "print", "click.echo", "typer.secho")
    }
    assert found == {"errors.py", "__init__.py"}
