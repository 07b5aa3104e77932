r"""How is text from elsewhere shown, so that it can only be read and does nothing to a terminal?

Names of parameters and modules, paths, lines of source files and texts in files are whatever their
author chose. Written as they are, control characters move the cursor, clear the screen or rename
the window, and characters that are not seen (zero-width, bidirectional) make one name look like
another. They are shown as Python writes them in a string: ``\x1b``, ``\n``, ``\u202e``.
"""

import re

# Printable to Python, but without a mark of their own: the rest of Unicode's
# Default_Ignorable_Code_Point (Unicode 15.1, DerivedCoreProperties.txt).
_UNSEEN = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN_CHARACTER = re.compile(f"[{_UNSEEN}]")


def visible(text: object) -> str:
    r"""Write a name so that it stays on its line and every character of it is seen.

    Printable characters (`str.isprintable`) stay as they are, in every script.

    Example:
        >>> print(visible("w\x1b[2J\nPROVED"))
        w\x1b[2J\nPROVED
    """
    line = str(text)
    if line.isprintable() and (line.isascii() or not _UNSEEN_CHARACTER.search(line)):
        return line
    return "".join(map(_shown, line))


def visible_lines(text: object) -> str:
    """The same for a text of several lines: line feeds stay."""
    return "\n".join(map(visible, str(text).split("\n")))


def visible_json(text: str) -> str:
    r"""Write JSON so that a terminal shows it as it is; what is read from it stays the same.

    JSON itself asks for an escape of the first 32 characters alone. Others that are not seen occur
    within strings only, where ``\uXXXX`` means the same.
    """
    return "\n".join(
        line if line.isascii() and line.isprintable() else "".join(map(_in_json, line))
        for line in text.split("\n")
    )


def _is_seen(character: str) -> bool:
    return character.isprintable() and not _UNSEEN_CHARACTER.match(character)


def _shown(character: str) -> str:
    if _is_seen(character):
        return character
    code = ord(character)
    if character in "\n\r\t":
        return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _in_json(character: str) -> str:
    if _is_seen(character):
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
