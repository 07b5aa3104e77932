"""Does the source keep to the rules of its architecture?

Each rule is a function from source files to a list of violations. It has two tests: the package
has no violation, and a planted one is found.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "numgeom"

# A module may import from its own layer and from those above it in this list. `numgeom/__init__`
# is written as the package itself. Within a layer the imports must not run in a circle.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "version", "visible"}),
    frozenset({"failures"}),
    frozenset({"files"}),
    frozenset({"arithmetic"}),
    frozenset({"recording"}),
    frozenset({"ops"}),
    frozenset({"semantics"}),
    frozenset({"results"}),
    frozenset({"certificate", "functionals", "diagnosis", "precision", "nonsmooth"}),
    frozenset({"report", "training", "examples", "experiments", "targets"}),
    frozenset({PACKAGE}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
# What a part may import, where that is less than the layers allow.
ONLY: dict[str, tuple[str, ...]] = {
    "recording": (
        "numgeom.errors",
        "numgeom.failures",
        "numgeom.version",
        "numgeom.visible",
        "numgeom.files",
        "numgeom.arithmetic.formats",
    ),
}
# The parts that adapt to PyTorch's internals.
PRIVATE_TORCH = frozenset({"recording", "ops"})
MAX_LINES = 400
NAMELESS = frozenset({"utils", "util", "helpers", "common", "misc"})


@dataclass(frozen=True)
class Source:
    """One Python file; `module` is its dotted name, as in `numgeom.recording.program`."""

    path: Path
    module: str

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def at(self, node: ast.AST | int) -> str:
        line = node if isinstance(node, int) else getattr(node, "lineno", 1)
        return f"{self.path.name}:{line} ({self.module})"


Rule = Callable[[list[Source]], list[str]]


def sources(folder: Path) -> list[Source]:
    """Every Python file below a folder; module names start at the folder's own name."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.append(Source(path=path, module=".".join(parts)))
    return found


def package_sources() -> list[Source]:
    found = sources(ROOT / "src" / PACKAGE)
    assert found, "no source files found: the tests of this file would pass without looking"
    return found


def all_sources() -> list[Source]:
    folders = ("tests", "benchmarks", "reproductions")
    return package_sources() + [source for name in folders for source in sources(ROOT / name)]


def part(module: str) -> str:
    """`numgeom.recording.program` -> `recording`; the package itself keeps its name."""
    return module.split(".")[1] if "." in module else module


