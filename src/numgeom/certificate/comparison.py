"""Where do two documents differ, and what does each of them say there?"""

import json
from collections.abc import Iterator
from typing import Any

_LONGEST = 60  # characters of a value that are shown


def unequal(said: Any, found: Any, path: str = "") -> Iterator[str]:
    """Name every field that differs, as "path: the file says A, found B".

    Args:
        said: The document that is judged.
        found: The document that it is compared with.
        path: Of both within a larger document.
    """
    if isinstance(said, dict) and isinstance(found, dict):
        for key in dict.fromkeys((*said, *found)):
            below = f"{path}.{key}".lstrip(".")
            if (key in said) != (key in found):
                yield f"{below}: {'only' if key in said else 'not'} in the file"
            else:
                yield from unequal(said[key], found[key], below)
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        for i, (x, y) in enumerate(zip(said, found, strict=True)):
            name = x.get("name", i) if isinstance(x, dict) else i
            yield from unequal(x, y, f"{path}[{name}]")
    elif type(said) is not type(found) or said != found:
        yield f"{path}: the file says {_short(said)}, found {_short(found)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
