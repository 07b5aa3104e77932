"""How is a program's graph written as text, and what is asked of such a text before it is believed?

A text from a file is data that somebody may have written to do harm. Reading it runs no op. It may
name ops that `numgeom.recording.purity` lets in; arguments refer to earlier values alone; shapes,
formats, devices and names are checked one by one.
"""

import json
import operator
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from numgeom.errors import FileFormatError
from numgeom.files.layout import check_sizes, device_from, dtype_from, sizes_from
from numgeom.files.reading import parse_json
from numgeom.recording.calls import CallInfo, TensorMeta
from numgeom.recording.decisions import decision_of
from numgeom.recording.program import Program
from numgeom.recording.purity import impurity, objection, objection_to_call

MOST_NODES = 1 << 20
_TARGET = re.compile(r"[a-z]+_\d{1,9}")
_ROLES = ("parameter", "buffer", "input", "drawn", "decision")
_PHASES = ("forward", "backward", "update")
_OUTPUTS = {"gradients", "loss", "updates"}


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


def graph_from(
    text: str, constants: Mapping[str, torch.Tensor], path: object, allow: Collection[str] = ()
) -> fx.Graph:
    """Read what `structure_of` wrote. Nothing is run.

    Args:
        text: The text.
        constants: The tensors that its `get_attr` nodes name.
        path: The file that it is from, for errors.
        allow: Further ops that it may call.

    Raises:
        FileFormatError: if it calls an op that no file may call; names all of them.
        ValueError: if it is damaged; also KeyError, TypeError and IndexError.
    """
    rows = parse_json(text, path)
    if not isinstance(rows, list) or len(rows) > MOST_NODES:
        raise ValueError(f"its calls are no list of at most {MOST_NODES}")
    reader = _Reader(constants, allow)
    for row in rows:
        reader.read(row)
    if reader.refused:
        raise FileFormatError(_refusal(path, reader.refused))
    outputs = reader.nodes[-1].args[0] if reader.ended else None
    if not isinstance(outputs, dict) or outputs.keys() - {"decisions"} != _OUTPUTS:
        raise ValueError("the program has no outputs")
    return reader.graph


def _refusal(path: object, refused: Mapping[str, str]) -> str:
    named = "; ".join(f"{op}: {why}" for op, why in list(refused.items())[:5])
    more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
    vouched = [op for op, why in refused.items() if not why.endswith(_NEVER)]
    text = (
        f"{path} calls ops that a program file may not call ({named}{more}). A file may only call "
        "pure functions of tensors that torch and this package state something of."
    )
    if len(vouched) == len(refused):
        text += (
            " If you know where the file comes from and what these ops do, load the library that "
            f"defines them and pass Program.load(path, allow={vouched!r})."
        )
    return text


_NEVER = " (never allowed)"


