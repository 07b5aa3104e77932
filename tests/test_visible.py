"""Can text from elsewhere do more on a terminal than be read?"""

import json
import sys
import unicodedata

from numgeom.errors import NumgeomError, RecordingError
from numgeom.visible import visible, visible_json, visible_lines

# All of the first two planes, and the tags and variation selectors of the fifteenth.
EVERY_CHARACTER = "".join(map(chr, [*range(0x20000), *range(0xE0000, 0xE1000), sys.maxunicode]))


def harmless(text: str) -> bool:
    """Whether a terminal only shows the text: no control, format or separator character."""
    return not any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in text
    )


def test_every_character_of_unicode_is_shown_or_escaped() -> None:
    assert harmless(visible(EVERY_CHARACTER))
    assert harmless(visible_lines(EVERY_CHARACTER).replace("\n", ""))


def test_an_escape_means_the_character() -> None:
    for character in EVERY_CHARACTER:
        if (shown := visible(character)) != character:
            assert shown.encode("ascii").decode("unicode_escape") == character


def test_names_in_every_script_stay_as_they_are() -> None:
    for name in ("layer.0.weight", "Gewichtsänderung", "重み", "вес", "وزن", "a b", r"C:\new"):
        assert visible(name) == name


def test_lines_stay_lines() -> None:
    assert visible_lines("a\x07\nb") == "a\\x07\nb"
    assert visible("a\nb\rc\td") == r"a\nb\rc\td"


def test_characters_without_a_mark_of_their_own_are_escaped() -> None:
    for character in "\u200b\u200d\u2060\ufeff\u00ad\u034f\u3164\uffa0\ufe0f\u115f\u202e\u2066":
        assert visible(f"w{character}") != f"w{character}"
        assert visible(f"w{character}").isascii()


def test_json_reads_the_same() -> None:
    # Every code point but halves of pairs, which no text holds.
    text = "".join(c for c in EVERY_CHARACTER if unicodedata.category(c) != "Cs")
    document = {"name": text, "é": [1, "\x9b"]}
    written = visible_json(json.dumps(document, indent=2, ensure_ascii=False))
    assert json.loads(written) == document
    assert harmless(written.replace("\n", ""))


def test_messages_of_errors_are_harmless() -> None:
    text = "No parameter \x1b[2Jw\u202e.\nIt has: a."
    assert str(NumgeomError(text)) == r"No parameter \x1b[2Jw\u202e.\nIt has: a."
    assert str(RecordingError(text)) == "No parameter \\x1b[2Jw\\u202e.\nIt has: a."
    assert str(NumgeomError()) == ""
