"""How is a program kept in a file?

A file holds one JSON text (the calls) and the tensors, written by torch.save and read with
`weights_only=True`: reading a file runs no code from it.
"""

import json
import operator
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from numgeom.errors import FileFormatError
from numgeom.recording.calls import CallInfo, TensorMeta
from numgeom.recording.program import Program, Replay

FORMAT = "numgeom.program"
VERSION = 1


def save(program: Program, path: Path, more: Mapping[str, Any]) -> None:
    """Write a program; see `Program.save`."""
    recorded = program.recorded
    content = {
        "format": FORMAT,
        "version": VERSION,
        "structure": structure_of(program),
        "environment": json.dumps(
            {
                "switches": program.switches,
                "default_dtype": _dtype_name(program.default_dtype),
                "versions": program.versions,
            }
        ),
        "constants": _detached(program.constants),
        "gradients": _detached(recorded.gradients),
        "updates": _detached(recorded.updates),
        "loss": recorded.loss,
    }
    torch.save({**more, **content}, path)


def load(path: Path) -> Program:
    """Read a program; see `Program.load`."""
    if not path.is_file():
        raise FileFormatError(f"{path}: there is no such file")
    try:
        content = torch.load(path, weights_only=True, map_location=_available)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise FileFormatError(
            f"{path}: not a program file, or damaged ({_first(error)})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(f"{path}: not a file written by Program.save")
    if content.get("version") != VERSION:
        raise FileFormatError(
            f"{path}: written in version {content.get('version')} of the format; this numgeom "
            f"reads version {VERSION}. Record the step again, or use the numgeom that wrote it"
        )
    try:
        environment = json.loads(content["environment"])
        constants = dict(content["constants"])
        graph = _graph_from(json.loads(content["structure"]), constants)
        gradients, updates = dict(content["gradients"]), dict(content["updates"])
        return Program(
            graph,
            constants,
            Replay(gradients, content["loss"], updates),
            environment["switches"],
            _dtype(environment["default_dtype"]),
            environment["versions"],
        )
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise FileFormatError(f"{path}: damaged ({_first(error)})") from error


def structure_of(program: Program, *, origins: bool = True) -> str:
    """The graph as JSON text, with or without where its calls came from."""
    index = {node: i for i, node in enumerate(program.graph.nodes)}
    rows = []
    for node in program.graph.nodes:
        row: dict[str, Any] = {"op": node.op}
        if node.op == "get_attr":
            row |= {"target": node.target, "role": node.meta["role"], "name": node.meta["name"]}
        else:
            row["args"] = _encode(node.args, index)
            row["kwargs"] = _encode(node.kwargs, index)
        if "call" in node.meta:
            info: CallInfo = node.meta["call"]
            row["target"] = str(node.target)
            if origins:
                row["call"] = [info.phase, info.module, info.source]
            row["tensors"] = [
                [list(path), list(m.shape), list(m.stride), _dtype_name(m.dtype), str(m.device)]
                for path, m in node.meta["tensors"].items()
            ]
        rows.append(row)
    return json.dumps(rows)


def _graph_from(rows: list[dict[str, Any]], constants: dict[str, torch.Tensor]) -> fx.Graph:
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for row in rows:
        if row["op"] == "get_attr":
            if row["target"] not in constants:
                raise FileFormatError(f"damaged: the tensor {row['target']} is missing")
            node = graph.create_node("get_attr", row["target"], name=row["target"])
            node.meta["role"], node.meta["name"] = row["role"], row["name"]
        elif row["op"] == "output":
            node = graph.output(_decode(row["args"], nodes)[0])
        elif row["op"] == "call_function":
            target = _op(row["target"]) if "target" in row else operator.getitem
            args, kwargs = _decode(row["args"], nodes), _decode(row["kwargs"], nodes)
            node = graph.call_function(target, args, kwargs)
            if "target" in row:
                node.meta["call"] = CallInfo(*row["call"])
                node.meta["tensors"] = {
                    tuple(path): TensorMeta(
                        tuple(shape), tuple(stride), _dtype(dtype), torch.device(device)
                    )
                    for path, shape, stride, dtype, device in row["tensors"]
                }
        else:
            raise FileFormatError(f"damaged: unknown kind of node {row['op']!r}")
        nodes.append(node)
    outputs = nodes[-1].args[0] if nodes and nodes[-1].op == "output" else None
    if not isinstance(outputs, dict) or outputs.keys() != {"gradients", "loss", "updates"}:
        raise FileFormatError("damaged: the program has no outputs")
    return graph


def _op(name: str) -> OpOverload:
    namespace, op, overload = (*name.split("."), "", "")[:3]
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except AttributeError as error:
        raise FileFormatError(
            f"the op {name} is not known to torch {torch.__version__}; load the library that "
            "defines it, or the torch that recorded the program"
        ) from error
    if not isinstance(found, OpOverload):
        raise FileFormatError(f"damaged: {name} is not an op")
    return found


# -- arguments ---------------------------------------------------------------------------
# JSON has no tuples, dtypes, infinities: those are written as {"tag": value}.


def _encode(value: Any, index: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": index[value]}
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, list):
        return [_encode(v, index) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(v, index) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[k, _encode(v, index)] for k, v in value.items()]}
    for tag, kind in _NAMED.items():
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    raise FileFormatError(
        f"an argument of type {type(value).__name__} cannot be saved; replay the program in the "
        "process that recorded it"
    )


_NAMED = {
    "dtype": torch.dtype,
    "device": torch.device,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def _decode(value: Any, nodes: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "node":
        return nodes[content]
    if tag == "float":
        return float.fromhex(content)
    if tag == "complex":
        return complex(*(float.fromhex(part) for part in content))
    if tag == "tuple":
        return tuple(_decode(v, nodes) for v in content)
    if tag == "dict":
        return {k: _decode(v, nodes) for k, v in content}
    if tag == "device":
        return torch.device(content)
    found = getattr(torch, content, None)
    if tag not in _NAMED or not isinstance(found, _NAMED[tag]):
        raise FileFormatError(f"damaged: {tag} {content!r}")
    return found


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise FileFormatError(f"damaged: unknown dtype {name!r}")
    return found


def _detached(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _available(storage: Any, location: str) -> Any:
    """Keep tensors where they were, or on the CPU where that device is missing."""
    if location.startswith("cuda") and not torch.cuda.is_available():
        return storage
    return None


def _first(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