def imports(source: Source, package: list[Source]) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module of the package, also inside functions and under TYPE_CHECKING."""
    modules = {other.module for other in package}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if source.is_package else node.level
                parents = source.module.split(".")
                base = ".".join(parents[: len(parents) - up] + ([base] if base else []))
            # `from package import name` imports a module where the name is one.
            dotted = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in dotted]
        else:
            continue
        for name in dict.fromkeys(names):
            if name == PACKAGE or name.startswith(PACKAGE + "."):
                yield node, name


def imports_against_the_layers(package: list[Source]) -> list[str]:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    found, edges = [], {}
    for source in package:
        here = part(source.module)
        if here not in rank:
            found.append(f"{source.at(1)}: `{here}` has no place in LAYERS; give it one")
            continue
        for node, name in imports(source, package):
            there = part(name)
            if there == here:
                continue
            edges.setdefault(here, set()).add(there)
            if there not in rank or rank[there] > rank[here]:
                found.append(f"{source.at(node)}: `{here}` must not import `{name}`")
            elif here in ONLY and not any(f"{name}.".startswith(f"{ok}.") for ok in ONLY[here]):
                found.append(f"{source.at(node)}: `{here}` may import only {ONLY[here]}")
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found.append(f"imports run in a circle: {' <- '.join(error.args[1])}")
    return found


def private_torch_outside_its_place(package: list[Source]) -> list[str]:
    found: dict[str, str] = {}  # one violation a line
    for source in package:
        if part(source.module) in PRIVATE_TORCH:
            continue
        # What a local name stands for, as in `from torch import nn as n`: n -> torch.nn.
        bound: dict[str, str] = {}
        used: list[tuple[ast.AST, str]] = []
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    used.append((node, alias.name))
                    first = alias.name.split(".")[0]
                    bound[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    used.append((node, f"{node.module}.{alias.name}"))
                    bound[alias.asname or alias.name] = used[-1][1]
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and (name := dotted(node, bound)):
                used.append((node, name))
        for node, name in used:
            if is_private_torch(name):
                where = source.at(node)
                found.setdefault(where, f"{where}: `{name}` belongs to recording and ops")
    return list(found.values())


def dotted(node: ast.expr, bound: dict[str, str]) -> str | None:
    """The full name of `a.b.c`, with `a` replaced by what was imported under that name."""
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, bound)
        return f"{owner}.{node.attr}" if owner else None
    return None


def is_private_torch(name: str) -> bool:
    """A name of torch with a private component, or ATen; `torch.__version__` is public."""
    first, *rest = name.split(".")
    if first != "torch":
        return False
    private = [word for word in rest if word.startswith("_") and not word.endswith("__")]
    return bool(private) or rest[:1] == ["ops"]


def undeclared_dependencies(package: list[Source]) -> list[str]:
    """What an installation without extras lacks may be imported inside functions only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    found = []
    for source in package:
        for node in runs_at_import(source.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names | declared | {PACKAGE}:
                    found.append(f"{source.at(node)}: `{name}` is no dependency of the package")
    return found


def runs_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those in the bodies of functions and under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from runs_at_import(child)


def string_annotations(files: list[Source]) -> list[str]:
    return [
        f"{source.at(node)}: annotations must be real objects, drop `from __future__`"
        for source in files
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if any(alias.name == "annotations" for alias in node.names)
    ]


def star_imports(files: list[Source]) -> list[str]:
    return [
        f"{source.at(node)}: name what is imported from `{node.module}`"
        for source in files
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


def files_without_an_idea(files: list[Source]) -> list[str]:
    return [
        f"{source.at(1)}: the name must say what the file is about"
        for source in files
        if NAMELESS & {word.rstrip("0123456789") for word in source.module.split(".")}
    ]


def long_files(files: list[Source]) -> list[str]:
    counts = [(source, len(source.text.splitlines())) for source in files]
    return [
        f"{source.at(1)}: {count} lines, split by idea at {MAX_LINES}"
        for source, count in counts
        if count > MAX_LINES
    ]


# As in "noqa: E501 - reason" and "pyright: ignore[code]  # reason".
IGNORE = re.compile(r"#\s*(?:noqa|pyright:\s*ignore|type:\s*ignore)\b")
IGNORE_WITH_REASON = re.compile(
    r"#\s*(?:noqa:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*|(?:pyright|type):\s*ignore\[[\w, -]+\])"
    r"\W+\w[^#]*\w"
)


def ignores_without_a_reason(files: list[Source]) -> list[str]:
    return [
        f"{source.at(token.start[0])}: an ignore names its code and its reason"
        for source in files
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline)
        if token.type == tokenize.COMMENT
        if IGNORE.search(token.string) and not IGNORE_WITH_REASON.search(token.string)
    ]


PACKAGE_RULES = [
    imports_against_the_layers,
    private_torch_outside_its_place,
    undeclared_dependencies,
    files_without_an_idea,
]
FILE_RULES = [string_annotations, star_imports, long_files, ignores_without_a_reason]


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule) -> None:
    assert rule(package_sources()) == []


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: Rule) -> None:
    assert rule(all_sources()) == []


