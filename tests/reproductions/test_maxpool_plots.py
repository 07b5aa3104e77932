import math

from reproductions.maxpool.plots import (
    bar_plot,
    box_plot,
    decade_counts,
    dot_plot,
    variation_histogram,
    variation_table,
)


def test_decades_are_closed_below_and_open_above() -> None:
    values = [0.0, 1e-8, 9.99e-8, 1e-7, 1e-3, math.nan, math.inf, 2.0, 10.0]
    assert decade_counts(values) == {
        "0": 1, "1e-08": 2, "1e-07": 1, "1e-03": 1, "1e+00": 1, "1e+01": 1, "not finite": 2,
    }  # fmt: skip
    for k in range(-20, 5):
        power = float(f"1e{k}")
        assert decade_counts([power]) == {f"1e{k:+03d}": 1}
        assert decade_counts([math.nextafter(power, 0)]) == {f"1e{k - 1:+03d}": 1}


def test_a_row_sums_up_its_variations() -> None:
    table = variation_table("D", {"a": [0.0, 3.0, 1.0, 2.0], "b": [0.0]})
    assert table.rows == (("a", 4, 0.25, 1.0, 1.5, 3.0), ("b", 1, 1.0, None, 0.0, 0.0))


def test_plots_name_their_groups_and_places() -> None:
    histogram = variation_histogram("h", "H", {"left": [0.0, 1e-8], "right": [1e-3, math.nan]})
    for words in (">left<", ">right<", ">0<", ">1e-08<", ">1e-03<", ">not finite<"):
        assert words in histogram.svg
    assert histogram.svg.index(">0<") < histogram.svg.index(">1e-08<")
    boxes = box_plot("b", "B", {"g": {"0": [1.0, 2.0], "10": [3.0]}}, x_label="x", y_label="y")
    assert ">10<" in boxes.svg
    bars = bar_plot("c", "C", {"g": {"p": (0.5, 0.7), "q": (1.0, None)}}, x_label="x", y_label="y")
    assert ">q<" in bars.svg
    dots = dot_plot("d", "D", {"g": {"p": 1e-6, "q": None, "r": 0.0}}, x_label="x", y_label="y")
    assert all(word in dots.svg for word in (">p<", ">q<", ">r<"))
