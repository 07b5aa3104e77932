"""Files as damage or malice might change them: an honest file, and what became of it.

Every mutation is drawn from a seeded generator. Half of those that change what a document says are
sealed again with a checksum that fits, as somebody would who knows how it is computed.
"""

import io
import json
import random
import zipfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from numgeom.results.store import sealed

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**62, 2**63, 2**64 - 1, -(2**63), 10**30, 0.5, -0.0,
    -1e308, 5e-324, "", "x", "NaN", "Infinity", "-Infinity", "inf", "nan", "PROVED", "CERTIFIED",
    "NONE", "Ω\u202e\x1b[2J", "\ud800", "x" * 20_000, "../../etc/passwd", "cuda:0", "cuda:77",
    "meta", "os.system", "aten.from_file.default", "float64", [], {}, [[]], [[[[]]]], [1] * 500,
    {"node": 0},
    {"node": 10**9}, {"tuple": []}, {"dict": []}, {"float": "0x1p9999"}, {"x": {"x": {"x": 1}}},
)  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One file made of another."""
    if content[:2] == b"PK":
        return draw.choice((_bytes, _archive, _archive, _archive))(content, draw)
    return draw.choice((_bytes, _json, _json, _json))(content, draw)


def _bytes(content: bytes, draw: random.Random) -> bytes:
    """Bits flipped, parts cut off, repeated, moved, blanked."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        kind, at = draw.randrange(6), draw.randrange(max(len(data), 1))
        n = draw.choice((1, 2, 4, 16, 200))
        if kind <= 1 and data:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[at : len(data) if draw.random() < 0.2 else at + n]
        elif kind == 3:
            data[at:at] = data[at : at + n]
        elif kind == 4:
            data[at : at + n] = draw.randbytes(n)
        else:
            data[at : at + n] = bytes(min(n, len(data) - at))
    return bytes(data)


def _json(content: bytes, draw: random.Random) -> bytes:
    """A JSON text with parts of its document replaced, moved, removed, added."""
    document = json.loads(content)
    if draw.random() < 0.05:
        return _as_text(document, draw)
    changed = changed_document(document, draw)
    if isinstance(changed, dict) and "checksum" in changed and draw.random() < 0.5:
        changed = sealed_if_possible(changed)
    return json.dumps(changed).encode()


def sealed_if_possible(document: Any) -> Any:
    """The document with a checksum that fits."""
    try:
        return sealed(document)
    except (TypeError, ValueError):
        return document


def _as_text(document: Any, draw: random.Random) -> bytes:
    """Texts that json.loads takes, and a strict reader does not."""
    text = json.dumps(document)
    return draw.choice(
        (
            text.replace(": ", ': NaN, "x": ', 1),
            text.replace("{", '{"schema": 1, ', 1),
            text.replace("1", "1" * 4_000, 1),
            text.replace(".", "." + "9" * 5_000, 1),
            text.replace("e-", "e", 1),
            "[" * 50_000 + text,
            text + text,
            "\ufeff" + text,
        )
    ).encode()


def changed_document(document: Any, draw: random.Random) -> Any:
    """A copy with a few changes anywhere in it."""
    copy = json.loads(json.dumps(document))
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        places = list(_places(copy))
        if not places:
            break
        holder, key = draw.choice(places)
        kind = draw.randrange(7)
        if kind <= 2:
            holder[key] = deepcopy(draw.choice(NASTY))
        elif kind == 3:
            other, other_key = draw.choice(places)
            holder[key], other[other_key] = (
                json.loads(json.dumps(other[other_key])),
                json.loads(json.dumps(holder[key])),
            )
        elif kind == 4:
            del holder[key]
        elif kind == 5 and isinstance(holder, dict):
            holder[draw.choice(("x", "version", "guarantee", "name", "op"))] = deepcopy(
                draw.choice(NASTY)
            )
        elif isinstance(holder, list):
            holder.insert(key, deepcopy(draw.choice(NASTY)))
        else:
            holder[key] = _nudged(holder[key], draw)
    return copy


def _nudged(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return draw.choice((-value, value * 2, value + 1, value / 3, 0))
    if isinstance(value, str):
        return draw.choice((value.upper(), value + "x", value[::-1], value[: len(value) // 2]))
    return [value]


def _places(value: Any) -> Any:
    """Every place in a document, without recursion: mutated ones may be nested deeply."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        items: Any = ()
        if isinstance(holder, dict):
            items = list(holder.items())
        elif isinstance(holder, list):
            items = list(enumerate(holder))
        for key, item in items:
            yield holder, key
            waiting.append(item)


def _archive(content: bytes, draw: random.Random) -> bytes:
    """An archive with a member changed, and everything around it right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    documents = [n for n in names if n.endswith(".json")]
    kind = draw.randrange(10)
    if documents and kind < 6:
        name = draw.choice(documents)
        members[name] = _member(members[name], draw)
    elif not documents and kind < 6:
        return _old(content, draw)
    else:
        name = draw.choice(names)
        change: Callable[[], Any] = draw.choice(
            (
                lambda: members.update({name: _bytes(members[name], draw)}),
                lambda: members.pop(name),
                lambda: members.update({name: members[draw.choice(names)]}),
                lambda: members.update({draw.choice(("x", "/abs", "../up", "a/data.pkl")): b"x"}),
            )
        )
        change()
    method = zipfile.ZIP_DEFLATED if draw.random() < 0.05 else zipfile.ZIP_STORED
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member, method)
    return to.getvalue()


def _member(text: bytes, draw: random.Random) -> bytes:
    """A document that may hold another one as text, as programs do."""
    document = json.loads(text)
    inner = isinstance(document, dict) and isinstance(document.get("structure"), str)
    if inner and draw.random() < 0.8:
        rows = changed_document(json.loads(document["structure"]), draw)
        return json.dumps({**document, "structure": json.dumps(rows)}).encode()
    return _json(text, draw)


def _old(content: bytes, draw: random.Random) -> bytes:
    """A file of torch.save whose texts or values are other ones."""
    held = torch.load(io.BytesIO(content), weights_only=True)
    key = draw.choice(list(held))
    value = held[key]
    if isinstance(value, str) and value.startswith(("[", "{")):
        held[key] = _json(value.encode(), draw).decode("utf-8", "replace")
    elif isinstance(value, dict) and value:
        inner = draw.choice(list(value))
        value[inner] = draw.choice(
            (torch.ones(1).expand(10**12), torch.ones(0), torch.ones(3).bool(), 1, None, {}, "x")
        )
    else:
        held[key] = draw.choice([item for item in NASTY if item != "\ud800"])
    to = io.BytesIO()
    torch.save(held, to)
    return to.getvalue()