class _Reader:
    """Builds a graph row by row, and notes the ops that it refuses."""

    def __init__(self, constants: Mapping[str, torch.Tensor], allow: Collection[str]) -> None:
        self.graph = fx.Graph()
        self.nodes: list[fx.Node] = []
        self.refused: dict[str, str] = {}
        self.ended = False
        self._constants = constants
        self._allow = frozenset(allow)
        self._seen: set[str] = set()

    def read(self, row: Any) -> None:
        """Add one row."""
        if not isinstance(row, dict) or self.ended:
            raise ValueError("one of its calls is no call")
        kind = row.get("op")
        if kind == "get_attr":
            node = self._constant(row)
        elif kind == "output":
            self.ended = True
            (outputs,) = self._arguments(row["args"])
            node = self.graph.output(_checked_outputs(outputs))
        elif kind == "call_function":
            node = self._call(row) if "target" in row else self._part(row)
        else:
            raise ValueError(f"unknown kind of node {str(kind)[:60]!r}")
        self.nodes.append(node)

    def _constant(self, row: Mapping[str, Any]) -> fx.Node:
        target, role = row["target"], row["role"]
        if not isinstance(target, str) or not _TARGET.fullmatch(target) or target in self._seen:
            raise ValueError(f"{str(target)[:60]!r} is no name of a constant, or is there twice")
        if target not in self._constants:
            raise ValueError(f"the tensor {target} is missing")
        if role not in _ROLES:
            raise ValueError(f"{str(role)[:60]!r} is no role of a constant")
        self._seen.add(target)
        node = self.graph.create_node("get_attr", target, name=target)
        node.meta["role"], node.meta["name"] = role, _text(row["name"])
        return node

    def _part(self, row: Mapping[str, Any]) -> fx.Node:
        """One of several outputs of a call."""
        whole, position = self._arguments(row["args"])
        if not isinstance(whole, fx.Node) or type(position) is not int or position < 0:
            raise ValueError("an output of a call is named wrongly")
        if whole.op != "call_function":
            raise ValueError("an output of something that is no call is asked for")
        return self.graph.call_function(operator.getitem, (whole, position), {})

    def _call(self, row: Mapping[str, Any]) -> fx.Node:
        op = _op(row["target"])
        args, kwargs = self._arguments(row["args"]), _decode(row["kwargs"], self.nodes)
        if not isinstance(kwargs, dict):
            raise ValueError(f"arguments of {op} are no arguments")
        names = {argument.name for argument in op._schema.arguments}
        if len(args) > len(names) or not kwargs.keys() <= names:
            raise ValueError(f"{op} does not take the arguments that it is given")
        self._refuse(op, args, kwargs)
        node = self.graph.call_function(op, args, kwargs)
        phase, module, source = row["call"]
        if phase not in _PHASES:
            raise ValueError(f"{str(phase)[:60]!r} is no phase")
        node.meta["call"] = CallInfo(phase, _text(module), _text(source))
        node.meta["tensors"] = dict(map(_meta, row["tensors"]))
        return node

    def _refuse(self, op: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        name = str(op)
        never = impurity(op)
        if never is not None:
            self.refused[name] = never + _NEVER
        elif name not in self._allow:
            reason = objection(op) or objection_to_call(op, args, kwargs)
            if reason is not None:
                self.refused[name] = reason

    def _arguments(self, value: Any) -> tuple[Any, ...]:
        found = _decode(value, self.nodes)
        if not isinstance(found, tuple):
            raise ValueError("arguments of a call are no arguments")
        return found


def _checked_outputs(outputs: Any) -> dict[str, Any]:
    """The outputs of a program, if every one of them is a value of it."""
    if not isinstance(outputs, dict):
        raise ValueError("the program has no outputs")
    for key in ("gradients", "updates"):
        values = outputs.get(key)
        if not isinstance(values, dict) or not all(isinstance(v, fx.Node) for v in values.values()):
            raise ValueError("an output of the program is no value of it")
        for name in values:
            _text(name)
    if not isinstance(outputs.get("loss"), fx.Node | None):
        raise ValueError("the loss of the program is no value of it")
    if "decisions" in outputs:
        if not isinstance(outputs["decisions"], tuple):
            raise ValueError("the decisions of the program are damaged")
        for row in outputs["decisions"]:
            _check_decision(row)
    return outputs


def _check_decision(row: Any) -> None:
    """What decided must be a value of the program, and what was taken a constant."""
    if not isinstance(row, tuple):
        raise ValueError("a decision of the program is damaged")
    found = decision_of(row)
    if not isinstance(found.value, fx.Node) or not isinstance(found.taken, fx.Node):
        raise ValueError("a decision of the program is no value of it")
    if found.taken.op != "get_attr":
        raise ValueError("what a decision of the program took is no constant of it")
    for text in (found.op, found.info.module, found.info.source):
        _text(text)


def _meta(row: Any) -> tuple[tuple[int, ...], TensorMeta]:
    path, shape, stride, dtype, device = row
    shape, stride = sizes_from(shape), sizes_from(stride)
    check_sizes(shape)
    if len(shape) != len(stride):
        raise ValueError("a result of a call has not as many strides as sizes")
    return sizes_from(path), TensorMeta(shape, stride, dtype_from(dtype), device_from(device))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError(f"{str(value)[:60]!r} is no name")
    return value


_LONGEST = 10_000  # characters of a name
_OP = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*\.\w+", re.ASCII)


def _op(name: Any) -> OpOverload:
    if not isinstance(name, str) or not _OP.fullmatch(name):
        raise ValueError(f"{str(name)[:60]!r} is no name of an op")
    namespace, op, overload = name.split(".")
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except (AttributeError, RuntimeError) as error:
        raise FileFormatError(
            f"the op {name} is not known to torch {torch.__version__}; load the library that "
            "defines it, or the torch that recorded the program"
        ) from error
    if not isinstance(found, OpOverload):
        raise ValueError(f"{name} is not an op")
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
_MEMORY_FORMATS = {
    name: getattr(torch, name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}


def _decode(value: Any, nodes: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("an argument of a call is damaged")
    ((tag, content),) = value.items()
    if tag == "node":
        if type(content) is not int or not 0 <= content < len(nodes):
            raise ValueError("an argument of a call is no value before it")
        return nodes[content]
    if tag == "float":
        return float.fromhex(content)
    if tag == "complex":
        re, im = content
        return complex(float.fromhex(re), float.fromhex(im))
    if tag == "tuple":
        return tuple(_decode(v, nodes) for v in content)
    if tag == "dict":
        pairs = [(key, _decode(v, nodes)) for key, v in content]
        found = dict(pairs)
        if len(found) < len(pairs) or not all(isinstance(key, str) for key in found):
            raise ValueError("an argument of a call is damaged")
        return found
    if tag == "device":
        return device_from(content)
    if tag == "dtype":
        return dtype_from(content)
    if tag == "layout" and content == "strided":
        return torch.strided
    if tag == "memory_format" and content in _MEMORY_FORMATS:
        return _MEMORY_FORMATS[content]
    raise ValueError(f"an argument of a call is damaged ({str(tag)[:30]} {str(content)[:60]!r})")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
