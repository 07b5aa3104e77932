import re
from pathlib import Path

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not re.match(r"\|( word |-)", line)
]


def test_at_most_forty_words_each_once() -> None:
    words = [word for word, _ in ROWS]
    assert 20 <= len(words) <= 40
    assert len(set(words)) == len(words)


def test_each_meaning_is_one_sentence() -> None:
    for word, meaning in ROWS:
        assert meaning.endswith("."), word
        assert not re.search(r"[.!?] [A-Z]", meaning), word


def test_every_guarantee_has_its_word() -> None:
    from numgeom import Guarantee

    assert {str(level) for level in Guarantee} <= {word for word, _ in ROWS}
