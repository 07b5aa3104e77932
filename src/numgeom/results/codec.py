"""How does a result become a document, and a document a result again?

A result is a frozen dataclass of plain data, and its annotations say how it is written: a field is
a key; a tuple is a list; a number that JSON does not have is "NaN", "Infinity" or "-Infinity"; an
enumeration is the name of its member, or its value where that is a text; a mapping is an object,
or, where its rows carry their own name, the list of them. Reading is strict: a field of another
type, one that is missing without a default, and one that is not known are errors that name the
place.

A class may say more:

- `DERIVED`, names of properties that are written beside the fields for readers of the file; they
  are not believed when they are read;
- `check()`, which raises ValueError where its fields do not fit together.
"""

import dataclasses
import enum
import math
import types
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from numgeom.results.store import decode_number, encode_number

BESIDE: Mapping[str, bool] = types.MappingProxyType({"numgeom.beside": True})
"""Metadata of a field that is kept beside the document, such as tensors; it needs a default."""

T = TypeVar("T")
_LARGEST = 1 << 64


def encode(value: Any) -> Any:
    """Return a result, or a part of one, as plain JSON values.

    Raises:
        TypeError: if it holds something that is no data.
    """
    if value is None or isinstance(value, bool | str) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, int):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in _fields(value)] + list(getattr(value, "DERIVED", ()))
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        if value and all(_is_row(key, row) for key, row in value.items()):
            return [encode(row) for row in value.values()]
        if not all(isinstance(key, str) for key in value):
            return [[encode(key), encode(item)] for key, item in value.items()]
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise TypeError(f"{type(value).__name__} is no data that a result can hold")


def decode(kind: type[T], document: Any, place: str = "") -> T:
    """Read what `encode` returned for a value of the given type.

    Args:
        kind: The type, as it is annotated.
        document: Plain JSON values.
        place: Where they are in the whole document, for errors.

    Raises:
        ValueError: if they are something else; names the place.
    """
    return _decode(kind, document, place or getattr(kind, "__name__", "the document"))


def _is_row(key: Any, row: Any) -> bool:
    return dataclasses.is_dataclass(row) and getattr(row, "name", None) == key


def _decode(kind: Any, value: Any, place: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return _plain(value, place)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, place)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, place)
    if origin is Literal:
        return _one_of(get_args(kind), value, place)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind, value, place)
    if kind is float:
        return _number(value, place)
    if kind is int:
        if type(value) is not int or abs(value) >= _LARGEST:
            raise _wrong(value, "no whole number", place)
        return value
    if kind in (str, bool):
        if type(value) is not kind:
            raise _wrong(value, "no text" if kind is str else "neither true nor false", place)
        return value
    if origin is tuple:
        return _tuple(get_args(kind), value, place)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(origin, get_args(kind), value, place)
    raise TypeError(f"{kind} is no type of a field of a result")  # a fault of ours


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, "no object", place)
    hints = _hints(kind)
    derived = getattr(kind, "DERIVED", ())
    for key in value:
        if key not in hints and key not in derived:
            raise ValueError(f"{place} has a field {str(key)[:60]!r}, which is not known")
    found = {}
    for each in _fields(kind):
        if each.name in value:
            below = f"{place}.{each.name}"
            found[each.name] = _decode(hints[each.name], value[each.name], below)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place} has no field {each.name!r}")
    made = kind(**found)
    check = getattr(made, "check", None)
    if check is not None:
        check()
    return made


def _fields(kind: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(kind) if not f.metadata.get("numgeom.beside")]


@cache
def _hints(kind: Any) -> dict[str, Any]:
    names = {each.name for each in _fields(kind)}
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}


def _union(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    """The first type that fits; None is one of them."""
    if value is None and type(None) in kinds:
        return None
    reasons = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _decode(kind, value, place)
            except ValueError as error:
                reasons.append(error)
    raise reasons[0]


def _one_of(values: tuple[Any, ...], value: Any, place: str) -> Any:
    for each in values:
        if type(each) is type(value) and each == value:
            return each
    raise _wrong(value, f"none of {', '.join(map(str, values))}", place)


def _member(kind: type[enum.Enum], value: Any, place: str) -> enum.Enum:
    for member in kind:
        if isinstance(value, str) and value == encode(member):
            return member
    known = ", ".join(str(encode(member)) for member in kind)
    raise _wrong(value, f"none of {known}", place)


def _number(value: Any, place: str) -> float:
    try:
        number = decode_number(value)
    except (ValueError, OverflowError):
        raise _wrong(value, "no number", place) from None
    return number


def _tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(value, "no list", place)
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{place} has {len(value)} items in place of {len(kinds)}")
    parts = zip(kinds, value, strict=True)
    return tuple(_decode(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(parts))


def _mapping(origin: Any, kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if issubclass(origin, Counter):
        kinds = (kinds[0], int)
    key_kind, item_kind = kinds
    rows = dataclasses.is_dataclass(item_kind) and "name" in _hints(item_kind)
    if isinstance(value, dict):
        if key_kind is not str or (rows and value):
            raise _wrong(value, "no list", place)
        found = {k: _decode(item_kind, v, f"{place}[{k[:60]!r}]") for k, v in value.items()}
    elif rows and isinstance(value, list):
        made = [_decode(item_kind, item, f"{place}[{i}]") for i, item in enumerate(value)]
        found = {row.name: row for row in made}
    elif isinstance(value, list) and key_kind is not str:
        pairs = _tuple((tuple[key_kind, item_kind], ...), value, place)
        found = dict(pairs)
    else:
        raise _wrong(value, "no object", place)
    if len(found) < len(value):
        raise ValueError(f"{place} has a key twice")
    return Counter(found) if issubclass(origin, Counter) else found


def _plain(value: Any, place: str) -> Any:
    """Values that a result hands on as they are; texts that stand for numbers become numbers."""
    if isinstance(value, list):
        return [_plain(item, place) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, place) for key, item in value.items()}
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return decode_number(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(value, "no JSON", place)
    return value


def _wrong(value: Any, what: str, place: str) -> ValueError:
    return ValueError(f"{place} is {str(value)[:60]!r}, which is {what}")