# (rule, file below the planted package, its text, how often the rule must object)
PLANTED: list[tuple[Rule, str, str, int]] = [
    (imports_against_the_layers, "ops/a.py", "from numgeom.certificate import b", 1),
    (imports_against_the_layers, "ops/a.py", "import numgeom.semantics.ball", 1),
    (imports_against_the_layers, "ops/a.py", "from numgeom import cli", 1),
    (imports_against_the_layers, "ops/a.py", "from numgeom import certify", 1),
    (imports_against_the_layers, "ops/a.py", "from ..report import table", 1),
    (imports_against_the_layers, "ops/__init__.py", "from ..report import table", 1),
    (imports_against_the_layers, "ops/a.py", "def f():\n    import numgeom.report", 1),
    (imports_against_the_layers, "ops/a.py", "from numgeom.recording.program import Call", 0),
    (imports_against_the_layers, "ops/a.py", "from . import kinds\nfrom ..errors import E", 0),
    (imports_against_the_layers, "recording/a.py", "from numgeom.arithmetic import formats", 0),
    (imports_against_the_layers, "recording/a.py", "from numgeom.arithmetic.formats import F", 0),
    (imports_against_the_layers, "recording/a.py", "from numgeom.arithmetic import rounding", 1),
    (imports_against_the_layers, "recording/a.py", "import numgeom.arithmetic.formats_more", 1),
    (imports_against_the_layers, "newcomer/a.py", "", 1),
    (private_torch_outside_its_place, "cli.py", "from torch._subclasses import FakeTensor", 1),
    (private_torch_outside_its_place, "cli.py", "from torch import _C", 1),
    (private_torch_outside_its_place, "cli.py", "import torch.utils._python_dispatch as d", 1),
    (private_torch_outside_its_place, "cli.py", "import torch as t\nt._C._get_tracing_state()", 1),
    (private_torch_outside_its_place, "cli.py", "import torch\ntorch.ops.aten.mm.default", 1),
    (private_torch_outside_its_place, "cli.py", "from torch import utils\nutils._pytree", 1),
    (private_torch_outside_its_place, "cli.py", "import torch\ntorch.__version__", 0),
    (private_torch_outside_its_place, "cli.py", "import mine\nmine._C", 0),
    (private_torch_outside_its_place, "ops/a.py", "from torch import _C", 0),
    (private_torch_outside_its_place, "recording/a.py", "import torch\ntorch.ops.aten", 0),
    (undeclared_dependencies, "cli.py", "from scipy import stats", 1),
    (undeclared_dependencies, "cli.py", "try:\n    import sklearn.datasets as d\nfinally: ...", 1),
    (undeclared_dependencies, "cli.py", "class A:\n    import jaxtyping", 1),
    (undeclared_dependencies, "cli.py", "import json, torch.nn\nfrom rich import table", 0),
    (undeclared_dependencies, "cli.py", "def f():\n    import scipy", 0),
    (undeclared_dependencies, "cli.py", "if TYPE_CHECKING:\n    import jaxtyping", 0),
    (string_annotations, "cli.py", "from __future__ import annotations", 1),
    (star_imports, "cli.py", "from math import *", 1),
    (files_without_an_idea, "ops/utils2.py", "", 1),
    (files_without_an_idea, "common/a.py", "", 1),
    (long_files, "cli.py", "x = 1\n" * 401, 1),
    (long_files, "cli.py", "x = 1\n" * 400, 0),
    (ignores_without_a_reason, "cli.py", "x = 1  # noqa", 1),
    (ignores_without_a_reason, "cli.py", "x = 1  # noqa: E501", 1),
    (ignores_without_a_reason, "cli.py", "x = 1  # type: ignore", 1),
    (ignores_without_a_reason, "cli.py", "x = 1  # type: ignore[arg-type]", 1),
    (ignores_without_a_reason, "cli.py", "x = 1  # pyright: ignore[reportX]", 1),
    (ignores_without_a_reason, "cli.py", "x = 1  # pyright: ignore the stubs are wrong", 1),
    (ignores_without_a_reason, "cli.py", "x = 1  # noqa: E501, F401 - a table", 0),
    (ignores_without_a_reason, "cli.py", "x = 1  # type: ignore[arg-type]  # stubs lag", 0),
    (ignores_without_a_reason, "cli.py", "x = 1  # pyright: ignore[reportX]: no stubs", 0),
    (ignores_without_a_reason, "cli.py", "x = '# noqa'", 0),
]


@pytest.mark.parametrize(("rule", "file", "text", "objections"), PLANTED)
def test_a_planted_violation_is_found(
    tmp_path: Path, rule: Rule, file: str, text: str, objections: int
) -> None:
    for name, content in {
        "__init__.py": "",
        "errors.py": "",
        "cli.py": "",
        "arithmetic/formats.py": "",
        "arithmetic/rounding.py": "",
        file: text,
    }.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if name == file else content, encoding="utf-8")
    assert len(rule(sources(tmp_path / PACKAGE))) == objections


def test_imports_in_a_circle_within_a_layer_are_found(tmp_path: Path) -> None:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "report.py").write_text("import numgeom.training")
    (folder / "training.py").write_text("from numgeom import report")
    (violation,) = imports_against_the_layers(sources(folder))
    assert "report" in violation
    assert "training" in violation


def test_every_rule_has_a_planted_violation() -> None:
    caught = {rule.__name__ for rule, _, _, objections in PLANTED if objections}
    assert caught == {rule.__name__ for rule in PACKAGE_RULES + FILE_RULES}
