from reproductions.attention import PUBLISHED_EXPONENT, TOLERANCES, attention
from reproductions.outcome import Settings


def test_the_study_has_lengths_parts_bits_and_the_published_claims() -> None:
    outcome = attention(Settings(), lengths=(8, 16, 32))
    lengths, bits = outcome.tables
    assert [row[0] for row in lengths.rows] == [8, 16, 32]
    for row in lengths.rows:
        assert all(0 < error < 1e-5 for error in row[1:3])
        assert 0.5 < sum(row[4:]) <= 1.0 + 1e-9  # shares of the parts; the rest is the loss
    assert [row[0] for row in bits.rows] == list(TOLERANCES)
    for loose, tight in zip(bits.rows, bits.rows[1:], strict=False):
        assert all(a < b for a, b in zip(loose[1:], tight[1:], strict=True))
    assert outcome.facts["exponent published"] == PUBLISHED_EXPONENT
    assert len(outcome.plots) == 3
    assert "holds at a tolerance of" in outcome.notes[0]
