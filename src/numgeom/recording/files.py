"""How is a program kept in a file?

A file is an archive (`numgeom.files.archive`): one JSON document with the calls and the settings,
and the tensors beside it. Reading a file runs no code from it and no op that it names, and what it
names is checked (`numgeom.recording.graph_text`). Files of version 1, which torch.save wrote, are
read as well.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from numgeom.errors import FileFormatError
from numgeom.files.archive import Archive, read_archive, write_archive
from numgeom.files.layout import check_expansion, dtype_from
from numgeom.files.reading import parse_json
from numgeom.recording.graph_text import graph_from, structure_of
from numgeom.recording.program import Program, Replay

FORMAT = "numgeom.program"
VERSION = 2
_MOST_THREADS = 1024


@dataclass(frozen=True, eq=False)
class SavedProgram:
    """What a program file holds.

    Attributes:
        program: The program.
        more: What was kept beside it, by name.
    """

    program: Program
    more: Mapping[str, Any]


def save(program: Program, path: Path, more: Mapping[str, Any]) -> None:
    """Write a program; see `Program.save`."""
    recorded = program.recorded
    tensors: dict[str, Tensor] = {}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "structure": structure_of(program),
        "environment": {
            "switches": program.switches,
            "default_dtype": str(program.default_dtype).removeprefix("torch."),
            "versions": program.versions,
        },
        "gradients": list(recorded.gradients),
        "updates": list(recorded.updates),
        "more": {name: _without_tensors(value, name, tensors) for name, value in more.items()},
    }
    for section in ("constants", "gradients", "updates"):
        held = program.constants if section == "constants" else getattr(recorded, section)
        tensors |= {f"{section}/{name}": tensor for name, tensor in held.items()}
    if recorded.loss is not None:
        tensors["loss/"] = recorded.loss
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FileFormatError(
            f"Cannot save what is to be kept beside the program ({error}): give tensors, texts, "
            "numbers, and lists and dictionaries of them."
        ) from error
    write_archive(path, text, tensors)


def load(path: Path, allow: Collection[str] = ()) -> Program:
    """Read a program; see `Program.load`."""
    return load_saved(path, allow).program


def load_saved(path: Path, allow: Collection[str] = ()) -> SavedProgram:
    """Read a program and what was kept beside it.

    Raises:
        FileFormatError: as `Program.load` does.
    """
    if isinstance(allow, str):
        allow = (allow,)
    if not path.exists():
        raise FileFormatError(f"{path}: there is no such file")
    archive = read_archive(path)
    try:
        content = _content(archive, path)
        return SavedProgram(_program(content, path, allow), content["more"])
    except FileFormatError as error:
        text = str(error)
        raise FileFormatError(text if str(path) in text else f"{path}: {text}") from error
    except _DAMAGE as error:
        raise FileFormatError(f"{path}: damaged ({_first(error)}). Save it again.") from error


_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError)


def _content(archive: Archive, path: Path) -> dict[str, Any]:
    """The parts of a file, whichever version wrote it."""
    if archive.content is not None:
        content = dict(archive.content)
        _check_format(content, 1, path)
        content["environment"] = parse_json(content["environment"], path)
        own = {"format", "version", "structure", *_SECTIONS, "loss", "environment"}
        content["more"] = {key: value for key, value in content.items() if key not in own}
        return content
    document = parse_json(archive.document, path)
    _check_format(document, VERSION, path)
    sections: dict[str, dict[str, Tensor]] = {"constants": {}, "gradients": {}, "updates": {}}
    more: dict[str, Tensor] = {}
    loss = None
    for name, tensor in archive.tensors.items():
        section, _, rest = name.partition("/")
        if section in sections:
            sections[section][rest] = tensor
        elif name == "loss/":
            loss = tensor
        elif section == "more":
            more[name] = tensor
        else:
            raise ValueError(f"the tensor {name[:60]!r} belongs to nothing")
    for section in ("gradients", "updates"):  # in the order of the document
        if sorted(document[section]) != sorted(sections[section]):
            raise ValueError(f"its {section} are not those that it lists")
    extra = {name: _with_tensors(value, more) for name, value in document["more"].items()}
    return {**document, **sections, "loss": loss, "more": extra}


_SECTIONS = ("constants", "gradients", "updates")


def _check_format(content: Any, version: int, path: Path) -> None:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise FileFormatError(f"{path}: not a file written by Program.save")
    if type(content.get("version")) is not int or content["version"] != version:
        raise FileFormatError(
            f"{path}: written in version {str(content.get('version'))[:30]} of the format; this "
            f"numgeom reads up to version {VERSION}. Record the step again, or use the numgeom "
            "that wrote it"
        )


def _program(content: Mapping[str, Any], path: Path, allow: Collection[str]) -> Program:
    for section in _SECTIONS:
        held = content[section]
        if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
            raise ValueError(f"its {section} are no tensors")
    constants, gradients, updates = (dict(content[section]) for section in _SECTIONS)
    loss = content["loss"]
    if not isinstance(loss, Tensor | None):
        raise ValueError("its loss is no tensor")
    check_expansion([*constants.values(), *gradients.values(), *updates.values()])
    environment = content["environment"]
    switches, versions = environment["switches"], environment["versions"]
    _check_environment(switches, versions)
    graph = graph_from(content["structure"], constants, path, allow)
    _check_outputs(graph, gradients, updates, loss)
    return Program(
        graph,
        constants,
        Replay(gradients, loss, updates),
        switches,
        dtype_from(environment["default_dtype"]),
        versions,
    )


def _check_environment(switches: Any, versions: Any) -> None:
    """Settings that a replay would make: few threads, and otherwise flags and levels."""
    if not isinstance(switches, dict) or not isinstance(versions, dict):
        raise ValueError("its settings are damaged")
    for name, value in switches.items():
        flags = value if isinstance(value, list) and len(value) <= 4 else [value]
        if not all(isinstance(flag, bool | int) and 0 <= flag <= _MOST_THREADS for flag in flags):
            raise ValueError(f"no torch can be set to {name[:60]!r} = {str(value)[:60]}")
    if switches.get("num_threads", 1) == 0:
        raise ValueError("no torch runs on 0 threads")
    if not all(isinstance(text, str) for text in versions.values()):
        raise ValueError("its versions are damaged")


def _check_outputs(
    graph: fx.Graph,
    gradients: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    loss: Tensor | None,
) -> None:
    """What was recorded must be what the program gives, as far as that shows without a run."""
    outputs: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    for kind, held in (("gradients", gradients), ("updates", updates)):
        if outputs[kind].keys() != held.keys():
            raise ValueError(f"its {kind} are not those of its calls")
        for name, tensor in held.items():
            _check_output(outputs[kind][name], tensor, name)
    if (loss is None) != (outputs["loss"] is None):
        raise ValueError("its loss is not that of its calls")
    if loss is not None:
        _check_output(outputs["loss"], loss, "the loss")


def _check_output(node: fx.Node, tensor: Tensor, name: str) -> None:
    meta = node.meta.get("tensors", {}).get(())
    if meta is not None and (meta.shape, meta.dtype) != (tuple(tensor.shape), tensor.dtype):
        raise ValueError(f"{name[:60]} is not as its call gives it")


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors are put aside. Infinities and NaN are no JSON and raise."""
    if isinstance(value, Tensor):
        key = f"more/{len(tensors)}/{name}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        pairs = [[str(key), _without_tensors(v, str(key), tensors)] for key, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, name, tensors) for item in value]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tensor":
        return tensors[content]
    return {str(key): _with_tensors(item, tensors) for key, item in content}


def _first(error: Exception) -> str:
    text = str(error).strip()
    text = text.splitlines()[0][:200] if text else type(error).__name__
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text
