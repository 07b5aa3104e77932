"""What do floating-point formats do, and how are bounds computed in them?

The base of every bound: formats and casts (`formats`), the arithmetic that bounds are computed in
(`rounding`, `lower_bounds`, `assumptions`), and how accurate elementary functions are
(`accuracy`). Throughout, u is a unit roundoff and gamma_n = n u / (1 - n u).
"""
